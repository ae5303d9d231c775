// The prompts and presets that the user has saved. It draws nothing.

import { get, session } from "./api.js";
import { emit, on } from "./events.js";
import { stored } from "./storage.js";

const RECENT = "fireside.prompts."; // in localStorage, by user: the ids of the prompts used last in this browser, newest first
const MAX_RECENT = 20;

/** As they were read last, sorted by name. */
export const library = { prompts: [], presets: [], isRead: false };
let loading = null; // a promise

/** Read the library, once. */
export function loadLibrary() {
  loading ??= refreshLibrary().catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

export async function refreshLibrary() {
  if (!session.user) return;
  const [{ prompts }, { presets }] = await Promise.all([get("/prompts"), get("/presets")]);
  Object.assign(library, { prompts, presets, isRead: true });
  emit("library-read");
}

on("library", () => refreshLibrary().catch(() => {})); // the banner shows that the server cannot be reached

/** The preset that new conversations begin with, or null. */
export const defaultPreset = () => library.presets.find(({ is_default }) => is_default) ?? null;

/** The fields that a new conversation copies from a preset; null: from none. */
export function presetFields(preset) {
  if (!preset) return defaultPreset() ? { system_prompt: "", settings: {} } : {}; // else the server copies the default one
  const { system_prompt, settings, provider_id, model } = preset;
  return { system_prompt, settings, ...(model && { provider_id, model }) };
}

/** The prompts, the one that was used last in this browser first. */
export function recentPrompts() {
  const ids = recentIds();
  const rank = ({ id }) => (ids.includes(id) ? ids.indexOf(id) : MAX_RECENT);
  return library.prompts.toSorted((a, b) => rank(a) - rank(b));
}

export function notePromptUsed({ id }) {
  localStorage.setItem(RECENT + session.user.id, JSON.stringify([id, ...recentIds().filter((one) => one !== id)].slice(0, MAX_RECENT)));
}

const recentIds = () => stored(RECENT + session.user.id, []);

const VARIABLE = /\{\{\s*([^{}\n]{1,60}?)\s*\}\}/g;

/** The names of the variables in a prompt, in order. */
export const variablesIn = (content) => [...new Set([...content.matchAll(VARIABLE)].map(([, name]) => name))];

/** Put values in the place of variables. Those without a value stay. */
export const fillIn = (content, values) => content.replace(VARIABLE, (variable, name) => values[name] || variable);
