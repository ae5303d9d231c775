// The list of models to choose from: what each is, whether it is loaded, and for administrators to load and unload them.

import { onChange, post, session } from "./api.js";
import { announce, button, bytes, h, icon, number, openDialog, stepFocus, styles, toast } from "./dom.js";
import { providers, refreshModels, STATES, stateDot } from "./models.js";

await styles("more.css");

/** `pick(choice)` is called with what was chosen. */
export function openPicker(current, pick) {
  const list = h("div", { class: "models" });
  const search = h("input", {
    type: "search", placeholder: "Find a model", "aria-label": "Find a model", autocomplete: "off", spellcheck: "false",
  });
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
  const note = provider.online ? !provider.models.length && "It has no model yet." : provider.error || "It does not answer.";
  return h("section", { "aria-label": provider.name, hidden: Boolean(wanted) && !models.length },
    h("h3", {}, provider.name, !provider.online && h("span", { class: "badge" }, "offline")),
    note && h("p", { class: "faint" }, note),
    h("ul", {}, models.map((model) => modelRow(provider, model, current, choose))));
}

function modelRow(provider, model, current, choose) {
  const here = current?.model?.id === model.id && current.provider.provider_id === provider.provider_id;
  const context = model.context_length ?? model.max_context_length;
  const facts = [
    provider.online && STATES[model.state],
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
    session.user.role === "admin" && provider.kind !== "openai" && provider.online && model.state && loadButton(provider, model));
}

function loadButton(provider, model) {
  const verb = model.state === "loaded" ? "Unload" : "Load";
  const act = async (event) => {
    const pressed = event.currentTarget;
    pressed.disabled = true;
    pressed.textContent = `${verb}ing`;
    try {
      await post(`/providers/${encodeURIComponent(provider.provider_id)}/models/${verb.toLowerCase()}`, { model: model.id });
      announce(`Model ${verb.toLowerCase()}ed`);
    } catch (error) {
      toast(error.message);
    }
    pressed.disabled = false;
    pressed.textContent = verb;
    await refreshModels().catch(() => {});
  };
  const loading = model.state === "loading";
  return button(loading ? "Loading" : verb, act, { class: "load", disabled: loading, "aria-label": `${verb} ${model.label || model.id}` });
}
