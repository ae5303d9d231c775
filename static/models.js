// The model servers and their models, and the model that a conversation asks.

import { get, Latest, post, session } from "./api.js";
import { emit } from "./events.js";

const CHOICE = "fireside.model"; // in localStorage: the model chosen last in this browser, for new conversations
const POLL_MS = 3000; // while there is no model, one is loading, or a server with models does not answer
const SLOW_POLL_MS = 15_000; // while another server does not answer

/** As GET /providers returned it last, or null. */
export let providers = null;
/** Whether LM Studio's server is being started from the page. */
export let starting = false;
const reads = new Latest();
let timer = 0;
let loadingId = null; // the model that is being loaded for an answer

/** Read the models again, and poll while they may soon change. */
export async function refreshModels() {
  clearTimeout(timer);
  const read = reads.begin();
  try {
    const current = await get("/providers");
    if (!read.accept()) return;
    const changed = JSON.stringify(current) !== JSON.stringify(providers);
    providers = current;
    if (changed) emit("models");
  } finally {
    schedulePoll();
  }
}

function schedulePoll() {
  clearTimeout(timer);
  if (!session.user) return;
  const isLoading = ({ id, state }) => state === "loading" || (id === loadingId && state === "not-loaded");
  const mayChange = ({ online, models }) => models.some((model) => !online || isLoading(model));
  if (!hasModels() || providers.some(mayChange)) timer = setTimeout(poll, POLL_MS);
  else if (providers.some(({ online }) => !online)) timer = setTimeout(poll, SLOW_POLL_MS);
}

function poll() {
  if (document.hidden) timer = setTimeout(poll, POLL_MS);
  else refreshModels().catch(() => {});
}

/** Poll until this model is loaded for an answer; null: no answer needs it any more. */
export function watchLoading(id) {
  loadingId = id;
  if (id) refreshModels().catch(() => {});
}

export const hasModels = () => Boolean(chosenModel(null));

/** The model that a conversation asks, as {provider, model, id}, or null. `model` is null if no server has it. */
export function chosenModel(conversation) {
  if (conversation?.model) return find(conversation) ?? { provider: null, model: null, id: conversation.model };
  let last = null;
  try {
    last = JSON.parse(localStorage.getItem(CHOICE));
  } catch {
    localStorage.removeItem(CHOICE);
  }
  const all = (providers ?? []).flatMap((provider) => provider.models.map((model) => ({ provider, model, id: model.id })));
  const online = all.filter(({ provider }) => provider.online);
  return (last && find(last)) ?? online.find(({ model }) => model.state === "loaded") ?? online[0] ?? all[0] ?? null;
}

function find({ provider_id, model: id }) {
  const provider = providers?.find((candidate) => candidate.provider_id === provider_id);
  const model = provider?.models.find((candidate) => candidate.id === id) ?? (provider?.models_known === false ? { id } : null);
  return model ? { provider, model, id } : null;
}

/** The models that can see images, loaded ones first. */
export function modelsWithVision() {
  const online = (providers ?? []).filter((provider) => provider.online);
  const all = online.flatMap((provider) => provider.models.map((model) => ({ provider, model, id: model.id })));
  return all.filter(({ model }) => model.vision).sort((a, b) => (b.model.state === "loaded") - (a.model.state === "loaded"));
}

/** Whether an administrator can load the model with a larger context. */
export function mayGrow(choice) {
  const { provider, model } = choice ?? {};
  return Boolean(provider?.online && provider.kind !== "openai" && model?.context_length < model?.max_context_length);
}

/** Whether this user can. */
export const canGrow = (choice) => session.user.role === "admin" && mayGrow(choice);

/** The fields of a request that name the model. */
export function modelFields(choice) {
  return choice?.model ? { provider_id: choice.provider.provider_id, model: choice.id } : {};
}

/** Choose a model for new conversations. */
export function rememberModel(choice) {
  localStorage.setItem(CHOICE, JSON.stringify(modelFields(choice)));
  emit("models");
}

export const modelName = (choice) => choice?.model?.label || choice?.model?.id || choice?.id || "";

/** Start LM Studio's server on the computer that runs Fireside. */
export async function startServer({ provider_id }) {
  starting = true;
  emit("models");
  try {
    await post(`/providers/${provider_id}/start`);
  } finally {
    starting = false;
    await refreshModels().catch(() => {});
    emit("models");
  }
}
