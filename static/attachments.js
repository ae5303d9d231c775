// Attached files as objects: cards of documents and texts, and thumbnails of images. Older messages have text files in their content,
// as {name, text}; all others are as the server describes an attachment.

import { charactersOf, tokensOf } from "./context.js";
import { h } from "./dom.js";
import { aboutTokens, counted, fileSize } from "./format.js";
import { icon } from "./icons.js";
import { toast } from "./popups.js";

/** A text file as a part of an older message. Its fence always names a language, unlike most code blocks that a person types below a heading. */
export function block({ name, text }) {
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

/** Thumbnails that open the image in large. Each is a link, which can also be opened in a tab of its own. */
export function thumbnails(images) {
  const shown = images.map(({ id, name }, index) => {
    const place = images.length > 1 ? `Attached image ${index + 1} of ${images.length}` : "Attached image";
    return { name: name || place, source: `/images/${Number(id)}` };
  });
  for (const [index, one] of shown.entries()) {
    const onclick = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      import("./viewer.js").then(({ openViewer }) => openViewer(shown, index), () => toast("Not opened: Fireside cannot be reached."));
    };
    one.node = h("a", { class: "picture", href: one.source, target: "_blank", title: "Open full size", onclick },
      h("img", { src: one.source, alt: one.name, loading: "lazy" }));
  }
  return shown.map(({ node }) => node);
}

/** The images of a message, side by side if there are several. */
export function pictures(images) {
  if (!images?.length) return null;
  return h("div", { class: images.length > 1 ? "pictures grid" : "pictures" }, thumbnails(images));
}

/** "120 pages, 2 MB, about 34,000 tokens" */
export function describeDocument({ pages, unit, characters, size_bytes: bytes, tokens_estimate: tokens }) {
  const length = unit === "section" ? characters && counted(characters, "character") : pages && counted(pages, unit);
  return [length, fileSize(bytes), tokens && aboutTokens(tokens)].filter(Boolean).join(", ");
}

/** A card that opens the document. `options` are those of the viewer. */
export function documentCard(attachment, options) {
  const warning = attachment.status === "no_text" && "No text was found in it";
  return h("button", { class: "document", type: "button", title: "Open", onclick: () => showDocument(attachment, options) },
    icon("file"), h("span", {}, h("span", {}, attachment.name), h("small", {}, warning || describeDocument(attachment))));
}

export function showDocument(attachment, options) {
  import("./document.js").then(({ openDocument }) => openDocument(attachment, options), () => toast("Not opened: Fireside cannot be reached."));
}
