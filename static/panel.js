// Instructions for the model and how answers are made: of a conversation in the side panel, of new ones in the settings.

import { counter, debounce, h, iconButton, number, styles } from "./dom.js";

await styles("more.css");

const PARAMETERS = [
  { name: "temperature", label: "Temperature", help: "Low is predictable, high is playful.", min: 0, max: 2, step: "any" },
  { name: "top_p", label: "Top P", help: "Only the likeliest words, up to this share.", min: 0, max: 1, step: "any" },
  { name: "top_k", label: "Top K", help: "Only this many of the likeliest words.", min: 0, max: 1000, step: 1 },
  { name: "min_p", label: "Min P", help: "Only words at least this likely, against the likeliest.", min: 0, max: 1, step: "any" },
  { name: "repeat_penalty", label: "Repeat penalty", help: "Above 1 discourages repetition.", min: 0, max: 2, step: "any" },
  { name: "max_tokens", label: "Longest answer", help: "In tokens.", min: 1, max: 1048576, step: 1 },
  { name: "seed", label: "Seed", help: "The same seed, the same answer.", min: -2147483648, max: 4294967296, step: 1 },
];

/** Opens the panel beside the chat, or closes it. What is changed is saved as it is typed. `defaults` are those of a new chat. */
export function togglePanel(head, defaults) {
  if (head.closePanel) return head.closePanel();
  const { chat, settings: opener } = head;
  const { nodes, flush } = answerFields(chat.conversation ?? { ...defaults, ...chat.fields }, (fields) => chat.change(fields));
  const panel = h("aside", { class: "panel", "aria-label": "Conversation settings" },
    h("header", {}, h("h2", {}, "This conversation"), iconButton("close", "Close", () => head.closePanel())), nodes);
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    head.closePanel();
  });
  head.closePanel = () => {
    flush();
    panel.remove();
    head.closePanel = null;
    opener.setAttribute("aria-expanded", "false");
    opener.focus();
  };
  opener.setAttribute("aria-expanded", "true");
  chat.node.after(panel);
  panel.querySelector("textarea").focus();
}

/** Instructions and parameters, each saved as it is typed by `save(fields)`, which resolves to whether that was done. */
export function answerFields({ system_prompt = "", settings = {} }, save) {
  const saved = h("small", { class: "faint", role: "status" });
  let unsaved = {};
  const flush = async () => {
    const fields = unsaved;
    unsaved = {};
    if (!Object.keys(fields).length) return;
    const done = await save(fields);
    const all = !Object.keys(unsaved).length && nodes.every((node) => !node.querySelector("[aria-invalid=true]"));
    saved.textContent = done && all ? "Saved" : "";
  };
  const later = debounce(400, flush);
  const note = (fields) => {
    Object.assign(unsaved, fields);
    saved.textContent = "";
    later();
  };
  const id = `field-${counter()}`;
  const prompt = h("textarea", {
    id, rows: "7", placeholder: "For example: Answer briefly. I know Python well.",
    oninput: () => note({ system_prompt: prompt.value }),
  }, system_prompt);
  const values = { ...settings };
  const change = (name, value) => {
    if (value === null) delete values[name];
    else values[name] = value;
    note({ settings: { ...values } });
  };
  const nodes = [
    h("div", { class: "field" }, h("label", { for: id }, "Instructions for the model"), prompt),
    h("h3", {}, "How answers are made"),
    h("p", { class: "faint" }, "What is left empty is up to the model server."),
    ...PARAMETERS.map((parameter) => parameterField(parameter, values[parameter.name], change)),
    saved,
  ];
  for (const node of nodes) node.addEventListener("change", flush); // a field that is left: before a question is asked
  return { nodes, flush };
}

/** What is out of range is not saved, nor what one typed on the way to it: the setting stays as it was. */
function parameterField({ name, label, help, min, max, step }, value, change) {
  const id = `field-${counter()}`;
  const wrong = h("small", { id: `${id}-wrong`, class: "error", role: "alert" });
  const entered = () => (field.value === "" ? null : Number(field.value));
  let before = value ?? null;
  const oninput = () => {
    const { valid } = field.validity;
    field.setAttribute("aria-invalid", String(!valid));
    wrong.textContent = valid ? "" : `Not saved: ${step === 1 ? "a whole number" : "a number"} from ${number(min)} to ${number(max)}, please.`;
    change(name, valid ? entered() : before);
  };
  const field = h("input", {
    id, type: "number", min, max, step, value: value ?? "", placeholder: "default", inputmode: "decimal",
    "aria-describedby": `${id}-help ${wrong.id}`, oninput, onfocus: () => { if (field.validity.valid) before = entered(); },
  });
  return h("div", { class: "field inline" }, h("label", { for: id }, label), field, h("small", { id: `${id}-help` }, help), wrong);
}
