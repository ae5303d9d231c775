// What is said above the box before a message is sent that the model cannot take whole, with buttons for what can be done.

import { tokensOfImages } from "./context.js";
import { button, h } from "./dom.js";
import { aboutTokens, counted, number } from "./format.js";
import { icon } from "./icons.js";
import { canGrow, mayGrow, modelName, modelsWithVision } from "./models.js";

const SUGGESTED_MODELS = 2;
const NAMED_FILES = 3;

/** Returns {kind, node} or null. `longPaste` is the text that could be a document. `act`: `useModel(choice)`, `send()`, `load(choice, contextLength)`, `attachPasted()`. */
export function advice({ choice, usage, attachments, longPaste, act }) {
  return blindness(choice, attachments, act)
    ?? (longPaste ? pasted(longPaste, act) : null)
    ?? (usage && !usage.fits ? overflow(choice, usage, attachments, act) : null)
    ?? (usage?.isPart ? partOfDocuments(choice, usage, attachments, act) : null);
}

const box = (kind, text, ...buttons) => ({
  kind, node: h("div", { class: "advice-box" }, icon("alert"), h("p", {}, text), h("div", { class: "row" }, buttons.flat())),
});

function pasted({ length }, { attachPasted }) {
  return box("paste", `The text that you pasted has ${counted(length, "character")}. As a document it can be searched, and if it is too long, the pages that match your question are sent.`,
    button("Attach it as a document", attachPasted));
}

function partOfDocuments(choice, { size, chat, question, answer, documents }, attachments, { load }) {
  const files = attachments.documents.filter(({ attachment }) => attachment?.tokens_estimate);
  const names = files.length > NAMED_FILES ? `These ${files.length} documents` : new Intl.ListFormat("en").format(files.map(({ name }) => name));
  const all = files.reduce((sum, { attachment }) => sum + attachment.tokens_estimate, 0);
  const unit = files[0]?.attachment.unit ?? "page";
  const text = `${names} ${files.length === 1 ? "does" : "do"} not fit into the context: ${aboutTokens(all)}. The ${unit}s that match your question best are sent: ${aboutTokens(documents)}.`
    + ` To send other ${unit}s, name them in your question, such as “${unit} 3-5”.`;
  return box(`part ${choice.id}`, text,
    canGrow(choice) && button("Load with a larger context…", () => load(choice, suggestedLength(choice.model, chat + question + answer + all))));
}

function blindness(choice, attachments, { useModel }) {
  const { images } = attachments;
  if (choice?.model?.vision !== false || !images.length) return null;
  const others = modelsWithVision().slice(0, SUGGESTED_MODELS);
  const names = new Intl.ListFormat("en").format(others.map(modelName));
  const text = `${modelName(choice)} cannot see images. ${names ? `${names} can.` : "No other model here can."}`;
  return box(`images ${choice.id}`, text,
    others.map((other) => button(`Use ${modelName(other)}`, () => useModel(other))), removeButton(attachments, imagesPart(images)));
}

const removeButton = (attachments, { name, files }) =>
  button(`Remove ${name}`, () => { for (const file of files) attachments.remove(file); });

function imagesPart(images) {
  const one = images.length === 1;
  return { subject: one ? "The image" : `The ${images.length} images`, name: one ? "the image" : `the ${images.length} images`, files: images, tokens: tokensOfImages(images.length), excess: one ? "is too large" : "are too large" };
}

/** What takes most of the question, as {subject, name, files, tokens, excess}; without files if that is the typed text. */
function largestPart({ images, documents }, question, documentTokens) {
  const ofImages = images.length ? imagesPart(images) : { tokens: 0 };
  const one = documents.length === 1;
  const name = one ? documents[0].name : `the ${documents.length} documents`;
  const ofDocuments = { subject: one ? name : `T${name.slice(1)}`, name, files: documents, tokens: documentTokens, excess: one ? "is too large" : "are too large" };
  const typed = { subject: "This message", name: "", files: [], tokens: question - ofImages.tokens, excess: "is too long" };
  return [ofImages, ofDocuments].reduce((most, part) => (part.tokens > most.tokens ? part : most), typed);
}

function overflow(choice, usage, attachments, { send, load }) {
  const { size, answer, chat, question, documents, omitted, leftOut, alone } = usage;
  if (!question || (alone && (leftOut === undefined || leftOut <= omitted))) return null; // nothing is written; unknown; as many as before
  const part = largestPart(attachments, question, documents);
  const text = alone ? describeLeftOut(part, size, leftOut)
    : `${part.subject} ${part.excess} for the context: ${aboutTokens(part.tokens)}.`
      + ` The context of ${modelName(choice)} holds ${number(size)} tokens; ${number(answer)} of them are kept free for the answer.`;
  const growth = mayGrow(choice) && !canGrow(choice) ? " An administrator can load the model with a larger context." : "";
  return box(`${alone ? "chat" : part.name} ${choice.id}`, text + growth,
    canGrow(choice) && button("Load with a larger context…", () => load(choice, suggestedLength(choice.model, chat + question + documents + answer))),
    part.files.length > 0 && removeButton(attachments, part),
    alone && button("Send without them", send));
}

function describeLeftOut({ name, files, tokens }, size, leftOut) {
  const messages = leftOut === 1 ? "the oldest message" : `the ${number(leftOut)} oldest messages`;
  const what = files.length ? `With ${name} (${aboutTokens(tokens)}), the chat does not fit` : "The chat no longer fits";
  return `${what} the context of ${number(size)} tokens: ${messages} would be left out.`;
}

/** The next power of two, with room for a few more questions. */
function suggestedLength({ max_context_length: most }, tokens) {
  return Math.min(most, 2 ** Math.ceil(Math.log2(tokens * 1.25)));
}
