// The open conversation: its path of messages, the answer being written, and what one does to them.

import { answerEvents, changed, get, onChange, patch, post, session, tell } from "./api.js";
import { Composer } from "./composer.js";
import { announce, arrange, h, iconButton, randomId, renameInPlace, toast } from "./dom.js";
import { icon } from "./icons.js";
import { messageView } from "./message.js";
import { anyModel, asked, chosen, label, noModelScreen, openPicker, providers, refreshModels, remember, stateDot } from "./models.js";
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
  #reader = null; // {controller, generationId, stop} of the stream that is being read
  #unsent = { text: "", clientId: "" };
  #opening = 0;

  /** `created(id)` is called when a new conversation gets its id. */
  constructor({ openMenu, created }) {
    this.created = created;
    this.actions = {
      edit: (message, text) => this.#ask(text, [], message.parent_id),
      retry: () => this.retry(),
      goOn: () => this.#ask("Continue where you stopped.", []),
      select: (id) => this.#select(id),
    };
    this.composer = new Composer({
      send: (text, images) => this.#ask(text, images), stop: () => this.stop(), editLast: () => this.editLast(),
    });
    this.title = h("button", { type: "button", class: "title", title: "Rename", onclick: () => this.rename() });
    this.model = h("button", { type: "button", class: "pill", "aria-haspopup": "dialog", onclick: () => this.pickModel() });
    this.settings = iconButton("sliders", "Conversation settings", () => this.openPanel(), { "aria-expanded": "false" });
    this.banner = h("p", { class: "banner", role: "status", hidden: true }, h("span", { class: "pulse" }), "Connection lost. Trying to get it back.");
    this.top = h("div", { class: "sentinel" });
    this.column = h("div", { class: "column" });
    this.scroller = new Scroller(this.column);
    this.notSent = h("p", { class: "divider" }, h("span", {}, "Not sent above here: the context is full"));
    this.panel = h("div", { class: "panel-place" });
    this.node = h("main", { tabindex: "-1" },
      h("header", { class: "top" },
        iconButton("menu", "Conversations", openMenu, { class: "quiet narrow" }), h("h1", {}, this.title), this.model, this.settings),
      this.banner, this.scroller.node, this.scroller.button, this.composer.node);

    new IntersectionObserver(([entry]) => entry.isIntersecting && this.#loadOlder(), { root: this.scroller.node, rootMargin: "800px" })
      .observe(this.top);
    onChange("models", () => this.#drawHead());
    onChange("offline", () => { this.banner.hidden = false; });
    onChange("online", () => {
      this.banner.hidden = true;
      this.refresh();
    });
    onChange("conversation", ({ id, elsewhere }) => elsewhere && id === this.id && !document.hidden && this.refresh());
    document.addEventListener("visibilitychange", () => this.#visibility());
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
    Object.assign(this, { id, conversation: null });
    this.#fields = {};
    this.#path = [];
    this.#views.clear();
    this.#more = false;
    this.#above = 0;
    this.closePanel?.();
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
    if (generationId && generationId !== this.#reader?.generationId && !document.hidden) this.#read({ generationId });
    return true;
  }

  #gone() {
    toast("This conversation is not there any more.");
    location.hash = "#/";
  }

  // ---- asking

  /** Adds a question and has it answered. Resolves to whether it was sent; if not, the text stays where it was written. */
  async #ask(text, images, parentId = this.#path.at(-1)?.id ?? null) {
    if (this.#reader) return toast("Wait for the answer, or stop it first."), false;
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
      if (id === this.id && await this.refresh()) this.#read({ path: `/conversations/${id}/stream`, body: asked(choice) });
      changed("list", { id });
      return true;
    } catch (error) {
      toast(error.status === 0 ? "Not sent: Fireside cannot be reached. Your text is still here." : error.message);
      return false;
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
      if (error.status !== 404) toast(error.message); // 404: it has ended meanwhile
    }
  }

  get busy() {
    return Boolean(this.#reader);
  }

  // ---- reading the answer

  async #read(source) {
    this.#stopReading();
    const reader = { controller: new AbortController(), generationId: source.generationId ?? null, stop: false };
    this.#reader = reader;
    this.composer.busy = true;
    let view = null;
    try {
      for await (const { event, data } of answerEvents(source, reader.controller.signal)) {
        if (data.message_id && !view) view = this.#begin(data, reader);
        if (event === "progress") view?.progress(data);
        else if (event === "reasoning") view?.think(data.delta);
        else if (event === "delta") view?.append(data.delta);
        else if (event === "reset") view?.restart();
        else if (event === "done") return await this.#finish(reader, data.message_id);
      }
    } catch (error) {
      if (this.#reader !== reader) return;
      this.#stopReading();
      if (error.status !== 0) toast(error.message);
      if (error.code === "GENERATION_ACTIVE") this.refresh();
    }
  }

  #begin({ message_id: id, generation_id }, reader) {
    const begun = reader.generationId === null;
    reader.generationId = generation_id;
    if (!this.#views.has(id)) {
      const parent = this.#path.at(-1);
      this.#path.push({ id, role: "assistant", status: "generating", content: "", parent_id: parent?.id ?? null });
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
    if (answer) announce(answer.status === "complete" ? `Answer finished. ${answer.content.slice(0, 2000)}` : `The answer ended. ${answer.error?.message ?? ""}`);
    changed("conversation", { id: this.id });
    changed("list", { id: this.id });
    refreshModels().catch(() => {}); // what is loaded may have changed
  }

  #stopReading() {
    this.#reader?.controller.abort();
    this.#reader = null;
    this.composer.busy = false;
  }

  /** A hidden tab reads no stream, so that many tabs leave each other connections; it looks now and then instead. */
  #visibility() {
    clearTimeout(this.lookTimer);
    if (!document.hidden) {
      document.title = this.#name();
      return void this.refresh();
    }
    if (!this.#reader) return;
    this.#stopReading();
    const look = async () => {
      const { generation_id } = await get(`/conversations/${this.id}`).catch(() => ({}));
      if (generation_id === null) document.title = `✓ ${this.#name()}`;
      else if (document.hidden) this.lookTimer = setTimeout(look, HIDDEN_LOOK);
    };
    this.lookTimer = setTimeout(look, HIDDEN_LOOK);
  }

  // ---- the path

  async #loadOlder() {
    if (!this.#more || this.loading) return;
    this.loading = true;
    const id = this.id;
    try {
      const older = await get(`/conversations/${id}/messages?render=true&limit=${PAGE}&before=${this.#path[0].id}`);
      if (id !== this.id) return;
      this.#path.unshift(...older);
      this.#more = older.length === PAGE;
      this.#above = Math.max(0, this.#above - older.length);
      this.scroller.keeping(() => this.#draw());
    } catch (error) {
      if (error.status !== 0) toast(error.message);
      this.#more = this.#more && error.status === 0;
    } finally {
      this.loading = false;
    }
  }

  /** To a message, which may lie above what is loaded, or on another branch. */
  async #jump(messageId) {
    const load = async () => {
      while (!this.#path.some(({ id }) => id === messageId) && this.#more) await this.#loadOlder();
      return this.#path.some(({ id }) => id === messageId);
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
    const unanswered = last?.role === "user" && !this.#reader && !this.conversation?.generation_id;
    if (unanswered) nodes.push(this.#unanswered());
    if (this.id === null && !nodes.length) nodes.push(this.#welcome());
    arrange(this.column, [this.top, ...nodes]);
    this.node.classList.toggle("empty", this.id === null);
    this.#drawHead();
  }

  #unanswered() {
    return h("p", { class: "halted" }, "Not answered yet.",
      h("button", { type: "button", onclick: () => this.retry() }, icon("retry"), "Answer"));
  }

  #welcome() {
    if (providers && !anyModel()) return noModelScreen();
    const hour = new Date().getHours();
    const greeting = hour < 5 || hour >= 18 ? "Good evening" : hour < 12 ? "Good morning" : "Good afternoon";
    return h("section", { class: "welcome" }, icon("flame"), h("h2", {}, `${greeting}, ${session.user.username}`),
      h("p", {}, readiness(chosen(null))));
  }

  #name() {
    return this.conversation?.title || "Fireside";
  }

  #drawHead() {
    const title = this.conversation?.title || (this.id === null ? "New chat" : "");
    this.title.textContent = title;
    this.title.disabled = this.id === null;
    document.title = this.#name();
    const choice = chosen(this.conversation);
    const offline = providers && choice && !choice.model;
    this.model.replaceChildren(stateDot(choice?.model, choice?.provider?.online ?? !offline),
      h("span", {}, label(choice) || (providers ? "No model" : "Models")), icon("down"));
    this.model.setAttribute("aria-label", `Model: ${label(choice) || "none"}`);
    this.composer.vision = Boolean(choice?.model?.vision);
    this.composer.note = offline ? `${label(choice)} cannot be reached now. Choose another model, or start its server.` : "";
    const usage = this.#path.findLast(({ token_usage }) => token_usage);
    this.composer.showContext(usage?.token_usage.total_tokens, choice?.model?.context_length ?? usage?.stats?.context_length);
    if (this.id === null && !this.#path.length && this.column.querySelector(".welcome")) {
      this.column.querySelector(".welcome").replaceWith(this.#welcome());
    }
  }

  pickModel() {
    openPicker(chosen(this.conversation), async (choice) => {
      remember(choice);
      if (this.id !== null) await this.change(asked(choice));
      this.#drawHead();
      this.composer.focus();
    });
  }

  /** Changes fields of the conversation, or of the one to be made. Resolves to whether that is saved. */
  async change(fields) {
    if (this.id === null) return Object.assign(this.#fields, fields), true;
    try {
      await patch(`/conversations/${this.id}`, fields);
    } catch (error) {
      toast(error.message);
      return false;
    }
    Object.assign(this.conversation, fields);
    this.#drawHead();
    changed("list", { id: this.id });
    changed("conversation", { id: this.id });
    return true;
  }

  get fields() {
    return this.conversation ?? this.#fields;
  }

  rename() {
    if (this.id !== null) renameInPlace(this.title, this.conversation.title, (title) => this.change({ title }));
  }

  async openPanel() {
    const { togglePanel } = await import("./panel.js");
    togglePanel(this);
  }

  copyLast() {
    this.column.querySelector(".message.last [data-action=copy]")?.click();
  }
}

function readiness(choice) {
  if (!choice) return "Looking for a model.";
  if (choice.model.state === "not-loaded") return `${label(choice)} is loaded when you send the first message.`;
  return `${label(choice)} is ready.`;
}
