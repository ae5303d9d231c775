// Calls of tools by a program that uses /v1, and what it sent back for them, folded.

import { h } from "./dom.js";
import { icon } from "./icons.js";

/** What tools returned before this message. */
export const toolResults = ({ tools }) => (tools?.results ?? []).map(({ content }) => folded("Result of a tool", "", content));

/** The tools that the answer asks for. */
export const toolCalls = ({ tools }) => (tools?.calls ?? []).map((call) => folded("Calls a tool: ", call.name, readable(call.arguments)));

function folded(label, name, text) {
  return h("details", { class: "reasoning tool" },
    h("summary", {}, icon("tool"), h("span", {}, label, name && h("code", {}, name)), icon("down")),
    h("pre", { class: "thoughts", tabindex: "0" }, text));
}

function readable(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
