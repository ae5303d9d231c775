// A document in a dialog: its text by page, a search in it, and the original to download.

import { get } from "./api.js";
import { describeDocument } from "./attachments.js";
import { countPages, ranges } from "./citations.js";
import { openDialog } from "./dialogs.js";
import { button, download, h, styles } from "./dom.js";
import { debounce } from "./events.js";
import { counted, number } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { findPassage, findTerms } from "./passages.js";

const PART = 20; // pages of a request
const MAX_FOUND = 200; // pages of a search, at most
const NEAR = "1200px"; // a part that is closer to what is visible is loaded
// Of the text, in em, to estimate the height of a page that is not loaded.
const LINE = { characters: 80, height: 1.6 };
const HEADING_HEIGHT = 4.5;

await styles("documents.css");

/**
 * Open the viewer. `attachment` has at least {id, name}. It begins at `page`: with `words` marked, or with the matches of `query`. `sent`, such as
 * "1, 17-22": the pages that were sent with the answer from which it was opened.
 */
export function openDocument(attachment, { page = 1, words = "", query = "", sent = null } = {}) {
  if (document.querySelector("dialog.document-viewer")) return; // the second click of a double click
  new Viewer(attachment, sent).open(page, words, query);
}

class Viewer {
  #id;
  #parts = []; // {first, node, pages, request}: `pages` are {number, section, heading, body, text}, null until they are loaded
  #count = 0; // of pages
  #passage = null; // {page, words}
  #search = { query: "", hits: [], hit: -1, mark: -1, more: false };
  #searchedFrom = null; // the page at which a query was begun
  #request = null; // the AbortController of the search
  #unit = "page";
  #sentRanges = [];
  #shown = null; // the page that was gone to, until it is out of sight
  #place = null; // {node, share}: what is in the middle of what is visible, and how much of it is above the middle
  #width = 0;

  constructor(attachment, sent) {
    this.#id = attachment.id;
    this.name = attachment.name;
    this.sent = sent;
    this.facts = h("small", {});
    this.notice = h("div", { class: "sent-pages" });
    this.pageNumber = h("input", { type: "text", inputmode: "numeric", size: "4", autocomplete: "off", onfocus: () => this.pageNumber.select() });
    this.unitName = h("span", {});
    this.pageCount = h("span", {});
    const goTo = h("form", {
      class: "go-to", hidden: true,
      onsubmit: (event) => {
        event.preventDefault();
        this.#goTo(Number(this.pageNumber.value), { focus: true });
      },
    }, h("label", {}, this.unitName, this.pageNumber), this.pageCount);
    this.input = h("input", {
      type: "search", placeholder: "Search in this document", "aria-label": "Search in this document", autocomplete: "off", spellcheck: "false", maxlength: "200",
      oninput: debounce(200, () => this.#find()), onkeydown: (event) => this.#searchKey(event),
    });
    this.count = h("small", { role: "status" });
    this.previous = iconButton("up", "Previous match (Shift+Enter)", () => this.#step(-1), { hidden: true });
    this.next = iconButton("down", "Next match (Enter)", () => this.#step(1), { hidden: true });
    this.tools = h("div", { class: "tools" }, goTo,
      h("div", { class: "search", role: "search", hidden: true }, icon("search"), this.input), this.count, this.previous, this.next,
      button([icon("download"), "Original"], () => download(`/attachments/${this.#id}/content`), { title: "Download the original file" }));
    this.status = h("div", { class: "viewer-status", role: "status" }, h("p", { class: "faint" }, "Loading"));
    this.body = h("div", { class: "pages", tabindex: "0", role: "region", "aria-label": "Text of the document", onscroll: () => this.#scrolled() });
    this.observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) this.#load(Number(target.dataset.first)).catch(() => {});
    }, { root: this.body, rootMargin: `${NEAR} 0px` });
    this.sizes = new ResizeObserver(() => this.#keepPlace());
    this.sizes.observe(this.body);
  }

  async open(page, words, query) {
    this.dialog = openDialog(this.name || "Document", { className: "document-viewer", onclose: () => this.#close() }, this.facts, this.tools, this.notice, this.status, this.body);
    this.dialog.addEventListener("keydown", (event) => this.#key(event));
    let attachment;
    try {
      attachment = await get(`/attachments/${this.#id}`);
    } catch (error) {
      return this.status.replaceChildren(h("p", { class: "error" }, error.status === 404 ? "This document was deleted with its message." : error.message));
    }
    if (!this.name) this.dialog.querySelector("h2").textContent = attachment.name;
    this.facts.textContent = describeDocument(attachment);
    this.#unit = attachment.unit ?? "page";
    this.status.replaceChildren(...STATES[attachment.status] ? [h("p", {}, attachment.problem || STATES[attachment.status])] : []);
    const count = attachment.status === "reading" ? attachment.pages_read : attachment.pages ?? attachment.pages_read;
    if (!count || !attachment.characters) return this.body.remove();
    this.#layOut(count, attachment.characters / count);
    if (words) this.#passage = { page, words };
    if (query) {
      this.input.value = query;
      await this.#find(page);
    } else {
      await this.#goTo(page, { focus: !words });
    }
  }

  #close() {
    this.observer.disconnect();
    this.sizes.disconnect();
    this.#request?.abort();
  }

  /** Make the place of each part. Its text is loaded when it comes near. */
  #layOut(count, characters) {
    this.#count = count;
    this.#sentRanges = this.sent === null ? [] : ranges(this.sent);
    const height = Math.max(4, Math.ceil(characters / LINE.characters) * LINE.height) + HEADING_HEIGHT;
    for (let first = 1; first <= count; first += PART) {
      const node = h("div", { "data-first": first });
      node.style.minHeight = `${height * Math.min(PART, count - first + 1)}em`;
      this.#parts.push({ first, node, pages: null, request: null });
    }
    this.body.append(...this.#parts.map(({ node }) => node));
    for (const { node } of this.#parts) this.observer.observe(node);
    for (const node of this.tools.querySelectorAll("form, .search")) node.hidden = false;
    this.unitName.textContent = this.#Unit;
    this.pageNumber.setAttribute("aria-label", `${this.#Unit} to go to`);
    this.pageCount.textContent = `of ${number(count)}`;
    this.tools.classList.toggle("single", count === 1);
    if (this.#sentRanges.length && countPages(this.sent) < count) this.#drawSent();
  }

  get #Unit() {
    return this.#unit[0].toUpperCase() + this.#unit.slice(1);
  }

  #drawSent() {
    const links = this.#sentRanges.map(([first, last]) => button(first === last ? number(first) : `${number(first)}–${number(last)}`,
      () => this.#goTo(first, { focus: true }), { class: "inline", "aria-label": `Go to ${this.#unit} ${number(first)}` }));
    this.notice.append(h("span", {}, `${number(countPages(this.sent))} of ${counted(this.#count, this.#unit)} were sent with this answer:`), ...links);
  }

  // ---- pages

  /** Load the part that has a page, and resolve to the page. What is visible stays in place. */
  async #load(page) {
    const part = this.#parts[Math.floor((page - 1) / PART)];
    part.request ??= this.#read(part).catch((error) => {
      part.request = null;
      throw error;
    });
    await part.request;
    return part.pages[page - part.first];
  }

  async #read(part) {
    let pages;
    try {
      ({ pages } = await get(`/attachments/${this.#id}/pages?first=${part.first}&count=${PART}`));
    } catch (error) {
      this.status.replaceChildren(h("p", { class: "error" }, error.message, " ", button("Try again", () => {
        this.status.replaceChildren();
        this.#load(part.first).catch(() => {});
      })));
      throw error;
    }
    const texts = new Map(pages.map((one) => [one.number, one.text]));
    const count = Math.min(PART, this.#count - part.first + 1);
    part.pages = Array.from({ length: count }, (_, index) => this.#page(part.first + index, texts.get(part.first + index) ?? ""));
    const { node } = this.#atTop;
    const top = node.getBoundingClientRect().top;
    for (const page of part.pages) this.#draw(page);
    part.node.replaceChildren(...part.pages.map(({ section }) => section));
    part.node.style.minHeight = "";
    this.body.scrollTop += node.getBoundingClientRect().top - top;
    this.observer.unobserve(part.node);
  }

  #page(number_, text) {
    const wasSent = this.#sentRanges.some(([first, last]) => first <= number_ && number_ <= last);
    const heading = h("h3", { tabindex: "-1" }, `${this.#Unit} ${number(number_)}`, wasSent && h("span", { class: "badge" }, "sent"));
    const body = h("div", { class: "page-text", dir: "auto" });
    return { number: number_, heading, body, section: h("section", { class: "page" }, heading, body), text };
  }

  get #atTop() {
    return this.#at(8);
  }

  /** What is so many pixels below the top of what is visible, as {number, node}: a page, or a part that is not loaded. */
  #at(pixels) {
    const top = this.body.getBoundingClientRect().top + pixels;
    const part = lastAbove(this.#parts, ({ node }) => node, top);
    const page = part.node.firstChild && lastAbove(part.pages, ({ section }) => section, top);
    if (page) return { number: page.number, node: page.section };
    const { top: start, height } = part.node.getBoundingClientRect();
    const index = Math.floor((PART * (top - start)) / height);
    return { number: Math.min(this.#count, part.first + Math.max(0, index)), node: part.node };
  }

  get #loadedPages() {
    return this.#parts.flatMap(({ pages }) => pages ?? []);
  }

  #loadedText(page) {
    const part = this.#parts[Math.floor((page - 1) / PART)];
    return part?.pages?.[page - part.first]?.text ?? "";
  }

  /** Show the text of a page, with its marks. */
  #draw(page) {
    if (!page.text.trim()) return page.body.replaceChildren(h("p", { class: "faint" }, `No text on this ${this.#unit}.`));
    const marks = this.#marks(page);
    const parts = [];
    let end = 0;
    for (const [from, to] of marks) {
      if (from < end) continue;
      parts.push(page.text.slice(end, from), h("mark", {}, page.text.slice(from, to)));
      end = to;
    }
    page.body.replaceChildren(...parts, page.text.slice(end));
  }

  #marks(page) {
    if (this.#search.query) return findTerms(page.text, this.#search.query);
    if (!this.#passage) return [];
    const { page: first, words } = this.#passage;
    if (page.number !== first && page.number !== first + 1) return [];
    // The passage may go on, on the next page.
    const [one, other] = [this.#loadedText(first), this.#loadedText(first + 1)];
    const found = findPassage(`${one}\n${other}`, words);
    const shift = page.number === first ? 0 : one.length + 1;
    return found.map(([from, to]) => [Math.max(0, from - shift), Math.min(page.text.length, to - shift)]).filter(([from, to]) => from < to);
  }

  async #goTo(wanted, { focus = false } = {}) {
    if (!(wanted >= 1)) return this.#scrolled();
    const target = Math.min(this.#count, Math.floor(wanted));
    const isPassage = this.#passage?.page === target;
    const isNewest = (this.going = {});
    let pages;
    try {
      pages = await Promise.all([target, ...(isPassage && target < this.#count ? [target + 1] : [])].map((one) => this.#load(one)));
    } catch {
      return; // the message says it
    }
    if (this.going !== isNewest) return;
    if (isPassage) for (const one of pages) this.#draw(one);
    const [page] = pages;
    const mark = isPassage ? page.body.querySelector("mark") : null;
    page.section.scrollIntoView({ block: "start" });
    mark?.scrollIntoView({ block: "center" });
    if (focus) page.heading.focus({ preventScroll: true });
    else this.body.focus({ preventScroll: true });
    this.#shown = page;
    this.#scrolled();
  }

  #scrolled() {
    if (!this.#count) return;
    if (this.body.clientWidth !== this.#width) return this.#keepPlace();
    const { node } = this.#at(this.body.clientHeight / 2);
    this.#place = { node, share: (this.body.clientHeight / 2 - this.#offset(node)) / node.offsetHeight };
    if (this.#shown && !this.#isVisible(this.#shown.section)) this.#shown = null;
    if (document.activeElement !== this.pageNumber) this.pageNumber.value = this.#shown?.number ?? this.#atTop.number;
  }

  /** After a change of the width, lines are broken in other places. */
  #keepPlace() {
    this.#width = this.body.clientWidth;
    if (!this.#place?.node.isConnected) return;
    const { node, share } = this.#place;
    this.body.scrollTop += this.#offset(node) + share * node.offsetHeight - this.body.clientHeight / 2;
  }

  #isVisible(section) {
    const top = this.#offset(section);
    return top < this.body.clientHeight && top + section.offsetHeight > 0;
  }

  #offset(node) {
    return node.getBoundingClientRect().top - this.body.getBoundingClientRect().top;
  }

  // ---- the search

  async #find(from = this.#searchedFrom ?? this.#shown?.number ?? this.#atTop.number) {
    const query = this.input.value.trim();
    this.#searchedFrom = query ? from : null;
    this.#request?.abort();
    const { signal } = (this.#request = new AbortController());
    let found = { pages: [] };
    if (query) {
      this.count.textContent = "Searching";
      try {
        found = await get(`/attachments/${this.#id}/search?q=${encodeURIComponent(query)}`, { signal });
      } catch (error) {
        if (!signal.aborted) this.count.textContent = error.message;
        return;
      }
    }
    if (signal.aborted) return;
    this.#passage = null;
    this.#search = { query, hits: found.pages.map((one) => one.number), hit: -1, mark: -1, more: found.pages.length >= MAX_FOUND };
    for (const page of this.#loadedPages) this.#draw(page);
    const { hits } = this.#search;
    this.previous.hidden = this.next.hidden = !hits.length;
    this.count.textContent = query ? "Nothing found" : "";
    if (!hits.length) return;
    const after = hits.findIndex((page) => page >= from);
    await this.#showHit(Math.max(0, after), 0);
  }

  /** Go to the next or previous match: on the same page if there is one. */
  async #step(by) {
    const { hits, hit, mark } = this.#search;
    if (hit < 0) return;
    const page = await this.#load(hits[hit]).catch(() => null);
    const marks = page?.body.querySelectorAll("mark").length ?? 0;
    if (mark + by >= 0 && mark + by < marks) return this.#showHit(hit, mark + by);
    return this.#showHit((hit + by + hits.length) % hits.length, by < 0 ? Infinity : 0);
  }

  async #showHit(hit, mark) {
    const search = this.#search;
    const { hits } = search;
    const page = await this.#load(hits[hit]).catch(() => null);
    if (search !== this.#search || !page) return;
    if (search.hit >= 0) this.#searchedFrom = page.number;
    const marks = [...page.body.querySelectorAll("mark")];
    const at = Math.min(mark, Math.max(0, marks.length - 1));
    Object.assign(search, { hit, mark: at });
    for (const one of this.body.querySelectorAll("mark.current")) one.classList.remove("current");
    marks[at]?.classList.add("current");
    page.section.scrollIntoView({ block: "start" });
    marks[at]?.scrollIntoView({ block: "center" });
    this.count.textContent = `${this.#Unit} ${number(page.number)}: ${number(hit + 1)} of ${counted(hits.length, this.#unit)}${search.more ? " or more" : ""}`;
    this.#shown = page;
    this.#scrolled();
  }

  #searchKey(event) {
    if (event.isComposing) return;
    if (event.key === "Enter") {
      event.preventDefault();
      if (this.input.value.trim() === this.#search.query) this.#step(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape" && this.input.value) {
      event.preventDefault(); // the dialog stays open
      event.stopPropagation();
      this.input.value = "";
      this.#find();
    }
  }

  /** The browser's search sees only the pages that are loaded. The second Ctrl+F opens it. */
  #key(event) {
    const isFind = (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "f";
    if (!isFind || document.activeElement === this.input || !this.#count) return;
    event.preventDefault();
    this.input.focus();
    this.input.select();
  }
}

/** The last of `items` whose node begins above `top`, or the first. */
function lastAbove(items, nodeOf, top) {
  let [low, high] = [0, items.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (nodeOf(items[middle]).getBoundingClientRect().top <= top) low = middle;
    else high = middle - 1;
  }
  return items[low];
}

const STATES = {
  reading: "Fireside is still reading this document. These are the pages that it has read so far.",
  no_text: "No text was found in this document: its pages may be scanned images.",
  encrypted: "This document is encrypted.",
  failed: "This document could not be read.",
};
