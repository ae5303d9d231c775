// The messages that wait for the answer before them, below the last message of the chat.

import { Attachments, fileCard, splitContent } from "./attachments.js";
import { arrange, button, h } from "./dom.js";
import { counted } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { toast } from "./popups.js";

export class Queue {
  #items = new Map(); // by the message's id

  constructor(conversation, focusComposer) {
    this.conversation = conversation;
    this.focusComposer = focusComposer;
    this.list = h("ol", {});
    this.note = h("p", { class: "halted" }, "The queue has stopped: these messages were not sent.");
    this.node = h("section", { class: "queue", "aria-label": "Messages in the queue" }, this.list);
  }

  draw() {
    const { queue, queueWaits } = this.conversation;
    const items = new Map();
    for (const [index, message] of queue.entries()) {
      const item = this.#items.get(message.id) ?? new Item(this);
      item.draw(message, index, queueWaits);
      items.set(message.id, item);
    }
    this.#items = items;
    arrange(this.list, [...items.values()].map(({ node }) => node));
    arrange(this.node, queueWaits ? [this.note, this.list] : [this.list]);
  }

  /** Remove a message, and move the focus to the next one, or to the composer. */
  async remove(message) {
    const { conversation } = this;
    const chat = conversation.id;
    const ids = [...this.#items.keys()];
    const next = this.#items.get(ids[ids.indexOf(message.id) + 1]);
    if (!await conversation.removeQueued(message.id)) return;
    next ? next.removeButton.focus() : this.focusComposer();
    // The page does not have the images.
    if (message.images) toast("Removed from the queue.");
    else toast("Removed from the queue.", "Undo", () => conversation.queueAgain(chat, message.content));
  }
}

class Item {
  #queue;
  #message = { content: null };
  #editing = false;

  constructor(queue) {
    this.#queue = queue;
    this.label = h("span", { class: "label" });
    this.text = h("div", { class: "text", dir: "auto" });
    this.images = h("small", {});
    this.sendButton = button([icon("send"), "Send now"], () => queue.conversation.sendQueued(this.#message.id));
    this.editButton = iconButton("edit", "Edit queued message", () => this.#edit());
    this.removeButton = iconButton("close", "Remove queued message", () => queue.remove(this.#message));
    this.foot = h("footer", {}, this.label, this.sendButton, this.editButton, this.removeButton);
    this.bubble = h("div", { class: "bubble" });
    this.node = h("li", { class: "message user" }, this.bubble, this.foot);
  }

  draw(message, index, waits) {
    const { content, images } = message;
    if (content !== this.#message.content) {
      const { typed, files } = splitContent(content);
      this.text.textContent = typed;
      this.bubble.replaceChildren(this.text, ...files.map(fileCard), this.images);
    }
    this.#message = message;
    this.images.textContent = images ? counted(images, "image") : "";
    this.images.hidden = !images;
    this.label.textContent = index ? `Number ${index + 1} in the queue` : "Next";
    this.label.hidden = waits;
    this.sendButton.hidden = !waits;
  }

  #edit() {
    if (this.#editing) return;
    this.#editing = true;
    const { typed, files } = splitContent(this.#message.content);
    const area = h("textarea", { "aria-label": "Edited message", rows: "3" }, typed);
    const attached = new Attachments({ label: "", changed() {}, typed: () => area.value, focus: () => area.focus() });
    attached.show(files);
    const close = () => {
      this.#editing = false;
      this.node.replaceChildren(this.bubble, this.foot);
      this.editButton.focus();
    };
    const save = async () => {
      if (await this.#queue.conversation.changeQueued(this.#message.id, attached.content())) close();
    };
    const onkeydown = (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") {
        event.stopPropagation(); // it does not stop the answer too
        close();
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        save();
      }
    };
    this.node.replaceChildren(h("div", { class: "editor", onkeydown }, attached.node, area,
      h("div", { class: "row end" }, button("Cancel", close), button("Save", save, { class: "primary" }))));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}
