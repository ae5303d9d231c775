// The model servers and their models, and the model that a conversation asks.

import { get, Latest, post, session } from "./api.js";
import { emit } from "./events.js";
import { stored } from "./storage.js";

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

/** What to do when a question cannot be answered by any model. */
export function noModel() {
  const add = session.user.role === "admin" ? "add a model server in the settings" : "ask an administrator for a model";
  return `Not sent: there is no model yet. Start a model server, or ${add}. Your text is still here.`;
}

/**
 * The model that a conversation asks, as {provider, model, id}, or null.
 *
 * `model` is null if the conversation's server no longer has it. If that server was removed, another model answers, and
 * `replaced` is the id of the earlier one.
 */
export function chosenModel(conversation) {
  if (!conversation?.model) return usualModel();
  const { provider_id, model: id } = conversation;
  const found = find(conversation);
  if (found) return found;
  const provider = providers?.find((candidate) => candidate.provider_id === provider_id) ?? null;
  if (provider || !providers) return { provider, model: null, id };
  const other = offers().find(({ model }) => model.id === id) ?? usualModel();
  return other ? { ...other, replaced: id } : { provider: null, model: null, id };
}

const offers = () => (providers ?? []).flatMap((provider) => provider.models.map((model) => ({ provider, model, id: model.id })));

function usualModel() {
  const last = stored(CHOICE);
  const all = offers();
  const online = all.filter(({ provider }) => provider.online);
  return (last && find(last)) ?? online.find(({ model }) => model.state === "loaded") ?? online[0] ?? all[0] ?? null;
}

/** `id` may be a variant of a model. */
function find({ provider_id, model: id }) {
  const provider = providers?.find((candidate) => candidate.provider_id === provider_id);
  const model = provider?.models.find((one) => one.id === id || one.variants?.includes(id)) ?? (provider?.models_known === false ? { id } : null);
  return model ? { provider, model, id } : null;
}

/** The models that can see images, loaded ones first. */
export function modelsWithVision() {
  return offers().filter(({ provider, model }) => provider.online && model.vision).sort((a, b) => (b.model.state === "loaded") - (a.model.state === "loaded"));
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

export function modelName(choice) {
  const { model, id } = choice ?? {};
  const name = model?.label || model?.id || id || "";
  return model && id !== model.id && model.variants?.includes(id) ? `${name}, ${variantName(id)}` : name;
}

/** The part of a variant's id that tells it from the others: Q8_0 for qwen/qwen3-4b@q8_0. */
export const variantName = (id) => (id.split("@")[1] ?? id).toUpperCase();

/** Why the chosen model is not the one that one expects; "" if it is. */
export function modelNote(choice, providerId) {
  if (!choice || !providers) return "";
  if (choice.replaced) {
    const why = providerId ? `The model server of ${choice.replaced} was removed.` : `${choice.replaced} is not available here.`;
    return choice.model.id === choice.replaced ? "" : `${why} ${modelName(choice)} answers instead.`;
  }
  if (choice.provider?.online && !choice.model) return `${choice.provider.name} no longer offers ${choice.id}. Choose another model.`;
  return choice.provider?.online ? "" : `${modelName(choice)} cannot be reached. Choose another model, or start its server.`;
}

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
