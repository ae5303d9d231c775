// The quotations of an answer that were looked up in the documents, and which pages of them were sent.

import { button, h, styles, uniqueId } from "./dom.js";
import { number } from "./format.js";
import { icon } from "./icons.js";
import { after, letters } from "./passages.js";
import { placeBeside } from "./popups.js";

styles("documents.css");

// ---- which pages were sent

/** "1, 17-22" as [[1, 1], [17, 22]]. */
export const ranges = (pages) => [...pages.matchAll(/(\d+)(?:\s*[-–]\s*(\d+))?/g)].map(([, first, last]) => [Number(first), Number(last ?? first)]);

export const countPages = (pages) => ranges(pages).reduce((sum, [first, last]) => sum + last - first + 1, 0);

/** Return a line for each document that was sent in part. `open(attachment, options)` opens the viewer. */
export function sentPages(documents, open) {
  const parts = documents.filter(({ pages, sent }) => countPages(sent) < pages);
  if (!parts.length) return [];
  const { unit } = parts[0];
  return [h("div", { class: "sent" }, icon("file"), h("div", {},
    parts.map(({ attachment_id: id, name, unit: one, pages, sent }) => h("p", {},
      `${number(countPages(sent))} of ${number(pages)} ${one}s of `,
      button(name, () => open({ id, name }, { page: ranges(sent)[0]?.[0] ?? 1, sent }), { class: "inline" }),
      sent ? ` were sent: ${sent.replaceAll("-", "–")}` : " were sent")),
    h("small", {}, `To send other ${unit}s, name them in your question, such as “${unit} 3-5”.`)))];
}

// ---- quotations

const SKIPPED = "math, button, .code-head";

/** Mark each quotation in the rendered answer. The text of the answer stays as it is, also when it is copied. */
export function markQuotations(root, { content, citations }, documents, open) {
  unmark(root);
  if (!citations?.length) return;
  const rendered = new Rendered(root);
  const source = new Source(content);
  for (const citation of citations) {
    const quotation = source.slice(citation);
    const place = rendered.find(quotation, source);
    if (place) mark(rendered, place, citation, quotation.text, documents, open);
  }
}

function unmark(root) {
  for (const badge of root.querySelectorAll(".quotation-badge")) badge.remove();
  for (const part of root.querySelectorAll(".quotation")) {
    const parent = part.parentNode;
    part.replaceWith(...part.childNodes);
    parent.normalize();
  }
}

/** The letters of the Markdown source, without what the renderer takes away. */
class Source {
  constructor(content) {
    this.content = content;
    // The same length, so that offsets stay: addresses of links, entities, numbers of lists, tags.
    const plain = content.replace(/\]\([^()\s]*\)|&#?\w+;|^[ \t>]*\d+[.)](?=\s)|<\/?[a-z][^<>]*>/gim, (syntax) => " ".repeat(syntax.length));
    const { text, offsets } = letters(plain);
    this.letters = text;
    this.offsets = offsets;
    this.units = null; // of each code point, if there are any outside the Basic Multilingual Plane
    if (/[\ud800-\udbff]/.test(content)) {
      this.units = [];
      let at = 0;
      for (const character of content) {
        this.units.push(at);
        at += character.length;
      }
      this.units.push(at);
    }
  }

  /** The quotation between two offsets in code points, as {text, key, from}: its letters, and where they begin among all letters. */
  slice({ start, end }) {
    const [first, last] = this.units ? [this.units[start], this.units[end]] : [start, end];
    const from = lowerBound(this.offsets, first);
    const to = lowerBound(this.offsets, last);
    return { text: this.content.slice(first, last), key: this.letters.slice(from, to), from };
  }

  /** How many times the letters stand before the quotation. */
  countBefore({ key, from }) {
    let count = 0;
    for (let at = this.letters.indexOf(key); at >= 0 && at < from; at = this.letters.indexOf(key, at + 1)) count += 1;
    return count;
  }
}

function lowerBound(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The text of a rendered answer, with the text nodes that it is in. */
class Rendered {
  nodes = []; // {node, start}; a node that was split is replaced by its parts
  text = "";

  constructor(root) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT, (node) => (
      node.nodeType === Node.TEXT_NODE ? NodeFilter.FILTER_ACCEPT : node.matches(SKIPPED) ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_SKIP));
    while (walker.nextNode()) {
      this.nodes.push({ node: walker.currentNode, start: this.text.length });
      this.text += walker.currentNode.data;
    }
    Object.assign(this, { letters: letters(this.text) });
  }

  /** Where a quotation stands, as [start, end] with its quotation marks; null if it does not. */
  find(quotation, source) {
    const { text, offsets } = this.letters;
    const { key } = quotation;
    if (!key) return null;
    let at = text.indexOf(key);
    for (let before = source.countBefore(quotation); before > 0 && at >= 0; before -= 1) {
      const next = text.indexOf(key, at + 1);
      if (next < 0) break;
      at = next;
    }
    if (at < 0) return null;
    let start = offsets[at];
    let end = after(this.text, offsets[at + key.length - 1]);
    const [, head, tail] = /^([^\p{L}\p{N}]*).*?([^\p{L}\p{N}]*)$/su.exec(quotation.text);
    for (const sign of [...head].reverse()) if (/\S/.test(sign) && this.text[start - 1] === sign) start -= 1;
    for (const sign of tail) if (/\S/.test(sign) && this.text[end] === sign) end += 1;
    return [start, end];
  }

  /** Put the text between two offsets in elements that `make` returns, one for each text node. Returns them. */
  wrap([start, end], make) {
    const wrapped = [];
    const nodes = [];
    for (const one of this.nodes) {
      const from = Math.max(start - one.start, 0);
      const to = Math.min(end - one.start, one.node.length);
      nodes.push(one);
      if (from >= to) continue;
      let { node } = one;
      if (to < node.length) nodes.push({ node: node.splitText(to), start: one.start + to });
      if (from > 0) nodes.splice(nodes.indexOf(one) + 1, 0, { node: (node = node.splitText(from)), start: one.start + from });
      if (!node.data.trim() && node.data.includes("\n")) continue; // between two blocks
      const element = make();
      node.replaceWith(element);
      element.append(node);
      wrapped.push(element);
    }
    this.nodes = nodes;
    return wrapped;
  }
}

const INTERACTIVE = "a, summary, [data-reference]"; // no button may stand in them
const INLINE = "em, strong, s, sub, sup, kbd, mark, code, span";

function mark(rendered, place, citation, quotation, documents, open) {
  const state = describe(citation, documents);
  const parts = rendered.wrap(place, () => h("span", { class: `quotation ${citation.status}` }));
  let last = parts.at(-1);
  if (!last) return;
  last = last.parentElement.closest(INTERACTIVE) ?? last;
  while (!last.nextSibling && last.parentNode.matches(INLINE)) last = last.parentNode;
  // The label is drawn by the style sheet, so that it is not copied with the text.
  const badge = h("button", { type: "button", class: `quotation-badge ${citation.status}`, "data-label": state.label, "aria-label": state.title, title: state.title });
  badge.addEventListener("click", () => {
    if (citation.status === "not_found") explain(badge, state.title);
    else open({ ...state.attachment }, { page: citation.page ?? 1, words: quotation });
  });
  last.after(badge);
}

function describe({ status, attachment_id: id, name, page }, documents) {
  if (status === "not_found") {
    return { label: "not found", title: "This quotation was not found in the documents of this chat. The model may have changed or invented it." };
  }
  const known = documents.find((one) => one.id === id);
  const attachment = { ...known, id, name: name ?? known?.name ?? "the document" };
  const unit = known?.unit ?? "page";
  const place = page && known?.pages !== 1 ? `${unit} ${number(page)}` : "";
  const several = new Set(documents.map((one) => one.id)).size > 1 || status === "other_document";
  const label = [several && shortened(attachment.name), place && (unit === "page" ? `p. ${number(page)}` : place)].filter(Boolean).join(", ") || "found";
  const where = [attachment.name, place].filter(Boolean).join(", ");
  const title = status === "other_document" ? `Found in another document: ${where}. Open it there.` : `Found in ${where}. Open it there.`;
  return { label, title, attachment };
}

const shortened = (name) => (name.length > 30 ? `${name.slice(0, 16)}…${name.slice(-12)}` : name);

function explain(badge, text) {
  const note = h("p", { class: "menu quotation-note", popover: "auto", id: uniqueId("note"), role: "status" }, text);
  note.addEventListener("toggle", ({ newState }) => newState === "closed" && note.remove());
  (badge.closest("dialog, main") ?? document.body).append(note);
  note.showPopover();
  placeBeside(note, badge);
}
