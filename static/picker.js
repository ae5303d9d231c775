// The dialog of models: what each one is, its state, and for administrators a button to load or unload it.

import { get, post, session } from "./api.js";
import { openDialog, openForm } from "./dialogs.js";
import { button, h, stepFocus } from "./dom.js";
import { emit, on } from "./events.js";
import { field, inputField } from "./fields.js";
import { fileSize, number } from "./format.js";
import { MODEL_STATES, stateDot } from "./head.js";
import { icon, iconButton } from "./icons.js";
import { modelName, providers, refreshModels, starting, startServer, variantName } from "./models.js";
import { announce, toast } from "./popups.js";
import { stored } from "./storage.js";

const DOWNLOAD_POLL_MS = 1000;
const LOAD_OPTIONS = "fireside.load"; // in localStorage, with provider and model appended
const OUTCOMES = { completed: "is downloaded.", already_downloaded: "was downloaded before." };

/** `pick(choice)` is called with the chosen model. */
export function openPicker(current, pick, title = "Models") {
  const list = h("div", { class: "models" });
  const search = h("input", {
    type: "search", placeholder: "Find a model", "aria-label": "Find a model", autocomplete: "off", spellcheck: "false",
  });
  const draw = () => {
    const query = search.value.trim().toLowerCase();
    list.replaceChildren(...(providers ?? []).toSorted(onlineFirst).map((provider) => providerSection(provider, query, current, choose)));
  };
  const choose = (choice) => {
    dialog.close();
    pick(choice);
  };
  const addServer = async () => (await import("./servers.js")).openServerDialog(null);
  search.addEventListener("input", draw);
  const dialog = openDialog(title, { className: "picker", onclose: () => stopListening() }, search, list,
    session.user.role === "admin" && h("footer", {}, button([icon("server"), "Add a model server"], addServer, { class: "quiet" })));
  const isTyping = () => document.activeElement?.matches(".models :is(input, select)"); // drawing again would clear what was typed
  const stopListening = on("models", () => isTyping() || draw());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === search) list.querySelector(".model-pick")?.click();
    else if (event.key === "Escape" && event.target === search && !search.value) { // WebKit does not close the dialog then
      event.preventDefault();
      dialog.close();
    } else stepFocus(event, [search, ...list.querySelectorAll(".model-pick")]);
  });
  draw();
  search.focus();
  refreshModels().catch(() => {}); // the banner shows that the server cannot be reached
  resumeDownloads();
}

const onlineFirst = (a, b) => Number(b.online) - Number(a.online);

/** If LM Studio is on the computer that runs Fireside. */
function startButton(provider) {
  const start = () => startServer(provider).catch((error) => toast(error.message));
  return button(starting ? `Starting ${provider.name}…` : `Start ${provider.name}'s server`, start, { disabled: starting });
}

function providerSection(provider, query, current, choose) {
  const models = provider.models.filter((model) => `${model.id} ${model.label}`.toLowerCase().includes(query));
  const listing = provider.models_known ? "It has no model yet." : "It does not list its models.";
  const note = provider.online ? !provider.models.length && listing : provider.error || "It does not respond.";
  return h("section", { "aria-label": provider.name, hidden: Boolean(query) && !models.length && provider.models_known },
    h("h3", {}, provider.name, !provider.online && h("span", { class: "badge" }, "offline")),
    note && h("p", { class: "faint" }, note),
    provider.can_start && session.user.role === "admin" && startButton(provider),
    !provider.models_known && nameForm(provider, current, choose),
    h("ul", {}, models.map((model) => modelRow({ provider, model, id: model.id }, current, choose))),
    provider.kind === "lmstudio" && provider.online && session.user.role === "admin" && downloadForm(provider));
}

const downloads = new Map(); // by name of the model, as the server reported them last

function downloadForm(provider) {
  const { control, node } = inputField("Name in LM Studio's catalog, or link to Hugging Face", {
    maxlength: "300", autocomplete: "off", spellcheck: "false", placeholder: "qwen/qwen3-4b-2507",
  });
  const onsubmit = (event) => {
    event.preventDefault();
    const model = control.value.trim();
    control.value = "";
    control.blur();
    if (model) download(provider, model);
  };
  const progress = [...downloads.values()].map(({ model, status, downloaded_bytes, total_bytes }) => {
    const size = total_bytes ? `${fileSize(downloaded_bytes ?? 0)} of ${fileSize(total_bytes)}` : "";
    return h("p", { class: "faint", role: "status" }, [`${model}: ${status}`, size].filter(Boolean).join(", "));
  });
  return h("details", { class: "faint", open: downloads.size > 0 }, h("summary", {}, "Download a model"),
    h("form", { onsubmit }, node, button("Download", null, { type: "submit" })), progress);
}

/** Start a download, and follow it until it ends, also when the dialog is closed. */
async function download(provider, model) {
  try {
    await followDownload(provider, await post(`${providerPath(provider)}/models/download`, { model }));
  } catch (error) {
    toast(error.message);
  }
}

/** Follow the downloads that were started before this page was opened. */
async function resumeDownloads() {
  if (session.user.role !== "admin") return;
  for (const provider of providers?.filter(({ kind, online }) => kind === "lmstudio" && online) ?? []) {
    try {
      for (const state of (await get(`${providerPath(provider)}/downloads`)).downloads) {
        if (isActive(state) && !downloads.has(state.model)) followDownload(provider, state).catch((error) => toast(error.message));
      }
    } catch {
      // LM Studio before 0.4 knows no downloads.
    }
  }
}

const providerPath = ({ provider_id }) => `/providers/${encodeURIComponent(provider_id)}`;
const isActive = (state) => ["downloading", "paused"].includes(state?.status);

async function followDownload(provider, begun) {
  const { model } = begun;
  let state = begun;
  try {
    while (isActive(state)) {
      downloads.set(model, state);
      emit("models");
      await new Promise((resolve) => { setTimeout(resolve, DOWNLOAD_POLL_MS); });
      state = (await get(`${providerPath(provider)}/downloads`)).downloads.findLast((other) => other.model === model);
    }
    toast(`${model} ${OUTCOMES[state?.status] ?? "could not be downloaded."}`);
  } finally {
    downloads.delete(model);
    emit("models");
    await refreshModels().catch(() => {});
  }
}

/** For a server that does not list its models. */
function nameForm(provider, current, choose) {
  const isCurrent = current?.provider?.provider_id === provider.provider_id;
  const { control, node } = inputField("Name of the model", { maxlength: "300", autocomplete: "off", spellcheck: "false", value: isCurrent ? current.id : "" });
  const onsubmit = (event) => {
    event.preventDefault();
    const id = control.value.trim();
    if (id) choose({ provider, model: { id }, id });
  };
  return h("form", { onsubmit }, node, button("Use this model", null, { type: "submit" }));
}

function modelRow(choice, current, choose) {
  const { provider, model } = choice;
  const isCurrent = current?.model?.id === model.id && current.provider.provider_id === provider.provider_id;
  const context = model.context_length ?? model.max_context_length;
  const facts = [
    provider.online && MODEL_STATES[model.state],
    context && `${number(context)} tokens of context`,
    model.quantization,
    model.size_bytes && fileSize(model.size_bytes),
    model.vision && "sees images",
  ].filter(Boolean).map((fact) => fact.replaceAll(" ", "\u00a0")); // lines break between facts
  const variants = model.variants?.length > 1 && h("select", { class: "variant", "aria-label": `Variant of ${modelName(choice)}` },
    h("option", { value: model.id }, "usual variant"),
    model.variants.map((id) => h("option", { value: id, selected: isCurrent && current.id === id }, variantName(id))));
  const chosen = () => (variants ? { ...choice, id: variants.value } : choice);
  return h("li", {},
    h("button", { type: "button", class: "model-pick", "aria-current": isCurrent ? "true" : null, onclick: () => choose(chosen()) },
      stateDot(model, provider.online),
      h("span", {}, h("strong", {}, modelName(choice)), h("small", {}, facts.join(" · "))),
      isCurrent && icon("check")),
    variants,
    session.user.role === "admin" && provider.kind !== "openai" && provider.online && model.state && [
      iconButton("sliders", `Load ${modelName(choice)} with options`, () => openLoadOptions(chosen()), { class: "quiet" }),
      loadButton(choice, chosen),
    ]);
}

/** It loads the model with the options that were used last in this browser. `chosen()` names the variant to load. */
function loadButton(choice, chosen) {
  const { provider, model } = choice;
  const verb = model.state === "loaded" ? "Unload" : "Load";
  const act = async (event) => {
    const pressed = event.currentTarget;
    pressed.disabled = true;
    pressed.textContent = `${verb}ing`;
    const fields = verb === "Load" ? { ...loadOptions(choice), model: chosen().id } : { model: model.id };
    await change(provider, verb.toLowerCase(), fields);
    pressed.disabled = false;
    pressed.textContent = verb;
  };
  const loading = model.state === "loading";
  const { context_length: last } = loadOptions(choice);
  return button(loading ? "Loading" : verb, act, {
    class: "load", disabled: loading, "aria-label": `${verb} ${modelName(choice)}`,
    title: verb === "Load" && last ? `With ${number(last)} tokens of context, as last time` : null,
  });
}

const optionsKey = ({ provider, model }) => `${LOAD_OPTIONS}.${provider.provider_id}.${model.id}`;

/** The options with which the model was loaded last, in this browser. */
const loadOptions = (choice) => stored(optionsKey(choice), {});

function rememberOptions(choice, { model, ...options }) {
  if (Object.values(options).every((value) => value === null)) localStorage.removeItem(optionsKey(choice));
  else localStorage.setItem(optionsKey(choice), JSON.stringify(options));
}

/** Load or unload a model. Resolves to whether it worked. */
async function change(provider, action, fields) {
  let done = true;
  try {
    await post(`${providerPath(provider)}/models/${action}`, fields);
    announce(`Model ${action}ed`);
  } catch (error) {
    done = false;
    toast(error.message);
  }
  await refreshModels().catch(() => {});
  return done;
}

/** Ask for the options of loading a model, with a context length filled in. A loaded model is loaded again. */
export function openLoadOptions(choice, contextLength = choice.model.context_length ?? loadOptions(choice).context_length) {
  const { provider, model } = choice;
  const last = loadOptions(choice);
  const context = inputField("Context length, in tokens", {
    type: "number", min: "256", max: String(model.max_context_length ?? 16777216), step: "1", required: false,
    value: contextLength ?? "", placeholder: "default",
  });
  const hint = h("small", {}, [
    model.max_context_length && `At most ${number(model.max_context_length)}.`,
    model.size_bytes ? `The model itself takes about ${fileSize(model.size_bytes)} of memory; a longer context takes more.` : "A longer context takes more memory.",
    model.state === "loaded" && "The model is loaded again, and answers that it is writing end.",
  ].filter(Boolean).join(" "));
  hint.id = `${context.control.id}-help`;
  context.control.setAttribute("aria-describedby", hint.id);
  context.node.append(hint);
  const onOff = (label, chosen) => field(label, h("select", {}, ["default", "on", "off"].map((value) =>
    h("option", { value, selected: value === { true: "on", false: "off" }[chosen] }, value))));
  const flash = onOff("Flash attention", last.flash_attention);
  const offload = onOff("Keep the context in the memory of the GPU", last.offload_kv_cache_to_gpu);
  const flag = ({ control: { value } }) => (value === "default" ? null : value === "on");
  const nodes = [context.node, ...(provider.kind === "lmstudio" ? [flash.node, offload.node] : [])];
  openForm(`Load ${modelName(choice)}`, { verb: "Load" }, nodes, async () => {
    const fields = { model: choice.id, context_length: context.control.value ? Number(context.control.value) : null };
    if (provider.kind === "lmstudio") Object.assign(fields, { flash_attention: flag(flash), offload_kv_cache_to_gpu: flag(offload) });
    const isLoaded = await change(provider, "load", fields);
    if (isLoaded) rememberOptions(choice, fields);
    return isLoaded;
  });
}
