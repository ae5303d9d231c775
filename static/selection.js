// Choosing several conversations in the list, and what can be done to them. Loaded when it is begun.

import { button, download, h } from "./dom.js";
import { counted, number } from "./format.js";
import { iconButton } from "./icons.js";
import { toast } from "./popups.js";

const MAX_EXPORTED = 1000;

export class Selection {
  chosen = new Set(); // ids
  #last = null; // the id that was chosen last: Shift chooses from it on

  /** `links()` returns the links of the list in their order, `end()` ends the selection, `deleted(ids)` is called after deleting. */
  constructor(list, { links, end, deleted }) {
    this.list = list;
    this.links = links;
    this.end = end;
    this.deleted = deleted;
    this.count = h("span", { role: "status" });
    this.actions = [
      iconButton("folder", "Move the selected chats", (event) => this.#move(event.currentTarget), { "aria-haspopup": "menu" }),
      iconButton("download", "Export the selected chats", () => this.#export()),
      iconButton("trash", "Delete the selected chats", () => this.remove()),
    ];
    this.bar = h("div", { class: "selection", role: "group", "aria-label": "Selected chats" },
      this.count, button("All", () => this.chooseAll(), { class: "quiet", title: "Select all chats that are shown" }), ...this.actions,
      iconButton("close", "Stop selecting", end));
    this.draw();
  }

  /** Choose a conversation or no longer; with `extend`, choose all from the one that was chosen last to this one. */
  toggle(id, extend = false) {
    const ids = this.links().map(idOf);
    const [from, to] = [ids.indexOf(this.#last ?? this.list.currentId), ids.indexOf(id)].sort((a, b) => a - b);
    if (extend && from >= 0) for (const one of ids.slice(from, to + 1)) this.chosen.add(one);
    else if (!this.chosen.delete(id)) this.chosen.add(id);
    this.#last = id;
    this.draw();
  }

  chooseAll() {
    for (const link of this.links()) this.chosen.add(idOf(link));
    this.draw();
  }

  draw() {
    for (const id of this.chosen) if (!this.list.get(id)) this.chosen.delete(id);
    for (const link of this.links()) {
      const isChosen = this.chosen.has(idOf(link));
      if (link.getAttribute("aria-checked") === String(isChosen)) continue;
      link.setAttribute("role", "checkbox");
      link.setAttribute("aria-checked", isChosen);
    }
    this.count.textContent = `${number(this.chosen.size)} selected`;
    for (const action of this.actions) action.disabled = !this.chosen.size;
  }

  close() {
    for (const link of this.links()) {
      link.removeAttribute("role");
      link.removeAttribute("aria-checked");
    }
    this.bar.remove();
  }

  async #move(anchor) {
    const { chooseFolder } = await import("./folders.js");
    chooseFolder(this.list, anchor, [...this.chosen], this.end);
  }

  #export() {
    if (this.chosen.size > MAX_EXPORTED) {
      return toast(`At most ${number(MAX_EXPORTED)} chats can be exported at once. Settings, Your data exports everything.`);
    }
    download(`/export?ids=${[...this.chosen]}`);
    this.end();
  }

  async remove() {
    const ids = await this.list.changeMany([...this.chosen], "delete");
    if (!ids) return;
    this.end();
    this.deleted(ids, `Deleted ${counted(ids.length, "chat")}`);
  }
}

const idOf = (link) => Number(link.hash.split("/")[2]);
