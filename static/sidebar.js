// The list of conversations, newest first and by day, and the search over titles and texts.

import { changed, get, onChange, patch, post, remove, session, tell } from "./api.js";
import {
  arrange, button, counter, dayGroup, debounce, h, icon, iconButton, openMenu, parseTime, renameInPlace, stepFocus, timeNode, toast,
} from "./dom.js";

const PAGE = 60; // conversations
const POLL = 30_000; // ms between quiet looks for what another device has changed
const MARKED = /\uE000([^\uE001]*)\uE001/; // a match in a snippet

export class Sidebar {
  #items = new Map(); // the loaded conversations by id
  #rows = new Map(); // their rows by id
  #groups = new Map(); // sections by heading
  #undo = new Map(); // by id of what was deleted here: what takes the offer of its return away
  #stale = new Set(); // ids of those that have changed, which may lie beyond the newest
  #more = false;
  #current = null;
  #refreshed = 0; // how often that was begun
  #shown = 0; // the number of the one that is shown
  #searching = null; // AbortController of the search under way

  /** `open(id)` shows a conversation; `account(button)` opens the menu of the account. */
  constructor({ open, account, close }) {
    this.open = open;
    this.search = h("input", {
      type: "search", placeholder: "Search", "aria-label": "Search conversations",
      autocomplete: "off", spellcheck: "false", maxlength: "200",
      oninput: debounce(120, () => this.#search()), onkeydown: (event) => this.#searchKey(event),
    });
    this.results = h("div", { class: "results", hidden: true, "aria-label": "Search results", role: "region" });
    this.end = h("div", { class: "sentinel" });
    this.list = h("div", { class: "list" });
    this.account = button("", () => account(this.account), { class: "account", "aria-haspopup": "menu" });
    this.node = h("nav", { class: "sidebar", "aria-label": "Conversations", tabindex: "-1" },
      h("header", {},
        h("a", { class: "brand", href: "#/", "aria-label": "Fireside" }, icon("flame"), "Fireside"),
        iconButton("close", "Close the list", close, { class: "quiet narrow" })),
      h("a", { class: "new", href: "#/", onclick: close }, icon("new"), "New chat", h("kbd", {}, shortcutName)),
      h("div", { class: "search" }, icon("search"), this.search),
      this.results, this.list, this.account);
    this.list.addEventListener("keydown", (event) => stepFocus(event, [...this.list.querySelectorAll("a")]));
    this.list.addEventListener("click", (event) => event.target.closest("a") && close());
    this.results.addEventListener("keydown", (event) => stepFocus(event, [this.search, ...this.results.querySelectorAll("a")]));
    this.results.addEventListener("click", (event) => event.target.closest("a") && close());
    const near = { root: this.list, rootMargin: "600px" };
    new IntersectionObserver(([entry]) => entry.isIntersecting && this.#loadMore(), near).observe(this.end);
    const refresh = debounce(50, () => this.refresh());
    onChange("list", ({ id }) => {
      this.#stale.add(id);
      refresh();
    });
    onChange("conversation", refresh);
    onChange("bin", ({ id }) => this.#undo.get(id)?.());
    onChange("online", refresh);
    const look = () => document.hidden || this.refresh();
    document.addEventListener("visibilitychange", look);
    window.addEventListener("focus", look);
    setInterval(look, POLL);
  }

  set current(id) {
    this.#current = id;
    for (const [rowId, row] of this.#rows) markCurrent(row, rowId === id);
  }

  /** Reads the newest again, and what has changed; what else lies beyond them stays as it was loaded. */
  async refresh() {
    if (!session.user) return;
    this.account.replaceChildren(h("span", { class: "avatar", "aria-hidden": "true" }, [...session.user.username][0].toUpperCase()),
      h("span", {}, session.user.username), icon("more"));
    const turn = ++this.#refreshed;
    try {
      const [newest, pinned] = await Promise.all([get(`/conversations?limit=${PAGE}`), get("/conversations?pinned=true&limit=1000")]);
      if (turn < this.#shown) return; // one that began later was quicker
      this.#shown = turn;
      const last = newest.at(-1);
      const full = newest.length === PAGE;
      for (const [id, item] of this.#items) {
        if (!full || item.updated_at >= last.updated_at || item.pinned) this.#items.delete(id);
      }
      if (!this.#items.size) this.#more = full;
      for (const item of [...newest, ...pinned]) {
        this.#items.set(item.id, item);
        this.#stale.delete(item.id);
      }
      await Promise.all([...this.#stale].map((id) => this.#reread(id)));
      this.#draw();
      const current = this.#items.get(this.#current);
      if (current) tell("listed", current);
    } catch (error) {
      if (error.status !== 0 && error.status !== 401) toast(error.message);
    }
  }

  async #reread(id) {
    this.#stale.delete(id);
    if (id === undefined) return;
    try {
      const item = await get(`/conversations/${id}`);
      const oldest = this.#ordered().findLast(({ pinned }) => !pinned);
      const loaded = this.#items.has(id) || !this.#more || item.updated_at >= oldest?.updated_at;
      if (loaded) this.#items.set(id, item);
    } catch (error) {
      if (error.status !== 404) {
        this.#stale.add(id);
        throw error;
      }
      this.#items.delete(id);
    }
  }

  async #loadMore() {
    const oldest = this.#ordered().findLast((item) => !item.pinned) ?? this.#ordered().at(-1);
    if (!this.#more || this.loading || !oldest) return;
    this.loading = true;
    try {
      const page = await get(`/conversations?limit=${PAGE}&before=${oldest.id}`);
      this.#more = page.length === PAGE;
      for (const item of page) this.#items.set(item.id, item);
      this.#draw();
    } catch (error) {
      if (error.status === 404) this.refresh(); // the oldest one is gone
    } finally {
      this.loading = false;
    }
  }

  #ordered() {
    return [...this.#items.values()].sort((a, b) => (a.updated_at < b.updated_at ? 1 : a.updated_at > b.updated_at ? -1 : b.id - a.id));
  }

  #draw() {
    const sections = new Map();
    for (const item of this.#ordered()) {
      const heading = item.pinned ? "Pinned" : dayGroup(parseTime(item.updated_at));
      if (!sections.has(heading)) sections.set(heading, []);
      sections.get(heading).push(this.#row(item));
    }
    for (const id of this.#rows.keys()) if (!this.#items.has(id)) this.#rows.delete(id);
    const order = [...sections.keys()].sort((a, b) => (b === "Pinned") - (a === "Pinned"));
    arrange(this.list, [...order.map((heading) => {
      const group = this.#group(heading);
      arrange(group.lastChild, sections.get(heading));
      return group;
    }), !sections.size && h("p", { class: "faint" }, "Your conversations will be listed here."), this.end].filter(Boolean));
  }

  #group(heading) {
    if (!this.#groups.has(heading)) {
      const id = `group-${counter()}`;
      this.#groups.set(heading, h("section", { "aria-labelledby": id }, h("h2", { id }, heading), h("ul", {})));
    }
    return this.#groups.get(heading);
  }

  #row(item) {
    let row = this.#rows.get(item.id);
    if (!row) {
      row = h("li", {}, h("a", { href: `#/c/${item.id}` }),
        iconButton("more", "More", (event) => this.#menu(this.#items.get(item.id), event.currentTarget), { "aria-haspopup": "menu" }));
      markCurrent(row, item.id === this.#current);
      this.#rows.set(item.id, row);
    }
    const link = row.querySelector("a");
    if (link && link.textContent !== item.title) {
      link.textContent = item.title;
      row.lastChild.setAttribute("aria-label", `More about ${item.title}`);
    }
    row.classList.toggle("running", item.generation_id !== null);
    return row;
  }

  #menu(item, button) {
    const change = (fields) => this.#change(item.id, fields);
    const rename = () => renameInPlace(this.#rows.get(item.id).querySelector("a"), item.title, (title) => change({ title }));
    openMenu(button, [
      { icon: "edit", label: "Rename", act: rename },
      { icon: "pin", label: item.pinned ? "Unpin" : "Pin", act: () => change({ pinned: !item.pinned }) },
      { icon: "download", label: "Save as Markdown", act: () => saveAs(`/conversations/${item.id}/export?format=markdown`) },
      { icon: "trash", label: "Delete", danger: true, act: () => this.remove(item) },
    ]);
  }

  async #change(id, fields) {
    try {
      await patch(`/conversations/${id}`, fields);
    } catch (error) {
      toast(error.message);
    }
    changed("list", { id });
    changed("conversation", { id });
  }

  /** To the bin, with a way back. */
  async remove({ id, title }) {
    try {
      await remove(`/conversations/${id}`);
    } catch (error) {
      return toast(error.message);
    }
    const open = this.#current === id;
    if (open) this.open(null);
    changed("list", { id });
    changed("conversation", { id });
    this.#undo.set(id, toast(`Deleted “${title.length > 40 ? `${title.slice(0, 40)}…` : title}”`, "Undo", async () => {
      try {
        await post(`/conversations/${id}/restore`);
        changed("list", { id });
        if (open) this.open(id);
      } catch (error) {
        toast(error.message);
      }
    }));
  }

  /** The conversation before (-1) or after (1) the current one, as the list shows them. */
  step(by) {
    const shown = [...this.list.querySelectorAll("li a")].map((link) => Number(link.hash.split("/")[2]));
    const at = shown.indexOf(this.#current);
    const to = shown[at < 0 ? 0 : at + by];
    if (to !== undefined) this.open(to);
  }

  async #search() {
    const query = this.search.value.trim();
    this.#searching?.abort();
    this.results.hidden = !query;
    this.list.hidden = Boolean(query);
    if (!query) return this.results.replaceChildren();
    const search = (this.#searching = new AbortController());
    try {
      const { results } = await get(`/search?q=${encodeURIComponent(query)}&limit=50`, { signal: search.signal });
      const count = results.length === 50 ? "The first 50 found" : results.length ? `${results.length} found` : "Nothing found";
      this.results.replaceChildren(
        h("p", { class: "faint", role: "status" }, count),
        h("ul", {}, results.map(resultRow)));
    } catch (error) {
      if (!search.signal.aborted) this.results.replaceChildren(h("p", { class: "faint", role: "status" }, error.message));
    }
  }

  #searchKey(event) {
    const first = this.results.querySelector("a");
    if (event.key === "Escape" && this.search.value) {
      event.stopPropagation();
      this.search.value = "";
      this.#search();
    } else if (event.key === "Enter" && !event.isComposing) first?.click();
    else if (event.key === "ArrowDown" && first) {
      event.preventDefault();
      first.focus();
    }
  }
}

const apple = /Mac|iP(hone|ad|od)/.test(navigator.platform);
export const modifier = apple ? "⌘" : "Ctrl";
const shortcutName = apple ? "⇧⌘O" : "Ctrl ⇧ O";

function markCurrent(row, current) {
  row.classList.toggle("current", current);
  const link = row.querySelector("a");
  if (current) link?.setAttribute("aria-current", "page");
  else link?.removeAttribute("aria-current");
}

function resultRow({ conversation_id, message_id, title, role, snippet, created_at }) {
  return h("li", {}, h("a", { href: `#/c/${conversation_id}${message_id === null ? "" : `/m/${message_id}`}` },
    h("strong", {}, message_id === null ? marked(snippet || title) : title),
    message_id !== null && h("span", { class: "snippet" }, marked(snippet)),
    h("small", {}, timeNode(created_at), role === "user" ? " · you" : role ? " · answer" : "")));
}

function marked(snippet) {
  return snippet.split(MARKED).map((text, index) => (index % 2 ? h("mark", {}, text) : text));
}

/** Has the browser download a file of the server's. */
export function saveAs(path) {
  const link = h("a", { href: path, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}
