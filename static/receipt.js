// What was sent to the model server for an answer: the exact request, and what changed since the answer before.

import { get } from "./api.js";
import { copyText } from "./clipboard.js";
import { openDialog } from "./dialogs.js";
import { button, h } from "./dom.js";
import { counted } from "./format.js";
import { toast } from "./popups.js";

const DATA_URL = /"(data:[\w/+.-]+;base64,)([A-Za-z0-9+/=]{200,})"/g;

/** Show the request for `message`, compared with that for the answer `previous`, if there is one. */
export async function openRequest(message, previous) {
  const content = h("div", { class: "stack request" }, h("p", { class: "faint" }, "Loading…"));
  openDialog("What was sent", { className: "wide" }, content);
  try {
    const [sent, before] = await Promise.all([receipt(message.id), previous && receipt(previous.id)]);
    content.replaceChildren(...(sent.body ? describe(message, sent, before) : [h("p", {}, sent.problem)]));
  } catch (error) {
    content.replaceChildren(h("p", { class: "error" }, error.message));
  }
}

const receipt = (id) => get(`/messages/${id}/request`);

function describe(message, sent, before) {
  const body = JSON.parse(sent.body);
  const left = [
    message.stats?.omitted_messages && counted(message.stats.omitted_messages, "older message"),
    message.stats?.omitted_images && counted(message.stats.omitted_images, "older image"),
  ].filter(Boolean).join(" and ");
  return [
    h("p", {}, `${counted(body.messages.length, "message")} for ${body.model}.${left ? ` Left out: ${left}.` : ""}`),
    h("p", { class: "faint" }, "Rebuilt from the stored messages. Its SHA-256 matches that of the bytes that were sent: ", h("code", {}, sent.sha256.slice(0, 16)), "…"),
    before && h("details", {}, h("summary", {}, "Changes since the answer before"), changes(body, before)),
    h("pre", { tabindex: "0", role: "region", "aria-label": "Request", dir: "ltr" }, JSON.stringify(body, null, 2).replace(DATA_URL, shortened)),
    h("footer", {},
      button("Copy JSON", () => copy(sent.body)),
      button("Copy as curl", () => copy(curl(sent)))),
  ].filter(Boolean);
}

async function copy(text) {
  toast(await copyText(text) ? "Copied" : "Could not copy");
}

const shortened = (_, head, data) => `"${head}${data.slice(0, 40)}… (${counted(data.length, "character")})"`;

function changes(body, before) {
  if (!before.body) return h("p", { class: "faint" }, before.problem);
  const earlier = JSON.parse(before.body);
  const lines = [];
  for (const name of new Set([...Object.keys(earlier), ...Object.keys(body)])) {
    const [was, is] = [earlier, body].map((one) => JSON.stringify(one[name]));
    if (name !== "messages" && was !== is) lines.push(`${name}: ${was ?? "not set"} → ${is ?? "not set"}`);
  }
  const [old, now] = [earlier, body].map(({ messages }) => messages.map((one) => JSON.stringify(one)));
  const differs = now.findIndex((one, place) => one !== old[place]);
  const same = differs < 0 ? now.length : differs;
  lines.push(`Messages: the first ${same} as before, then ${now.length - same} new; ${old.length - same} no longer sent`);
  return h("ul", {}, lines.map((line) => h("li", {}, line)));
}

/** The request as a command of a POSIX shell. The quoted end mark keeps the shell from changing the JSON. */
function curl({ body, url }) {
  const address = url ?? "$MODEL_SERVER/v1/chat/completions";
  return `curl -N "${address}" -H "Content-Type: application/json" -H "Authorization: Bearer $API_KEY" --data-binary @- <<'END'\n${body}\nEND\n`;
}
