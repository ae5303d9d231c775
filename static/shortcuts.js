// The dialog of keyboard shortcuts. app.js runs them.

import { openDialog } from "./dialogs.js";
import { h } from "./dom.js";
import { preferences } from "./preferences.js";
import { modifier } from "./sidebar.js";

const SHORTCUTS = [
  [`${modifier} K`, "Search"],
  [`${modifier} ⇧ O`, "New chat"],
  ["Enter", preferences.sendKey === "enter" ? "Send" : "New line"],
  ["⇧ Enter", "New line"],
  ["/", "At the start or after a space: insert a saved prompt"],
  [`${modifier} Enter`, "Send, also an edited question"],
  ["Esc", "Stop the answer"],
  [`${modifier} ⇧ Enter`, "Another answer"],
  [`${modifier} ⇧ C`, "Copy the last answer"],
  ["↑", "In an empty box: edit the last question"],
  ["Alt ↑ ↓", "Previous or next chat"],
  [`${modifier} Click`, "Select a chat in the list; ⇧: all up to it"],
  [`${modifier} .`, "Choose a model"],
  [`${modifier} P`, "Print the chat"],
  ["?", "Show this list"],
];

export function openShortcuts() {
  openDialog("Keyboard shortcuts", { className: "small" },
    h("dl", { class: "keys" }, SHORTCUTS.flatMap(([keys, action]) => [
      h("dt", {}, keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, action),
    ])));
}
