// The menu of saved prompts above the message box. Typing / at the start or after a space opens it.

import { styles, h, uniqueId } from "./dom.js";
import { icon } from "./icons.js";
import { loadLibrary, recentPrompts, refreshLibrary } from "./library.js";
import { announce } from "./popups.js";
import { editPrompt, textOf } from "./prompts.js";

await styles("more.css");

const MAX_QUERY = 60; // characters after the slash

export class PromptMenu {
  #items = []; // {label, detail, icon, act}
  #selected = 0;
  #dismissed = -1; // where the slash stands whose menu was closed by Escape
  #range = null; // {start, end} in the text, which a prompt replaces

  /** `manage` opens the settings. */
  constructor(area, { manage }) {
    this.area = area;
    this.manage = manage;
    this.node = h("div", { class: "suggestions", role: "listbox", id: uniqueId("prompts"), "aria-label": "Saved prompts", hidden: true });
    this.node.addEventListener("pointerdown", (event) => event.preventDefault()); // the box keeps the focus
    area.setAttribute("aria-autocomplete", "list");
    area.setAttribute("aria-controls", this.node.id);
    area.addEventListener("blur", () => this.close());
    area.parentElement.prepend(this.node);
  }

  get isOpen() {
    return !this.node.hidden;
  }

  /** Show the prompts that match the text before the cursor, if it ends with a slash and a part of a name. */
  async update() {
    const found = this.#typed();
    if (!found) {
      this.#dismissed = -1;
      return this.close();
    }
    if (found.start === this.#dismissed) return;
    if (!this.isOpen) await loadLibrary().catch(() => {});
    if (this.#typed()?.query === found.query) this.#show(found);
  }

  /** Show all prompts. One that is chosen is inserted at the cursor. */
  async open() {
    this.area.focus();
    await refreshLibrary().catch(() => {});
    this.#show({ query: "", start: this.area.selectionStart, end: this.area.selectionEnd });
  }

  close() {
    this.node.hidden = true;
    this.area.removeAttribute("aria-activedescendant");
  }

  /** Handle a key that belongs to the open menu. Returns whether it was one. */
  key(event) {
    if (!this.isOpen) return false;
    const { length } = this.#items;
    if (event.key === "ArrowDown") this.#select((this.#selected + 1) % length);
    else if (event.key === "ArrowUp") this.#select((this.#selected + length - 1) % length);
    else if (event.key === "Escape") this.#dismiss();
    else if ((event.key === "Enter" || event.key === "Tab") && !event.shiftKey && !event.ctrlKey && !event.metaKey) this.#items[this.#selected].act();
    else return false;
    event.preventDefault();
    event.stopPropagation(); // Escape does not stop the answer too
    return true;
  }

  #dismiss() {
    this.#dismissed = this.#range.start;
    this.close();
  }

  #typed() {
    const { selectionStart: end, selectionEnd, value } = this.area;
    const start = value.lastIndexOf("/", end - 1);
    const query = value.slice(start + 1, end);
    const isCommand = start >= 0 && end > start && (start === 0 || /\s/.test(value[start - 1])) && query.length <= MAX_QUERY && !query.includes("\n");
    return isCommand && end === selectionEnd ? { query, start, end } : null;
  }

  #show({ query, start, end }) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const found = recentPrompts().filter(({ name }) => words.every((word) => name.toLowerCase().includes(word)));
    const begins = ({ name }) => name.toLowerCase().startsWith(words[0] ?? "");
    this.#range = { start, end };
    this.#items = [...found.filter(begins), ...found.filter((prompt) => !begins(prompt))].map((prompt) => (
      { label: prompt.name, detail: prompt.content, icon: "bookmark", act: () => this.#insert(prompt) }
    ));
    if (!query) this.#items.push(...this.#actions());
    if (!this.#items.length || query.startsWith(" ")) return this.close();
    this.node.replaceChildren(...this.#items.map(({ label, detail, icon: name, act }) => h("div", {
      role: "option", id: uniqueId("prompt"), onclick: act,
    }, icon(name), h("span", {}, h("span", {}, label), detail && h("small", {}, detail)))));
    if (!this.isOpen) announce(`${found.length} saved prompts`);
    this.node.hidden = false;
    this.#select(0);
  }

  /** What one can do besides inserting a prompt. */
  #actions() {
    const { start, end } = this.#range;
    const rest = (this.area.value.slice(0, start) + this.area.value.slice(end)).trim();
    const save = () => {
      this.#replace("");
      editPrompt(null, rest);
    };
    const manage = () => {
      this.#replace("");
      if (recentPrompts().length) this.manage();
      else editPrompt();
    };
    return [
      rest && { label: "Save this text as a prompt", icon: "plus", act: save },
      { label: recentPrompts().length ? "Edit prompts" : "Write a prompt", icon: "edit", act: manage },
    ].filter(Boolean);
  }

  #select(index) {
    this.#selected = index;
    [...this.node.children].forEach((option, at) => option.setAttribute("aria-selected", String(at === index)));
    this.node.children[index].scrollIntoView({ block: "nearest" });
    this.area.setAttribute("aria-activedescendant", this.node.children[index].id);
  }

  async #insert(prompt) {
    this.close();
    const { value } = this.area;
    const text = await textOf(prompt);
    if (text !== null && this.area.value === value) this.#replace(text);
  }

  /** Replace the slash and what follows it. */
  #replace(text) {
    this.close();
    if (this.#range.start < this.#range.end || text) {
      this.area.setRangeText(text, this.#range.start, this.#range.end, "end");
      this.area.dispatchEvent(new Event("input", { bubbles: true }));
    }
    this.area.focus();
  }

  async insertAtEnd(prompt) {
    const text = await textOf(prompt);
    if (text === null) return;
    const { length } = this.area.value;
    this.#range = { start: length, end: length };
    this.#replace(this.area.value.trim() ? `\n\n${text}` : text);
  }
}
