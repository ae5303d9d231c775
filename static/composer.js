// The box to write a message in: the draft, the attached files, the button to send or stop, and how full the context is.

import { session } from "./api.js";
import { h } from "./dom.js";
import { debounce } from "./events.js";
import { number } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { announce, toast } from "./popups.js";

// A draft stays in localStorage until it is sent or the user signs out: it survives a crash and an expired session.
const draftKey = (userId, conversationId) => `fireside.draft.${userId}.${conversationId ?? "new"}`;

/** Remove the drafts of the signed-in user. */
export function forgetDrafts() {
  const prefix = draftKey(session.user.id, "");
  for (const key of Object.keys(localStorage)) {
    if (key.startsWith(prefix)) localStorage.removeItem(key);
  }
}

// Limits of the server for one message.
const MAX_IMAGES = 8;
const MAX_CHARACTERS = 200_000;

const touch = matchMedia("(hover: none) and (pointer: coarse)");

export class Composer {
  #userId = session.user.id; // also after the session has ended
  #conversationId = null;
  #files = []; // attached images {name, media_type, data} and texts {name, block}
  #otherFiles = new Map(); // those of other conversations by id
  #reading = null; // the promise of files that are being read
  #acceptsImages = true;
  #busy = false;
  #sending = null; // {id}: the conversation whose message is being sent

  /** `send(text, images)` resolves to whether it was sent. `toEnd` is the button that scrolls to the end: here it covers no text. */
  constructor({ send, stop, editLast }, toEnd) {
    this.send = send;
    this.editLast = editLast;
    this.area = h("textarea", {
      rows: "1", placeholder: "Write a message", "aria-label": "Message", enterkeyhint: touch.matches ? "enter" : "send",
      oninput: () => this.#edited(), onkeydown: (event) => this.#key(event), onpaste: (event) => this.#paste(event),
    });
    this.chips = h("div", { class: "chips" });
    const input = h("input", {
      type: "file", multiple: true, hidden: true, "aria-label": "Files to attach",
      onchange: () => {
        this.#attach([...input.files]);
        input.value = "";
      },
    });
    this.meter = h("div", { class: "meter", role: "meter", "aria-label": "Context used", "aria-valuemin": "0", hidden: true },
      h("span", { class: "bar" }, h("span", {})), h("span", { class: "amount" }));
    this.button = h("button", { type: "submit", class: "send" });
    this.hint = h("p", { class: "hint" });
    const onsubmit = (event) => {
      event.preventDefault();
      if (this.#busy) stop();
      else this.#send();
    };
    this.node = h("form", { class: "composer", onsubmit },
      h("div", { class: "box", onclick: (event) => event.target === event.currentTarget && this.area.focus() },
        this.chips, this.area,
        h("div", { class: "row" }, iconButton("clip", "Attach files", () => input.click()), input, this.meter, toEnd, this.button)),
      this.hint);
    this.#acceptDrops();
    window.addEventListener("storage", (event) => this.#followDraft(event));
    this.#draw();
  }

  /** Show the draft of a conversation; null: of a new one. */
  open(conversationId) {
    this.#otherFiles.set(this.#conversationId, this.#files);
    this.#files = this.#otherFiles.get(conversationId) ?? [];
    this.#otherFiles.delete(conversationId);
    this.#conversationId = conversationId;
    this.area.value = localStorage.getItem(draftKey(this.#userId, conversationId)) ?? "";
    this.#resize();
    this.#draw();
  }

  /** The new conversation was created: its draft goes with it. */
  adopt(conversationId) {
    localStorage.removeItem(draftKey(this.#userId, null));
    this.#conversationId = conversationId;
    if (this.#sending) this.#sending.id = conversationId;
    this.#save();
  }

  /** Not on a touch screen, where the keyboard would cover the page. */
  focus() {
    if (!touch.matches) this.area.focus({ preventScroll: true });
  }

  set busy(busy) {
    this.#busy = busy;
    this.#draw();
  }

  /** Whether the model sees images; null or undefined if that is unknown. */
  set vision(seesImages) {
    this.#acceptsImages = seesImages !== false;
    if (this.#acceptsImages || !this.#images.length) return;
    this.#files = this.#files.filter(({ data }) => !data);
    toast("This model cannot see images, so they were not sent.");
    this.#draw();
  }

  set note(text) {
    this.hint.textContent = text;
  }

  /** In tokens; undefined if unknown. */
  showContext(used, size) {
    this.meter.hidden = !(used && size);
    if (this.meter.hidden) return;
    const share = Math.min(used / size, 1);
    const amount = `${number(used)} of ${number(size)} tokens`;
    this.meter.classList.toggle("full", share > 0.85);
    this.meter.firstChild.firstChild.style.width = `${share * 100}%`;
    this.meter.lastChild.textContent = `${number(used)} / ${number(size)}`;
    this.meter.title = `Context: ${amount}. When it is full, the oldest messages are left out.`;
    this.meter.setAttribute("aria-valuenow", Math.min(used, size));
    this.meter.setAttribute("aria-valuemax", size);
    this.meter.setAttribute("aria-valuetext", amount);
  }

  #content(files = this.#files) {
    return [this.area.value.trim(), ...files.map(({ block }) => block)].filter(Boolean).join("\n\n");
  }

  get #images() {
    return this.#files.filter(({ data }) => data);
  }

  get #empty() {
    return !this.#content() && !this.#images.length;
  }

  async #send() {
    if (this.#sending) return;
    const sending = (this.#sending = { id: this.#conversationId });
    this.area.readOnly = true;
    await this.#reading;
    const sent = sending.id === this.#conversationId && await this.#sendContent();
    this.#sending = null;
    this.area.readOnly = false;
    if (!sent) return;
    if (sending.id !== this.#conversationId) { // another one was opened meanwhile
      localStorage.removeItem(draftKey(this.#userId, sending.id));
      return this.#otherFiles.delete(sending.id);
    }
    this.area.value = "";
    this.#files = [];
    this.#edited();
  }

  async #sendContent() {
    const content = this.#content();
    if (content.length > MAX_CHARACTERS) {
      toast(`The message has ${number(content.length)} characters. At most ${number(MAX_CHARACTERS)} can be sent.`);
      return false;
    }
    return !this.#empty && this.send(content, this.#images);
  }

  #key(event) {
    if (event.isComposing || event.keyCode === 229) return; // Enter belongs to the input method
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
    this.#resize();
    this.#draw();
  }

  #save() {
    const key = draftKey(this.#userId, this.#conversationId);
    try {
      if (this.area.value) localStorage.setItem(key, this.area.value);
      else localStorage.removeItem(key);
    } catch {
      // The storage is full: the draft is lost when the page is closed.
    }
  }

  /** Empty the box if another tab sent the same draft. */
  #followDraft({ key, oldValue, newValue }) {
    if (!session.user || key !== draftKey(this.#userId, this.#conversationId) || newValue !== null || this.area.value !== oldValue) return;
    this.area.value = "";
    this.#resize();
    this.#draw();
  }

  #resize() {
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
    this.chips.replaceChildren(...this.#files.map((file) => h("span", { class: "chip" },
      icon(file.data ? "image" : "file"), h("span", {}, file.name),
      iconButton("close", `Remove ${file.name}`, () => {
        this.#files.splice(this.#files.indexOf(file), 1);
        this.#draw();
        this.focus();
      }))));
  }

  // ---- attaching files

  #acceptDrops() {
    const isUsable = () => this.node.isConnected && !document.querySelector("dialog[open]");
    const leave = debounce(200, () => this.node.classList.remove("dropping"));
    window.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault(); // otherwise the browser opens a dropped file in place of the page
      if (!isUsable()) return;
      this.node.classList.add("dropping");
      leave();
    });
    window.addEventListener("drop", (event) => isUsable() && this.#attach(event.dataTransfer.files, event));
  }

  #paste(event) {
    const { files, types } = event.clipboardData;
    const isOfficeText = types.includes("text/plain") && types.includes("text/html"); // it comes with a picture of the text
    if (!isOfficeText) this.#attach(files, event);
  }

  #attach(files, event = null) {
    if (!files.length) return;
    event?.preventDefault();
    this.#reading = Promise.all([this.#reading, this.#readFiles([...files])]);
  }

  async #readFiles(files) {
    const attached = this.#files; // also if another conversation is opened meanwhile
    const reader = await import("./files.js").catch(() => null);
    if (!reader) return toast("Not attached: Fireside cannot be reached.");
    for (const file of files) {
      try {
        const tooLong = () => new Error(`${file.name} is too long: a message can have at most ${number(MAX_CHARACTERS)} characters.`);
        if (!reader.isImage(file) && file.size > MAX_CHARACTERS * 4) throw tooLong(); // a character has at most 4 bytes
        const one = await reader.attachment(file);
        const all = [...attached, one];
        if (one.data && !this.#acceptsImages) throw new Error("This model cannot see images.");
        if (all.filter(({ data }) => data).length > MAX_IMAGES) throw new Error(`A message can have at most ${MAX_IMAGES} images.`);
        if (this.#content(all).length > MAX_CHARACTERS) throw tooLong();
        attached.push(one);
        announce(`${one.name} attached`);
      } catch (refusal) {
        toast(refusal.message);
      }
      this.#draw();
    }
  }
}
