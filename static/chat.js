// The open conversation: its path of messages, the answer being written, and what one does to them.

import { answerEvents, changed, get, onChange, patch, post, tell } from "./api.js";
import { Composer } from "./composer.js";
import { announce, arrange, button, debounce, h, icon, randomId, toast } from "./dom.js";
import { Head } from "./head.js";
import { messageView } from "./message.js";
import { asked, chosen, refreshModels, welcome } from "./models.js";
import { Scroller } from "./scroll.js";

const PAGE = 60; // messages
const HIDDEN_LOOK = 5000; // ms between looks at an answer whose tab is hidden and reads no stream

export class Chat {
  id = null; // null: a new conversation, which is made when its first message is sent
  conversation = null;
  #fields = {}; // what a new conversation will be made with
  #path = []; // the loaded part of the active path, oldest first
  #views = new Map(); // by message id
  #more = false; // whether the path goes on above
  #above = 0; // how many messages that is, where it matters
  #older = null; // the promise of the page above that is being loaded
  #asking = false; // a question is on its way
  #unsent = { text: "", clientId: "" };
  #reader = null; // {controller, generationId, after, stop, stopping} of the stream that is being read
  #left = null; // {generationId, after} where one was left whose answer is still shown
  #look = 0;
  #opening = 0;

  /** `created(id)` is called when a new conversation gets its id. */
  constructor({ openMenu, created }) {
    this.created = created;
    this.actions = {
      edit: async (message, text) => this.#ask(text, await images(message), message.parent_id),
      retry: () => this.retry(),
      goOn: () => this.#ask("Continue where you stopped.", []),
      select: (id) => this.#select(id),
    };
    this.composer = new Composer({
      send: (text, images) => this.#ask(text, images), stop: () => this.stop(), editLast: () => this.editLast(),
    });
    this.head = new Head(this, openMenu);
    this.banner = h("p", { class: "banner", role: "status", hidden: true },
      h("span", { class: "pulse" }), "Connection lost. Trying to get it back.");
    this.top = h("div", { class: "sentinel" });
    this.column = h("div", { class: "column" });
    this.scroller = new Scroller(this.column);
    this.notSent = h("p", { class: "divider" }, h("span", {}, "Not sent above here: the context is full"));
    this.node = h("main", { tabindex: "-1" }, this.head.node, this.banner, this.scroller.node, this.scroller.button, this.composer.node);

    const near = { root: this.scroller.node, rootMargin: "800px" };
    new IntersectionObserver(([entry]) => entry.isIntersecting && this.#loadOlder(), near).observe(this.top);
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
    if (id !== this.id || id === null) this.#leave(id);
    if (id === null) return this.composer.focus();
    if (!await this.refresh() || turn !== this.#opening) return;
    if (messageId) await this.#jump(messageId);
    else this.composer.focus();
  }

  #leave(id) {
    this.#stopReading();
    this.#left = null;
    Object.assign(this, { id, conversation: null });
    this.#fields = {};
    this.#path = [];
    this.#views.clear();
    this.#more = false;
    this.#above = 0;
    this.head.closePanel?.();
    this.scroller.toEnd();
    this.composer.open(id);
    this.#draw();
  }

  /** Reads the conversation anew and follows the answer that is being written, if one is. Resolves to whether it is there. */
  async refresh() {
    const id = this.id;
    if (id === null) return false;
    const limit = Math.max(PAGE, this.#path.length + 10);
    try {
      const [conversation, path] = await Promise.all([
        get(`/conversations/${id}`), get(`/conversations/${id}/messages?render=true&limit=${limit}`),
      ]);
      if (id !== this.id) return false;
      const renamed = this.conversation?.title !== conversation.title;
      this.conversation = conversation;
      this.#path = path;
      this.#more = path.length === limit;
      await this.#countAbove();
      this.#draw();
      if (renamed) tell("list", { id });
    } catch (error) {
      if (id === this.id && error.status === 404) this.#gone();
      return false;
    }
    const generationId = this.conversation.generation_id;
    if (generationId && generationId !== this.#reader?.generationId && !document.hidden) {
      this.#read(this.#left?.generationId === generationId ? this.#left : { generationId });
    }
    return true;
  }

  /** Whether another device has done something to this conversation, by what the list tells. */
  #differs({ id, updated_at, generation_id }) {
    if (id !== this.id || !this.conversation || this.#reader) return false;
    return updated_at !== this.conversation.updated_at || generation_id !== this.conversation.generation_id;
  }

  #gone() {
    toast("This conversation is not there any more.");
    location.hash = "#/";
  }

  // ---- asking

  /** Adds a question and has it answered. Resolves to whether it was sent; if not, the text stays where it was written. */
  async #ask(text, images, parentId = this.#path.at(-1)?.id ?? null) {
    if (this.#reader || this.#asking) return toast("Wait for the answer, or stop it first."), false;
    this.#asking = true;
    const choice = chosen(this.conversation);
    // Sent again after an answer that was lost, the same text is the same message.
    if (this.#unsent.text !== text) this.#unsent = { text, clientId: randomId() };
    try {
      if (this.id === null) await this.#create(choice);
      const id = this.id;
      const message = { content: text, parent_id: parentId, client_id: this.#unsent.clientId };
      if (images.length) message.images = images.map(({ media_type, data }) => ({ media_type, data }));
      await post(`/conversations/${id}/messages`, message);
      this.#unsent = { text: "", clientId: "" };
      this.scroller.toEnd();
      await this.refresh();
      if (id === this.id && !this.#reader) this.#read({ path: `/conversations/${id}/stream`, body: asked(choice) });
      changed("list", { id });
      return true;
    } catch (error) {
      toast(error.status === 0 ? "Not sent: Fireside cannot be reached. Your text is still here." : error.message);
      return false;
    } finally {
      this.#asking = false;
    }
  }

  async #create(choice) {
    this.conversation = await post("/conversations", { ...asked(choice), ...this.#fields });
    this.id = this.conversation.id;
    this.composer.adopt(this.id);
    this.created(this.id);
  }

  /** Another version of the last answer, by the model that is chosen now. */
  async retry() {
    const last = this.#path.at(-1);
    if (!last || this.#reader) return;
    const choice = asked(chosen(this.conversation));
    if (last.role === "user") return this.#read({ path: `/conversations/${this.id}/stream`, body: choice });
    try {
      await post("/chat/retry", { conversation_id: this.id, ...choice });
      this.scroller.toEnd();
      await this.refresh();
      changed("conversation", { id: this.id });
    } catch (error) {
      toast(error.message);
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
    this.#path.map(({ id }) => this.#views.get(id)).findLast((view) => view.edit)?.edit();
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
    const reader = (this.#reader = { controller: new AbortController(), generationId, after });
    this.composer.busy = true;
    let view = this.#views.get(this.#path.find((message) => generationId && message.generation_id === generationId)?.id);
    try {
      for await (const { event, id, data } of answerEvents(source, reader.controller.signal)) {
        reader.after = id ?? reader.after;
        if (event === "ping" && data.message_id) view = this.#begin(data, reader);
        else if (event === "progress") view?.progress(data);
        else if (event === "reasoning") view?.think(data.delta);
        else if (event === "delta") view?.append(data.delta);
        else if (event === "reset") view?.restart();
        else if (event === "done") return await this.#finish(reader, data.message_id);
      }
      await this.#finish(reader);
    } catch (error) {
      if (this.#reader !== reader) return;
      this.#stopReading();
      if (error.status !== 0) toast(error.message);
      if (error.code === "GENERATION_ACTIVE") this.refresh();
    }
  }

  /** The first event names the answer. What is shown of it already, from an earlier reading, comes again. */
  #begin({ message_id: id, generation_id }, reader) {
    const begun = reader.generationId === null;
    reader.generationId = generation_id;
    if (this.#views.has(id)) {
      this.#views.get(id).restart();
    } else {
      this.#path.push({ id, role: "assistant", status: "generating", content: "", generation_id });
      this.#draw();
    }
    if (begun) changed("conversation", { id: this.id });
    if (reader.stop) this.stop();
    return this.#views.get(id);
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
    const { controller, generationId, after } = this.#reader;
    controller.abort();
    this.#left = { generationId, after };
    this.#reader = null;
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
  #loadOlder() {
    this.#older ??= this.#readOlder().finally(() => { this.#older = null; });
    return this.#older;
  }

  async #readOlder() {
    if (!this.#more) return false;
    const id = this.id;
    try {
      const older = await get(`/conversations/${id}/messages?render=true&limit=${PAGE}&before=${this.#path[0].id}`);
      if (id !== this.id) return false;
      this.#path.unshift(...older);
      this.#more = older.length === PAGE;
      this.#above = Math.max(0, this.#above - older.length);
      this.scroller.keeping(() => this.#draw());
      return true;
    } catch (error) {
      if (error.status !== 0) toast(error.message);
      return false;
    }
  }

  /** To a message, which may lie above what is loaded, or on another branch. */
  async #jump(messageId) {
    const here = () => this.#path.some(({ id }) => id === messageId);
    const load = async () => {
      while (!here() && await this.#loadOlder());
      return here();
    };
    if (!await load()) {
      try {
        await post(`/conversations/${this.id}/active`, { message_id: messageId });
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

  /** The line lies so many messages from the beginning: what is not loaded has to be counted, if there is a line. */
  async #countAbove() {
    this.#above = 0;
    if (!this.#more || !this.#omitted()) return;
    const whole = await get(`/conversations/${this.id}/messages`);
    this.#above = whole.findIndex(({ id }) => id === this.#path[0].id);
  }

  // ---- drawing

  #draw() {
    const ids = new Set(this.#path.map(({ id }) => id));
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
    this.node.classList.toggle("empty", this.id === null);
    this.drawAround();
  }

  /** What surrounds the messages: it also depends on which models there are. */
  drawAround() {
    this.head.draw();
    const choice = chosen(this.conversation);
    const usage = this.#path.findLast(({ token_usage }) => token_usage);
    this.composer.vision = Boolean(choice?.model?.vision);
    this.composer.note = choice && !choice.model ? `${choice.id} cannot be reached now. Choose another model, or start its server.` : "";
    this.composer.showContext(usage?.token_usage.total_tokens, choice?.model?.context_length ?? usage?.stats?.context_length);
    this.column.querySelector(".welcome")?.replaceWith(welcome());
  }

  #unanswered() {
    return h("p", { class: "halted" }, "Not answered yet.",
      button([icon("retry"), "Answer"], () => this.retry()));
  }

  /** Changes fields of the conversation, or of the one to be made. Resolves to whether that is saved. */
  async change(fields) {
    if (this.id === null) return Boolean(Object.assign(this.#fields, fields));
    try {
      await patch(`/conversations/${this.id}`, fields);
    } catch (error) {
      toast(error.message);
      return false;
    }
    Object.assign(this.conversation, fields);
    this.drawAround();
    changed("list", { id: this.id });
    changed("conversation", { id: this.id });
    return true;
  }

  get fields() {
    return this.conversation ?? this.#fields;
  }

  copyLast() {
    this.column.querySelector(".message.last [data-action=copy]")?.click();
  }
}

/** The images of a question as they are sent: when it is edited, it keeps them. */
async function images(message) {
  if (!message.images?.length) return [];
  const { fetched } = await import("./images.js");
  return Promise.all(message.images.map(fetched));
}
