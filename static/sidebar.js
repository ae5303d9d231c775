// The sidebar: the conversations by day, the search in titles and messages, the account.

import { get, session } from "./api.js";
import { arrange, button, download, h, stepFocus, uniqueId } from "./dom.js";
import { debounce, on } from "./events.js";
import { counted, dayGroup, parseTime, timeNode } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { openMenu, renameInPlace, toast } from "./popups.js";

const TOAST_TITLE_LENGTH = 40;
const MAX_RESULTS = 50;
const SHOWN_MATCHES = 3; // of a conversation

export class Sidebar {
  #rows = new Map(); // by conversation id
  #groups = new Map(); // sections by heading
  #undo = new Map(); // functions that remove the toast with Undo, by the id of the deleted conversation

  /** `open(id)` opens a conversation, `print(id)` prints it, `openAccount(button)` opens the account's menu; `hide()` hides the sidebar, `close()` on a narrow page only. */
  constructor(list, { open, print, openAccount, hide, close }) {
    this.list = list;
    this.open = open;
    this.print = print;
    this.end = h("div", { class: "sentinel" });
    this.listNode = h("div", { class: "list" });
    this.search = new Search((searching) => { this.listNode.hidden = searching; });
    this.account = button("", () => openAccount(this.account), { class: "account", "aria-haspopup": "menu" });
    this.node = h("nav", { class: "sidebar", "aria-label": "Chats", tabindex: "-1" },
      h("header", {},
        h("a", { class: "brand", href: "#/", "aria-label": "Fireside" }, icon("flame"), "Fireside"),
        iconButton("close", "Close the list", close, { class: "quiet narrow" }), iconButton("collapse", "Hide the list", hide, { class: "quiet wide" })),
      h("a", { class: "new", href: "#/", onclick: close }, icon("new"), "New chat", h("kbd", {}, isApple ? "⇧⌘O" : "Ctrl ⇧ O")),
      this.search.box, this.search.results, this.listNode, this.account);
    this.listNode.addEventListener("keydown", (event) => stepFocus(event, [...this.listNode.querySelectorAll("a")]));
    for (const links of [this.listNode, this.search.results]) links.addEventListener("click", (event) => event.target.closest("a") && close());
    const near = { root: this.listNode, rootMargin: "600px" };
    new IntersectionObserver(([entry]) => entry.isIntersecting && list.loadMore(), near).observe(this.end);
    list.on("changed", () => this.#draw());
    list.on("current", () => {
      this.#rows.forEach((row, id) => markCurrent(row, id === list.currentId));
      if (list.get(list.currentId)) this.#row(list.get(list.currentId)); // it is no longer unread
    });
    list.on("problem", (text) => toast(text));
    on("bin", ({ id }) => this.#undo.get(id)?.());
    on("account", ({ user }) => {
      session.user = user;
      this.showAccount();
    });
  }

  showAccount() {
    const { display_name } = session.user;
    this.account.replaceChildren(h("span", { class: "avatar", "aria-hidden": "true" }, [...display_name][0].toUpperCase()),
      h("span", {}, display_name), icon("more"));
  }

  /** Open the conversation above (-1) or below (1) the current one. */
  step(by) {
    const ids = [...this.listNode.querySelectorAll("li a")].map((link) => Number(link.hash.split("/")[2]));
    const index = ids.indexOf(this.list.currentId);
    const next = ids[index < 0 ? 0 : index + by];
    if (next !== undefined) this.open(next);
  }

  #draw() {
    const groups = new Map();
    for (const item of this.list.items) {
      const heading = item.pinned ? "Pinned" : dayGroup(parseTime(item.updated_at));
      if (!groups.has(heading)) groups.set(heading, []);
      groups.get(heading).push(this.#row(item));
    }
    for (const id of this.#rows.keys()) if (!this.list.get(id)) this.#rows.delete(id);
    const headings = [...groups.keys()].sort((a, b) => (b === "Pinned") - (a === "Pinned"));
    const sections = headings.map((heading) => this.#group(heading, groups.get(heading)));
    if (!sections.length) sections.push(h("p", { class: "faint" }, "Your chats appear here."));
    arrange(this.listNode, [...sections, this.end]);
  }

  #group(heading, rows) {
    if (!this.#groups.has(heading)) {
      const id = uniqueId("group");
      this.#groups.set(heading, h("section", { "aria-labelledby": id }, h("h2", { id }, heading), h("ul", {})));
    }
    const section = this.#groups.get(heading);
    arrange(section.lastChild, rows);
    return section;
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
      { icon: "download", label: "Save as Markdown", act: () => download(`/conversations/${id}/export?format=markdown`) },
      { icon: "print", label: "Print", act: () => this.print(id) },
      { icon: "trash", label: "Delete", danger: true, act: () => this.#remove(id, title) },
    ]);
  }

  async #remove(id, title) {
    const isCurrent = id === this.list.currentId;
    if (!await this.list.remove(id)) return;
    if (isCurrent) this.open(null);
    const short = title.length > TOAST_TITLE_LENGTH ? `${title.slice(0, TOAST_TITLE_LENGTH)}…` : title;
    this.#undo.set(id, toast(`Deleted “${short}”`, "Undo", async () => {
      if (await this.list.restore(id) && isCurrent) this.open(id);
    }));
  }
}

const isApple = /Mac|iP(hone|ad|od)/.test(navigator.platform);
export const modifier = isApple ? "⌘" : "Ctrl";

function markCurrent(row, current) {
  row.classList.toggle("current", current);
  const link = row.querySelector("a");
  if (current) link?.setAttribute("aria-current", "page");
  else link?.removeAttribute("aria-current");
}

// ---- the search

const MATCH = /\uE000([^\uE001]*)\uE001/; // the server's marks around a match in a snippet

class Search {
  #request = null; // the AbortController of the request that is under way

  /** `onsearch(searching)` is called when the results appear or disappear. */
  constructor(onsearch) {
    this.onsearch = onsearch;
    this.input = h("input", {
      type: "search", placeholder: "Search", "aria-label": "Search chats",
      autocomplete: "off", spellcheck: "false", maxlength: "200",
      oninput: debounce(120, () => this.#search()), onkeydown: (event) => this.#key(event),
    });
    this.box = h("div", { class: "search" }, icon("search"), this.input);
    this.results = h("div", {
      class: "results", hidden: true, "aria-label": "Search results", role: "region",
      onkeydown: (event) => stepFocus(event, [this.input, ...this.results.querySelectorAll("a:not([hidden]), button")]),
    });
  }

  focus() {
    this.input.focus();
  }

  async #search() {
    const query = this.input.value.trim();
    this.#request?.abort();
    this.results.hidden = !query;
    this.onsearch(Boolean(query));
    if (!query) return this.results.replaceChildren();
    const { signal } = (this.#request = new AbortController());
    try {
      const { results } = await get(`/search?q=${encodeURIComponent(query)}&limit=${MAX_RESULTS}`, { signal });
      const count = results.length === MAX_RESULTS ? `The first ${MAX_RESULTS} matches` : results.length ? counted(results.length, "match", "matches") : "Nothing found";
      this.results.replaceChildren(h("p", { class: "faint", role: "status" }, count), h("ul", {}, byConversation(results).map(resultRow)));
    } catch (error) {
      if (!signal.aborted) this.results.replaceChildren(h("p", { class: "faint", role: "status" }, error.message));
    }
  }

  #key(event) {
    const first = this.results.querySelector("a");
    if (event.key === "Escape" && this.input.value) {
      event.stopPropagation();
      this.input.value = "";
      this.#search();
    } else if (event.key === "Enter" && !event.isComposing) {
      first?.click();
    } else if (event.key === "ArrowDown" && first) {
      event.preventDefault();
      first.focus();
    }
  }
}

/** The results of each conversation, in the order of its best one. */
function byConversation(results) {
  const found = new Map();
  for (const result of results) found.set(result.conversation_id, [...(found.get(result.conversation_id) ?? []), result]);
  return [...found.values()];
}

/** A conversation with its first matches, and a button for the others. */
function resultRow(matches) {
  const links = matches.map((match, index) => resultLink(match, index === 0));
  const hidden = links.slice(SHOWN_MATCHES);
  for (const link of hidden) link.hidden = true;
  const more = button(`${hidden.length} more`, () => {
    for (const link of hidden) link.hidden = false;
    hidden[0].focus();
    more.remove();
  }, { class: "quiet more-matches" });
  return h("li", {}, links, hidden.length > 0 && more);
}

function resultLink({ conversation_id, message_id, title, role, snippet, created_at }, isFirst) {
  return h("a", { href: `#/c/${conversation_id}${message_id === null ? "" : `/m/${message_id}`}` },
    isFirst && h("strong", {}, message_id === null ? withMatches(snippet || title) : title),
    message_id !== null && h("span", { class: "snippet" }, withMatches(snippet)),
    h("small", {}, timeNode(created_at), role === "user" ? " · you" : role ? " · answer" : ""));
}

const withMatches = (snippet) => snippet.split(MATCH).map((text, index) => (index % 2 ? h("mark", {}, text) : text));
