// What a new conversation offers besides the message box: presets, saved prompts, recent chats.

import { arrange, button, h, uniqueId } from "./dom.js";
import { on } from "./events.js";
import { icon } from "./icons.js";
import { library, loadLibrary, recentPrompts } from "./library.js";
import { hasModels } from "./models.js";

const MAX_PROMPTS = 3;
const MAX_CHATS = 3;

export class Starters {
  node = h("div", { class: "starters" });

  /** `list` has the conversations. `insert(prompt)` puts a prompt into the message box, `openSettings(section)` opens the settings. */
  constructor(conversation, list, { insert, openSettings }) {
    Object.assign(this, { conversation, list, insert, openSettings });
    on("library-read", () => this.draw());
    on("models", () => this.draw());
    list.on("changed", () => this.draw());
    conversation.on("opened", () => this.draw());
  }

  draw() {
    const { conversation } = this;
    const isShown = conversation.id === null && hasModels();
    this.node.hidden = !isShown;
    if (!isShown) return;
    loadLibrary().catch(() => {}); // the banner shows that the server cannot be reached
    const focused = document.activeElement?.closest(".starters") && document.activeElement.textContent;
    arrange(this.node, [this.#presets(), this.#columns()].filter(Boolean));
    if (focused) [...this.node.querySelectorAll("button, a")].find(({ textContent }) => textContent === focused)?.focus();
  }

  #presets() {
    if (!library.presets.length) return null;
    const current = this.conversation.preset;
    const choice = (preset, label) => button(label, () => {
      this.conversation.usePreset(preset);
      this.draw();
    }, { "aria-pressed": String((current?.id ?? null) === (preset?.id ?? null)) });
    return h("div", { class: "presets", role: "group", "aria-label": "Preset" },
      choice(null, "No preset"), library.presets.map((preset) => choice(preset, preset.name)));
  }

  #columns() {
    const prompts = recentPrompts().slice(0, MAX_PROMPTS);
    const chats = [...this.list.parts.values()].flat().sort((a, b) => (a.updated_at < b.updated_at ? 1 : -1)).slice(0, MAX_CHATS);
    const columns = [
      prompts.length && column("Your prompts", prompts.map((prompt) => button(
        [icon("bookmark"), h("span", {}, h("span", {}, prompt.name), h("small", {}, prompt.content))], () => this.insert(prompt)))),
      chats.length && column("Recent chats", chats.map(({ id, title }) => h("a", { href: `#/c/${id}` }, icon("chat"), h("span", {}, h("span", {}, title))))),
      library.isRead && !prompts.length && column("First steps", [
        button([icon("bookmark"), h("span", {}, "Save a prompt that you use often")], async () => (await import("./prompts.js")).editPrompt()),
        button([icon("sliders"), h("span", {}, "Choose what new chats begin with")], () => this.openSettings("presets")),
        !chats.length && button([icon("upload"), h("span", {}, "Import chats from another program")], () => this.openSettings("data")),
      ].filter(Boolean)),
    ];
    return h("div", { class: "columns" }, columns.filter(Boolean));
  }
}

function column(heading, items) {
  const id = uniqueId("starters");
  return h("section", { "aria-labelledby": id }, h("h2", { id }, heading), h("ul", {}, items.map((item) => h("li", {}, item))));
}
