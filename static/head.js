// The bar above the messages: the title, which model is asked, and the way to the conversation's settings.

import { get } from "./api.js";
import { button, h, icon, iconButton, renameInPlace, toast } from "./dom.js";
import { asked, chosen, label, providers, remember, stateDot } from "./models.js";

export class Head {
  closePanel = null; // while the side panel is open

  constructor(chat, openMenu) {
    this.chat = chat;
    this.title = button("", () => this.rename(), { class: "title", title: "Rename" });
    this.model = button("", () => this.pickModel(), { class: "pill", "aria-haspopup": "dialog" });
    this.settings = iconButton("sliders", "Conversation settings", () => this.openPanel(), { "aria-expanded": "false" });
    this.node = h("header", { class: "top" },
      iconButton("menu", "Conversations", openMenu, { class: "quiet narrow" }), h("h1", {}, this.title), this.model, this.settings);
  }

  draw() {
    const { id, conversation } = this.chat;
    this.title.textContent = conversation?.title ?? (id === null ? "New chat" : "");
    this.title.disabled = !conversation;
    this.settings.disabled = id !== null && !conversation; // they would be shown empty, and saved so
    document.title = conversation?.title ?? "Fireside";
    const choice = chosen(conversation);
    const name = label(choice) || (providers ? "No model" : "Models");
    const offline = choice && !choice.provider?.online;
    const dot = stateDot(choice?.model, !offline);
    this.model.replaceChildren(dot, h("span", {}, name), icon("down"));
    this.model.title = dot.title;
    this.model.setAttribute("aria-label", `Model: ${name}`);
  }

  rename() {
    renameInPlace(this.title, this.chat.conversation.title, (title) => this.chat.change({ title }));
  }

  /** Saves what is being changed, before another conversation is shown. */
  leave() {
    this.node.querySelector(".rename")?.blur();
    this.closePanel?.();
  }

  async pickModel() {
    const { openPicker } = await import("./picker.js");
    openPicker(chosen(this.chat.conversation), async (choice) => {
      remember(choice);
      if (this.chat.conversation) await this.chat.change(asked(choice));
      else this.chat.drawAround();
      this.chat.composer.focus();
    });
  }

  async openPanel() {
    const fresh = this.chat.id === null && !this.closePanel;
    try {
      const [{ togglePanel }, defaults] = await Promise.all([import("./panel.js"), fresh ? get("/defaults") : {}]);
      if (!this.settings.disabled) togglePanel(this, defaults); // else another conversation was opened meanwhile
    } catch (error) {
      toast(error.message);
    }
  }
}
