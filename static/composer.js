// Where one writes: the box that grows, what is attached, the draft that survives, and how full the context is.

import { session } from "./api.js";
import { announce, debounce, h, icon, iconButton, number, toast } from "./dom.js";

// A draft lives in localStorage, under the user's id, until it is sent or the user signs out: a closed tab, a crash or an
// expired session loses nothing, and the next user of this browser does not see it. It never leaves the browser.
const draftKey = (userId, conversationId) => `fireside.draft.${userId}.${conversationId ?? "new"}`;

/** Removes the drafts of the user who is signed in. */
export function forgetDrafts() {
  const prefix = draftKey(session.user.id, "");
  for (const key of Object.keys(localStorage)) {
    if (key.startsWith(prefix)) localStorage.removeItem(key);
  }
}

// What the server takes with a message.
const MAX_IMAGES = 8;
const MAX_CHARACTERS = 200_000;

const touch = matchMedia("(hover: none) and (pointer: coarse)");

/** `send(text, images)` resolves to whether it was sent, having said why not; `stop()` stops the answer; `editLast()` opens the last question. */
export class Composer {
  #userId = session.user.id; // kept: when a session has ended, what is typed next is still saved
  #conversationId = null;
  #attached = []; // images {name, media_type, data} and texts {name, block}
  #elsewhere = new Map(); // what is attached in other conversations, by their ids, as long as the page lives
  #attaching = null; // the promise of those that are being read
  #sees = true; // whether images may be attached: false only for a model that is known to see none
  #busy = false;
  #sending = null; // {id}: the conversation whose text is on its way

  /** `toEnd`: the button that leads to the end of what lies above, where it would cover what is read. */
  constructor({ send, stop, editLast }, toEnd) {
    this.send = send;
    this.stop = stop;
    this.editLast = editLast;
    this.area = h("textarea", {
      rows: "1", placeholder: "Write a message", "aria-label": "Message", dir: "auto", enterkeyhint: touch.matches ? "enter" : "send",
      oninput: () => this.#edited(), onkeydown: (event) => this.#key(event),
      onpaste: (event) => {
        const { files, types } = event.clipboardData;
        if (!(types.includes("text/plain") && types.includes("text/html"))) this.#attach(files, event); // an office program adds a picture of it
      },
    });
    this.chips = h("div", { class: "chips" });
    this.file = h("input", {
      type: "file", multiple: true, hidden: true, "aria-label": "Files to attach",
      onchange: () => {
        this.#attach([...this.file.files]);
        this.file.value = "";
      },
    });
    this.attachButton = iconButton("clip", "Attach files", () => this.file.click());
    this.meter = h("div", { class: "meter", role: "meter", "aria-label": "Context used", "aria-valuemin": "0", hidden: true },
      h("span", { class: "bar" }, h("span", {})), h("span", { class: "amount" }));
    this.button = h("button", { type: "submit", class: "send" });
    this.hint = h("p", { class: "hint" });
    const onsubmit = (event) => {
      event.preventDefault();
      if (this.#busy) this.stop();
      else this.#send();
    };
    this.node = h("form", { class: "composer", onsubmit },
      h("div", { class: "box", onclick: (event) => event.target === event.currentTarget && this.area.focus() },
        this.chips, this.area,
        h("div", { class: "row" }, this.attachButton, this.file, this.meter, toEnd, this.button)),
      this.hint);
    window.addEventListener("storage", (event) => this.#followDraft(event));
    const settled = debounce(200, () => this.node.classList.remove("dropping"));
    window.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault(); // else the browser leaves the page for the file
      if (!this.#present) return;
      this.node.classList.add("dropping");
      settled();
    });
    window.addEventListener("drop", (event) => this.#present && this.#attach(event.dataTransfer.files, event));
    this.#draw();
  }

  /** Shows the draft of this conversation (null: of a new one). */
  open(conversationId) {
    this.#elsewhere.set(this.#conversationId, this.#attached);
    this.#attached = this.#elsewhere.get(conversationId) ?? [];
    this.#elsewhere.delete(conversationId);
    this.#conversationId = conversationId;
    this.area.value = localStorage.getItem(draftKey(this.#userId, conversationId)) ?? "";
    this.#grow();
    this.#draw();
  }

  /** A new conversation got its id: its draft goes with it. */
  adopt(conversationId) {
    localStorage.removeItem(draftKey(this.#userId, null));
    this.#conversationId = conversationId;
    if (this.#sending) this.#sending.id = conversationId;
    this.#save();
  }

  /** On a phone the keyboard would cover the page: there one taps. */
  focus() {
    if (!touch.matches) this.area.focus({ preventScroll: true });
  }

  set busy(busy) {
    this.#busy = busy;
    this.#draw();
  }

  /** Whether the model sees images; null or undefined where that is not known. */
  set vision(sees) {
    this.#sees = sees !== false;
    if (sees === false && this.#images.length) {
      this.#attached = this.#attached.filter(({ data }) => !data);
      toast("This model sees no images: they were taken out.");
    }
    this.#draw();
  }

  set note(text) {
    this.hint.textContent = text;
  }

  /** How many tokens of how many the conversation took last; null where that is not known. */
  showContext(used, size) {
    this.meter.hidden = !(used && size);
    if (this.meter.hidden) return;
    const share = Math.min(used / size, 1);
    const told = `${number(used)} of ${number(size)} tokens`;
    this.meter.classList.toggle("full", share > 0.85);
    this.meter.firstChild.firstChild.style.width = `${share * 100}%`;
    this.meter.lastChild.textContent = `${number(used)} / ${number(size)}`;
    this.meter.title = `Context: ${told}. When it is full, the oldest messages are left out.`;
    this.meter.setAttribute("aria-valuenow", Math.min(used, size));
    this.meter.setAttribute("aria-valuemax", size);
    this.meter.setAttribute("aria-valuetext", told);
  }

  insert(text) {
    this.area.value = text;
    this.#edited();
    this.focus();
  }

  /** The message, as it would be sent now. */
  #content(attached = this.#attached) {
    return [this.area.value.trim(), ...attached.map(({ block }) => block)].filter(Boolean).join("\n\n");
  }

  get #images() {
    return this.#attached.filter(({ data }) => data);
  }

  get #empty() {
    return !this.#content() && !this.#images.length;
  }

  /** Whether this is what one has before oneself. */
  get #present() {
    return this.node.isConnected && !document.querySelector("dialog[open]");
  }

  async #send() {
    if (this.#sending) return;
    const sending = (this.#sending = { id: this.#conversationId });
    this.area.readOnly = true;
    await this.#attaching;
    const sent = sending.id === this.#conversationId && await this.#sendContent();
    this.#sending = null;
    this.area.readOnly = false;
    if (!sent) return;
    if (sending.id !== this.#conversationId) { // the box is another's by now
      localStorage.removeItem(draftKey(this.#userId, sending.id));
      return this.#elsewhere.delete(sending.id);
    }
    this.area.value = "";
    this.#attached = [];
    this.#edited();
  }

  async #sendContent() {
    const content = this.#content();
    const fits = content.length <= MAX_CHARACTERS;
    if (!fits) toast(`Too long: ${number(content.length)} characters, and a message takes ${number(MAX_CHARACTERS)}.`);
    return fits && !this.#empty && this.send(content, this.#images);
  }

  #key(event) {
    if (event.isComposing || event.keyCode === 229) return; // Enter ends what an input method composes
    const command = event.ctrlKey || event.metaKey;
    if (event.key === "Enter" && !event.shiftKey && (command || (!event.altKey && !touch.matches))) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "ArrowUp" && !this.area.value && !event.altKey) {
      event.preventDefault();
      this.editLast();
    }
  }

  #edited() {
    this.#save();
    this.#grow();
    this.#draw();
  }

  #save() {
    const key = draftKey(this.#userId, this.#conversationId);
    try {
      if (this.area.value) localStorage.setItem(key, this.area.value);
      else localStorage.removeItem(key);
    } catch {
      // The storage is full: this draft lives as long as the page.
    }
  }

  /** Another tab sent what this one still shows as a draft. */
  #followDraft({ key, oldValue, newValue }) {
    if (!session.user || key !== draftKey(this.#userId, this.#conversationId) || newValue !== null || this.area.value !== oldValue) return;
    this.area.value = "";
    this.#grow();
    this.#draw();
  }

  #grow() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight}px`;
  }

  #draw() {
    const label = this.#busy ? "Stop" : "Send";
    if (this.button.getAttribute("aria-label") !== label) {
      this.button.replaceChildren(icon(this.#busy ? "stop" : "send"));
      this.button.setAttribute("aria-label", label);
      this.button.title = this.#busy ? "Stop (Esc)" : "Send (Enter)";
    }
    this.button.disabled = !this.#busy && this.#empty;
    this.chips.replaceChildren(...this.#attached.map((one) => h("span", { class: "chip" },
      icon(one.data ? "image" : "file"), h("span", {}, one.name),
      iconButton("close", `Remove ${one.name}`, () => {
        this.#attached.splice(this.#attached.indexOf(one), 1);
        this.#draw();
        this.focus();
      }))));
  }

  #attach(files, event = null) {
    if (!files.length) return;
    event?.preventDefault();
    this.#attaching = Promise.all([this.#attaching, this.#read([...files])]);
  }

  async #read(files) {
    const attached = this.#attached; // to this message, whichever is written once they are read
    const reader = await import("./files.js").catch(() => null);
    if (!reader) return toast("Not attached: Fireside cannot be reached.");
    for (const file of files) {
      try {
        const unfit = () => new Error(`${file.name} does not fit: a message takes ${number(MAX_CHARACTERS)} characters.`);
        if (!reader.isImage(file) && file.size > MAX_CHARACTERS * 4) throw unfit(); // bytes: not worth reading
        const one = await reader.attachment(file);
        const together = [...attached, one];
        if (one.data && !this.#sees) throw new Error("This model sees no images.");
        if (together.filter(({ data }) => data).length > MAX_IMAGES) throw new Error(`At most ${MAX_IMAGES} images fit in one message.`);
        if (this.#content(together).length > MAX_CHARACTERS) throw unfit();
        attached.push(one);
        announce(`${one.name} attached`);
      } catch (refusal) {
        toast(refusal.message);
      }
      this.#draw();
    }
  }
}
