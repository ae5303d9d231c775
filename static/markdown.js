// Rendered Markdown. The server makes the tree (web/markdown.py), this makes the nodes: from an allow-list, with createElement.

import { post } from "./api.js";
import { copyButton } from "./clipboard.js";
import { h } from "./dom.js";
import { iconButton } from "./icons.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";
const words = (text) => new Set(text.split(" "));
const none = new Set();

/** What a tree may hold; a test keeps it equal to render.TAGS. */
export const TAGS = new Map();
for (const tag of words("a blockquote br code em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul")) {
  TAGS.set(tag, none);
}
TAGS.set("a", words("href"));
TAGS.set("code", words("data-language"));
TAGS.set("li", words("class"));
TAGS.set("ol", words("start"));
TAGS.set("pre", words("class"));
TAGS.set("span", words("class"));
TAGS.set("td", words("align"));
TAGS.set("th", words("align"));
const MATH_TAGS = words(
  "math menclose mfrac mi mn mo mover mpadded mphantom mroot mrow mspace msqrt mstyle msub msubsup msup mtable mtd mtext " +
  "mtr munder munderover");
const MATH_ATTRIBUTES = words(
  "accent columnalign columnlines columnspacing depth display displaystyle fence form height largeop linebreak " +
  "linethickness lspace mathsize mathvariant maxsize minsize movablelimits notation rowlines rowspacing rspace " +
  "scriptlevel separator stretchy voffset width");
for (const tag of MATH_TAGS) TAGS.set(tag, MATH_ATTRIBUTES);

/** The node of a tree `[tag, {attribute: value}, child...]`. What the list does not hold becomes its text. */
export function build(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [tag, attributes, ...children] = tree;
  const allowed = TAGS.get(tag);
  if (!allowed) return fragment(children);
  const node = MATH_TAGS.has(tag) ? document.createElementNS(MATHML, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (allowed.has(name)) node.setAttribute(name, value);
  }
  node.append(fragment(children));
  return DRESSED[tag]?.(node) ?? node;
}

function fragment(trees) {
  const nodes = document.createDocumentFragment();
  for (const tree of trees) nodes.append(build(tree));
  return nodes;
}

/** Elements that the page shows in a way of its own. */
const DRESSED = {
  /**
   * On http, Firefox connects to the host of a link that the pointer is over or that has the focus, and an answer can put
   * data into a host name. So the link has its address only from the moment it is pressed.
   */
  a(link) {
    const address = link.getAttribute("href");
    link.removeAttribute("href");
    if (!["http:", "https:", "mailto:"].includes(URL.parse(address)?.protocol)) return;
    const setAddress = () => link.setAttribute("href", address);
    for (const pressed of ["pointerdown", "contextmenu", "click"]) link.addEventListener(pressed, setAddress);
    link.addEventListener("keydown", ({ key }) => key === "Enter" && setAddress());
    link.role = "link";
    link.tabIndex = 0;
    link.title = address;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  },

  pre(pre) {
    const code = pre.firstElementChild;
    const unformatted = pre.className === "unformatted" ? "Shown as plain text: formatting took too long" : "";
    const language = unformatted || (code?.dataset.language ?? "");
    pre.tabIndex = 0; // it scrolls: by keyboard too
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", language ? `Code: ${language}` : "Code");
    const wrap = iconButton("wrap", "Wrap lines", () => {
      wrap.setAttribute("aria-pressed", String(pre.classList.toggle("wrapped")));
    }, { "aria-pressed": "false" });
    const copy = copyButton("Copy code", () => pre.textContent.replace(/\n$/, ""));
    return h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, language), wrap, copy), pre);
  },

  table(table) {
    return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
  },
};

const PART = 24; // blocks that are laid out together: what is above the last part costs no layout while the answer grows
const RENDER_EVERY = 200; // ms at the least
const RENDER_SHARE = 5; // and this many times what the last rendering took, so that a huge open block costs no more

/**
 * Markdown that is shown whole or grows. While it grows, blocks that no later text can change stay as they are, and only
 * the open rest is rendered anew: an update of a long answer costs what its first one did. What came since is shown at
 * once as plain text, up to where Markdown might make something of it.
 */
export class Markdown {
  #blocks = []; // those shown: {json, node}, the JSON of its tree being what a block is known by
  #open = 0; // the index of the first block that may still change
  #text = "";
  #closed = 0; // how much of the text the blocks before that one take
  #ahead = null; // {text node, length}: where new text may be shown before it is rendered
  #rendering = false;
  #timer = 0;
  #last = { at: 0, took: 0 };

  constructor() {
    this.node = h("div", { class: "markdown", dir: "auto" });
  }

  /** Shows a finished text and its blocks. Those already shown stay, with what is selected in them. */
  show(text, blocks) {
    this.#stop();
    this.#text = text;
    this.#replace(0, blocks);
  }

  clear() {
    this.show("", []);
    this.#open = this.#closed = 0;
  }

  append(delta) {
    this.#text += delta;
    this.#showAhead(delta);
    this.#plan();
  }

  #plan() {
    if (this.#timer || this.#rendering) return;
    const pause = Math.max(RENDER_EVERY, this.#last.took * RENDER_SHARE);
    this.#timer = setTimeout(() => this.#render(), this.#last.at + pause - performance.now());
  }

  async #render() {
    this.#timer = 0;
    const length = this.#text.length;
    const started = performance.now();
    const turn = (this.#rendering = {}); // a `show` meanwhile forgets it
    let rendered = null;
    try {
      rendered = await post("/render", { text: this.#text.slice(this.#closed) });
    } catch {
      // The next one comes with the next text, or the finished message brings its blocks.
    }
    if (this.#rendering !== turn) return;
    this.#rendering = false;
    if (rendered) {
      this.#replace(this.#open, [...rendered.blocks, ...rendered.tail]);
      this.#open += rendered.blocks.length;
      this.#closed += rendered.closed;
      this.#ahead = lastText(this.node, this.#text.slice(this.#closed));
      this.#showAhead(/\s?$/.exec(this.#text.slice(0, length))[0] + this.#text.slice(length));
    }
    const now = performance.now();
    this.#last = { at: now, took: now - started };
    if (this.#text.length > length) this.#plan();
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#rendering = false;
  }

  #replace(from, blocks) {
    const json = blocks.map((tree) => JSON.stringify(tree));
    if (this.#ahead) this.#ahead.node.data = this.#ahead.node.data.slice(0, this.#ahead.length);
    this.#ahead = null;
    let same = 0;
    while (same < blocks.length && this.#blocks[from + same]?.json === json[same]) same += 1;
    for (const { node } of this.#blocks.splice(from + same)) node.remove();
    for (const [index, tree] of [...blocks.entries()].slice(same)) {
      const node = build(tree);
      this.#part(from + index).append(node);
      this.#blocks.push({ json: json[index], node });
    }
    while (this.node.lastChild && !this.node.lastChild.firstChild) this.node.lastChild.remove();
  }

  #part(index) {
    const at = Math.floor(index / PART);
    while (this.node.children.length <= at) this.node.append(h("div", { class: "part" }));
    return this.node.children[at];
  }

  #showAhead(delta) {
    if (!this.#ahead || this.#ahead.blocked) return;
    const { node } = this.#ahead;
    const plain = node.parentNode.closest("pre") ? /^[^`~]*/ : /^[^\n`*_~[\]<>|#$\\!&]*/;
    const [shown] = plain.exec(delta);
    node.appendData(shown);
    this.#ahead.blocked = shown.length < delta.length;
  }
}

/** The text node at the very end, if `source`, the open rest, may go on there before it is rendered. */
function lastText(parent, source) {
  let node = parent.lastChild;
  while (node && node.nodeType === Node.ELEMENT_NODE && node.namespaceURI !== MATHML) node = node.lastChild;
  if (node?.nodeType !== Node.TEXT_NODE || node.parentNode.closest("a, table, math")) return null;
  const fences = node.parentNode.closest("pre") ? source.match(/^\s*(?:```|~~~)/gm) : null;
  if (fences?.length % 2 === 0) return null; // the code has ended
  return { node, length: node.length, blocked: false };
}
