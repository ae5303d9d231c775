// Rendered Markdown. The server makes a tree of nodes (web/markdown.py). This module makes elements of the allowed ones with createElement.

import { post } from "./api.js";
import { copyButton } from "./clipboard.js";
import { h } from "./dom.js";
import { iconButton } from "./icons.js";
import { ALLOWED } from "./tags.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";
const ATTRIBUTES = new Map([
  ...Object.entries(ALLOWED.html),
  ...ALLOWED.mathml.map((tag) => [tag, ALLOWED.mathmlAttributes]),
]);

/** Return the DOM node of a tree `[tag, {attribute: value}, child...]`. A tag that is not allowed becomes its content. */
export function build(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [tag, attributes, ...children] = tree;
  const allowed = ATTRIBUTES.get(tag);
  if (!allowed) return fragment(children);
  const node = ALLOWED.mathml.includes(tag) ? document.createElementNS(MATHML, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (allowed.includes(name)) node.setAttribute(name, value);
  }
  node.append(fragment(children));
  return ENHANCEMENTS[tag]?.(node) ?? node;
}

function fragment(trees) {
  const nodes = document.createDocumentFragment();
  for (const tree of trees) nodes.append(build(tree));
  return nodes;
}

/** Changes to elements of some tags, by tag. Each returns a replacement or nothing. */
const ENHANCEMENTS = {
  a(link) {
    const address = link.getAttribute("href");
    link.removeAttribute("href");
    if (address) linkTo(link, address);
  },

  pre(pre) {
    const code = pre.firstElementChild;
    const unformatted = pre.className === "unformatted" ? "Shown as plain text: formatting took too long" : "";
    const language = code?.dataset.language ?? "";
    const label = unformatted || (LANGUAGE_LABELS[language] ?? language);
    pre.tabIndex = 0; // so that the keyboard can scroll it
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", label ? `Code: ${label}` : "Code");
    const wrap = iconButton("wrap", "Wrap lines", () => {
      wrap.setAttribute("aria-pressed", String(pre.classList.toggle("wrapped")));
    }, { "aria-pressed": "false" });
    const copy = copyButton("Copy code", () => pre.textContent.replace(/\n$/, ""));
    return h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, label), wrap, copy), pre);
  },

  table(table) {
    return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
  },
};

const LANGUAGE_LABELS = { mermaid: "Mermaid diagram, as text" };

/**
 * Let a link lead to an address. On http, Firefox connects to the host of a link that the pointer is over or that has the focus,
 * and an answer can put data into a host name. So a link gets its address when it is pressed.
 */
function linkTo(link, address) {
  if (!["http:", "https:", "mailto:"].includes(URL.parse(address)?.protocol)) return;
  link.title = address;
  if (link.role) return;
  const setAddress = () => link.title && link.setAttribute("href", link.title);
  for (const pressed of ["pointerdown", "contextmenu", "click"]) link.addEventListener(pressed, setAddress);
  link.addEventListener("keydown", ({ key }) => key === "Enter" && setAddress());
  link.role = "link";
  link.tabIndex = 0;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
}

/** Make links of the references in `root` whose definitions are in it. The others show their source, such as "[^1]". */
function joinReferences(root) {
  const definitions = new Map();
  for (const node of root.querySelectorAll("[data-label]")) {
    const { label } = node.dataset;
    if (!definitions.has(label)) definitions.set(label, node);
    if (node.classList.contains("footnote")) noteLink(node.firstChild, `Back to the reference of note ${node.firstChild.textContent}`);
  }
  for (const reference of root.querySelectorAll("[data-reference]")) {
    const definition = definitions.get(reference.dataset.reference);
    const [before, link, after] = reference.children;
    before.hidden = after.hidden = Boolean(definition);
    link.classList.remove("note-link");
    if (definition?.dataset.address) linkTo(link, definition.dataset.address);
    else if (definition) noteLink(link, `Note ${link.textContent}`);
    else for (const name of ["role", "tabindex", "title", "href", "aria-label"]) link.removeAttribute(name);
  }
}

function noteLink(link, label) {
  link.className = "note-link";
  link.role = "link";
  link.tabIndex = 0;
  link.setAttribute("aria-label", label);
}

const BLOCKS_PER_PART = 24; // only the last part is laid out again while an answer grows
const MIN_PAUSE_MS = 200; // between two renderings
const PAUSE_FACTOR = 5; // a pause is at least this many times as long as the rendering before it

/**
 * Markdown that is finished or grows. Blocks that no later text can change stay as they are, and only the open rest is rendered
 * again, so an update of a long answer costs as much as its first one. Until then new text is shown as plain text, up to the
 * first character that may be Markdown.
 */
export class Markdown {
  #blocks = []; // {json, node} of each shown block; blocks with equal JSON are equal
  #text = "";
  #closedBlocks = 0; // those that no later text can change
  #closedLength = 0; // how much of the text they take
  #plain = null; // {node, length, blocked}: the text node that takes new text before it is rendered, its length as rendered
  #rendering = null; // identifies the request that is under way
  #timer = 0;
  #last = { at: 0, took: 0 }; // of the last rendering, in ms

  constructor() {
    const onkeydown = (event) => event.key === "Enter" && this.#followNote(event);
    this.node = h("div", { class: "markdown", dir: "auto", onclick: (event) => this.#followNote(event), onkeydown });
  }

  /** Show a finished text and its blocks. Blocks that are already shown stay, with the selection in them. */
  show(text, blocks) {
    this.#stop();
    this.#text = text;
    this.#replace(0, blocks);
  }

  clear() {
    this.show("", []);
    this.#closedBlocks = this.#closedLength = 0;
  }

  append(delta) {
    this.#text += delta;
    this.#showPlain(delta);
    this.#schedule();
  }

  #schedule() {
    if (this.#timer || this.#rendering) return;
    const pause = Math.max(MIN_PAUSE_MS, this.#last.took * PAUSE_FACTOR);
    this.#timer = setTimeout(() => this.#render(), this.#last.at + pause - performance.now());
  }

  async #render() {
    this.#timer = 0;
    const length = this.#text.length;
    const started = performance.now();
    const request = (this.#rendering = {});
    let rendered = null;
    try {
      rendered = await post("/render", { text: this.#text.slice(this.#closedLength) });
    } catch {
      // More text starts the next rendering, and a finished message brings its blocks.
    }
    if (this.#rendering !== request) return; // `show` was called
    this.#rendering = null;
    if (rendered) {
      this.#replace(this.#closedBlocks, [...rendered.blocks, ...rendered.tail]);
      this.#closedBlocks += rendered.blocks.length;
      this.#closedLength += rendered.closed;
      this.#plain = lastText(this.node, this.#text.slice(this.#closedLength));
      this.#showPlain(/\s?$/.exec(this.#text.slice(0, length))[0] + this.#text.slice(length));
    }
    const now = performance.now();
    this.#last = { at: now, took: now - started };
    if (this.#text.length > length) this.#schedule();
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#rendering = null;
  }

  /** Move the focus from a reference to its footnote, or back. */
  #followNote({ target }) {
    const link = target.closest(".note-link");
    if (!link) return;
    const { reference, label } = link.parentNode.dataset;
    const others = [...this.node.querySelectorAll(reference ? "[data-label] > .note-link" : "[data-reference] > .note-link")];
    const other = others.find(({ parentNode: { dataset } }) => (dataset.label ?? dataset.reference) === (reference ?? label));
    for (let node = other; node; node = node.parentNode.closest("details")) if (node.localName === "details") node.open = true;
    other?.focus();
    other?.scrollIntoView({ block: "nearest" });
  }

  /** Show other blocks from a place on. What the reader unfolded, or where the focus is in a summary, stays. */
  #replace(from, blocks) {
    const folds = [...this.node.querySelectorAll("details")].map(({ open, firstChild }) => (
      { open, focused: firstChild === document.activeElement }
    ));
    const json = blocks.map((tree) => JSON.stringify(tree));
    if (this.#plain) this.#plain.node.data = this.#plain.node.data.slice(0, this.#plain.length);
    this.#plain = null;
    let same = 0;
    while (same < blocks.length && this.#blocks[from + same]?.json === json[same]) same += 1;
    for (const { node } of this.#blocks.splice(from + same)) node.remove();
    for (const [index, tree] of [...blocks.entries()].slice(same)) {
      const node = build(tree);
      this.#part(from + index).append(node);
      this.#blocks.push({ json: json[index], node });
    }
    while (this.node.lastChild && !this.node.lastChild.firstChild) this.node.lastChild.remove();
    for (const [index, details] of this.node.querySelectorAll("details").entries()) {
      if (folds[index]) details.open = folds[index].open;
      if (folds[index]?.focused) details.firstChild.focus({ preventScroll: true });
    }
    joinReferences(this.node);
  }

  #part(index) {
    const at = Math.floor(index / BLOCKS_PER_PART);
    while (this.node.children.length <= at) this.node.append(h("div", { class: "part" }));
    return this.node.children[at];
  }

  #showPlain(delta) {
    if (!this.#plain || this.#plain.blocked) return;
    const { node } = this.#plain;
    const plain = node.parentNode.closest("pre") ? /^[^`~]*/ : /^[^\n`*_~[\]<>|#$\\!&]*/;
    const [shown] = plain.exec(delta);
    node.appendData(shown);
    this.#plain.blocked = shown.length < delta.length;
  }
}

// Where no text is added before it is rendered: these elements have ended when they are shown.
const ENDED = "a, em, strong, s, sub, sup, kbd, mark, :not(pre) > code, [data-reference], details, table, math";

/** Return the last text node as {node, length, blocked} if the open rest, `source`, may continue there before it is rendered. */
function lastText(parent, source) {
  let node = parent.lastChild;
  while (node && node.nodeType === Node.ELEMENT_NODE && node.namespaceURI !== MATHML) node = node.lastChild;
  if (node?.nodeType !== Node.TEXT_NODE || node.parentNode.closest(ENDED)) return null;
  const fences = node.parentNode.closest("pre") ? source.match(/^\s*(?:```|~~~)/gm) : null;
  if (fences?.length % 2 === 0) return null; // the code has ended
  return { node, length: node.length, blocked: false };
}
