// Settings: what new chats begin with, and the presets.

import { get, patch, post, remove } from "./api.js";
import { confirm, openForm } from "./dialogs.js";
import { button, h } from "./dom.js";
import { broadcast } from "./events.js";
import { field } from "./fields.js";
import { icon, iconButton } from "./icons.js";
import { library, refreshLibrary } from "./library.js";
import { chosenModel, modelName, providers } from "./models.js";
import { answerFields } from "./panel.js";
import { toast } from "./popups.js";
import { action } from "./rows.js";

const MAX_NAME = 100; // characters

export async function show(place) {
  const [defaults] = await Promise.all([get("/defaults"), refreshLibrary()]);
  const choose = async () => {
    try {
      await patch("/defaults", { preset_id: Number(first.control.value) || null });
      broadcast("library");
      await show(place);
      place.querySelector("select").focus();
    } catch (error) {
      toast(error.message);
    }
  };
  const option = (value, label) => h("option", { value, selected: value === (defaults.preset_id ?? "") }, label);
  const first = field("New chats begin with", h("select", { onchange: choose },
    option("", "No preset"), library.presets.map(({ id, name }) => option(id, name))));
  const add = async () => {
    if (await editPreset()) await show(place);
    place.querySelector("button").focus();
  };
  place.replaceChildren(
    first.node,
    h("p", { class: "faint" }, "Existing chats do not change."),
    h("div", { class: "row" }, h("h3", {}, "Presets"), button([icon("plus"), "New preset"], add)),
    library.presets.length
      ? h("ul", { class: "rows" }, library.presets.map((preset) => row(preset, place)))
      : h("p", { class: "faint" }, "A preset has instructions, a model and answer settings under a name. You choose one when you begin a chat."),
    ...(defaults.preset_id ? [] : [h("h3", {}, "Without a preset"), ...answerFields(defaults, saveDefaults).nodes]));
}

async function saveDefaults(fields) {
  try {
    return Boolean(await patch("/defaults", fields));
  } catch (error) {
    toast(error.message);
    return false;
  }
}

function row(preset, place) {
  const { id, name, system_prompt, is_default } = preset;
  const ask = () => confirm("Delete this preset?", `“${name}” cannot be restored after this. Chats that began with it do not change.`, "Delete");
  const erase = async () => {
    await remove(`/presets/${id}`);
    broadcast("library");
  };
  return h("li", {},
    h("span", {}, h("strong", {}, name, is_default && h("span", { class: "badge" }, "new chats")), h("small", {}, modelOf(preset)),
      system_prompt && h("small", { class: "one-line" }, system_prompt)),
    iconButton("edit", `Edit ${name}`, action(() => editPreset(preset), { place, draw: show })),
    iconButton("trash", `Delete ${name}`, action(erase, { place, draw: show, ask })));
}

/** Which model a preset asks, and whether it can. */
function modelOf(preset) {
  if (!preset.model) return "The model chosen last";
  const choice = chosenModel(preset);
  return (choice.model && !choice.replaced) || !providers ? modelName(choice) : `${preset.model} is not available, so the model chosen last answers`;
}

/** Ask for a new preset, which begins with `fields`, or for changes of one. Resolves to whether it was saved. */
export function editPreset(preset = null, fields = {}) {
  const source = preset ?? fields;
  const values = { system_prompt: source.system_prompt ?? "", settings: source.settings ?? {} };
  const name = field("Name", h("input", { required: true, maxlength: MAX_NAME, value: preset?.name ?? "", autocomplete: "off" }));
  const model = field("Model", modelSelect(source));
  const { nodes, flush } = answerFields(source, async (changed) => {
    Object.assign(values, changed);
    return false; // it is saved with the form
  });
  return openForm(preset ? "Edit preset" : "New preset", { verb: "Save", className: "form", novalidate: true }, [name.node, model.node, ...nodes], async () => {
    await flush();
    const [provider_id, id] = JSON.parse(model.control.value);
    const body = { name: name.control.value, provider_id, model: id, ...values };
    const replaced = preset ?? library.presets.find((one) => one.name.toLowerCase() === body.name.trim().toLowerCase());
    if (replaced && !preset && !await confirm("Replace the preset?", `You have a preset with the name “${replaced.name}”.`, "Replace")) return false;
    if (replaced) await patch(`/presets/${replaced.id}`, body);
    else await post("/presets", body);
    await refreshLibrary();
    broadcast("library");
    if (!preset) toast(`The preset “${body.name.trim()}” was saved.`);
  });
}

function modelSelect({ provider_id = null, model: chosen = null }) {
  const option = (server, id, label) => h("option", { value: JSON.stringify([server, id]), selected: server === provider_id && id === chosen }, label);
  const groups = (providers ?? []).filter(({ models }) => models.length).map((server) => h("optgroup", { label: server.name },
    server.models.map(({ id, label }) => option(server.provider_id, id, label || id))));
  const isListed = providers?.some((server) => server.provider_id === provider_id && server.models.some(({ id }) => id === chosen));
  return h("select", {}, option(null, null, "The model chosen last"), groups, chosen && !isListed && option(provider_id, chosen, `${chosen} (not available)`));
}
