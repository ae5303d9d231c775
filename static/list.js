// The list of conversations: the loaded ones, their folders, and what can be done to them. It draws nothing.

import { get, Latest, patch, post, remove, session } from "./api.js";
import { broadcast, debounce, emit, Emitter, on } from "./events.js";
import { stored } from "./storage.js";

const PAGE = 60; // conversations
const MAX_PINNED = 1000;
const MAX_READ_AGAIN = 20; // of more changed conversations, all are read again
const POLL_MS = 30_000; // for changes by other devices
const RUNNING_POLL_MS = [700, 3000]; // while an answer is written in another conversation; of a hidden tab
const ANSWERS = "fireside.answers."; // in localStorage, by user: {conversation id: true if its answer has ended unread, false if it is written}
const SORT = "fireside.sort"; // in localStorage: "name", or absent
const CLOSED = "fireside.folders.closed."; // in localStorage, by user: [folder id]

const START = { id: 0 }; // the end of a part before anything is loaded

const ORDERS = {
  activity: (a, b) => (a.updated_at < b.updated_at ? 1 : a.updated_at > b.updated_at ? -1 : b.id - a.id),
  name: (a, b) => (nameKey(a) < nameKey(b) ? -1 : nameKey(a) > nameKey(b) ? 1 : a.id - b.id),
};
const nameKey = (item) => (item.key ??= item.title.normalize("NFC").toLowerCase());

/**
 * Its events: changed (the items or folders), current (`currentId`), answered (an item that is not open), and problem with a text.
 *
 * The list has parts: the pinned conversations, those of each folder, and the rest (folder null). A part is loaded in pages up to its end.
 */
export class ConversationList extends Emitter {
  folders = []; // by name
  #items = new Map(); // the known conversations by id
  #stale = new Set(); // ids of changed conversations
  #ends = new Map(); // by folder id or null: the last conversation of what is loaded, START, or null if all is loaded
  #firstEnd = null; // of a part that is not in #ends
  #isStale = true; // whether to forget what was loaded
  #loading = new Set(); // parts
  #deleted = new Map(); // by id: those that were deleted here, for their return
  #currentId = null;
  #reads = new Latest();
  #timer = 0;
  #key = ANSWERS + session.user.id;
  #answers = stored(this.#key) ?? {};
  #closedKey = CLOSED + session.user.id;
  #closed = new Set(stored(this.#closedKey) ?? []);

  constructor() {
    super();
    const refresh = debounce(50, () => this.refresh());
    on("list", ({ id, ids = id === undefined ? null : [id], elsewhere }) => {
      if (!ids || (elsewhere && ids.length > MAX_READ_AGAIN)) this.#isStale = true;
      else if (ids.length <= MAX_READ_AGAIN) ids.forEach((one) => this.#stale.add(one));
      refresh();
    });
    on("conversation", refresh);
    on("online", refresh);
    const refreshVisible = () => {
      if (document.hidden) return;
      this.#markRead();
      this.refresh();
    };
    window.addEventListener("storage", ({ key }) => {
      if (key === this.#closedKey) this.#closed = new Set(stored(key) ?? []);
      else if (key === SORT) this.#forget();
      else if (key === this.#key) {
        this.#answers = stored(key) ?? {};
        this.#markRead();
      } else {
        return;
      }
      this.emit("changed");
    });
    document.addEventListener("visibilitychange", refreshVisible);
    window.addEventListener("focus", refreshVisible);
    setInterval(refreshVisible, POLL_MS);
  }

  get currentId() {
    return this.#currentId;
  }

  set currentId(id) {
    this.#currentId = id;
    this.#markRead();
    this.emit("current");
    this.#watchRunning();
  }

  get(id) {
    return this.#items.get(id);
  }

  // ---- the parts and their order

  /** "activity" or "name". This browser keeps it. */
  get sort() {
    return localStorage.getItem(SORT) === "name" ? "name" : "activity";
  }

  set sort(sort) {
    if (sort === "name") localStorage.setItem(SORT, sort);
    else localStorage.removeItem(SORT);
    this.#forget();
    this.emit("changed");
    this.refresh();
  }

  #forget() {
    this.#ends.clear();
    this.#isStale = true;
    if (this.sort === "name") this.#firstEnd = START;
  }

  isClosed(folderId) {
    return this.#closed.has(folderId);
  }

  setClosed(folderId, closed) {
    if (closed) this.#closed.add(folderId);
    else this.#closed.delete(folderId);
    localStorage.setItem(this.#closedKey, JSON.stringify([...this.#closed]));
    this.emit("changed");
  }

  /** The loaded conversations in their order, by part: "pinned", a folder's id, or null. */
  get parts() {
    const order = ORDERS[this.sort];
    const parts = new Map([["pinned", []], ...this.folders.map(({ id }) => [id, []]), [null, []]]);
    for (const item of [...this.#items.values()].sort(order)) {
      const part = item.pinned ? "pinned" : parts.has(item.folder_id) ? item.folder_id : null;
      if (item.pinned || this.#isWithin(item, this.#end(part))) parts.get(part).push(item);
    }
    return parts;
  }

  #end(part) {
    return this.#ends.has(part) ? this.#ends.get(part) : this.#firstEnd;
  }

  #isWithin(item, end) {
    return end === null || (end !== START && ORDERS[this.sort](item, end) <= 0);
  }

  hasMore(part) {
    return this.#end(part) !== null;
  }

  /** Read the folders and the newest, the pinned and the changed conversations again. Others stay as they were loaded. */
  async refresh() {
    if (!session.user) return;
    const read = this.#reads.begin();
    try {
      const [{ folders }, newest, pinned] = await Promise.all([
        get("/folders"), get(`/conversations?limit=${PAGE}`), get(`/conversations?pinned=true&limit=${MAX_PINNED}`),
      ]);
      if (!read.accept()) return;
      this.folders = folders;
      const last = newest.length === PAGE ? newest.at(-1) : null;
      if (last && !newest.some(({ id }) => this.#items.has(id))) this.#isStale = true; // too much is new
      for (const [id, item] of this.#items) {
        if (this.#isStale || !last || item.updated_at >= last.updated_at || item.pinned) this.#items.delete(id);
      }
      if (this.#isStale) {
        this.#ends.clear();
        this.#firstEnd = last && this.sort === "name" ? START : last;
        this.#isStale = false;
        this.#stale.clear();
      }
      for (const item of [...newest, ...pinned]) {
        this.#items.set(item.id, item);
        this.#stale.delete(item.id);
      }
      await Promise.all([...this.#stale].map((id) => this.#readAgain(id)));
      this.#noteAnswers();
      this.emit("changed");
      this.#watchRunning();
      const current = this.get(this.#currentId);
      if (current) emit("listed", current);
    } catch (error) {
      if (error.status && error.status !== 401) this.emit("problem", error.message); // the page shows those two itself
    }
  }

  async #readAgain(id) {
    this.#stale.delete(id);
    try {
      const item = await get(`/conversations/${id}`);
      if (item.temporary) this.#items.delete(id);
      else this.#items.set(id, item);
    } catch (error) {
      if (error.status !== 404) {
        this.#stale.add(id);
        throw error;
      }
      this.#items.delete(id);
      this.#note(id, undefined);
    }
  }

  // ---- the answers of conversations that are not open

  /** Whether an answer ended in this conversation since this browser had it open. */
  isUnread(id) {
    return this.#answers[id] === true;
  }

  #markRead() {
    if (this.isUnread(this.#currentId) && !document.hidden) this.#note(this.#currentId, undefined);
  }

  #note(id, isUnread) {
    if (this.#answers[id] === isUnread) return;
    this.#answers[id] = isUnread;
    localStorage.setItem(this.#key, JSON.stringify(this.#answers)); // leaves out what is undefined
  }

  #noteAnswers() {
    for (const item of this.#items.values()) {
      if (item.generation_id) this.#note(item.id, false);
      else if (this.#answers[item.id] === false) {
        const isOpen = item.id === this.#currentId;
        this.#note(item.id, isOpen ? undefined : true);
        if (!isOpen) this.emit("answered", item);
      }
    }
  }

  /** Poll the conversations whose answer is written; the stream of the open one tells its end. */
  #watchRunning() {
    clearTimeout(this.#timer);
    const running = [...this.#items.values()].filter(({ id, generation_id }) => generation_id && id !== this.#currentId);
    if (!running.length) return;
    this.#timer = setTimeout(async () => {
      const read = await Promise.all(running.map(({ id }) => get(`/conversations/${id}`).catch(() => null)));
      const ended = running.filter(({ generation_id }, index) => read[index]?.generation_id !== generation_id);
      for (const { id } of ended) this.#stale.add(id);
      if (ended.length) this.refresh();
      else this.#watchRunning();
    }, RUNNING_POLL_MS[Number(document.hidden)]);
  }

  /** Load the next page of a part. */
  async loadMore(part) {
    const end = this.#end(part);
    if (end === null || this.#loading.has(part)) return;
    this.#loading.add(part);
    const { sort } = this;
    try {
      const before = end === START ? "" : `&before=${end.id}`;
      const page = await get(`/conversations?limit=${PAGE}&sort=${sort}&folder=${part ?? 0}${before}`);
      if (sort !== this.sort || end !== this.#end(part)) return; // it was read again meanwhile
      for (const item of page) this.#items.set(item.id, item);
      this.#ends.set(part, page.length === PAGE ? page.at(-1) : null);
      this.#loading.delete(part);
      this.emit("changed");
    } catch (error) {
      if (error.status !== 404) return;
      this.#isStale = true; // the last conversation or the folder was deleted
      this.refresh();
    } finally {
      this.#loading.delete(part);
    }
  }

  // ---- changes

  change(id, fields) {
    return this.#act([id], () => patch(`/conversations/${id}`, fields));
  }

  /** Delete, restore or move many: one request, all or nothing. Resolves to the ids that were changed, or null. */
  async changeMany(ids, action, folderId = null) {
    let changed = null;
    await this.#act(ids, async () => {
      ({ ids: changed } = await post("/bulk", { ids, action, folder_id: folderId }));
      for (const id of changed) {
        const item = this.#items.get(id) ?? this.#deleted.get(id);
        if (action === "delete") {
          if (item) this.#deleted.set(id, item);
          this.#items.delete(id);
        } else if (item) {
          this.#items.set(id, action === "move" ? { ...item, folder_id: folderId, pinned: false } : item);
        }
      }
      this.emit("changed");
    });
    return changed;
  }

  /** Resolves to the folder, or null. */
  addFolder(name) {
    return this.#actOnFolders(() => post("/folders", { name }));
  }

  renameFolder(id, name) {
    return this.#actOnFolders(() => patch(`/folders/${id}`, { name }));
  }

  /** Resolves to the ids of the conversations that were in it, or null. */
  async deleteFolder(id) {
    const deleted = await this.#actOnFolders(() => remove(`/folders/${id}`), true);
    return deleted?.conversation_ids ?? null;
  }

  async #actOnFolders(request, changesChats = false) {
    try {
      const result = await request();
      this.#isStale ||= changesChats;
      await this.refresh();
      broadcast("list", changesChats ? {} : { ids: [] });
      return result;
    } catch (error) {
      this.emit("problem", error.message);
      return null;
    }
  }

  /** Resolves to whether it worked. */
  async #act(ids, request) {
    try {
      await request();
    } catch (error) {
      this.emit("problem", error.message);
      return false;
    } finally {
      broadcast("list", { ids });
      for (const id of ids) if (ids.length === 1 || id === this.#currentId) broadcast("conversation", { id });
    }
    return true;
  }
}
