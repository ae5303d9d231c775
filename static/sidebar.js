// The sidebar: the pinned conversations, the folders, the other conversations by day or by name, and the account.

import { session } from "./api.js";
import { arrange, button, download, h, stepFocus, uniqueId } from "./dom.js";
import { on } from "./events.js";
import { dayGroup, parseTime } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { openMenu, renameInPlace, toast } from "./popups.js";
import { Search } from "./search.js";

const TOAST_TITLE_LENGTH = 40;
const CHATS = "application/x-fireside-chats"; // what is dragged to a folder

export class Sidebar {
  #rows = new Map(); // by conversation id
  #groups = new Map(); // sections by heading
  #ends = new Map(); // by the part of the list: the node at its end, which loads more when it comes near
  #selection = null; // while conversations are chosen
  #undo = new Map(); // functions that remove the toast with Undo, by the id of the deleted conversation

  /** `open(id)` opens a conversation, `print(id)` prints it, `openAccount(button)` opens the account's menu; `hide()` hides the sidebar, `close()` on a narrow page only. */
  constructor(list, { open, print, openAccount, hide, close }) {
    this.list = list;
    this.open = open;
    this.print = print;
    this.listNode = h("div", { class: "list" });
    this.search = new Search((searching) => { this.listNode.hidden = searching; });
    this.options = iconButton("more", "Options of the list", () => this.#openOptions(), { "aria-haspopup": "menu" });
    this.account = button("", () => openAccount(this.account), { class: "account", "aria-haspopup": "menu" });
    this.node = h("nav", { class: "sidebar", "aria-label": "Chats", tabindex: "-1" },
      h("header", {},
        h("a", { class: "brand", href: "#/", "aria-label": "Fireside" }, icon("flame"), "Fireside"),
        iconButton("close", "Close the list", close, { class: "quiet narrow" }), iconButton("collapse", "Hide the list", hide, { class: "quiet wide" })),
      h("a", { class: "new", href: "#/", onclick: close }, icon("new"), "New chat", h("kbd", {}, isApple ? "⇧⌘O" : "Ctrl ⇧ O")),
      h("div", { class: "row" }, this.search.box, this.options), this.search.results, this.listNode, this.account);
    this.listNode.addEventListener("keydown", (event) => this.#key(event));
    this.listNode.addEventListener("click", (event) => this.#click(event, close));
    this.search.results.addEventListener("click", (event) => event.target.closest("a") && close());
    this.#acceptDrops();
    const near = { root: this.listNode, rootMargin: "600px" };
    this.observer = new IntersectionObserver((entries) => {
      for (const [part, end] of this.#ends) {
        if (entries.some(({ target, isIntersecting }) => target === end && isIntersecting)) list.loadMore(part);
      }
    }, near);
    list.on("changed", () => this.#draw());
    list.on("current", () => {
      this.#rows.forEach((row, id) => markCurrent(row, id === list.currentId));
      if (list.get(list.currentId)) this.#row(list.get(list.currentId)); // it is no longer unread
    });
    list.on("problem", (text) => toast(text));
    on("bin", ({ id }) => this.#undo.get(id)?.());
    on("account", () => this.showAccount());
  }

  showAccount() {
    const { display_name } = session.user;
    this.account.replaceChildren(h("span", { class: "avatar", "aria-hidden": "true" }, [...display_name][0].toUpperCase()),
      h("span", {}, display_name), icon("more"));
  }

  /** Open the conversation above (-1) or below (1) the current one. */
  step(by) {
    const ids = this.#links.map(idOf);
    const index = ids.indexOf(this.list.currentId);
    const next = ids[index < 0 ? 0 : index + by];
    if (next !== undefined) this.open(next);
  }

  #draw() {
    const { folders, parts } = this.list;
    for (const id of this.#rows.keys()) if (!this.list.get(id)) this.#rows.delete(id);
    for (const part of this.#ends.keys()) if (part !== null && !parts.has(part)) this.#ends.delete(part);
    const rows = (part) => parts.get(part).map((item) => this.#row(item));
    const sections = parts.get("pinned").length ? [this.#group("Pinned", rows("pinned"))] : [];
    for (const folder of folders) sections.push(this.#folder(folder, this.list.isClosed(folder.id) ? [] : rows(folder.id)));
    const groups = new Map();
    for (const item of parts.get(null)) {
      const heading = this.list.sort === "name" ? "By name" : dayGroup(parseTime(item.updated_at));
      if (!groups.has(heading)) groups.set(heading, []);
      groups.get(heading).push(this.#row(item));
    }
    for (const [heading, nodes] of groups) sections.push(this.#group(heading, nodes));
    if (!sections.length && !this.list.hasMore(null)) sections.push(h("p", { class: "faint" }, "Your chats appear here."));
    arrange(this.listNode, [...sections, this.#end(null)]);
    this.#selection?.draw();
    this.observer.disconnect(); // and observe again, because it reports changes only and an end may still be near
    for (const [part, end] of this.#ends) if (this.list.hasMore(part)) this.observer.observe(end);
  }

  /** The node at the end of a part of the list. */
  #end(part) {
    if (!this.#ends.has(part)) this.#ends.set(part, h("div", { class: "sentinel" }));
    return this.#ends.get(part);
  }

  #group(heading, rows) {
    if (!this.#groups.has(heading)) {
      const id = uniqueId("group");
      this.#groups.set(heading, h("section", { "aria-labelledby": id }, h("h2", { id }, heading), h("ul", {})));
    }
    const section = this.#groups.get(heading);
    this.#attach(section);
    arrange(section.lastChild, rows);
    return section;
  }

  /** A row that moves into a section keeps the focus if the section is on the page. */
  #attach(section) {
    if (!section.isConnected) this.listNode.append(section);
  }

  #folder(folder, rows) {
    const key = `folder ${folder.id}`;
    if (!this.#groups.has(key)) this.#groups.set(key, this.#newFolder(folder.id));
    const section = this.#groups.get(key);
    this.#attach(section);
    const closed = this.list.isClosed(folder.id);
    const [fold, more] = section.querySelectorAll("button");
    fold.setAttribute("aria-expanded", !closed);
    const [name, count] = fold.querySelectorAll("span");
    if (name.textContent !== folder.name) name.textContent = folder.name;
    count.textContent = folder.conversations || "";
    more.setAttribute("aria-label", `More about the folder ${folder.name}`);
    const ul = section.querySelector("ul");
    arrange(ul, rows);
    section.querySelector("p").hidden = closed || rows.length > 0 || this.list.hasMore(folder.id);
    const end = this.#end(folder.id);
    if (closed) end.remove();
    else if (!end.isConnected) section.append(end);
    return section;
  }

  #newFolder(id) {
    const heading = uniqueId("group");
    const openMenuHere = (event) => this.#openFolderMenu(this.list.folders.find((one) => one.id === id), event.currentTarget);
    return h("section", { class: "folder", "aria-labelledby": heading, "data-folder": id },
      h("header", {},
        h("h2", { id: heading }, button([icon("down"), icon("folder"), h("span", {}), h("span", { class: "faint" })],
          () => this.list.setClosed(id, !this.list.isClosed(id)), { class: "fold" })),
        iconButton("more", "More", openMenuHere, { "aria-haspopup": "menu" })),
      h("ul", {}), h("p", { class: "faint" }, "No chats in it"));
  }

  #openFolderMenu(folder, anchor) {
    const act = (name) => async () => (await import("./folders.js"))[name](this.list, folder);
    openMenu(anchor, [
      { icon: "new", label: "New chat in it", act: () => { location.hash = `#/f/${folder.id}`; } },
      { icon: "edit", label: "Rename", act: act("renameFolder") },
      { icon: "trash", label: "Delete the folder", danger: true, act: act("deleteFolder") },
    ]);
  }

  #openOptions() {
    const { list } = this;
    const byName = list.sort === "name";
    openMenu(this.options, [
      { icon: "addFolder", label: "New folder", act: async () => (await import("./folders.js")).addFolder(list) },
      { icon: "select", label: "Select chats", act: () => this.choose() },
      { icon: "sort", label: byName ? "Sort by activity" : "Sort by name", act: () => { list.sort = byName ? "activity" : "name"; } },
    ]);
  }

  // ---- choosing several

  get #links() {
    return [...this.listNode.querySelectorAll("li a")];
  }

  /** Begin to choose conversations, with this one if one is given. */
  async choose(id = null, extend = false) {
    const { Selection } = await import("./selection.js");
    if (!this.#selection) {
      this.#selection = new Selection(this.list, {
        links: () => this.#links, end: () => this.#endChoosing(), deleted: (ids, text) => this.#afterDeleting(ids, text),
      });
      this.listNode.classList.add("choosing");
      this.account.before(this.#selection.bar);
      if (id === null) this.#links[0]?.focus();
    }
    if (id !== null) this.#selection.toggle(id, extend);
  }

  #endChoosing() {
    this.#selection?.close();
    this.#selection = null;
    this.listNode.classList.remove("choosing");
    this.options.focus();
  }

  #click(event, close) {
    const link = event.target.closest("li a");
    if (!link) return;
    if (!this.#selection && !event.shiftKey && !event.ctrlKey && !event.metaKey) return close();
    event.preventDefault();
    this.choose(idOf(link), event.shiftKey);
  }

  #key(event) {
    const link = event.target.closest("li a");
    const command = event.ctrlKey || event.metaKey;
    if (this.#selection && event.key === "Escape") {
      event.stopPropagation(); // it does not stop the answer too
      this.#endChoosing();
    } else if (this.#selection && link && event.key === " ") {
      event.preventDefault();
      this.#selection.toggle(idOf(link), event.shiftKey);
    } else if (this.#selection && command && event.key === "a") {
      event.preventDefault();
      this.#selection.chooseAll();
    } else if (this.#selection?.chosen.size && event.key === "Delete") {
      this.#selection.remove();
    } else {
      stepFocus(event, [...this.listNode.querySelectorAll(".fold, li a")]);
      if (this.#selection && event.shiftKey && event.key.startsWith("Arrow")) {
        const reached = document.activeElement.closest("li a");
        if (link && reached) this.#selection.toggle(idOf(reached), true);
      }
    }
  }

  // ---- dragging to a folder, or out of one

  #acceptDrops() {
    let target = null;
    const mark = (section) => {
      if (section === target) return;
      target?.classList.remove("target");
      section?.classList.add("target");
      target = section;
    };
    this.listNode.addEventListener("dragstart", (event) => {
      const link = event.target.closest?.("li a");
      if (!link) return;
      const { chosen } = this.#selection ?? {};
      const id = idOf(link);
      event.dataTransfer.setData(CHATS, JSON.stringify(chosen?.has(id) ? [...chosen] : [id]));
    });
    this.listNode.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes(CHATS)) return;
      const section = event.target.closest("section");
      mark(section !== this.#groups.get("Pinned") ? section : null);
      if (target) event.preventDefault();
    });
    this.listNode.addEventListener("dragleave", (event) => this.listNode.contains(event.relatedTarget) || mark(null));
    this.listNode.addEventListener("dragend", () => mark(null));
    this.listNode.addEventListener("drop", (event) => {
      const ids = JSON.parse(event.dataTransfer.getData(CHATS) || "[]");
      const folderId = Number(target?.dataset.folder) || null;
      mark(null);
      if (!ids.length) return;
      event.preventDefault();
      this.list.changeMany(ids, "move", folderId);
    });
  }

  #row(item) {
    let row = this.#rows.get(item.id);
    if (!row) {
      const openRowMenu = (event) => this.#openMenu(this.list.get(item.id), event.currentTarget);
      row = h("li", {}, h("a", { href: `#/c/${item.id}` }), iconButton("more", "More", openRowMenu, { "aria-haspopup": "menu" }));
      markCurrent(row, item.id === this.list.currentId);
      this.#rows.set(item.id, row);
    }
    const link = row.querySelector("a"); // null while the title is being edited
    if (link && link.textContent !== item.title) {
      link.textContent = item.title;
      row.lastChild.setAttribute("aria-label", `More about ${item.title}`);
    }
    if (item.token_name) row.dataset.token = item.token_name;
    const state = item.generation_id !== null ? "running" : this.list.isUnread(item.id) ? "unread" : "";
    row.classList.toggle("running", state === "running");
    row.classList.toggle("unread", state === "unread");
    if (state) link?.setAttribute("aria-description", state === "running" ? "An answer is being written" : "New answer");
    else link?.removeAttribute("aria-description");
    return row;
  }

  #openMenu({ id, title, pinned }, anchor) {
    const change = (fields) => this.list.change(id, fields);
    const rename = () => renameInPlace(this.#rows.get(id).querySelector("a"), title, (newTitle) => change({ title: newTitle }));
    openMenu(anchor, [
      { icon: "edit", label: "Rename", act: rename },
      { icon: "pin", label: pinned ? "Unpin" : "Pin", act: () => change({ pinned: !pinned }) },
      { icon: "folder", label: "Move to a folder", act: async () => (await import("./folders.js")).chooseFolder(this.list, anchor, [id]) },
      { icon: "select", label: "Select", act: () => this.choose(id) },
      { icon: "download", label: "Save as Markdown", act: () => download(`/conversations/${id}/export?format=markdown`) },
      { icon: "print", label: "Print", act: () => this.print(id) },
      { icon: "trash", label: "Delete", danger: true, act: () => this.#remove(id, title) },
    ]);
  }

  async #remove(id, title) {
    const ids = await this.list.changeMany([id], "delete");
    const short = title.length > TOAST_TITLE_LENGTH ? `${title.slice(0, TOAST_TITLE_LENGTH)}…` : title;
    if (ids) this.#afterDeleting(ids, `Deleted “${short}”`);
  }

  #afterDeleting(ids, text) {
    const { currentId } = this.list;
    const isCurrent = ids.includes(currentId);
    if (isCurrent) this.open(null);
    const close = toast(text, "Undo", async () => {
      if (await this.list.changeMany(ids, "restore") && isCurrent) this.open(currentId);
    });
    if (ids.length === 1) this.#undo.set(ids[0], close);
  }
}

const idOf = (link) => Number(link.hash.split("/")[2]);

const isApple = /Mac|iP(hone|ad|od)/.test(navigator.platform);
export const modifier = isApple ? "⌘" : "Ctrl";

function markCurrent(row, current) {
  row.classList.toggle("current", current);
  const link = row.querySelector("a");
  if (current) link?.setAttribute("aria-current", "page");
  else link?.removeAttribute("aria-current");
}
