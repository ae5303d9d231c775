// The bar above the messages: the title, the model, and the button of the conversation's settings.

import { get } from "./api.js";
import { button, h } from "./dom.js";
import { icon, iconButton } from "./icons.js";
import { modelFields, modelName, providers, rememberModel } from "./models.js";
import { setTitle } from "./notice.js";
import { renameInPlace, toast } from "./popups.js";

export const MODEL_STATES = { loaded: "Loaded", loading: "Loading", "not-loaded": "Not loaded" };

export function stateDot(model, online = true) {
  const state = online ? model?.state ?? "unknown" : "offline";
  return h("span", { class: `dot ${state}`, title: online ? MODEL_STATES[state] : "Offline" });
}

export class Head {
  #closePanel = null; // while the side panel is open

  /** `openList` shows the list on a narrow page. `onPick` is called when a model was chosen. */
  constructor(conversation, { openList, onPick }) {
    this.conversation = conversation;
    this.onPick = onPick;
    this.title = button("", () => this.#rename(), { class: "title", title: "Rename" });
    this.model = button("", () => this.pickModel(), { class: "pill", "aria-haspopup": "dialog" });
    this.settings = iconButton("sliders", "Chat settings", () => this.#togglePanel(), { "aria-expanded": "false" });
    this.node = h("header", { class: "top" },
      iconButton("menu", "Chats", openList, { class: "quiet opens-list" }), h("h1", {}, this.title), this.model,
      h("a", { class: "narrow new-chat", href: "#/", "aria-label": "New chat", title: "New chat" }, icon("new")), this.settings);
    conversation.on("leaving", () => this.#saveEdits());
  }

  draw() {
    const { id, details } = this.conversation;
    this.title.textContent = details?.title ?? (id === null ? "New chat" : "");
    if (details?.token_name) this.title.dataset.token = details.token_name;
    else delete this.title.dataset.token;
    this.title.disabled = !details;
    this.settings.disabled = id !== null && !details; // they would be shown empty, and saved so
    setTitle(details?.title ?? "Fireside");
    if (id !== null && !details && this.model.firstChild) return; // its model is not known yet
    const { choice } = this.conversation;
    const name = modelName(choice) || (providers ? "No model" : "Models");
    const offline = choice && !choice.provider?.online;
    const dot = stateDot(choice?.model, !offline);
    this.model.replaceChildren(dot, h("span", {}, name), icon("down"));
    this.model.title = dot.title;
    this.model.setAttribute("aria-label", `Model: ${name}`);
  }

  async pickModel() {
    const { openPicker } = await import("./picker.js");
    openPicker(this.conversation.choice, (choice) => this.useModel(choice));
  }

  async useModel(choice) {
    rememberModel(choice);
    if (this.conversation.fields.model !== undefined) await this.conversation.change(modelFields(choice));
    this.onPick();
  }

  #rename() {
    renameInPlace(this.title, this.conversation.details.title, (title) => this.conversation.change({ title }));
  }

  #saveEdits() {
    this.node.querySelector(".rename")?.blur();
    this.#closePanel?.();
  }

  async #togglePanel() {
    if (this.#closePanel) return this.#closePanel();
    const { conversation, settings } = this;
    try {
      const [{ openPanel }, defaults] = await Promise.all([import("./panel.js"), conversation.id === null ? get("/defaults") : {}]);
      if (settings.disabled || this.#closePanel) return; // meanwhile another conversation was opened, or this panel
      const close = openPanel(conversation, defaults, this.node.parentElement, () => {
        this.#closePanel = null;
        settings.setAttribute("aria-expanded", "false");
        settings.focus();
      });
      this.#closePanel = close;
      settings.setAttribute("aria-expanded", "true");
    } catch (error) {
      toast(error.message);
    }
  }
}
