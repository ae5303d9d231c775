// The search in titles, messages and documents: its box above the list, and the results in the place of the list.

import { get } from "./api.js";
import { button, h, stepFocus } from "./dom.js";
import { debounce } from "./events.js";
import { counted, number, timeNode } from "./format.js";
import { icon } from "./icons.js";

const PAGE = 50; // results
const SHOWN_MATCHES = 3; // of a conversation
const MATCH = /\uE000([^\uE001]*)\uE001/; // the server's marks around a match in a snippet

export class Search {
  #found = new Map(); // the results, by address
  #request = null; // the AbortController of the request that is under way

  /** `onsearch(searching)` is called when the results appear or disappear. */
  constructor(onsearch) {
    this.onsearch = onsearch;
    this.input = h("input", {
      type: "search", placeholder: "Search", "aria-label": "Search chats",
      autocomplete: "off", spellcheck: "false", maxlength: "200",
      oninput: debounce(120, () => this.#search()), onkeydown: (event) => this.#key(event),
    });
    this.box = h("div", { class: "search" }, icon("search"), this.input);
    this.results = h("div", {
      class: "results", hidden: true, "aria-label": "Search results", role: "region",
      onkeydown: (event) => stepFocus(event, [this.input, ...this.results.querySelectorAll("a:not([hidden]), button")]),
    });
  }

  focus() {
    this.input.focus();
  }

  async #search() {
    const query = this.input.value.trim();
    this.#request?.abort();
    this.#found = new Map();
    this.results.hidden = !query;
    this.onsearch(Boolean(query));
    if (!query) return this.results.replaceChildren();
    await this.#read(query, 0);
  }

  /** Read a page of results, and show it with those before it. */
  async #read(query, offset) {
    const { signal } = (this.#request = new AbortController());
    try {
      const { results, more } = await get(`/search?q=${encodeURIComponent(query)}&limit=${PAGE}&offset=${offset}`, { signal });
      const known = this.#found.size;
      for (const result of results) this.#found.set(address({ ...result, query }), { ...result, query });
      this.#draw(more && (() => this.#read(query, offset + PAGE)));
      if (offset) this.#focusResult([...this.#found.values()][known]);
    } catch (error) {
      if (!signal.aborted) this.results.replaceChildren(h("p", { class: "faint", role: "status" }, error.message));
    }
  }

  #draw(readMore) {
    const { size } = this.#found;
    const count = readMore ? `The first ${counted(size, "match", "matches")}` : size ? counted(size, "match", "matches") : "Nothing found";
    this.results.replaceChildren(h("p", { class: "faint", role: "status" }, count),
      h("ul", {}, byConversation(this.#found.values()).map(resultRow)),
      readMore && button("More results", readMore, { class: "quiet more-results" }) || "");
  }

  /** The first new result may be hidden in the row of its conversation. */
  #focusResult(result) {
    const path = result && address(result);
    const link = [...this.results.querySelectorAll("a")].find((one) => one.getAttribute("href") === path);
    (link?.hidden ? link.parentElement.querySelector(".more-matches") : link ?? this.input).focus();
  }

  #key(event) {
    const first = this.results.querySelector("a");
    if (event.key === "Escape" && this.input.value) {
      event.stopPropagation();
      this.input.value = "";
      this.#search();
    } else if (event.key === "Enter" && !event.isComposing) {
      first?.click();
    } else if (event.key === "ArrowDown" && first) {
      event.preventDefault();
      first.focus();
    }
  }
}

/** The results of each conversation, in the order of its best one. */
function byConversation(results) {
  const found = new Map();
  for (const result of results) found.set(result.conversation_id, [...(found.get(result.conversation_id) ?? []), result]);
  return [...found.values()];
}

/** A conversation with its first matches, and a button for the others. */
function resultRow(matches) {
  const links = matches.map((match, index) => resultLink(match, index === 0));
  const hidden = links.slice(SHOWN_MATCHES);
  for (const link of hidden) link.hidden = true;
  const more = button(`${hidden.length} more`, () => {
    for (const link of hidden) link.hidden = false;
    hidden[0].focus();
    more.remove();
  }, { class: "quiet more-matches" });
  return h("li", {}, links, hidden.length > 0 && more);
}

function resultLink(result, isFirst) {
  const { message_id, title, role, snippet, created_at, attachment_id, name, unit, page } = result;
  return h("a", { href: address(result) },
    isFirst && h("strong", {}, message_id === null ? withMatches(snippet || title) : title),
    attachment_id && h("span", { class: "found-in" }, icon("file"), h("span", {}, name), page && `, ${unit ?? "page"} ${number(page)}`),
    message_id !== null && h("span", { class: "snippet" }, withMatches(snippet)),
    h("small", {}, timeNode(created_at), attachment_id ? " · document" : role === "user" ? " · you" : role ? " · answer" : ""));
}

/** app.js opens what it names. */
function address({ conversation_id, message_id, attachment_id, page, query }) {
  const message = message_id === null ? "" : `/m/${message_id}`;
  return `#/c/${conversation_id}${message}${attachment_id ? `/d/${attachment_id}/${page ?? 1}/${encodeURIComponent(query)}` : ""}`;
}

const withMatches = (snippet) => snippet.split(MATCH).map((text, index) => (index % 2 ? h("mark", {}, text) : text));
