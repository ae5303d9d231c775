// The view of the open conversation: the bar above, the messages, the composer.

import { describeSizes } from "./attachments.js";
import { Composer } from "./composer.js";
import { Context } from "./context.js";
import { arrange, button, h } from "./dom.js";
import { on } from "./events.js";
import { Head } from "./head.js";
import { icon } from "./icons.js";
import { messageView } from "./message.js";
import { modelNote } from "./models.js";
import { noticeAnswer } from "./notice.js";
import { announce, toast } from "./popups.js";
import { Queue } from "./queue.js";
import { Scroller } from "./scroll.js";
import { Starters } from "./starters.js";
import { TemporaryLine } from "./temporary.js";
import { redrawWelcome, welcome } from "./welcome.js";

export class Chat {
  #views = new Map(); // by message id; kept while the conversation is open, for an answer whose stream is resumed
  #actions; // of the messages
  #undo = new Map(); // functions that remove the toast with Undo, by the id of what is in the bin

  /** `list` has all conversations. `openSettings(section)` opens the settings. */
  constructor(conversation, list, { openList, openSettings, folderName }) {
    this.conversation = conversation;
    this.#actions = {
      edit: (message, text, attachmentIds) => conversation.ask(text, attachmentIds, message.parent_id),
      documents: () => conversation.path.flatMap(({ documents }) => documents ?? []),
      retry: (message) => conversation.retry(message),
      retryWith: (message) => this.#retryWith(message),
      showRequest: (message) => this.#showRequest(message),
      continueAnswer: () => conversation.continueLast(),
      select: (id) => this.#select(id),
      compare: (message) => this.#compare(message),
      save: (message, text) => this.#save(message, text),
      branch: (message) => this.#branch(message),
      remove: (message) => this.#remove(message),
      next: (message) => conversation.path[conversation.path.findIndex(({ id }) => id === message.id) + 1],
      savePrompt: async (text) => (await import("./prompts.js")).editPrompt(null, text),
      model: () => conversation.choice,
      enlarge: () => this.#load(conversation.choice),
    };
    this.context = new Context(conversation);
    this.column = h("div", { class: "column" });
    this.scroller = new Scroller(this.column);
    this.composer = new Composer({
      send: (text, attachmentIds) => conversation.ask(text, attachmentIds), stop: () => conversation.stop(), editLast: () => this.#editLast(),
      useModel: (choice) => this.head.useModel(choice), load: (choice, contextLength) => this.#load(choice, contextLength),
      manage: () => openSettings("prompts"),
    }, this.context, this.scroller.button);
    this.temporary = new TemporaryLine(conversation, folderName);
    this.head = new Head(conversation, { openList, onPick: () => this.composer.focus() });
    this.banner = h("p", { class: "banner", role: "status", hidden: true },
      h("span", { class: "pulse" }), "Connection lost. Reconnecting.");
    this.top = h("div", { class: "sentinel" });
    this.divider = h("p", { class: "divider" }, h("span", {}, "Messages above were not sent: the context is full"));
    this.unanswered = h("p", { class: "halted" }, "Not answered yet.", button([icon("retry"), "Answer"], () => conversation.retry()));
    this.queue = new Queue(conversation, () => this.composer.focus());
    const insert = (prompt) => this.composer.insertPrompt(prompt);
    this.starters = new Starters(conversation, list, { insert, openSettings });
    this.node = h("main", { tabindex: "-1" }, this.head.node, this.banner, this.scroller.node, this.temporary.node, this.composer.node, this.starters.node);

    const near = { root: this.scroller.node, rootMargin: "800px" };
    this.observer = new IntersectionObserver((entries) => entries.at(-1).isIntersecting && conversation.loadOlder(), near);
    on("models", () => this.#drawAround());
    on("account", () => this.#drawAround()); // the greeting has the name
    on("library-read", () => this.#drawAround()); // with the model of the default preset
    this.context.on("changed", () => describeSizes(this.node));
    on("bin", ({ id }) => this.#undo.get(id)?.());
    on("offline", () => { this.banner.hidden = false; });
    on("online", () => { this.banner.hidden = true; });
    conversation.on("opened", () => this.#open());
    conversation.on("created", (id) => this.composer.adopt(id));
    conversation.on("changed", () => this.#draw());
    conversation.on("older", () => this.scroller.keepPlace(() => this.#draw()));
    conversation.on("reveal", (id) => this.#reveal(this.#views.get(id).node));
    conversation.on("asked", () => this.scroller.toEnd());
    conversation.on("queued", () => announce("Your message is sent after this answer."));
    conversation.on("busy", () => { this.composer.busy = conversation.busy; });
    conversation.on("begun", ({ messageId }) => this.#view({ id: messageId, role: "assistant", status: "generating" }).clear());
    conversation.on("part", ({ messageId, event, data }) => this.#views.get(messageId)?.receive(event, data));
    conversation.on("finished", (id) => announce(this.#views.get(id).announcement));
    conversation.on("ended-hidden", () => noticeAnswer(conversation.details));
    conversation.on("problem", (text) => toast(text));
    conversation.on("gone", () => {
      toast("This chat no longer exists.");
      location.hash = "#/";
    });
  }

  open(id, messageId) {
    this.conversation.open(id, messageId);
    if (!messageId) this.composer.focus(); // not after loading: then the person may be typing elsewhere
  }

  /** Print a whole conversation, once all of it is loaded and drawn. */
  async print(id) {
    if (id !== this.conversation.id) await this.conversation.open(id);
    if (!await this.conversation.loadAll()) return;
    const images = [...this.column.querySelectorAll("img")];
    for (const image of images) image.loading = "eager";
    await Promise.all(images.map((image) => image.decode().catch(() => {})));
    window.print();
  }

  copyLast() {
    this.column.querySelector(".message.last [data-action=copy]")?.click();
  }

  #open() {
    this.#views.clear();
    if (this.conversation.id === null) this.scroller.toStart();
    else this.scroller.toEnd();
    this.composer.open(this.conversation.id);
    this.#draw();
  }

  #view(message) {
    if (!this.#views.has(message.id)) this.#views.set(message.id, messageView(message, this.#actions));
    return this.#views.get(message.id);
  }

  #draw() {
    const { id, path, queue, firstSentIndex, unanswered } = this.conversation;
    const nodes = path.map((message) => {
      const view = this.#view(message);
      view.update(message, message === path.at(-1));
      return view.node;
    });
    if (firstSentIndex > 0 && firstSentIndex < nodes.length) nodes.splice(firstSentIndex, 0, this.divider);
    if (unanswered) nodes.push(this.unanswered);
    this.queue.draw();
    if (queue.length) nodes.push(this.queue.node);
    if (id === null && !nodes.length) nodes.push(welcome(this.conversation.choice));
    arrange(this.column, [this.top, ...nodes]);
    this.observer.unobserve(this.top);
    this.observer.observe(this.top); // again, because it reports changes only and the top may still be near
    this.node.classList.toggle("empty", id === null);
    this.temporary.draw();
    this.#drawAround();
  }

  /** Draw what depends on the models as well as on the conversation. */
  #drawAround() {
    const { id, details } = this.conversation;
    this.head.draw();
    const { choice } = this.conversation;
    const isLoading = id !== null && !details; // its model may be another than the chosen one
    this.composer.choice = isLoading ? null : choice;
    this.composer.note = modelNote(choice, details?.provider_id);
    redrawWelcome(this.column, choice);
  }

  #reveal(node) {
    if (!node?.isConnected) return;
    this.scroller.hold();
    node.scrollIntoView({ block: "center" });
    node.focus({ preventScroll: true });
    node.classList.add("found");
    node.addEventListener("animationend", () => node.classList.remove("found"), { once: true });
  }

  async #select(messageId) {
    this.scroller.hold();
    if (!await this.conversation.select(messageId)) return;
    this.#views.get(messageId)?.node.querySelector(".switch button:not(:disabled)")?.focus({ preventScroll: true });
  }

  /** The conversation goes on with that model. */
  async #retryWith(message) {
    const { openPicker } = await import("./picker.js");
    openPicker(message.model ? { model: { id: message.model }, provider: { provider_id: message.provider_id } } : null,
      (choice) => this.conversation.retry(message, choice), "Retry with another model");
  }

  async #showRequest(message) {
    const { openRequest } = await import("./receipt.js");
    const { path } = this.conversation;
    openRequest(message, path.slice(0, path.findIndex(({ id }) => id === message.id)).findLast(({ role }) => role === "assistant"));
  }

  /** By default twice its context, if it is loaded. */
  async #load(choice, contextLength = Math.min(2 * choice.model.context_length, choice.model.max_context_length) || undefined) {
    const { openLoadOptions } = await import("./picker.js");
    openLoadOptions(choice, contextLength);
  }

  async #compare(message) {
    const { compareVersions } = await import("./versions.js");
    compareVersions(this.conversation.id, message, (id) => this.#select(id));
  }

  async #save(message, text) {
    const versionId = await this.conversation.saveAnswer(message.id, text);
    this.#views.get(versionId)?.node.focus({ preventScroll: true });
    return versionId;
  }

  async #branch(message) {
    const id = await this.conversation.branch(message.id);
    if (!id) return;
    location.hash = `#/c/${id}`;
    toast("This is a copy of the chat up to that message. The original is unchanged.");
  }

  async #remove(message) {
    this.scroller.hold();
    const removed = await this.conversation.removeMessage(message.id);
    if (!removed) return;
    this.composer.focus();
    const what = message.role === "user" ? "Question" : "Answer";
    this.#undo.set(removed.deletedId, toast(`${what} deleted`, "Undo", async () => {
      const restored = await this.conversation.restoreMessage(removed);
      if (restored && removed.id === this.conversation.id) this.#reveal(this.#views.get(message.id)?.node);
    }));
  }

  #editLast() {
    this.conversation.path.map(({ id }) => this.#views.get(id)).findLast((view) => view.edit)?.edit(this.composer.area);
  }
}
