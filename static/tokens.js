// Settings: the tokens with which other programs use this Fireside like an OpenAI server.

import { get, post, remove } from "./api.js";
import { copyButton } from "./clipboard.js";
import { confirm } from "./dialogs.js";
import { button, h } from "./dom.js";
import { field, inputField } from "./fields.js";
import { counted, parseTime, shortTime, timeNode } from "./format.js";
import { chosenModel, modelFields } from "./models.js";
import { action } from "./rows.js";

const LIFETIMES = [["", "never"], [30, "in 30 days"], [90, "in 90 days"], [365, "in a year"]];

export async function show(place) {
  const list = h("ul", { class: "rows" });
  const created = h("div", { class: "stack", role: "status" });
  const name = inputField("Name of the program", { maxlength: "100", placeholder: "Zed", autocomplete: "off" });
  const expires = field("The token expires", h("select", {},
    LIFETIMES.map(([value, label]) => h("option", { value }, label))));
  const record = h("input", { type: "checkbox", checked: true });
  const onsubmit = async (event) => {
    event.preventDefault();
    const days = Number(expires.control.value) || null;
    const act = async () => {
      const token = await post("/tokens", { name: name.control.value, record: record.checked, expires_in_days: days });
      event.target.reset();
      created.replaceChildren(...newToken(token));
      created.scrollIntoView({ block: "nearest" });
    };
    await action(act, { place: list, draw })({ currentTarget: event.submitter });
  };
  const draw = async () => {
    const { tokens } = await get("/tokens");
    const shown = Number(created.firstElementChild?.dataset.token);
    if (shown && !tokens.some(({ id }) => id === shown)) created.replaceChildren();
    list.replaceChildren(...tokens.map((token) => row(token, list, draw)));
  };
  await draw();
  place.append(
    h("p", { class: "faint" }, "Editors, scripts and other programs can use your models through Fireside. Their requests wait in the same queue and appear among your chats. They need this address and a token:"),
    command(address(), "Copy address"),
    list,
    h("h3", {}, "Create a token"),
    h("form", { class: "stack", onsubmit },
      name.node, expires.node,
      h("div", { class: "choices" }, h("label", {}, record, "Save its requests as chats")),
      h("div", {}, h("button", { type: "submit", class: "primary" }, "Create token"))),
    created);
}

const address = () => `${location.origin}/v1`;

function row({ id, name, record, created_at, expires_at, last_used, requests }, place, draw) {
  const expired = expires_at && parseTime(expires_at) < new Date();
  const ask = () => confirm("Revoke the token?", `“${name}” can no longer use Fireside. Its chats stay.`, "Revoke");
  const badges = [!record && "not saved", expired && "expired"].filter(Boolean);
  return h("li", {},
    h("span", {}, h("strong", {}, name, badges.map((badge) => h("span", { class: "badge" }, badge))),
      h("small", {}, "Created ", timeNode(created_at), last_used ? [", last used ", timeNode(last_used)] : ", not used yet",
        `, ${counted(requests, "request")}`, expires_at && !expired && `, expires ${shortTime(parseTime(expires_at))}`)),
    button("Revoke", action(() => remove(`/tokens/${id}`), { place, draw, ask }), { "aria-label": `Revoke ${name}` }));
}

function command(text, label) {
  return h("div", { class: "command" }, h("code", {}, text), copyButton(label, () => text));
}

function newToken({ id, token }) {
  const lines = h("div", { class: "stack" });
  const draw = () => {
    const { text, note } = EXAMPLES[program.control.value](token, modelName());
    lines.replaceChildren(
      h("div", { class: "command block" }, h("pre", { tabindex: "0" }, text), copyButton("Copy example", () => text)),
      ...(note ? [h("p", { class: "faint" }, note)] : []));
  };
  const program = field("Example for", h("select", { onchange: draw }, Object.keys(EXAMPLES).map((name) => h("option", {}, name))));
  draw();
  return [
    h("div", { "data-token": id }, h("h3", {}, "The new token"), command(token, "Copy token"),
      h("p", { class: "faint" }, "It is shown only now.")),
    program.node, lines,
  ];
}

/** A model for the examples: the one that a new chat would ask. */
function modelName() {
  const { provider_id, model } = modelFields(chosenModel(null));
  return model ? `${provider_id}/${model}` : "MODEL";
}

const EXAMPLES = {
  curl: (token, model) => ({ text: `curl ${address()}/chat/completions \\
  -H "Authorization: Bearer ${token}" \\
  -H "Content-Type: application/json" \\
  -d '{"model": "${model}", "messages": [{"role": "user", "content": "Hello!"}]}'` }),
  "Python (openai)": (token, model) => ({ text: `from openai import OpenAI

client = OpenAI(base_url="${address()}", api_key="${token}")
answer = client.chat.completions.create(
    model="${model}", messages=[{"role": "user", "content": "Hello!"}]
)
print(answer.choices[0].message.content)` }),
  "JavaScript (openai)": (token, model) => ({ text: `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${address()}", apiKey: "${token}" });
const answer = await client.chat.completions.create({
  model: "${model}", messages: [{ role: "user", content: "Hello!" }],
});
console.log(answer.choices[0].message.content);` }),
  llm: (token, model) => ({ text: `llm keys set fireside --value ${token}
cat >> "$(dirname "$(llm logs path)")/extra-openai-models.yaml" <<END
- model_id: fireside
  model_name: "${model}"
  api_base: "${address()}"
  api_key_name: fireside
END
llm -m fireside "Hello!"` }),
  Continue: (token, model) => ({ text: `models:
  - name: Fireside
    provider: openai
    model: "${model}"
    apiBase: "${address()}"
    apiKey: "${token}"`, note: "Add this to Continue's config.yaml. In Continue, the menu “Local Assistant” opens that file." }),
  Zed: (token, model) => ({ text: `"language_models": {
  "openai_compatible": {
    "Fireside": {
      "api_url": "${address()}",
      "available_models": [{ "name": "${model}", "max_tokens": 32768 }]
    }
  }
}`, note: `For settings.json of Zed. Zed asks for the token under “LLM Providers” in its settings, or reads it from the variable FIRESIDE_API_KEY.` }),
};
