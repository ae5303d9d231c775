// The open conversation: its messages, and what can be done to them. It draws nothing.

import { get, isOnline, Latest, patch, post, remove } from "./api.js";
import { broadcast, debounce, emit, Emitter, on } from "./events.js";
import { defaultPreset, loadLibrary, presetFields } from "./library.js";
import { chosenModel, hasModels, modelFields, noModel, providers, refreshModels, watchLoading } from "./models.js";
import { AnswerReader, startAnswer } from "./stream.js";

const PAGE = 60; // messages
const MAX_PAGE = 1000; // messages that the server returns at most
const UNREACHABLE = "Not sent: Fireside cannot be reached. Your text is still here.";

/**
 * Its events:
 *
 * leaving                    another conversation is opened next: save what is being edited
 * opened                     `id` is another conversation; nothing of it is loaded yet
 * created       id           the new conversation was created
 * changed, older             `path` or `details` changed; messages were added above
 * reveal        messageId    show this message of `path`
 * asked                      the server accepted a question, or a request for another answer
 * queued                     the server accepted a question that waits
 * busy                       `busy` changed
 * begun         {messageId, generationId, isNew}  an answer begins; its whole text follows
 * part          {messageId, event, data}          an event of the answer's stream
 * ended         {messageId, generationId}         the stream ended
 * ended-hidden               the answer ended while the tab is hidden
 * finished      messageId    `path` has the answer as it was saved
 * failed        error        the stream could not be read
 * problem       text         something else failed
 * gone                       the conversation does not exist
 */
export class Conversation extends Emitter {
  id; // null: a new conversation, which its first message creates
  details = null; // as GET /conversations/{id} returns it
  path = []; // the loaded part of the active path, oldest message first
  #newFields = {}; // of the new conversation, besides those of its preset
  #preset; // of the new conversation; undefined: the default one
  #hasOlder = false;
  #loadingOlder = null; // a promise
  #sending = false;
  #unaccepted = { content: null, clientId: "" }; // the message that was sent last
  #unsure = { request: null, clientId: "" }; // the change of a message that was sent last
  #endedGeneration = null; // the one that ended last
  #phase = null; // of the answer
  #visits = new Latest();
  #reads = new Latest();
  #reader = new AnswerReader(this);

  constructor() {
    super();
    this.on("busy", () => this.busy || watchLoading(null));
    this.on("begun", (answer) => this.#begin(answer));
    this.on("part", ({ event, data }) => event === "progress" && this.#followLoading(data.phase));
    this.on("ended", (answer) => this.#finish(answer));
    this.on("failed", (error) => {
      this.emit("changed");
      this.#report(error);
      if (error.code === "GENERATION_ACTIVE") this.refresh();
    });
    const refresh = debounce(50, () => document.hidden || this.refresh());
    on("online", () => {
      this.#reader.retryStop();
      refresh();
    });
    on("listed", (listed) => this.#differsFrom(listed) && refresh());
    on("conversation", ({ id, elsewhere }) => elsewhere && id === this.id && refresh());
    on("bin", ({ home }) => home && home === this.id && refresh());
    window.addEventListener("focus", refresh);
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#reader.hide() : refresh()));
  }

  get busy() {
    return this.#reader.busy;
  }

  get unanswered() {
    return this.path.at(-1)?.role === "user" && !this.busy && !this.#sending && !this.details?.generation_id;
  }

  /** The messages that wait for the answer before them. */
  get queue() {
    return this.details?.queue ?? [];
  }

  /** Whether the queue waits for the user: after an answer that was stopped or failed. */
  get queueWaits() {
    return !this.busy && !this.#sending && !this.details?.generation_id;
  }

  /** The fields of the conversation, or of the one to be created. */
  get fields() {
    return this.details ?? (this.id === null ? { ...presetFields(this.preset), ...this.#newFields } : {});
  }

  /** The preset of the conversation to be created, or null. */
  get preset() {
    return this.#preset === undefined ? defaultPreset() : this.#preset;
  }

  /** Have the new conversation begin with a preset; null: with none. */
  usePreset(preset) {
    this.emit("leaving");
    this.#preset = preset;
    for (const name of ["system_prompt", "settings", "provider_id", "model"]) delete this.#newFields[name];
    this.emit("changed");
  }

  /** The model that is asked. A new conversation whose preset names a model that is missing asks the usual one. */
  get choice() {
    const choice = chosenModel(this.fields);
    const usual = this.id === null && choice && !choice.model ? chosenModel(null) : null;
    return usual ? { ...usual, replaced: choice.id } : choice;
  }

  // ---- reading

  /** Open a conversation, at one of its messages if that is named. */
  async open(id, messageId = null) {
    const visit = this.#visits.begin();
    if (id !== this.id) this.#leave(id);
    if (await this.refresh() && messageId && visit.isNewest()) await this.#reveal(messageId);
  }

  #leave(id) {
    this.emit("leaving");
    this.#reader.forget();
    Object.assign(this, { id, details: null, path: [] });
    this.#newFields = {};
    this.#preset = undefined;
    this.#hasOlder = false;
    this.emit("opened");
  }

  /** Read the conversation again, and follow the answer that is being written. Resolves to whether the conversation exists. */
  async refresh() {
    const { id } = this;
    if (id === null) return false;
    const read = this.#reads.begin();
    const limit = Math.min(MAX_PAGE, Math.max(PAGE, this.path.length + 10));
    try {
      const [details, path] = await Promise.all([
        get(`/conversations/${id}`), get(`/conversations/${id}/messages?render=true&limit=${limit}`),
      ]);
      if (id !== this.id) return false;
      if (!read.accept()) return this.details !== null;
      const renamed = this.details?.title !== details.title;
      this.details = details;
      const isWhole = path.length < limit; // else the messages above are kept: they are the same on all branches
      const above = isWhole ? [] : this.path.slice(0, Math.max(0, this.path.findIndex((message) => message.id === path[0].id)));
      this.path = [...above, ...path];
      if (!above.length) this.#hasOlder = path.length === limit;
      this.emit("changed");
      if (renamed) emit("list", { id });
    } catch (error) {
      if (id !== this.id) return false;
      if (!read.accept()) return this.details !== null;
      if (error.status === 404) this.emit("gone");
      else this.#report(error);
      return false;
    }
    // The requests are no snapshot: either may name an answer that has ended, and the path may lack a new one.
    const unfinished = this.path.find(({ status }) => status === "generating")?.generation_id;
    const generationId = [unfinished, this.details.generation_id].find((one) => one && one !== this.#endedGeneration);
    if (generationId) this.#reader.follow(generationId);
    return true;
  }

  /** Whether another device has changed the conversation. */
  #differsFrom(listed) {
    if (listed.id !== this.id || !this.details || this.busy) return false;
    return ["title", "updated_at", "generation_id"].some((field) => listed[field] !== this.details[field]);
  }

  /** Resolves to whether there were older messages. */
  loadOlder(limit = PAGE) {
    this.#loadingOlder ??= this.#readOlder(limit).finally(() => { this.#loadingOlder = null; });
    return this.#loadingOlder;
  }

  /** Load all messages. Resolves to whether it worked. */
  async loadAll() {
    const { id } = this;
    if (!this.details && !await this.refresh()) return false;
    while (await this.loadOlder(MAX_PAGE));
    return id === this.id && !this.#hasOlder;
  }

  async #readOlder(limit) {
    if (!this.#hasOlder) return false;
    const { id } = this;
    try {
      const older = await get(`/conversations/${id}/messages?render=true&limit=${limit}&before=${this.path[0].id}`);
      if (id !== this.id) return false;
      this.path.unshift(...older);
      this.#hasOlder = older.length === limit;
      this.emit("older");
      return true;
    } catch (error) {
      this.#report(error);
      return false;
    }
  }

  /** The message may lie above what is loaded, or on another branch. Each request doubles what is loaded. */
  async #reveal(messageId) {
    const { id } = this;
    const isLoaded = () => this.path.some((message) => message.id === messageId);
    const load = async () => {
      while (!isLoaded() && await this.loadOlder(Math.min(MAX_PAGE, this.path.length)));
      return isLoaded();
    };
    if (!await load()) {
      if (id !== this.id) return;
      try {
        await post(`/conversations/${id}/active`, { message_id: messageId });
      } catch (error) {
        return error.status === 404 ? this.emit("problem", "This message no longer exists.") : this.#report(error);
      }
      if (!await this.refresh() || !await load()) return;
    }
    this.emit("reveal", messageId);
  }

  // ---- the messages that did not fit the context

  /** The index in `path` of the first message that was sent for the last answer; 0 if all were sent, NaN if unknown. */
  get firstSentIndex() {
    const answered = this.path.findLastIndex(({ stats }) => stats);
    const { omitted_messages: omitted, sent_messages: sent } = this.path[answered]?.stats ?? {};
    if (!omitted) return 0;
    if (sent) return answered - sent;
    return this.#hasOlder ? NaN : omitted;
  }

  // ---- writing

  /**
   * Add a question below `parentId`, else at the end, and have it answered. While an answer is written, a question at the end joins the
   * queue. Resolves to whether it was sent.
   */
  async ask(text, attachmentIds, parentId) {
    const isAtEnd = parentId === undefined;
    if (this.#sending || (this.busy && !isAtEnd)) return this.#refuse();
    this.#sending = true;
    const { id } = this; // another conversation may be opened before the requests end
    try {
      if (id !== null && !this.details && !await this.refresh()) return false;
      if (!providers) await refreshModels();
      if (id === null) await loadLibrary().catch(() => {}); // the server then copies the default preset
      const { choice, fields } = this;
      if (!choice?.model && !hasModels()) return this.#problem(noModel());
      if (isAtEnd) parentId = this.path.at(-1)?.id ?? null;
      const joinsQueue = id === this.id && this.busy;
      if (joinsQueue && !isAtEnd) return this.#refuse();
      // A message that is sent again after a lost connection keeps its client_id: the server stores it once.
      const content = JSON.stringify([text, attachmentIds]);
      if (this.#unaccepted.content !== content) this.#unaccepted = { content, clientId: randomId() };
      const message = { content: text, client_id: this.#unaccepted.clientId, attachment_ids: attachmentIds };
      const askedId = id ?? await this.#create({ ...fields, ...modelFields(choice), message });
      if (id !== null) await post(`/conversations/${id}/messages`, { ...message, ...(joinsQueue ? { queue: true } : { parent_id: parentId }) });
      this.#unaccepted = { content: null, clientId: "" };
      if (joinsQueue) {
        this.emit("queued");
        await this.#showAsked(id);
        broadcast("conversation", { id });
        return true;
      }
      const source = { path: `/conversations/${askedId}/stream`, body: modelFields(choice) };
      await this.#showAsked(askedId);
      if (askedId !== this.id) await startAnswer(source);
      else if (!this.busy) this.#reader.read(source);
      broadcast("list", { id: askedId });
      return true;
    } catch (error) {
      this.emit("problem", error.status === 0 ? UNREACHABLE : error.message);
      return false;
    } finally {
      this.#sending = false;
    }
  }

  #problem(text) {
    this.emit("problem", text);
    return false;
  }

  /** Change a message of the queue. Resolves to whether it was changed. */
  changeQueued(queuedId, content, attachmentIds) {
    return this.#changeQueue(patch(`/conversations/${this.id}/queue/${queuedId}`, { content, attachment_ids: attachmentIds }));
  }

  removeQueued(queuedId) {
    return this.#changeQueue(remove(`/conversations/${this.id}/queue/${queuedId}`));
  }

  /** Put a text that was removed back, at the end of the queue of this conversation. */
  queueAgain(id, content) {
    return this.#changeQueue(post(`/conversations/${id}/messages`, { content, client_id: randomId(), queue: true }), id);
  }

  /** Send a message of a queue that waits. */
  async sendQueued(queuedId) {
    if (this.busy || this.#sending) return;
    await this.#requestAnswer(`/conversations/${this.id}/queue/${queuedId}/send`, modelFields(this.choice));
  }

  async #changeQueue(request, id = this.id) {
    try {
      await request;
      broadcast("conversation", { id });
      return true;
    } catch (error) {
      this.emit("problem", error.code === "MESSAGE_NOT_FOUND" ? "This message is no longer in the queue." : error.message);
      return false;
    } finally {
      if (id === this.id) await this.refresh();
    }
  }

  #refuse() {
    this.emit("problem", isOnline() ? "Wait for the answer, or stop it first. Your text is still here." : UNREACHABLE);
    return false;
  }

  async #showAsked(id) {
    if (id !== this.id) return;
    this.emit("asked");
    await this.refresh();
  }

  /** Create the conversation, and open it unless another was opened meanwhile. Resolves to its id. */
  async #create(fields) {
    const visit = this.#visits.begin();
    const details = await post("/conversations", fields);
    if (visit.isNewest()) {
      Object.assign(this, { id: details.id, details });
      this.emit("created", details.id);
    }
    return details.id;
  }

  /** Have a version of an answer written, by the chosen model or another. */
  async retry(answer = this.path.at(-1), choice = this.choice) {
    if (!answer || this.busy || this.#sending) return;
    if (providers && !choice?.model && !hasModels()) return this.#problem(noModel());
    const { id } = this;
    const model = modelFields(choice);
    if (answer.role === "user") return this.#reader.read({ path: `/conversations/${id}/stream`, body: model });
    return this.#requestAnswer("/chat/retry", { conversation_id: id, message_id: answer.id, ...model });
  }

  /** Let the last answer go on where it stops. */
  async continueLast() {
    const answer = this.path.at(-1);
    if (answer?.role !== "assistant" || this.busy || this.#sending) return;
    const { choice } = this;
    if (providers && !choice?.model && !hasModels()) return this.#problem(noModel());
    const request = { conversation_id: this.id, message_id: answer.id, ...modelFields(choice) };
    return this.#requestAnswer("/chat/continue", request);
  }

  async #requestAnswer(path, request) {
    const { id } = this;
    this.#sending = true;
    try {
      await post(path, request);
      await this.#showAsked(id);
      broadcast("conversation", { id });
    } catch (error) {
      this.emit("problem", error.message);
    } finally {
      this.#sending = false;
    }
  }

  stop() {
    return this.#reader.stop();
  }

  /** Make this message's branch the active one. Resolves to whether that worked. */
  async select(messageId) {
    const { id } = this;
    try {
      await post(`/conversations/${id}/active`, { message_id: messageId });
    } catch (error) {
      this.emit("problem", error.message);
      return false;
    }
    broadcast("conversation", { id });
    return this.refresh();
  }

  // ---- single messages

  /** Save an edited text of an answer as another version. Resolves to its id, or undefined. */
  async saveAnswer(messageId, content) {
    const { id } = this;
    const made = await this.#try(() => this.#postOnce(`/conversations/${id}/messages/${messageId}/edit`, { content }));
    if (made) await this.#showChanged(id);
    return made?.message_id;
  }

  /** Move a message to the bin. Resolves to what `restoreMessage` needs, or undefined. */
  async removeMessage(messageId) {
    const { id } = this;
    const removed = await this.#try(() => remove(`/conversations/${id}/messages/${messageId}`));
    if (removed) await this.#showChanged(id);
    return removed && { id, deletedId: removed.deleted_id };
  }

  /** Resolves to whether it worked. */
  async restoreMessage({ id, deletedId }) {
    const restored = await this.#try(() => post(`/conversations/${deletedId}/restore`));
    if (restored) await this.#showChanged(id);
    return Boolean(restored);
  }

  /** Copy the messages up to this one to a new conversation. Resolves to its id, or undefined. */
  async branch(messageId) {
    const made = await this.#try(() => this.#postOnce(`/conversations/${this.id}/branch`, { message_id: messageId }));
    if (made) broadcast("list", { id: made.id });
    return made?.id;
  }

  /** Repeating a request whose response was lost has the same client_id: the server does it once. */
  async #postOnce(path, body) {
    const request = JSON.stringify([path, body]);
    if (this.#unsure.request !== request) this.#unsure = { request, clientId: randomId() };
    const response = await post(path, { ...body, client_id: this.#unsure.clientId });
    this.#unsure.request = null;
    return response;
  }

  async #try(act) {
    try {
      return await act();
    } catch (error) {
      this.emit("problem", error.message);
    }
  }

  async #showChanged(id) {
    if (id === this.id) {
      if (this.path.length >= MAX_PAGE) this.path = []; // a refresh would not reach the messages above
      await this.refresh();
    }
    broadcast("conversation", { id });
    broadcast("list", { id });
  }

  /** Change fields of the conversation, or of the one to be created, or of another. Resolves to whether they were saved. */
  async change(fields, id = this.id) {
    if (id === null) {
      Object.assign(this.#newFields, fields);
      this.emit("changed");
      return true;
    }
    try {
      await patch(`/conversations/${id}`, fields);
    } catch (error) {
      this.emit("problem", error.message);
      return false;
    }
    if (id === this.id && this.details) {
      Object.assign(this.details, fields);
      this.emit("changed");
    }
    broadcast("list", { id });
    broadcast("conversation", { id });
    return true;
  }

  // ---- the answer

  /** An answer that began earlier and is not in the path is newer than the path, or on another branch: a refresh shows which. */
  #begin({ messageId: id, generationId, isNew }) {
    this.#phase = null;
    const isShown = this.path.some((message) => message.id === id);
    if (!isShown && isNew) {
      this.#reads.discard(); // reads that began earlier do not have this answer
      this.path.push({ id, role: "assistant", status: "generating", content: "", generation_id: generationId });
      this.emit("changed");
    } else if (!isShown) {
      this.refresh();
    }
    if (isNew) broadcast("conversation", { id: this.id });
  }

  #followLoading(phase) {
    if (phase === this.#phase) return;
    this.#phase = phase;
    const model = this.choice?.model;
    if (model?.state === "not-loaded") watchLoading(model.id);
  }

  async #finish({ messageId, generationId }) {
    const { id } = this;
    this.#endedGeneration = generationId ?? this.#endedGeneration;
    await this.refresh();
    if (this.path.some((message) => message.id === messageId)) this.emit("finished", messageId);
    broadcast("conversation", { id });
    broadcast("list", { id });
    refreshModels().catch(() => {}); // the model may have been loaded, or another one unloaded
  }

  #report(error) {
    // After a lost connection the page shows a banner, after a 401 the sign-in screen.
    if (error.status && error.status !== 401) this.emit("problem", error.message);
  }
}

/** A random id. `crypto.randomUUID` is missing on a page that came over plain http. */
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
