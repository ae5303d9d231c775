// The files of a draft as cards, and attaching them by button, drop and paste.

import { block, describeDocument, fileCard, showDocument, thumbnails } from "./attachments.js";
import { arrange, button, h } from "./dom.js";
import { DraftFile } from "./draftfile.js";
import { debounce } from "./events.js";
import { number } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { announce, toast } from "./popups.js";

// Limits of the server for one message.
const MAX_FILES = 20;
export const MAX_CHARACTERS = 200_000;

const NO_TEXT = "No text was found in it: its pages may be scanned images. The model is told only its name.";
const UNREAD = { reading: "Fireside is still reading it.", lost: "The connection was lost." };

export class Attachments {
  files = []; // each a DraftFile, or {name, text} in the editor of an older question
  #label;
  #changed;
  #typed;
  #focus;
  #cards = new WeakMap(); // by file
  #pictured = []; // the cards that have thumbnails
  #waiting = []; // functions that resolve promises of `settled`

  /**
   * `label` names the choice of files. `changed(files)` is called after each change, also of files that are no longer shown;
   * `typed()` returns the text they are sent with; `focus()` focuses its box.
   */
  constructor({ label, changed = () => {}, typed, focus }) {
    this.#label = label;
    this.#changed = changed;
    this.#typed = typed;
    this.#focus = focus;
    this.node = h("ul", { class: "chips", "aria-label": "Attached files" });
    const input = h("input", {
      type: "file", multiple: true, hidden: true, "aria-label": label,
      onchange: () => {
        this.attach([...input.files]);
        input.value = "";
      },
    });
    this.controls = [iconButton("clip", "Attach files", () => input.click(), { "data-attach": "" }), input];
  }

  /** Show other files. The array is changed in place. */
  show(files) {
    this.files = files;
    for (const file of files) this.#follow(file, files);
    this.#draw();
  }

  /** The files of a message and the texts in its content. */
  showMessage({ images, documents }, texts) {
    this.show([...[...images ?? [], ...documents ?? []].map((one) => DraftFile.of(one)), ...texts]);
  }

  get images() {
    return this.files.filter((file) => file.isImage);
  }

  get documents() {
    return this.files.filter((file) => file.text === undefined && !file.isImage);
  }

  /** The ids to send. */
  get ids() {
    return this.files.filter(({ id }) => id).map(({ id }) => id);
  }

  /** The files that are not yet uploaded and read. */
  get pending() {
    return this.files.filter((file) => file.isPending);
  }

  /** Resolves when no file is pending, or one cannot be sent, or other files are shown. */
  async settled() {
    const { files } = this;
    while (files === this.files && this.pending.length && !this.files.some(({ obstacle }) => obstacle)) await new Promise((resolve) => { this.#waiting.push(resolve); });
  }

  /** Wait for the files after a press of `button`, which shows it. Resolves to whether to go on: not after a second press, or when it is gone. */
  async settledFor(button) {
    if (button.disabled) return false;
    const label = button.textContent;
    button.disabled = true;
    const settled = this.settled();
    if (this.pending.length) button.textContent = "Waiting for the files";
    await settled;
    button.textContent = label;
    button.disabled = false;
    return button.isConnected;
  }

  /** Why the files cannot be sent as they are; "" if they can. */
  get obstacle() {
    const file = this.files.find((one) => one.obstacle) ?? this.pending[0];
    return file ? `${file.name} cannot be sent. ${file.obstacle || UNREAD[file.state] || "It is not uploaded yet."}` : "";
  }

  /** The message with the texts of an older one. */
  get content() {
    return [this.#typed().trim(), ...this.files.filter(({ text }) => text !== undefined).map(block)].filter(Boolean).join("\n\n");
  }

  get empty() {
    return !this.files.length && !this.#typed().trim();
  }

  remove(file) {
    const index = this.files.indexOf(file);
    this.#drop(file, this.files);
    announce(`${file.name || "Image"} removed`);
    const next = [...this.node.querySelectorAll(".remove")][index];
    if (next) next.focus();
    else this.#focus();
  }

  attach(files, event = null) {
    if (!files.length) return;
    event?.preventDefault();
    if (this.files.length + files.length > MAX_FILES) return toast(`A message can have at most ${MAX_FILES} files.`);
    for (const file of files) {
      const one = DraftFile.upload(file);
      this.files.push(one);
      this.#follow(one, this.files);
    }
    this.#update(this.files);
  }

  paste(event) {
    const { files, types } = event.clipboardData;
    const isOfficeText = types.includes("text/plain") && types.includes("text/html"); // it comes with a picture of the text
    if (!isOfficeText) this.attach([...files], event);
  }

  /** Attach the files that are dropped on `target`, while `isUsable()`. `node` shows that they can be. */
  acceptDrops(target, node, isUsable = () => true) {
    const leave = debounce(200, () => node.classList.remove("dropping"));
    target.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault(); // otherwise the browser opens a dropped file in place of the page
      event.stopPropagation();
      if (!isUsable()) return;
      node.classList.add("dropping");
      leave();
    });
    target.addEventListener("drop", (event) => {
      event.stopPropagation();
      if (isUsable()) this.attach([...event.dataTransfer.files], event);
    });
  }

  /** Draw the file again when it changes. `files` is the draft that has it, which may not be the one that is shown. */
  #follow(file, files) {
    if (!file.on || this.#cards.has(file)) return;
    this.#cards.set(file, new Card(file, () => this.remove(file)));
    let { state } = file;
    file.on("changed", () => {
      if (!files.includes(file)) return;
      if (state !== file.state) {
        state = file.state;
        if (file.id && files.some((other) => other !== file && other.id === file.id)) {
          toast(`${file.name} is already attached.`);
          return this.#drop(file, files);
        }
        if (!file.isPending) announce(file.problem ? `${file.name}: ${file.problem}` : `${file.name} attached`);
        this.#update(files);
      }
      this.#cards.get(file)?.draw();
    });
  }

  #drop(file, files) {
    const index = files.indexOf(file);
    if (index >= 0) files.splice(index, 1);
    file.cancel?.();
    this.#cards.delete(file);
    this.#update(files);
  }

  #update(files) {
    if (files === this.files) this.#draw();
    this.#changed(files);
  }

  #draw() {
    const cards = this.files.map((file) => {
      if (!this.#cards.has(file)) this.#cards.set(file, new Card(file, () => this.remove(file)));
      return this.#cards.get(file);
    });
    const ready = cards.filter(({ file }) => file.isImage && file.id);
    const isSame = ready.length === this.#pictured.length && ready.every((card, index) => card === this.#pictured[index]);
    const pictures = isSame ? [] : thumbnails(ready.map(({ file }) => file)); // the focus returns to one when the viewer closes
    this.#pictured = ready;
    for (const card of cards) card.draw(ready.includes(card) ? pictures.shift() : null);
    arrange(this.node, cards.map(({ node }) => node));
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

class Card {
  #head;
  #remove;

  constructor(file, remove) {
    this.file = file;
    this.#remove = iconButton("close", "", remove, { class: "quiet remove" });
    this.node = h("li", { class: "chip" });
    if (file.text !== undefined) return;
    this.bar = h("progress", { "aria-label": `Progress of ${file.name}` });
    this.size = h("small", {});
    this.warning = h("p", {});
    this.retry = button([icon("retry"), "Try again"], () => {
      this.#remove.focus();
      file.retry();
    });
    this.password = this.#passwordField();
  }

  /** `picture`: the thumbnail of an image that is uploaded. */
  draw(picture = null) {
    const { file } = this;
    const label = `Remove ${file.name || "image"}`;
    if (this.#remove.title !== label) this.#remove.title = this.#remove.ariaLabel = label;
    if (file.text !== undefined) {
      if (!this.#head) this.node.append((this.#head = fileCard(file)), this.#remove);
      return;
    }
    if (file.isImage && file.id) {
      if (picture) this.node.replaceChildren(picture, this.#remove);
      return;
    }
    const opens = ["ready", "no_text"].includes(file.state);
    if (!this.#head || this.#head.disabled === opens) {
      const head = h("button", { class: "document", type: "button", disabled: !opens, title: opens ? "Open" : null, onclick: () => showDocument(file.attachment) },
        icon("file"), h("span", {}, h("span", {}, file.name), this.size));
      this.#head?.replaceWith(head);
      this.#head = head;
    }
    this.size.textContent = this.#describe();
    const warning = file.problem || (file.state === "no_text" ? NO_TEXT : "");
    this.warning.className = file.obstacle ? "warning problem" : "warning";
    this.warning.textContent = warning;
    const isMoving = ["uploading", "reading"].includes(file.state);
    const share = file.state === "uploading" ? file.share : file.attachment?.pages ? file.attachment.pages_read / file.attachment.pages : null;
    if (share) this.bar.value = share;
    else this.bar.removeAttribute("value");
    arrange(this.node, [
      this.#head, this.#remove, isMoving && this.bar, warning && this.warning,
      file.canRetry && this.retry, file.state === "encrypted" && this.password,
    ].filter(Boolean));
  }

  #describe() {
    const { state, share, attachment } = this.file;
    if (state === "waiting") return "Waiting for its upload";
    if (state === "uploading") return share < 1 ? `Uploading, ${number(share * 100)} %` : "Uploaded";
    if (state === "reading" && attachment) {
      const { unit, pages, pages_read: read } = attachment;
      return pages ? `Reading ${unit} ${number(Math.min(read + 1, pages))} of ${number(pages)}` : "Reading";
    }
    if (state === "encrypted") return "Encrypted";
    return attachment ? describeDocument(attachment) : state === "reading" ? "Loading" : "Not attached";
  }

  /** No form, because the composer is one. */
  #passwordField() {
    const { file } = this;
    const unlock = async () => {
      if (!input.value) return;
      await file.unlock(input.value);
      input.value = "";
      if (input.isConnected) input.focus();
    };
    const input = h("input", {
      type: "password", "aria-label": `Password of ${file.name}`, placeholder: "Password", autocomplete: "off",
      onkeydown: (event) => {
        if (event.key !== "Enter" || event.isComposing) return;
        event.preventDefault();
        event.stopPropagation();
        unlock();
      },
    });
    return h("div", { class: "row" }, input, button("Unlock", unlock));
  }
}
