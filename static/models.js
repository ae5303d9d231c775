// Which models there are, and which one is asked: the list, the picker, and what to do while there is none.

import { get, onChange, post, session, tell } from "./api.js";
import { announce, bytes, copyButton, h, iconButton, number, openDialog, stepFocus, toast } from "./dom.js";
import { icon } from "./icons.js";

const CHOICE = "fireside.model"; // the last model picked in this browser, for new conversations
const LOOK_EVERY = 3000; // ms, while there is no model or one is loading

/** As GET /providers last told; null until it has. */
export let providers = null;
let asking = null;
let timer = 0;

/** Asks anew, and again while the answer may soon be another one. Dispatches "models". */
export function refreshModels() {
  asking ??= ask().finally(() => {
    asking = null;
  });
  return asking;
}

async function ask() {
  clearTimeout(timer);
  try {
    const told = await get("/providers");
    const news = JSON.stringify(told) !== JSON.stringify(providers);
    providers = told;
    if (news) tell("models");
  } finally {
    const waiting = !anyModel() || providers?.some((provider) => provider.models.some((model) => model.state === "loading"));
    if (waiting && session.user) timer = setTimeout(() => document.hidden || refreshModels().catch(() => {}), LOOK_EVERY);
  }
}

export const anyModel = () => Boolean(providers?.some((provider) => provider.models.length));

/** What would be asked in this conversation: {provider, model}, `model` being null where the list does not hold it. */
export function chosen(conversation) {
  if (conversation?.model) return find(conversation) ?? { provider: null, model: null, id: conversation.model };
  let last = null;
  try {
    last = JSON.parse(localStorage.getItem(CHOICE));
  } catch {
    localStorage.removeItem(CHOICE);
  }
  const all = (providers ?? []).flatMap((provider) => provider.models.map((model) => ({ provider, model, id: model.id })));
  return (last && find(last)) ?? all.find(({ model }) => model.state === "loaded") ?? all[0] ?? null;
}

function find({ provider_id, model: id }) {
  const provider = providers?.find((candidate) => candidate.provider_id === provider_id);
  const model = provider?.models.find((candidate) => candidate.id === id);
  return model ? { provider, model, id } : null;
}

/** The fields of a request that name what is chosen. */
export function asked(choice) {
  return choice?.model ? { provider_id: choice.provider.provider_id, model: choice.id } : {};
}

export function remember(choice) {
  localStorage.setItem(CHOICE, JSON.stringify(asked(choice)));
}

export const label = (choice) => choice?.model?.label || choice?.model?.id || choice?.id || "";

const STATES = { loaded: "Loaded", loading: "Loading", "not-loaded": "Not loaded" };

export function stateDot(model, online = true) {
  const state = online ? model?.state ?? "unknown" : "offline";
  return h("span", { class: `dot ${state}`, title: online ? STATES[state] : "Offline" });
}

/** The picker. `pick(choice)` is called with what was chosen. */
export function openPicker(current, pick) {
  const list = h("div", { class: "models" });
  const search = h("input", { type: "search", placeholder: "Find a model", "aria-label": "Find a model", autocomplete: "off", spellcheck: "false" });
  const draw = () => {
    const wanted = search.value.trim().toLowerCase();
    list.replaceChildren(...(providers ?? []).map((provider) => providerSection(provider, wanted, current, choose)));
  };
  const choose = (choice) => {
    dialog.close();
    pick(choice);
  };
  search.addEventListener("input", draw);
  const dialog = openDialog("Models", { className: "picker", onclose: () => stop() }, search, list);
  const stop = onChange("models", draw);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === search) list.querySelector(".model-pick")?.click();
    else stepFocus(event, [search, ...list.querySelectorAll(".model-pick")]);
  });
  draw();
  search.focus();
  refreshModels().catch(() => {}); // the page says by itself that the server is gone
}

function providerSection(provider, wanted, current, choose) {
  const models = provider.models.filter((model) => `${model.id} ${model.label}`.toLowerCase().includes(wanted));
  const empty = provider.online ? (wanted ? null : "It has no model yet.") : provider.error || "It does not answer.";
  return h("section", { "aria-label": provider.name, hidden: Boolean(wanted) && !models.length },
    h("h3", {}, provider.name, !provider.online && h("span", { class: "badge" }, "offline")),
    !models.length && empty && h("p", { class: "faint" }, empty),
    h("ul", {}, models.map((model) => modelRow(provider, model, current, choose))));
}

function modelRow(provider, model, current, choose) {
  const here = current?.model?.id === model.id && current.provider.provider_id === provider.provider_id;
  const context = model.context_length ?? model.max_context_length;
  const facts = [
    STATES[model.state],
    context && `${number(context)} context`,
    model.quantization,
    model.size_bytes && bytes(model.size_bytes),
    model.vision && "sees images",
  ].filter(Boolean);
  return h("li", {},
    h("button", {
      type: "button", class: "model-pick", "aria-current": here ? "true" : null,
      onclick: () => choose({ provider, model, id: model.id }),
    },
      stateDot(model, provider.online),
      h("span", {}, h("strong", {}, model.label || model.id), h("small", {}, facts.join(" · "))),
      here && icon("check")),
    session.user.role === "admin" && provider.kind !== "openai" && model.state && loadButton(provider, model));
}

function loadButton(provider, model) {
  const loaded = model.state === "loaded";
  const act = async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    button.textContent = loaded ? "Unloading" : "Loading";
    try {
      await post(`/providers/${encodeURIComponent(provider.provider_id)}/models/${loaded ? "unload" : "load"}`, { model: model.id });
      announce(loaded ? "Model unloaded" : "Model loaded");
    } catch (error) {
      toast(error.message);
    }
    button.disabled = false;
    button.textContent = loaded ? "Unload" : "Load";
    await refreshModels().catch(() => {});
  };
  return h("button", { type: "button", class: "load", disabled: model.state === "loading", onclick: act, "aria-label": `${loaded ? "Unload" : "Load"} ${model.label || model.id}` },
    model.state === "loading" ? "Loading" : loaded ? "Unload" : "Load");
}

/** Shown where the chat would be while no model server is found. It goes by itself when one appears. */
export function noModelScreen() {
  const running = providers?.filter((provider) => provider.online) ?? [];
  const start = "lms server start";
  const steps = running.length
    ? h("ol", {},
      h("li", {}, h("strong", {}, "Download a model in LM Studio."), " Its Discover tab suggests what fits your computer."),
      h("li", {}, h("strong", {}, "That is all."), " This page goes on by itself."))
    : h("ol", {},
      h("li", {}, h("strong", {}, "Open LM Studio."), " Download a model there if you have none yet."),
      h("li", {}, h("strong", {}, "Start its server:"), " the Developer tab, then Start server. Or in a terminal:",
        h("span", { class: "command" }, h("code", {}, start), copyButton("Copy command", () => start))),
      h("li", {}, h("strong", {}, "That is all."), " This page goes on by itself."));
  return h("section", { class: "welcome no-model" },
    icon("flame"),
    h("h2", {}, running.length ? "No model yet" : "No model server yet"),
    h("p", {}, running.length
      ? `${running[0].name} is running, but has no model that could answer.`
      : "Fireside talks to the models in LM Studio, whose server is off until you start it."),
    steps,
    h("p", { class: "looking" }, h("span", { class: "pulse" }), "Looking for it"),
    providers?.length > 0 && h("details", { class: "faint" }, h("summary", {}, "Where it looks"),
      h("ul", {}, providers.map((provider) => h("li", {}, `${provider.name}: ${provider.online ? "running" : provider.error || "no answer"}`)))));
}
