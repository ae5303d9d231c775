// The list of conversations: the loaded ones, and what can be done to them. It draws nothing.

import { get, Latest, patch, post, remove, session } from "./api.js";
import { broadcast, debounce, emit, Emitter, on } from "./events.js";

const PAGE = 60; // conversations
const MAX_PINNED = 1000;
const POLL_MS = 30_000; // for changes by other devices
const RUNNING_POLL_MS = [700, 3000]; // while an answer is written in another conversation; of a hidden tab
const ANSWERS = "fireside.answers."; // in localStorage, by user: {conversation id: true if its answer has ended unread, false if it is written}

/** Its events: changed (the items), current (`currentId`), answered (an item that is not open), and problem with a text. */
export class ConversationList extends Emitter {
  #items = new Map(); // the loaded conversations by id
  #stale = new Set(); // ids of changed conversations
  #hasMore = false;
  #loadingMore = false;
  #currentId = null;
  #reads = new Latest();
  #timer = 0;
  #key = ANSWERS + session.user.id;
  #answers = readJson(this.#key);

  constructor() {
    super();
    const refresh = debounce(50, () => this.refresh());
    on("list", ({ id }) => {
      if (id !== undefined) this.#stale.add(id);
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
      if (key !== this.#key) return;
      this.#answers = readJson(key);
      this.#markRead();
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

  /** The loaded conversations, the most recently active first. */
  get items() {
    return [...this.#items.values()].sort((a, b) => (a.updated_at < b.updated_at ? 1 : a.updated_at > b.updated_at ? -1 : b.id - a.id));
  }

  get #oldest() {
    return this.items.findLast(({ pinned }) => !pinned) ?? this.items.at(-1);
  }

  /** Read the newest, the pinned and the changed conversations again. Others stay as they were loaded. */
  async refresh() {
    if (!session.user) return;
    const read = this.#reads.begin();
    try {
      const [newest, pinned] = await Promise.all([get(`/conversations?limit=${PAGE}`), get(`/conversations?pinned=true&limit=${MAX_PINNED}`)]);
      if (!read.accept()) return;
      const isFull = newest.length === PAGE;
      for (const [id, item] of this.#items) {
        if (!isFull || item.updated_at >= newest.at(-1).updated_at || item.pinned) this.#items.delete(id);
      }
      if (!this.#items.size) this.#hasMore = isFull;
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
      const oldest = this.items.findLast(({ pinned }) => !pinned);
      if (this.#items.has(id) || !this.#hasMore || item.updated_at >= oldest?.updated_at) this.#items.set(id, item);
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

  async loadMore() {
    const oldest = this.#oldest;
    if (!this.#hasMore || this.#loadingMore || !oldest) return;
    this.#loadingMore = true;
    try {
      const page = await get(`/conversations?limit=${PAGE}&before=${oldest.id}`);
      this.#hasMore = page.length === PAGE;
      for (const item of page) this.#items.set(item.id, item);
      this.emit("changed");
    } catch (error) {
      if (error.status === 404) this.refresh(); // the oldest conversation was deleted
    } finally {
      this.#loadingMore = false;
    }
  }

  change(id, fields) {
    return this.#act(id, () => patch(`/conversations/${id}`, fields));
  }

  /** Move to the bin. */
  remove(id) {
    return this.#act(id, () => remove(`/conversations/${id}`));
  }

  restore(id) {
    return this.#act(id, () => post(`/conversations/${id}/restore`));
  }

  /** Resolves to whether it worked. */
  async #act(id, request) {
    try {
      await request();
    } catch (error) {
      this.emit("problem", error.message);
      return false;
    } finally {
      broadcast("list", { id });
      broadcast("conversation", { id });
    }
    return true;
  }
}

function readJson(key) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? {};
  } catch {
    return {};
  }
}
