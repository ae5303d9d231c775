// The sheet of keyboard shortcuts; app.js holds what they do.

import { h, openDialog, styles } from "./dom.js";
import { modifier } from "./sidebar.js";

await styles("more.css");

const SHORTCUTS = [
  [`${modifier} K`, "Search"],
  [`${modifier} ⇧ O`, "New chat"],
  ["Enter", "Send"],
  ["⇧ Enter", "New line"],
  [`${modifier} Enter`, "Send, also an edited question"],
  ["Esc", "Stop the answer"],
  [`${modifier} ⇧ Enter`, "Another answer"],
  [`${modifier} ⇧ C`, "Copy the last answer"],
  ["↑", "In an empty box: edit the last question"],
  ["Alt ↑ ↓", "Previous or next conversation"],
  [`${modifier} .`, "Choose a model"],
  ["?", "This list"],
];

export function showShortcuts() {
  openDialog("Keyboard shortcuts", { className: "small" },
    h("dl", { class: "keys" }, SHORTCUTS.flatMap(([keys, what]) => [
      h("dt", {}, keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, what),
    ])));
}
