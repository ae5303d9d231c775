// The box to write a message in: the draft, the attached files, the button to send or stop, and how full the context is.

import { session } from "./api.js";
import { button, h } from "./dom.js";
import { Attachments, MAX_CHARACTERS } from "./draft.js";
import { DraftFile } from "./draftfile.js";
import { debounce, on } from "./events.js";
import { number } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { modelName } from "./models.js";
import { announce, toast } from "./popups.js";
import { preferences } from "./preferences.js";
import { stored } from "./storage.js";

// A draft stays in localStorage until it is sent or the user signs out: it survives a crash and an expired session. Its files are on the server.
const draftKey = (userId, conversationId) => `fireside.draft.${userId}.${conversationId ?? "new"}`;
const filesKey = (userId, conversationId) => `${draftKey(userId, conversationId)}.files`;

/** Remove the draft of a conversation. */
export function forgetDraft(conversationId) {
  removeDraft(session.user.id, conversationId);
}

function removeDraft(userId, conversationId) {
  localStorage.removeItem(draftKey(userId, conversationId));
  localStorage.removeItem(filesKey(userId, conversationId));
}

function store(key, value) {
  try {
    if (value) localStorage.setItem(key, value);
    else localStorage.removeItem(key);
  } catch {
    // The storage is full: the draft is lost when the page is closed.
  }
}

/** Remove the drafts of a user. */
export function forgetDrafts(userId) {
  const prefix = draftKey(userId, "");
  for (const key of Object.keys(localStorage)) {
    if (key.startsWith(prefix)) localStorage.removeItem(key);
  }
}

const METER_SHARE = 0.6; // of the context, above which the meter is shown
const MEASURE_MS = 250;
const LONG_PASTE = 20_000; // characters; above, a document is offered

const touch = matchMedia("(hover: none) and (pointer: coarse)");

export class Composer {
  #userId = session.user.id; // also after the session has ended
  #conversationId; // null: of a new conversation; undefined until one is opened
  #attachments;
  #otherFiles = new Map(); // those of other conversations by id
  #pasted = ""; // the long text that was pasted last
  #context;
  #choice = null; // the model
  #advised = null; // the advice that is shown
  #busy = false;
  #sending = null; // {id}: the conversation whose message is being sent

  /**
   * `send(text, attachmentIds)` resolves to whether it was sent. `useModel(choice)`, `load(choice, contextLength)`. `toEnd` is the button that
   * scrolls to the end: here it covers no text.
   */
  constructor({ send, stop, editLast, manage, useModel, load }, context, toEnd) {
    this.send = send;
    this.manage = manage;
    this.editLast = editLast;
    this.act = { useModel, load, send: () => this.#send(), attachPasted: () => this.#attachPasted() };
    this.#context = context;
    this.area = h("textarea", {
      rows: "1", placeholder: "Write a message", "aria-label": "Message", enterkeyhint: touch.matches ? "enter" : "send",
      oninput: () => this.#edited(), onclick: () => this.prompts?.update(), onkeydown: (event) => this.#key(event), onpaste: (event) => this.#paste(event),
    });
    this.#attachments = new Attachments({
      label: "Files to attach", changed: (files) => this.#filesChanged(files), typed: () => this.area.value, focus: () => this.focus(),
    });
    this.tip = h("span", { class: "tip" });
    this.meter = h("div", { class: "meter", role: "meter", tabindex: "0", "aria-label": "Context used", "aria-valuemin": "0", hidden: true },
      h("span", { class: "bar" }, h("span", {})), h("span", {}), this.tip);
    this.advice = h("div", {});
    this.waiting = h("div", { role: "status" });
    this.button = h("button", { type: "submit", class: "send", "aria-label": "Send" }, icon("send"));
    this.stopButton = h("button", { type: "button", class: "send stop", "aria-label": "Stop", title: "Stop (Esc)", onclick: stop }, icon("stop"));
    this.hint = h("p", { class: "hint" });
    const onsubmit = (event) => {
      event.preventDefault();
      this.#send();
    };
    this.node = h("form", { class: "composer", onsubmit }, this.advice, this.waiting,
      h("div", { class: "box", onclick: (event) => event.target === event.currentTarget && this.area.focus() },
        this.#attachments.node, this.area,
        h("div", { class: "row" }, this.#attachments.controls,
          iconButton("bookmark", "Saved prompts (/)", () => this.#openPrompts()), this.meter, toEnd, this.stopButton, this.button)),
      this.hint);
    this.#attachments.acceptDrops(window, this.node, () => this.node.isConnected && !document.querySelector("dialog[open]"));
    window.addEventListener("storage", (event) => this.#followDraft(event));
    on("preferences", () => this.#draw());
    context.on("changed", () => this.#drawContext());
    this.#draw();
  }

  /** Show the draft of a conversation; null: of a new one. */
  open(conversationId) {
    if (this.#conversationId !== undefined) this.#otherFiles.set(this.#conversationId, this.#attachments.files);
    const files = this.#otherFiles.get(conversationId) ?? this.#savedFiles(conversationId);
    this.#otherFiles.delete(conversationId);
    this.#conversationId = conversationId;
    this.#pasted = "";
    this.area.value = localStorage.getItem(draftKey(this.#userId, conversationId)) ?? "";
    this.#resize();
    this.#attachments.show(files);
  }

  /** The new conversation was created: its draft goes with it. */
  adopt(conversationId) {
    removeDraft(this.#userId, null);
    this.#conversationId = conversationId;
    if (this.#sending) this.#sending.id = conversationId;
    this.#save();
    this.#saveFiles(this.#attachments.files, conversationId);
  }

  /** Not on a touch screen, where the keyboard would cover the page. */
  focus() {
    if (!touch.matches) this.area.focus({ preventScroll: true });
  }

  set busy(busy) {
    this.#busy = busy;
    this.#draw();
  }

  /** The model that will be asked; null if that is unknown. */
  set choice(choice) {
    this.#choice = choice;
    this.#drawContext();
  }

  set note(text) {
    this.hint.textContent = text;
  }

  #measure = debounce(MEASURE_MS, () => {
    const text = this.area.value.trim();
    const { images, documents } = this.#attachments;
    this.#context.question = {
      text: text.length > MAX_CHARACTERS ? "" : text, images: images.length,
      documents: documents.reduce((sum, { attachment }) => sum + (attachment?.tokens_estimate ?? 0), 0),
    };
    this.#drawContext();
  });

  /** Draw how full the context is, and what can be done when the message does not fit. */
  #drawContext() {
    if (this.#sending) return; // the message may be counted twice, in the box and in the chat
    const { usage } = this.#context;
    const share = usage ? Math.min((usage.chat + usage.question + usage.documents) / usage.size, 1) : 0;
    this.meter.hidden = share < METER_SHARE;
    if (!this.meter.hidden) this.#drawMeter(usage, share);
    this.#advise();
  }

  #drawMeter({ chat, question: typed, documents, size, answer }, share) {
    const question = typed + documents;
    const percent = `${number(share * 100)} %`;
    const [bar, amount] = this.meter.children;
    const amounts = `About ${number(chat + question)} of ${number(size)} tokens`;
    this.meter.classList.toggle("full", chat + question + answer > size);
    bar.firstChild.style.width = `${share * 100}%`;
    amount.textContent = percent;
    this.tip.replaceChildren(h("strong", {}, amounts), h("span", {}, `${number(chat)} of the chat, ${number(question)} of this message`),
      h("span", {}, `${number(answer)} are kept free for the answer. When the context is full, the oldest messages are left out.`));
    this.meter.setAttribute("aria-valuenow", Math.min(chat + question, size));
    this.meter.setAttribute("aria-valuemax", size);
    this.meter.setAttribute("aria-valuetext", `${percent}. ${[...this.tip.children].map(({ textContent }) => textContent).join(". ")}`);
  }

  /** The long text that was pasted, while it is still in the box. */
  get #longPaste() {
    return this.#pasted && this.area.value.includes(this.#pasted) ? this.#pasted : "";
  }

  get #blind() {
    return this.#choice?.model?.vision === false && this.#attachments.images.length > 0;
  }

  async #advise() {
    const needed = () => this.#blind || this.#context.usage?.fits === false || this.#context.usage?.isPart || this.#longPaste;
    const module = needed() && await import("./advice.js").catch(() => null);
    const found = module && needed()
      ? module.advice({ choice: this.#choice, usage: this.#context.usage, attachments: this.#attachments, longPaste: this.#longPaste, act: this.act }) : null;
    if (found?.node.textContent === this.#advised?.node.textContent) return;
    if (found && found.kind !== this.#advised?.kind) announce(found.node.querySelector("p").textContent);
    this.#advised = found;
    const hadFocus = this.advice.contains(document.activeElement);
    this.advice.replaceChildren(...found ? [found.node] : []);
    if (hadFocus) this.focus();
  }

  async #send() {
    if (this.#sending) return;
    const sending = (this.#sending = { id: this.#conversationId });
    this.area.readOnly = true;
    const { files } = this.#attachments;
    await this.#filesReady(sending);
    const sentFiles = [...files]; // more may be attached before the request ends
    const sent = sending === this.#sending && sending.id === this.#conversationId && await this.#sendContent();
    if (sending !== this.#sending) return; // it was taken back
    this.#sending = null;
    this.area.readOnly = false;
    if (!sent) return;
    files.splice(0, Infinity, ...files.filter((file) => !sentFiles.includes(file)));
    if (sending.id !== this.#conversationId) { // another one was opened before the request ended
      removeDraft(this.#userId, sending.id);
      return this.#saveFiles(files, sending.id);
    }
    this.area.value = "";
    this.#attachments.show(files);
    this.#saveFiles(files, sending.id);
    this.#context.question = { text: "", images: 0, documents: 0 };
    this.#edited();
    this.#drawContext();
  }

  /** Wait until the files are uploaded and read, which the person sees and can end. */
  async #filesReady(sending) {
    const { pending, files } = this.#attachments;
    if (!pending.length || files.some(({ obstacle }) => obstacle)) return;
    const takeBack = () => {
      this.#sending = null;
      this.area.readOnly = false;
      this.waiting.replaceChildren();
      this.focus();
    };
    const names = new Intl.ListFormat("en").format(pending.map(({ name }) => name));
    this.waiting.replaceChildren(h("p", { class: "waiting" }, h("span", { class: "pulse" }),
      h("span", {}, `Sent as soon as ${names} ${pending.length === 1 ? "is" : "are"} read.`), button("Do not send yet", takeBack)));
    await this.#attachments.settled();
    if (sending === this.#sending) this.waiting.replaceChildren();
  }

  async #sendContent() {
    const { content, obstacle, ids } = this.#attachments;
    const refusal = obstacle
      || (this.#blind && `${modelName(this.#choice)} cannot see images. Choose another model, or remove them.`)
      || (content.length > MAX_CHARACTERS && `The message has ${number(content.length)} characters. At most ${number(MAX_CHARACTERS)} can be sent.`);
    if (refusal) toast(refusal);
    if (refusal || this.#attachments.empty) return false;
    const { documents } = this.#attachments;
    const sent = await this.send(content, ids);
    if (!sent) for (const file of documents) file.check();
    return sent;
  }

  #key(event) {
    if (event.isComposing || event.keyCode === 229) return; // Enter belongs to the input method
    if (this.prompts?.key(event)) return;
    const command = event.ctrlKey || event.metaKey;
    const sends = command || (!event.altKey && !touch.matches && preferences.sendKey === "enter");
    if (event.key === "Enter" && !event.shiftKey && sends) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "ArrowUp" && !this.area.value && !event.altKey) {
      event.preventDefault();
      this.editLast();
    }
  }

  #edited() {
    this.#save();
    this.#resize();
    this.#changed();
    if (this.prompts) this.prompts.update();
    else if (this.area.value[this.area.selectionEnd - 1] === "/") this.#loadPrompts().then(() => this.prompts?.update());
  }

  #changed() {
    this.#draw();
    this.#measure();
  }

  // ---- saved prompts

  async #loadPrompts() {
    const module = await import("./slash.js").catch(() => null);
    if (module) this.prompts ??= new module.PromptMenu(this.area, { manage: this.manage });
    else toast("Fireside cannot be reached.");
  }

  async #openPrompts() {
    await this.#loadPrompts();
    await this.prompts?.open();
  }

  async insertPrompt(prompt) {
    await this.#loadPrompts();
    await this.prompts?.insertAtEnd(prompt);
  }

  // ---- files, and long texts that become one

  #filesChanged(files) {
    const others = [...this.#otherFiles].find(([, one]) => one === files);
    this.#saveFiles(files, others ? others[0] : this.#conversationId);
    if (!others) this.#changed();
  }

  #paste(event) {
    this.#attachments.paste(event);
    const text = event.clipboardData.getData("text/plain").replace(/\r\n?/g, "\n");
    if (!event.defaultPrevented && text.length > LONG_PASTE) this.#pasted = text;
  }

  #attachPasted() {
    const text = this.#longPaste;
    if (!text) return;
    const at = this.area.value.indexOf(text);
    this.area.setRangeText("", at, at + text.length, "end");
    this.#pasted = "";
    this.#attachments.attach([new File([text], "Pasted text.txt", { type: "text/plain" })]);
    this.#edited();
    this.focus();
  }

  // ---- the draft in localStorage

  #save() {
    store(draftKey(this.#userId, this.#conversationId), this.area.value);
  }

  #saveFiles(files, conversationId) {
    const saved = files.filter(({ id }) => id).map(({ id, name, media_type }) => ({ id, name, media_type }));
    store(filesKey(this.#userId, conversationId), saved.length ? JSON.stringify(saved) : "");
  }

  #savedFiles(conversationId) {
    return stored(filesKey(this.#userId, conversationId), []).map((saved) => DraftFile.restore(saved));
  }

  /** Empty the box if another tab sent the same draft. */
  #followDraft({ key, oldValue, newValue }) {
    if (!session.user || newValue !== null) return;
    if (key === draftKey(this.#userId, this.#conversationId) && this.area.value === oldValue) {
      this.area.value = "";
      this.#resize();
      this.#draw();
    }
    if (key === filesKey(this.#userId, this.#conversationId)) {
      const sent = JSON.parse(oldValue ?? "[]").map(({ id }) => id);
      this.#attachments.show(this.#attachments.files.filter(({ id }) => !sent.includes(id)));
      this.#draw();
    }
  }

  #resize() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight}px`;
  }

  #draw() {
    if (!this.#busy && document.activeElement === this.stopButton) this.focus();
    this.stopButton.hidden = !this.#busy;
    this.button.hidden = this.#busy && this.#attachments.empty;
    this.button.disabled = this.#attachments.empty;
    this.button.title = this.#busy ? "Send after this answer" : "Send";
  }
}
