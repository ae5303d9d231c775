// Which models there are, which one is asked, and what to do while there is none.

import { get, post, session, tell } from "./api.js";
import { button, copyButton, h, icon, toast } from "./dom.js";

const CHOICE = "fireside.model"; // the last model picked in this browser, for new conversations
const LOOK_EVERY = 3000; // ms, while there is no model, one is loading, or the server of one does not answer
const LOOK_SELDOM = 15_000; // ms, while another server does not answer

/** As GET /providers last told; null until it has. */
export let providers = null;
let asking = null;
let timer = 0;
let starting = false; // LM Studio's server, by the button
let busy = null; // the id of a model that an answer is asked of

/** Asks anew, and again while the answer may soon be another one. Dispatches "models". */
export function refreshModels() {
  asking ??= ask().finally(() => {
    asking = null;
  });
  return asking;
}

/** Of a model that an answer is asked of, until it is told as loaded; null: the answer is over. */
export function followModel(id) {
  busy = id;
  if (id) refreshModels().catch(() => {});
}

async function ask() {
  clearTimeout(timer);
  try {
    const told = await get("/providers");
    const news = JSON.stringify(told) !== JSON.stringify(providers);
    providers = told;
    if (news) tell("models");
  } finally {
    const changing = ({ id, state }) => state === "loading" || (id === busy && state === "not-loaded");
    const unsure = ({ online, models }) => models.some((model) => !online || changing(model));
    const soon = !anyModel() || providers?.some(unsure);
    const waiting = soon || providers?.some(({ online }) => !online);
    if (waiting && session.user) timer = setTimeout(look, soon ? LOOK_EVERY : LOOK_SELDOM);
  }
}

function look() {
  if (document.hidden) timer = setTimeout(look, LOOK_EVERY);
  else refreshModels().catch(() => {});
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
  const there = all.filter(({ provider }) => provider.online);
  return (last && find(last)) ?? there.find(({ model }) => model.state === "loaded") ?? there[0] ?? all[0] ?? null;
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

export const STATES = { loaded: "Loaded", loading: "Loading", "not-loaded": "Not loaded" };

export function stateDot(model, online = true) {
  const state = online ? model?.state ?? "unknown" : "offline";
  return h("span", { class: `dot ${state}`, title: online ? STATES[state] : "Offline" });
}

/** What a new conversation shows in the place of messages. */
export function welcome() {
  if (providers && !anyModel()) return noModelScreen();
  const hour = new Date().getHours();
  const greeting = hour < 5 || hour >= 18 ? "Good evening" : hour < 12 ? "Good morning" : "Good afternoon";
  return h("section", { class: "welcome" }, icon("flame"), h("h2", {}, `${greeting}, ${session.user.username}`),
    h("p", {}, readiness(chosen(null))));
}

function readiness(choice) {
  if (!choice) return "Looking for a model.";
  if (!choice.provider.online) return `${choice.provider.name} does not answer now.`;
  if (choice.model.state === "not-loaded") return `${label(choice)} is loaded when you send the first message.`;
  return `${label(choice)} is ready.`;
}

/** It goes by itself when a model server appears. */
function noModelScreen() {
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
    startButton(),
    h("p", { class: "looking" }, h("span", { class: "pulse" }), "Looking for it"),
    providers?.length > 0 && h("details", { class: "faint" }, h("summary", {}, "Where it looks"),
      h("ul", {}, providers.map(({ name, online, error }) => h("li", {}, online ? `${name} is running` : error || `${name} does not answer`)))));
}

/** For administrators, where LM Studio is on the computer that runs Fireside. */
function startButton() {
  const provider = session.user.role === "admin" && providers?.find(({ can_start }) => can_start);
  const label = starting ? "Starting LM Studio…" : "Start it for me";
  return provider && button(label, () => startServer(provider), { class: "primary", disabled: starting });
}

async function startServer({ provider_id }) {
  starting = true;
  tell("models");
  try {
    await post(`/providers/${provider_id}/start`);
  } catch (error) {
    toast(error.message);
  } finally {
    starting = false;
    await refreshModels();
    tell("models");
  }
}
