// What is said above the box before a message is sent that the model cannot take whole, with buttons for what can be done.

import { charactersOf, tokensOf, tokensOfImages } from "./context.js";
import { button, h } from "./dom.js";
import { aboutTokens, number } from "./format.js";
import { icon } from "./icons.js";
import { canGrow, mayGrow, modelName, modelsWithVision } from "./models.js";
import { toast } from "./popups.js";

const SUGGESTED_MODELS = 2;
const USEFUL_TOKENS = 50; // of a file: less is not worth sending
const CUT_MARK_TOKENS = 40; // of the line that says what was left out

/** Returns {kind, node} or null. `act`: `useModel(choice)`, `send()`, `load(choice, contextLength)`. */
export function advice({ choice, usage, attachments, act }) {
  return blindness(choice, attachments, act) ?? (usage && !usage.fits ? overflow(choice, usage, attachments, act) : null);
}

const box = (kind, text, ...buttons) => ({
  kind, node: h("div", { class: "advice-box" }, icon("alert"), h("p", {}, text), h("div", { class: "row" }, buttons.flat())),
});

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
  return { subject: one ? "The image" : `The ${images.length} images`, name: one ? "the image" : `the ${images.length} images`, files: images, tokens: tokensOfImages(images.length), excess: one ? "needs too much room" : "need too much room" };
}

/** What takes most of the question, as {subject, name, files, tokens, excess}; without files if that is the typed text. */
function largestPart(attachments, question) {
  const { images, texts } = attachments;
  const parts = texts.map((file) => ({ subject: file.name, name: file.name, files: [file], tokens: tokensOf(charactersOf(file.text)), excess: "is too long" }));
  if (images.length) parts.push(imagesPart(images));
  const typed = question - parts.reduce((sum, { tokens }) => sum + tokens, 0);
  parts.push({ subject: "This message", name: "", files: [], tokens: typed, excess: "is too long" });
  return parts.reduce((most, part) => (part.tokens > most.tokens ? part : most));
}

function overflow(choice, usage, attachments, { send, load }) {
  const { size, answer, system, chat, question, omitted, leftOut, alone } = usage;
  if (!question || (alone && (leftOut === undefined || leftOut <= omitted))) return null; // nothing is written; unknown; as many as before
  const part = largestPart(attachments, question);
  const text = alone ? describeLeftOut(part, size, leftOut)
    : `${part.subject} ${part.excess}, with ${aboutTokens(part.tokens)}.`
      + ` The context of ${modelName(choice)} holds ${number(size)}; ${number(answer)} are kept free for the answer.`;
  const growth = mayGrow(choice) && !canGrow(choice) ? " An administrator can load the model with a larger context." : "";
  const room = size - answer - (alone ? chat : system) - (question - part.tokens) - CUT_MARK_TOKENS;
  const [file] = part.files;
  const canShorten = file?.text !== undefined && room > USEFUL_TOKENS && room < part.tokens;
  return box(`${alone ? "chat" : part.name} ${choice.id}`, text + growth,
    canGrow(choice) && button("Load with a larger context…", () => load(choice, suggestedLength(choice.model, chat + question + answer))),
    canShorten && button(`Shorten ${part.name}`, () => shorten(attachments, file, room / part.tokens)),
    file && removeButton(attachments, part),
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

/** Keep the beginning of a text, up to the end of a line. The model reads what was left out. */
function shorten(attachments, file, share) {
  const part = file.text.slice(0, Math.floor(file.text.length * share));
  const lineEnd = part.lastIndexOf("\n");
  const kept = part.slice(0, lineEnd > part.length / 2 ? lineEnd : part.length).replace(/[\ud800-\udbff]$/, "");
  const shorter = { ...file, text: `${kept}\n[Shortened: the first ${number(kept.length)} of ${number(file.text.length)} characters]` };
  attachments.replace(file, shorter);
  toast(`${file.name} was shortened to its first ${number(kept.length)} characters.`, "Undo", () => attachments.replace(shorter, file));
}
