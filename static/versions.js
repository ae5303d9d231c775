// The dialog that shows two versions of a message: side by side, or on a narrow screen in turn.

import { get } from "./api.js";
import { documentCard } from "./attachments.js";
import { openDialog } from "./dialogs.js";
import { button, h } from "./dom.js";
import { Markdown } from "./markdown.js";
import { versionName } from "./message.js";

/** `select(id)` makes a version the active one. */
export function compareVersions(conversationId, message, select) {
  const { ids, index } = message.versions;
  const read = new Map(); // requests by message id
  const load = (id) => {
    if (!read.has(id)) read.set(id, get(`/conversations/${conversationId}/messages/${id}?render=true`));
    return read.get(id);
  };
  const use = (id) => {
    dialog.close();
    select(id);
  };
  const sides = [index > 0 ? index - 1 : index + 1, index].map((at, place) => new Side(message, at, ["First", "Second"][place], load, use));
  const tabs = sides.map((side) => button("", () => show(side), { class: "tab" }));
  const show = (shown) => sides.forEach((side, place) => {
    side.node.classList.toggle("in-front", side === shown);
    tabs[place].setAttribute("aria-pressed", String(side === shown));
  });
  sides.forEach((side, place) => side.onchange((name) => tabs[place].replaceChildren(name)));
  show(sides[1]);
  const dialog = openDialog(message.role === "user" ? "Versions of the question" : "Versions of the answer", { className: "comparison" },
    h("div", { class: "row tabs", role: "group", "aria-label": "Version to show" }, tabs),
    h("div", { class: "sides" }, sides.map(({ node }) => node)));
}

class Side {
  #text = h("div", { class: "side-text", tabindex: "0", role: "region" });
  #markdown = new Markdown();

  constructor(message, at, place, load, use) {
    const { ids, index } = message.versions;
    this.message = message;
    this.load = load;
    this.choice = h("select", { "aria-label": `${place} version`, onchange: () => this.#draw() },
      ids.map((id, number) => h("option", { value: id, selected: number === at }, versionName(message, number))));
    this.use = button("", () => use(this.id));
    this.activeId = ids[index];
    this.node = h("section", { class: "side", "aria-label": `${place} version` }, h("div", { class: "row" }, this.choice, this.use), this.#text);
    this.#draw();
  }

  get id() {
    return Number(this.choice.value);
  }

  onchange(listener) {
    const tell = () => listener(this.choice.selectedOptions[0].textContent);
    this.choice.addEventListener("change", tell);
    tell();
  }

  async #draw() {
    const { id } = this;
    this.use.disabled = id === this.activeId;
    this.use.textContent = this.use.disabled ? "Shown" : "Use this version";
    this.#text.setAttribute("aria-label", this.choice.selectedOptions[0].textContent);
    this.#text.replaceChildren(h("p", { class: "faint" }, "Loading"));
    try {
      const version = await this.load(id);
      if (id !== this.id) return;
      if (version.role === "user") {
        const documents = version.documents?.map((one) => documentCard(one)) ?? [];
        return this.#text.replaceChildren(h("div", { class: "typed", dir: "auto" }, version.content), ...documents);
      }
      this.#markdown.show(version.content, version.blocks);
      const state = version.status !== "complete" && h("p", { class: "faint" }, STATES[version.status]);
      this.#text.replaceChildren(...[this.#markdown.node, state].filter(Boolean));
    } catch (error) {
      if (id === this.id) this.#text.replaceChildren(h("p", { class: "error" }, error.message));
    }
  }
}

const STATES = { generating: "This version is being written.", canceled: "Stopped.", interrupted: "Interrupted.", error: "The answer failed." };
