// The open conversation: its path of messages, the answer being written, and what one does to them.

import { answerEvents, changed, get, onChange, patch, post, tell } from "./api.js";
import { Composer } from "./composer.js";
import { announce, arrange, button, debounce, h, icon, randomId, toast } from "./dom.js";
import { Head } from "./head.js";
import { messageView } from "./message.js";
import { asked, chosen, followModel, label, refreshModels, welcome } from "./models.js";
import { Scroller } from "./scroll.js";

const PAGE = 60; // messages
const MOST = 1000; // that the server gives at a time
const UNREACHABLE = "Not sent: Fireside cannot be reached. Your text is still here.";
const HIDDEN_LOOK = 5000; // ms between looks at an answer whose tab is hidden and reads no stream

export class Chat {
  id; // null: a new conversation, which is made when its first message is sent; undefined: none is open yet
  conversation = null;
  #fields = {}; // what a new conversation will be made with
  #path = []; // the loaded part of the active path, oldest first
  #views = new Map(); // by message id
  #more = false; // whether the path goes on above
  #counted = null; // {id, above}: a message, and how many lie above it, on every branch
  #counting = null; // the id of the message for which that is being asked
  #older = null; // the promise of the page above that is being loaded
  #asking = false; // a question is on its way, or the wish for another answer
  #unsent = { content: null, clientId: "" }; // the message that was sent last and not accepted yet
  #reader = null; // {controller, generationId, messageId, after, phase, stop, stopping} of the stream that is being read
  #left = null; // {generationId, messageId, after} where one was left whose answer is still shown
  #ended = null; // the generation whose `done` was read last
  #look = 0;
  #opening = 0;
  #refreshed = 0; // how often that was begun
  #shown = 0; // the number of the one that is shown

  /** `created(id)` is called when a new conversation gets its id. */
  constructor({ openMenu, created }) {
    this.created = created;
    this.actions = {
      edit: (message, text) => this.#ask(text, () => images(message), message.parent_id),
      retry: (message) => this.retry(message),
      goOn: () => this.#ask("Continue where you stopped.", () => []),
      select: (id) => this.#select(id),
    };
    this.column = h("div", { class: "column" });
    this.scroller = new Scroller(this.column);
    this.composer = new Composer({
      send: (text, images) => this.#ask(text, () => images), stop: () => this.stop(), editLast: () => this.editLast(),
    }, this.scroller.button);
    this.head = new Head(this, openMenu);
    this.banner = h("p", { class: "banner", role: "status", hidden: true },
      h("span", { class: "pulse" }), "Connection lost. Trying to get it back.");
    this.top = h("div", { class: "sentinel" });
    this.notSent = h("p", { class: "divider" }, h("span", {}, "Not sent above here: the context is full"));
    this.node = h("main", { tabindex: "-1" }, this.head.node, this.banner, this.scroller.node, this.composer.node);

    const near = { root: this.scroller.node, rootMargin: "800px" };
    this.near = new IntersectionObserver((entries) => entries.at(-1).isIntersecting && this.#loadOlder(), near);
    const refresh = debounce(50, () => document.hidden || this.refresh());
    onChange("models", () => this.drawAround());
    onChange("offline", () => { this.banner.hidden = false; });
    onChange("online", () => {
      this.banner.hidden = true;
      if (this.#reader?.stop) this.stop();
      refresh();
    });
    onChange("listed", (conversation) => this.#differs(conversation) && refresh());
    onChange("conversation", ({ id, elsewhere }) => elsewhere && id === this.id && refresh());
    window.addEventListener("focus", refresh);
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#hide() : refresh()));
  }

  /** Shows a conversation, at one of its messages where one is named. */
  async open(id, messageId = null) {
    const turn = ++this.#opening;
    if (id !== this.id) this.#leave(id);
    if (!messageId) this.composer.focus(); // now: when all is read, somebody may be writing elsewhere
    if (await this.refresh() && messageId && turn === this.#opening) await this.#jump(messageId);
  }

  #leave(id) {
    this.head.leave(); // what is unsaved there belongs to the conversation that is left
    this.#stopReading();
    this.#left = null;
    Object.assign(this, { id, conversation: null });
    this.#shown = 0;
    this.#fields = {};
    this.#path = [];
    this.#views.clear();
    this.#more = false;
    this.scroller.toEnd();
    this.composer.open(id);
    this.#draw();
  }

  /** Reads the conversation anew and follows the answer that is being written, if one is. Resolves to whether it is there. */
  async refresh() {
    const id = this.id;
    if (id === null) return false;
    const turn = ++this.#refreshed;
    const limit = Math.min(MOST, Math.max(PAGE, this.#path.length + 10));
    let resumable = false;
    try {
      const [conversation, path] = await Promise.all([
        get(`/conversations/${id}`), get(`/conversations/${id}/messages?render=true&limit=${limit}`),
      ]);
      if (id !== this.id) return false;
      if (turn < this.#shown) return true; // one that began later was quicker
      this.#shown = turn;
      const renamed = this.conversation?.title !== conversation.title;
      this.conversation = conversation;
      const above = this.#path.slice(0, Math.max(0, this.#path.findIndex((message) => message.id === path[0]?.id)));
      this.#path = [...above, ...path]; // what is above a message is the same on every branch
      if (!above.length) this.#more = path.length === limit;
      resumable = this.#views.has(this.#left?.messageId);
      this.#draw();
      this.#countAbove();
      if (renamed) tell("list", { id });
    } catch (error) {
      if (id === this.id && turn < this.#shown) return true;
      if (id === this.id && error.status === 404) this.#gone();
      else if (error.status && error.status !== 401) toast(error.message);
      return false;
    }
    // The two were not read in one moment: either may name one that has told its end, and the path may not know of it yet.
    const written = this.#path.find(({ status }) => status === "generating")?.generation_id;
    const generationId = [written, this.conversation.generation_id].find((one) => one && one !== this.#ended);
    if (generationId && generationId !== this.#reader?.generationId && !document.hidden) {
      this.#read(resumable && this.#left.generationId === generationId ? this.#left : { generationId });
    }
    return true;
  }

  /** Whether another device has done something to this conversation, by what the list tells. */
  #differs({ id, title, updated_at, generation_id }) {
    if (id !== this.id || !this.conversation || this.#reader) return false;
    const known = this.conversation;
    return title !== known.title || updated_at !== known.updated_at || generation_id !== known.generation_id;
  }

  #gone() {
    toast("This conversation is not there any more.");
    location.hash = "#/";
  }

  // ---- asking

  /**
   * Adds a question, below the last message unless `parentId` says where, and has it answered. `images()` may be a promise.
   * Resolves to whether it was sent; if not, the text stays where it was written.
   */
  async #ask(text, images, parentId) {
    if (this.#reader || this.#asking) return this.#wait();
    this.#asking = true;
    try {
      const attached = await images();
      // A message that is sent again after a lost connection keeps its client_id, so that the server stores it once.
      const content = JSON.stringify([text, ...attached.map(({ data }) => data)]);
      if (this.#unsent.content !== content) this.#unsent = { content, clientId: randomId() };
      if (this.id !== null && !this.conversation && !await this.refresh()) return false;
      if (this.#reader) return this.#wait();
      const choice = chosen(this.conversation);
      if (parentId === undefined) parentId = this.#path.at(-1)?.id ?? null;
      const message = { content: text, client_id: this.#unsent.clientId };
      if (attached.length) message.images = attached.map(({ media_type, data }) => ({ media_type, data }));
      const isNew = this.id === null;
      const id = isNew ? await this.#create(choice, message) : this.id;
      if (!isNew) await post(`/conversations/${id}/messages`, { ...message, parent_id: parentId });
      this.#unsent = { content: null, clientId: "" };
      const source = { path: `/conversations/${id}/stream`, body: asked(choice) };
      if (id === this.id) {
        this.scroller.toEnd();
        await this.refresh();
      }
      if (id !== this.id) await begin(source);
      else if (!this.#reader) this.#read(source);
      changed("list", { id });
      return true;
    } catch (error) {
      toast(error.status === 0 ? UNREACHABLE : error.message);
      return false;
    } finally {
      this.#asking = false;
    }
  }

  #wait() {
    toast(this.banner.hidden ? "Wait for the answer, or stop it first. Your text is still here." : UNREACHABLE);
    return false;
  }

  /**
   * Creates a conversation with its first message, both or neither. It becomes the open one unless the person has opened another.
   * Resolves to its id.
   */
  async #create(choice, message) {
    const turn = this.#opening;
    const conversation = await post("/conversations", { ...asked(choice), ...this.#fields, message });
    if (turn === this.#opening) {
      Object.assign(this, { id: conversation.id, conversation });
      this.composer.adopt(this.id);
      this.created(this.id);
    }
    return conversation.id;
  }

  /** Another version of an answer, the last one unless another is named, by the model that is chosen now. */
  async retry(answer = this.#path.at(-1)) {
    if (!answer || this.#reader || this.#asking) return;
    const { id } = this;
    const choice = asked(chosen(this.conversation));
    if (answer.role === "user") return this.#read({ path: `/conversations/${id}/stream`, body: choice });
    this.#asking = true;
    try {
      await post("/chat/retry", { conversation_id: id, message_id: answer.id, ...choice });
      if (id === this.id) {
        this.scroller.toEnd();
        await this.refresh();
      }
      changed("conversation", { id });
    } catch (error) {
      toast(error.message);
    } finally {
      this.#asking = false;
    }
  }

  async #select(messageId) {
    try {
      await post(`/conversations/${this.id}/active`, { message_id: messageId });
      this.scroller.hold();
      await this.refresh();
      this.#views.get(messageId)?.node.querySelector(".switch button:not(:disabled)")?.focus({ preventScroll: true });
      changed("conversation", { id: this.id });
    } catch (error) {
      toast(error.message);
    }
  }

  editLast() {
    this.#path.map(({ id }) => this.#views.get(id)).findLast((view) => view.edit)?.edit(this.composer.area);
  }

  /** Stops the answer. Its generation's id comes with the first event: before that, it is stopped when the id is there. */
  async stop() {
    const reader = this.#reader;
    if (!reader) return;
    reader.stop = true;
    if (!reader.generationId || reader.stopping) return;
    reader.stopping = true;
    try {
      await post(`/chat/cancel/${reader.generationId}`);
    } catch (error) {
      reader.stopping = false;
      if (error.status !== 404) toast(error.status === 0 ? "It is stopped as soon as Fireside can be reached." : error.message);
    }
  }

  get busy() {
    return Boolean(this.#reader);
  }

  // ---- reading the answer

  async #read(source) {
    this.#stopReading();
    const { generationId = null, after = -1 } = source;
    const shown = this.#path.find((message) => generationId && message.generation_id === generationId);
    const reader = (this.#reader = { controller: new AbortController(), generationId, messageId: shown?.id, after });
    this.composer.busy = true;
    try {
      for await (const { event, id, data } of answerEvents(source, reader.controller.signal)) {
        reader.after = id ?? reader.after;
        const view = this.#views.get(reader.messageId);
        if (event === "ping" && data.message_id) this.#begin(data, reader);
        else if (event === "progress") this.#progress(data, reader, view);
        else if (event === "reasoning") view?.think(data.delta);
        else if (event === "delta") view?.append(data.delta);
        else if (event === "reset") view?.restart();
        else if (event === "done") {
          this.#ended = data.generation_id;
          return await this.#finish(reader, data.message_id);
        }
      }
      await this.#finish(reader);
    } catch (error) {
      if (this.#reader !== reader) return;
      this.#stopReading();
      this.#draw(); // a question without an answer says so
      if (error.status !== 0) toast(error.message);
      if (error.code === "GENERATION_ACTIVE") this.refresh();
    }
  }

  /**
   * The first event names the answer. What is shown of it already, from an earlier reading, comes again. One that was being
   * written before and is not in the path is newer than that, or on another branch: its view waits until that is shown.
   */
  #begin({ message_id: id, generation_id }, reader) {
    const begun = reader.generationId === null;
    Object.assign(reader, { generationId: generation_id, messageId: id });
    const message = { id, role: "assistant", status: "generating", content: "", generation_id };
    if (this.#views.has(id)) this.#views.get(id).restart();
    else this.#views.set(id, messageView(message, this.actions));
    if (!this.#path.some((one) => one.id === id)) {
      if (begun) {
        this.#shown = ++this.#refreshed; // what is being read from before does not hold it
        this.#path.push(message);
      } else this.refresh();
      this.#draw();
    }
    if (begun) changed("conversation", { id: this.id });
    if (reader.stop) this.stop();
  }

  /** A model that is loaded for this answer is soon shown so. */
  #progress(data, reader, view) {
    view?.progress(data);
    const model = chosen(this.conversation)?.model;
    if (data.phase !== reader.phase && model?.state === "not-loaded") followModel(model.id);
    reader.phase = data.phase;
  }

  async #finish(reader, messageId) {
    if (this.#reader !== reader) return;
    this.#stopReading();
    await this.refresh();
    const answer = this.#path.find(({ id }) => id === messageId);
    if (answer) announce(this.#views.get(messageId).spoken);
    changed("conversation", { id: this.id });
    changed("list", { id: this.id });
    refreshModels().catch(() => {}); // what is loaded may have changed
  }

  #stopReading() {
    if (!this.#reader) return;
    const { controller, generationId, messageId, after } = this.#reader;
    controller.abort();
    this.#left = { generationId, messageId, after };
    this.#reader = null;
    followModel(null);
    this.composer.busy = false;
  }

  /** A hidden tab reads no stream, so that many tabs leave each other connections; it looks now and then instead. */
  #hide() {
    clearTimeout(this.#look);
    if (!this.#reader) return;
    this.#stopReading();
    const look = async () => {
      const { generation_id } = await get(`/conversations/${this.id}`).catch(() => ({}));
      if (!document.hidden) return;
      if (generation_id === null) document.title = `✓ ${document.title}`;
      else this.#look = setTimeout(look, HIDDEN_LOOK);
    };
    this.#look = setTimeout(look, HIDDEN_LOOK);
  }

  // ---- the path

  /** Resolves to whether there was more. */
  #loadOlder(limit = PAGE) {
    this.#older ??= this.#readOlder(limit).finally(() => { this.#older = null; });
    return this.#older;
  }

  async #readOlder(limit) {
    if (!this.#more) return false;
    const id = this.id;
    try {
      const older = await get(`/conversations/${id}/messages?render=true&limit=${limit}&before=${this.#path[0].id}`);
      if (id !== this.id) return false;
      this.#path.unshift(...older);
      this.#more = older.length === limit;
      this.scroller.keeping(() => this.#draw());
      return true;
    } catch (error) {
      if (error.status !== 0) toast(error.message);
      return false;
    }
  }

  /** To a message, which may lie above what is loaded, or on another branch. The further up, the more is read at a time. */
  async #jump(messageId) {
    const id = this.id;
    const here = () => this.#path.some((message) => message.id === messageId);
    const load = async () => {
      while (!here() && await this.#loadOlder(Math.min(MOST, this.#path.length)));
      return here();
    };
    if (!await load()) {
      if (id !== this.id) return;
      try {
        await post(`/conversations/${id}/active`, { message_id: messageId });
      } catch {
        return toast("This message is not there any more.");
      }
      if (!await this.refresh() || !await load()) return;
    }
    this.scroller.hold();
    const { node } = this.#views.get(messageId);
    node.scrollIntoView({ block: "center" });
    node.focus({ preventScroll: true });
    node.classList.add("found");
    node.addEventListener("animationend", () => node.classList.remove("found"), { once: true });
  }

  #omitted() {
    return this.#path.findLast(({ stats }) => stats)?.stats.omitted_messages ?? 0;
  }

  /** How many messages lie above what is loaded; NaN where that was not counted. */
  get #above() {
    if (!this.#more) return 0;
    const at = this.#path.findIndex(({ id }) => id === this.#counted?.id);
    return at < 0 ? NaN : this.#counted.above - at;
  }

  /** The line lies so many messages from the beginning: what is not loaded has to be counted once, if there is a line. */
  async #countAbove() {
    if (!this.#omitted() || !isNaN(this.#above)) return;
    if (this.#path.some(({ id }) => id === this.#counting)) return;
    const [{ id }] = this.#path;
    this.#counting = id;
    try {
      const { length } = await get(`/conversations/${this.id}/messages?before=${id}`);
      this.#counted = { id, above: length };
      this.#draw();
    } catch {
      // Without the line until the next look.
    } finally {
      if (id === this.#counting) this.#counting = null;
    }
  }

  // ---- drawing

  #draw() {
    const ids = new Set([...this.#path.map(({ id }) => id), this.#reader?.messageId]);
    for (const id of this.#views.keys()) if (!ids.has(id)) this.#views.delete(id);
    const last = this.#path.at(-1);
    const nodes = this.#path.map((message) => {
      const view = this.#views.get(message.id) ?? messageView(message, this.actions);
      this.#views.set(message.id, view);
      view.update(message, message === last);
      return view.node;
    });
    const line = this.#omitted() - this.#above;
    if (line > 0 && line < nodes.length) nodes.splice(line, 0, this.notSent);
    const unanswered = last?.role === "user" && !this.#reader && !this.#asking && !this.conversation?.generation_id;
    if (unanswered) nodes.push(this.#unanswered());
    if (this.id === null && !nodes.length) nodes.push(welcome());
    arrange(this.column, [this.top, ...nodes]);
    this.near.unobserve(this.top);
    this.near.observe(this.top); // it tells changes only: what lies near the top now would never be told
    this.node.classList.toggle("empty", this.id === null);
    this.drawAround();
  }

  /** What surrounds the messages: it also depends on which models there are. */
  drawAround() {
    this.head.draw();
    const choice = chosen(this.conversation);
    const usage = this.#path.findLast(({ token_usage }) => token_usage);
    const unread = this.id !== null && !this.conversation; // its model may be another than the usual one
    this.composer.vision = unread ? null : choice?.model ? choice.model.vision ?? null : undefined;
    this.composer.note = choice && !choice.provider?.online ? `${label(choice)} cannot be reached now. Choose another model, or start its server.` : "";
    this.composer.showContext(usage?.token_usage.total_tokens, choice?.model?.context_length ?? usage?.stats?.context_length);
    this.column.querySelector(".welcome")?.replaceWith(welcome());
  }

  #unanswered() {
    return h("p", { class: "halted" }, "Not answered yet.",
      button([icon("retry"), "Answer"], () => this.retry()));
  }

  /** Changes fields of the conversation, or of the one to be made. Resolves to whether that is saved. */
  async change(fields) {
    const { id } = this;
    if (id === null) return Boolean(Object.assign(this.#fields, fields));
    try {
      await patch(`/conversations/${id}`, fields);
    } catch (error) {
      toast(error.message);
      return false;
    }
    if (id === this.id && this.conversation) {
      Object.assign(this.conversation, fields);
      this.drawAround();
    }
    changed("list", { id });
    changed("conversation", { id });
    return true;
  }

  get fields() {
    return this.conversation ?? this.#fields;
  }

  copyLast() {
    this.column.querySelector(".message.last [data-action=copy]")?.click();
  }
}

/** Has a question answered that nobody looks at any more: whoever comes back reads the answer from its beginning. */
async function begin(source) {
  try {
    for await (const _ of answerEvents(source, new AbortController().signal)) return;
  } catch {
    // it stays unanswered, and says so when it is looked at
  }
}

/** The images of a question as they are sent: when it is edited, it keeps them. */
async function images(message) {
  if (!message.images?.length) return [];
  const { fetched } = await import("./files.js");
  return Promise.all(message.images.map(fetched));
}
