// Model servers: their section in the settings, and the form to add or change one. For administrators.

import { get, Latest, patch, post, remove } from "./api.js";
import { confirm, openDialog } from "./dialogs.js";
import { button, h } from "./dom.js";
import { debounce } from "./events.js";
import { field, inputField } from "./fields.js";
import { counted } from "./format.js";
import { icon } from "./icons.js";
import { refreshModels } from "./models.js";
import { toast } from "./popups.js";
import { action } from "./rows.js";

const POLL_MS = 3000; // while the section is shown
const TYPING_MS = 500; // after which an address that is typed is tested
const KINDS = { lmstudio: "LM Studio", openai: "OpenAI-compatible", embedded: "inside Fireside" };
const SOURCES = { "built-in": "built in", "config.toml": "from config.toml", environment: "from the environment" };
const SHOWN_MODELS = 3;

export async function show(place) {
  const list = h("ul", { class: "rows servers" });
  const rows = new Map(); // by provider_id
  const draw = async () => {
    const { providers } = await get("/admin/providers");
    for (const id of rows.keys()) {
      if (!providers.some(({ provider_id }) => provider_id === id)) rows.delete(id);
    }
    for (const server of providers) {
      if (!rows.has(server.provider_id)) rows.set(server.provider_id, serverRow(place, draw));
      rows.get(server.provider_id).update(server);
    }
    const nodes = providers.map(({ provider_id }) => rows.get(provider_id).node);
    if (nodes.length !== list.children.length || nodes.some((node, at) => list.children[at] !== node)) list.replaceChildren(...nodes);
  };
  const poll = () => setTimeout(async () => {
    if (!place.isConnected) return;
    if (!document.hidden) await draw().catch(() => {});
    poll();
  }, POLL_MS);
  await draw();
  poll();
  place.append(
    h("p", { class: "faint" }, "Fireside asks these servers for answers. A change takes effect at once; answers that are being written are not interrupted."),
    list,
    button([icon("server"), "Add a model server"], () => openServerDialog(null, draw), { class: "primary" }),
    h("p", { class: "faint" }, "Keys are kept in a private file on the computer that runs Fireside. They are never shown again, and a backup does not contain them."));
}

/** Open the form in a dialog. `server` is null for a new one. */
export function openServerDialog(server, onsaved = () => {}) {
  const form = serverForm(server, async () => {
    dialog.close();
    await onsaved();
  });
  const dialog = openDialog(server ? `Change ${server.name}` : "Add a model server", { className: "small" }, form);
  form.querySelector("input").focus();
}

function serverRow(place, draw) {
  const dot = h("span", { class: "dot" });
  const name = h("strong", {});
  const facts = h("small", {});
  const buttons = h("span", { class: "row" });
  const node = h("li", {}, h("span", { class: "server" }, dot, h("span", {}, name, facts)), buttons);
  let drawn = "";
  const update = (server) => {
    const state = !server.enabled ? "unknown" : server.online ? "loaded" : "offline";
    const label = !server.enabled ? "Disabled" : server.online ? "Reachable" : "Not reachable";
    dot.className = `dot ${state}`;
    dot.title = label;
    facts.textContent = describe(server, label);
    const { provider_id, source, enabled } = server;
    const key = JSON.stringify([server.name, source, enabled, server.url, server.concurrency, server.models, server.has_key, server.address]);
    if (key === drawn) return; // a button that is replaced while it is pressed loses the click
    drawn = key;
    const badges = [SOURCES[source], !enabled && "disabled"].filter(Boolean);
    name.replaceChildren(server.name, ...badges.map((badge) => h("span", { class: "badge" }, badge)));
    const act = (label, perform, ask) => button(label, action(async () => {
      await perform();
      await refreshModels().catch(() => {});
    }, { place, draw, ask }), { class: label === "Remove" ? "danger" : null, "aria-label": `${label} ${server.name}` });
    const path = `/admin/providers/${encodeURIComponent(provider_id)}`;
    const isBuiltIn = ["lmstudio", "embedded"].includes(provider_id);
    const askFirst = () => confirm(`Remove ${server.name}?`, "Its running and queued answers are finished. Chats that use its models stay, and continue with another model.", "Remove");
    buttons.replaceChildren(...(SOURCES[source] && source !== "built-in" ? [] : [
      server.kind !== "embedded" && button("Change", () => openServerDialog(server, draw), { "aria-label": `Change ${server.name}` }),
      act(enabled ? "Disable" : "Enable", () => patch(path, { enabled: !enabled })),
      source === "page" && (isBuiltIn ? act("Reset", () => remove(path)) : act("Remove", () => remove(path), askFirst)),
    ].filter(Boolean)));
  };
  return { node, update };
}

function describe(server, label) {
  const { answering, waiting, concurrency, enabled } = server;
  const found = server.models_known ? counted(server.models_found, "model") : "lists no models";
  return [
    server.address.replace(/^http:\/\//, "") || null,
    KINDS[server.kind],
    !enabled || server.online ? label : server.error,
    server.online && found,
    enabled && (answering || waiting ? `${answering} of ${concurrency} answering, ${waiting} waiting` : `${counted(concurrency, "answer")} at a time`),
    server.has_key && "has a key",
  ].filter(Boolean).join(" · ");
}

/** A form that tests the address as it is typed. `onsaved(server)` is called with the saved server. */
export function serverForm(server, onsaved) {
  const plain = { autocomplete: "off", spellcheck: "false", autocapitalize: "off" };
  const findsItself = server?.provider_id === "lmstudio";
  const url = inputField("Address", {
    ...plain, inputmode: "url", maxlength: "2000", placeholder: findsItself ? "found on this computer" : "localhost:11434", value: server?.url ?? "",
    required: !findsItself,
  });
  const key = inputField("API key, if the server requires one", {
    ...plain, type: "password", autocomplete: "new-password", maxlength: "1000", required: false, placeholder: server?.has_key ? "saved" : "none",
  });
  const name = inputField("Name on this page", { ...plain, maxlength: "60", required: Boolean(server), value: server?.name ?? "", placeholder: "as it says" });
  const concurrency = inputField("Answers at a time", { type: "number", min: "1", max: "1000", step: "1", value: server?.concurrency ?? 4 });
  const models = field("Models to offer, one on a line", h("textarea", { rows: "3", ...plain, placeholder: "all that the server lists" }, server?.models.join("\n") ?? ""));
  const result = h("div", { class: "finding", role: "status", hidden: true });
  const anyway = button("Save anyway", () => save(true), { hidden: true });
  const submit = button(server ? "Save" : "Add this server", null, { type: "submit", class: "primary" });
  const more = h("details", { class: "faint", open: Boolean(server) }, h("summary", {}, "Key, name and more"),
    h("div", { class: "stack" }, key.node, name.node, concurrency.node, server?.kind !== "lmstudio" && models.node));
  const tests = new Latest();
  let aborter = null;

  const showResult = (text, problem, ...more) => {
    result.hidden = !text;
    result.classList.toggle("error", Boolean(problem));
    result.replaceChildren(icon(problem ? "alert" : "check"), h("span", {}, text, ...more));
  };
  const keyField = () => {
    if (key.control.value) return { api_key: key.control.value };
    return server?.has_key ? { provider_id: server.provider_id } : {};
  };
  const test = async (fields) => {
    const address = url.control.value.trim();
    const turn = tests.begin();
    aborter?.abort();
    anyway.hidden = true;
    if (!address) return showResult("");
    aborter = new AbortController();
    try {
      const found = await post("/admin/provider-test", { url: address, ...fields }, { signal: aborter.signal });
      if (!turn.isNewest()) return;
      name.control.placeholder = found.name;
      if (found.problem === "PROVIDER_AUTH") more.open = true; // it has the field of the key
      if (found.problem) showResult(found.message, true);
      else showResult(...describeFinding(found));
    } catch (error) {
      if (turn.isNewest() && error.name !== "AbortError") showResult(error.message, true);
    }
  };
  // A key is not sent to an address that is being typed: it may be another computer's.
  const testAddress = debounce(TYPING_MS, () => test(server?.has_key ? { provider_id: server.provider_id } : {}));
  const testKey = debounce(TYPING_MS, () => test(keyField()));
  url.control.addEventListener("input", testAddress);
  key.control.addEventListener("input", testKey);

  const save = async (untested) => {
    const fields = {
      name: name.control.value.trim() || null,
      url: url.control.value.trim(),
      concurrency: Number(concurrency.control.value),
      models: models.control.value.split("\n").map((line) => line.trim()).filter(Boolean),
      untested,
    };
    if (key.control.value) fields.api_key = key.control.value;
    if (server?.kind === "lmstudio") delete fields.models;
    if (server && fields.url === server.url) delete fields.url;
    const turn = tests.begin();
    aborter?.abort();
    submit.disabled = true;
    submit.textContent = "Testing";
    try {
      const path = "/admin/providers";
      const saved = server ? await patch(`${path}/${encodeURIComponent(server.provider_id)}`, fields) : await post(path, fields);
      await refreshModels().catch(() => {});
      toast(server ? `${saved.name} is saved.` : `${saved.name} is added.`);
      await onsaved(saved);
    } catch (error) {
      if (turn.isNewest()) showResult(error.message, true);
      anyway.hidden = error.status !== 502;
    }
    submit.disabled = false;
    submit.textContent = server ? "Save" : "Add this server";
  };
  const form = h("form", { class: "stack server-form", onsubmit: (event) => {
    event.preventDefault();
    save(false);
  } }, url.node, result, more, h("footer", { class: "row" }, submit, anyway,
    server?.has_key && button("Remove the key", action(async () => {
      await patch(`/admin/providers/${encodeURIComponent(server.provider_id)}`, { api_key: "", untested: true });
      await onsaved(server);
    }))));
  form.fill = (address) => {
    url.control.value = address;
    url.control.focus();
    test({});
  };
  return form;
}

function describeFinding({ kind, name, models, models_known: known }) {
  const product = kind === "lmstudio" ? "LM Studio" : name;
  if (!known) return [`${product} answers, but does not list its models. Enter their names under “Key, name and more”.`, false];
  if (!models.length) return [`${product} answers, but has no chat model yet.`, false];
  const others = models.length - SHOWN_MODELS;
  const shown = models.slice(0, SHOWN_MODELS).join(", ") + (others > 0 ? ` and ${others} more` : "");
  return [`${product} has ${counted(models.length, "model")}: ${shown}.`, false];
}
