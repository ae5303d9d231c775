// Attached files as objects: cards of texts and thumbnails of images, in a draft, in a question, and in the editor of a question.
// A text is {name, text}. An image is {name, media_type, data} with base64 data, or {id} once the server has it.

import { charactersOf, tokensOf } from "./context.js";
import { h } from "./dom.js";
import { debounce } from "./events.js";
import { aboutTokens, counted, number } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { announce, toast } from "./popups.js";

// Limits of the server for one message.
const MAX_IMAGES = 8;
export const MAX_CHARACTERS = 200_000;

/** A text file as a part of a message. Its fence always names a language, unlike most code blocks that a person types below a heading. */
function block({ name, text }) {
  const longest = (text.match(/`{3,}/g) ?? []).reduce((most, { length }) => Math.max(most, length), 2);
  const fence = "`".repeat(longest + 1);
  const language = /\.(\w{1,12})$/.exec(name)?.[1].toLowerCase() ?? "text";
  return `${name}:\n${fence}${language}\n${text}\n${fence}`;
}

/** Split a message into what the person typed and the text files that follow. */
export function splitContent(content) {
  const files = [];
  let typed = content;
  for (;;) {
    const end = typed.lastIndexOf("\n");
    const fence = typed.slice(end + 1);
    const named = /^`{3,}$/.test(fence) ? typed.lastIndexOf(`:\n${fence}`, end - 2) : -1;
    if (named < 0) return { typed, files };
    const head = typed.lastIndexOf("\n", named) + 1;
    const file = { name: typed.slice(head, named), text: typed.slice(typed.indexOf("\n", named + 2) + 1, end) };
    const apart = head === 0 || typed.slice(0, head).endsWith("\n\n");
    if (!file.name || !apart || typed.slice(head) !== block(file)) return { typed, files };
    files.unshift(file);
    typed = typed.slice(0, Math.max(0, head - 2));
  }
}

// ---- one object

/** A card that unfolds to show the text. */
export function fileCard({ name, text }) {
  const size = h("small", { class: "file-size" });
  size.characters = charactersOf(text);
  size.sizes = [counted(text.split("\n").length, "line"), counted(text.length, "character")];
  describeSize(size);
  return h("details", { class: "file" },
    h("summary", {}, icon("file"), h("span", {}, h("span", {}, name), size), icon("down")),
    h("pre", { tabindex: "0", role: "region", "aria-label": name, dir: "auto" }, text));
}

function describeSize(size) {
  const tokens = tokensOf(size.characters);
  size.textContent = size.sizes.concat(tokens === null ? [] : aboutTokens(tokens)).join(", ");
}

/** Write the sizes of the cards below `node` again, because the rates of tokens changed. */
export function describeSizes(node) {
  for (const size of node.querySelectorAll(".file-size")) describeSize(size);
}

const source = ({ id, media_type, data }) => (data ? `data:${media_type};base64,${data}` : `/images/${Number(id)}`);

/** Thumbnails that open the image in large. An image that the server has is a link, which can also be opened in a tab of its own. */
function thumbnails(images) {
  const shown = images.map((image, index) => {
    const name = image.name ?? (images.length > 1 ? `Attached image ${index + 1} of ${images.length}` : "Attached image");
    return { name, source: source(image), id: image.id };
  });
  for (const [index, one] of shown.entries()) {
    const onclick = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      import("./viewer.js").then(({ openViewer }) => openViewer(shown, index), () => toast("Not opened: Fireside cannot be reached."));
    };
    const image = h("img", { src: one.source, alt: one.name, loading: one.id ? "lazy" : null });
    one.node = one.id
      ? h("a", { class: "picture", href: one.source, target: "_blank", title: "Open in large", onclick }, image)
      : h("button", { class: "picture", type: "button", title: one.name, onclick }, image);
  }
  return shown.map(({ node }) => node);
}

/** The images of a message, side by side if there are several. */
export function pictures(images) {
  if (!images?.length) return null;
  return h("div", { class: images.length > 1 ? "pictures grid" : "pictures" }, thumbnails(images));
}

// ---- those of a draft

export class Attachments {
  files = [];
  #label;
  #reading = null; // the promise of files that are being read
  #changed;
  #typed;
  #focus;

  /** `label` names the choice of files. `changed()` is called after each change, `typed()` returns the text they are sent with, `focus()` focuses its box. */
  constructor({ label, changed, typed, focus }) {
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
    this.#draw();
  }

  get images() {
    return this.files.filter(({ text }) => text === undefined);
  }

  get texts() {
    return this.files.filter(({ text }) => text !== undefined);
  }

  /** Resolves when all files are read. */
  get ready() {
    return this.#reading;
  }

  /** The message with its text files. */
  content(files = this.files) {
    const blocks = files.filter(({ text }) => text !== undefined).map(block);
    return [this.#typed().trim(), ...blocks].filter(Boolean).join("\n\n");
  }

  get empty() {
    return !this.files.length && !this.#typed().trim();
  }

  replace(file, ...others) {
    const index = this.files.indexOf(file);
    if (index >= 0) this.files.splice(index, 1, ...others);
    this.#draw();
  }

  remove(file) {
    const index = this.files.indexOf(file);
    this.replace(file);
    announce(`${file.name ?? "Image"} removed`);
    const next = [...this.node.querySelectorAll(".remove")][index];
    if (next) next.focus();
    else this.#focus();
  }

  attach(files, event = null) {
    if (!files.length) return;
    event?.preventDefault();
    this.#reading = Promise.all([this.#reading, this.#read([...files])]);
  }

  paste(event) {
    const { files, types } = event.clipboardData;
    const isOfficeText = types.includes("text/plain") && types.includes("text/html"); // it comes with a picture of the text
    if (!isOfficeText) this.attach(files, event);
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
      if (isUsable()) this.attach(event.dataTransfer.files, event);
    });
  }

  #draw() {
    const pictures = thumbnails(this.images);
    this.node.replaceChildren(...this.files.map((file) => h("li", { class: "chip" },
      file.text === undefined ? pictures.shift() : fileCard(file),
      iconButton("close", `Remove ${file.name ?? "image"}`, () => this.remove(file), { class: "quiet remove" }))));
    this.#changed();
  }

  async #read(files) {
    const attached = this.files; // the same list even if another conversation is opened before the files are read
    const reader = await import("./files.js").catch(() => null);
    if (!reader) return toast("Not attached: Fireside cannot be reached.");
    for (const file of files) {
      try {
        const tooLong = () => new Error(`${file.name} is too long: a message can have at most ${number(MAX_CHARACTERS)} characters.`);
        if (!reader.isImage(file) && file.size > MAX_CHARACTERS * 4) throw tooLong(); // a character has at most 4 bytes
        const one = await reader.attachment(file);
        const all = [...attached, one];
        if (all.filter(({ text }) => text === undefined).length > MAX_IMAGES) throw new Error(`A message can have at most ${MAX_IMAGES} images.`);
        if (this.content(all).length > MAX_CHARACTERS) throw tooLong();
        attached.push(one);
        announce(`${one.name} attached`);
      } catch (refusal) {
        toast(refusal.message);
      }
      if (attached === this.files) this.#draw();
    }
  }
}
