// Instructions and answer settings: of a conversation in the side panel, and of new chats in the settings.

import { button, styles, h } from "./dom.js";
import { debounce, on } from "./events.js";
import { field } from "./fields.js";
import { number } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { library, loadLibrary } from "./library.js";
import { chosenModel, modelFields, modelName, providers } from "./models.js";
import { openMenu, toast } from "./popups.js";

await styles("more.css");

const PARAMETERS = [
  { name: "temperature", label: "Temperature", help: "Low is predictable, high is playful.", min: 0, max: 2, step: "any" },
  { name: "top_p", label: "Top P", help: "Choose among the likeliest tokens up to this total probability.", min: 0, max: 1, step: "any" },
  { name: "top_k", label: "Top K", help: "Choose among this many of the likeliest tokens.", min: 0, max: 1000, step: 1 },
  { name: "min_p", label: "Min P", help: "Lowest probability of a token, relative to the likeliest.", min: 0, max: 1, step: "any" },
  { name: "repeat_penalty", label: "Repeat penalty", help: "Above 1 discourages repetition.", min: 0, max: 2, step: "any" },
  { name: "max_tokens", label: "Maximum answer length", help: "In tokens.", min: 1, max: 1048576, step: 1 },
  { name: "seed", label: "Seed", help: "The same seed usually gives the same answer.", min: -2147483648, max: 4294967296, step: 1 },
];

const EFFORTS = { none: "Off", minimal: "Minimal", low: "Low", medium: "Medium", high: "High", xhigh: "Very high", max: "Highest" };

/** Open the panel after `neighbour`. Changes are saved as they are typed. `defaults` apply to a new chat. Returns a function that closes it. */
export function openPanel(conversation, defaults, neighbour, onclose) {
  let answers = null; // the fields that are shown
  const draw = () => {
    for (const node of answers?.nodes ?? []) node.remove();
    answers = answerFields(conversation.details ?? { ...defaults, ...conversation.fields }, (fields) => conversation.change(fields));
    choose.after(...answers.nodes);
  };
  const follow = () => answers.followModel(conversation.choice);
  const offerPresets = () => {
    choose.hidden = !conversation.details || !library.presets.length; // a new chat offers them above the message box
  };
  const stopListening = [on("models", follow), conversation.on("changed", follow), on("library-read", offerPresets)];
  const choosePreset = async () => {
    await answers.flush();
    openMenu(choose, library.presets.map((preset) => ({
      label: preset.name, icon: "sliders", note: presetChanges(preset, conversation.details).note, act: () => apply(preset),
    })));
  };
  const apply = async (preset) => {
    const { id, details } = conversation;
    const { fields, note } = presetChanges(preset, details);
    const before = Object.fromEntries(Object.keys(fields).map((name) => [name, details[name]]));
    if (!Object.keys(before).length) return toast(`“${preset.name}”: ${note}`);
    if (!await conversation.change(fields, id)) return;
    if (panel.isConnected) draw();
    toast(`“${preset.name}” was applied. ${note}`, "Undo", async () => {
      if (await conversation.change(before, id) && panel.isConnected) draw();
    });
  };
  const saveAsPreset = async () => {
    await answers.flush();
    const { editPreset } = await import("./presets.js");
    const { system_prompt, settings } = { ...defaults, ...conversation.fields };
    editPreset(null, { system_prompt, settings, ...modelFields(conversation.choice) });
  };
  const close = () => {
    for (const stop of stopListening) stop();
    answers.flush();
    panel.remove();
    onclose();
  };
  const header = h("header", {}, h("h2", {}, "This chat"), iconButton("close", "Close", close));
  const choose = button([icon("sliders"), "Apply a preset"], choosePreset, { "aria-haspopup": "menu" });
  const panel = h("aside", { class: "panel", "aria-label": "Chat settings" },
    header, choose, button([icon("bookmark"), "Save as preset"], saveAsPreset));
  draw();
  offerPresets();
  loadLibrary().catch(() => {}); // the banner shows that the server cannot be reached
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  neighbour.after(panel);
  panel.querySelector("textarea").focus();
  return close;
}

/** The fields that a preset changes in a conversation, and a note that names them. A model that is missing is not applied. */
function presetChanges({ system_prompt, settings, provider_id, model }, current) {
  const fields = {};
  const names = [];
  if (system_prompt !== current.system_prompt) {
    fields.system_prompt = system_prompt;
    names.push("instructions");
  }
  const choice = model && chosenModel({ provider_id, model });
  const isMissing = model && providers && (!choice?.model || choice.replaced);
  if (model && !isMissing && (model !== current.model || provider_id !== current.provider_id)) {
    Object.assign(fields, { provider_id, model });
    names.push(`model (${modelName(choice)})`);
  }
  const changed = Object.keys({ ...current.settings, ...settings }).filter(
    (name) => JSON.stringify(settings[name]) !== JSON.stringify(current.settings[name]));
  if (changed.length) fields.settings = settings;
  names.push(...changed.map((name) => PARAMETERS.find((one) => one.name === name)?.label.toLowerCase() ?? name.replaceAll("_", " ")));
  const note = names.length ? `Changes: ${names.join(", ")}.` : "This chat has these settings already.";
  return { fields, note: isMissing ? `${note} ${model} is not available, so the model stays.` : note };
}

/** Fields for instructions and parameters. `save(fields)` is called as they are typed, and resolves to whether it worked. */
export function answerFields(source, save) {
  const { system_prompt = "", settings = {} } = source;
  const saved = h("small", { class: "faint saved", role: "status" });
  let unsaved = {};
  let saving = null; // a promise of all saves that have begun
  const saveNow = async (fields) => {
    const done = await save(fields);
    const all = !Object.keys(unsaved).length && nodes.every((node) => !node.querySelector("[aria-invalid=true]"));
    saved.textContent = done && all ? "Saved" : "";
  };
  const flush = () => {
    const fields = unsaved;
    unsaved = {};
    if (Object.keys(fields).length) saving = Promise.all([saving, saveNow(fields)]);
    return saving;
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
