// Instructions and answer settings: of a conversation in the side panel, and of new chats in the settings.

import { button, styles, h } from "./dom.js";
import { debounce, on } from "./events.js";
import { field } from "./fields.js";
import { number } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { chosenModel, modelFields } from "./models.js";

await styles("more.css");

const PARAMETERS = [
  { name: "temperature", label: "Temperature", help: "Low is predictable, high is playful.", min: 0, max: 2, step: "any" },
  { name: "top_p", label: "Top P", help: "Choose among the likeliest tokens up to this total probability.", min: 0, max: 1, step: "any" },
  { name: "top_k", label: "Top K", help: "Choose among this many of the likeliest tokens.", min: 0, max: 1000, step: 1 },
  { name: "min_p", label: "Min P", help: "Lowest probability of a token, relative to the likeliest.", min: 0, max: 1, step: "any" },
  { name: "repeat_penalty", label: "Repeat penalty", help: "Above 1 discourages repetition.", min: 0, max: 2, step: "any" },
  { name: "max_tokens", label: "Longest answer", help: "In tokens.", min: 1, max: 1048576, step: 1 },
  { name: "seed", label: "Seed", help: "The same seed gives the same answer.", min: -2147483648, max: 4294967296, step: 1 },
];

const EFFORTS = { none: "Off", minimal: "Minimal", low: "Low", medium: "Medium", high: "High", xhigh: "Very high", max: "Highest" };

/** Open the panel after `neighbour`. Changes are saved as they are typed. `defaults` apply to a new chat. Returns a function that closes it. */
export function openPanel(conversation, defaults, neighbour, onclose) {
  const { nodes, flush, followModel } = answerFields(
    conversation.details ?? { ...defaults, ...conversation.fields }, (fields) => conversation.change(fields));
  const follow = () => followModel(conversation.choice);
  const stopListening = [on("models", follow), conversation.on("changed", follow)];
  const saveAsPreset = async () => {
    await flush();
    const { editPreset } = await import("./presets.js");
    const { system_prompt, settings } = { ...defaults, ...conversation.fields };
    editPreset(null, { system_prompt, settings, ...modelFields(conversation.choice) });
  };
  const close = () => {
    for (const stop of stopListening) stop();
    flush();
    panel.remove();
    onclose();
  };
  const panel = h("aside", { class: "panel", "aria-label": "Chat settings" },
    h("header", {}, h("h2", {}, "This chat"), iconButton("close", "Close", close)), nodes,
    button([icon("bookmark"), "Save as preset"], saveAsPreset));
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  neighbour.after(panel);
  panel.querySelector("textarea").focus();
  return close;
}

/** Fields for instructions and parameters. `save(fields)` is called as they are typed, and resolves to whether it worked. */
export function answerFields(source, save) {
  const { system_prompt = "", settings = {} } = source;
  const saved = h("small", { class: "faint saved", role: "status" });
  let unsaved = {};
  const flush = async () => {
    const fields = unsaved;
    unsaved = {};
    if (!Object.keys(fields).length) return;
    const done = await save(fields);
    const all = !Object.keys(unsaved).length && nodes.every((node) => !node.querySelector("[aria-invalid=true]"));
    saved.textContent = done && all ? "Saved" : "";
  };
  const flushLater = debounce(400, flush);
  const change = (fields) => {
    Object.assign(unsaved, fields);
    saved.textContent = "";
    flushLater();
  };
  const values = { ...settings };
  const changeParameter = (name, value) => {
    if (value === null) delete values[name];
    else values[name] = value;
    change({ settings: { ...values } });
  };
  const prompt = field("Instructions for the model", h("textarea", {
    rows: "7", placeholder: "For example: Answer briefly. I know Python well.",
    oninput: () => change({ system_prompt: prompt.control.value }),
  }, system_prompt));
  const effort = h("div", { hidden: true });
  let offered = null; // the efforts that are shown
  const followModel = (choice) => {
    const efforts = choice?.model?.reasoning_efforts ?? [];
    if (efforts.join() === offered) return; // drawing again would take the focus away
    offered = efforts.join();
    const node = effortField(values.reasoning_effort, efforts, changeParameter);
    effort.hidden = !node;
    effort.replaceChildren(...(node ? [node] : []));
  };
  followModel(chosenModel(source));
  const nodes = [
    prompt.node,
    h("h3", {}, "Answer settings"),
    h("p", { class: "faint" }, "Empty fields use the model server's defaults."),
    effort,
    ...PARAMETERS.map((parameter) => parameterField(parameter, values[parameter.name], changeParameter)),
    saved,
  ].filter(Boolean);
  for (const node of nodes) node.addEventListener("change", flush); // on leaving a field, so that a question uses the new value
  return { nodes, flush, followModel };
}

/** Null for a model that does not offer a choice. */
function effortField(value, offered, change) {
  if (!offered.length && !value) return null;
  const isToggle = offered.join() === "none,medium";
  const option = (effort) => h("option", { value: effort, selected: effort === value }, isToggle && effort === "medium" ? "On" : EFFORTS[effort]);
  const efforts = Object.keys(EFFORTS).filter((effort) => offered.includes(effort) || effort === value);
  const { control, node } = field("Reasoning", h("select", { onchange: () => change("reasoning_effort", control.value || null) },
    h("option", { value: "" }, "default"), efforts.map(option)), { className: "field inline" }, h("small", {}, "How long the model thinks before it answers."));
  return node;
}

/** A value out of range is not saved, and the values typed on the way to it are undone. */
function parameterField({ name, label, help, min, max, step }, value, change) {
  const description = h("small", {}, help);
  const error = h("small", { class: "error", role: "alert" });
  let before = value ?? null;
  const entered = () => (control.value === "" ? null : Number(control.value));
  const oninput = () => {
    const { valid } = control.validity;
    control.setAttribute("aria-invalid", String(!valid));
    error.textContent = valid ? "" : `Not saved. Enter ${step === 1 ? "a whole number" : "a number"} from ${number(min)} to ${number(max)}.`;
    change(name, valid ? entered() : before);
  };
  const { control, node } = field(label, h("input", {
    type: "number", min, max, step, value: value ?? "", placeholder: "default", inputmode: "decimal",
    oninput, onfocus: () => { if (control.validity.valid) before = entered(); },
  }), { className: "field inline" }, description, error);
  description.id = `${control.id}-help`;
  error.id = `${control.id}-error`;
  control.setAttribute("aria-describedby", `${description.id} ${error.id}`);
  return node;
}
