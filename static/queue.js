// The messages that wait for the answer before them, below the last message of the chat.

import { documentCard, fileCard, pictures, splitContent } from "./attachments.js";
import { arrange, button, h } from "./dom.js";
import { editQuestion } from "./editor.js";
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
    // The server has removed the files.
    if (message.images || message.documents.length) toast("Removed from the queue.");
    else toast("Removed from the queue.", "Undo", () => conversation.queueAgain(chat, message.content));
  }
}

class Item {
  #queue;
  #message = null;
  #shown = ""; // the message, as JSON

  constructor(queue) {
    this.#queue = queue;
    this.label = h("span", { class: "label" });
    this.text = h("div", { class: "text", dir: "auto" });
    this.sendButton = button([icon("send"), "Send now"], () => queue.conversation.sendQueued(this.#message.id));
    this.editButton = iconButton("edit", "Edit queued message", () => this.#edit());
    this.removeButton = iconButton("close", "Remove queued message", () => queue.remove(this.#message));
    this.foot = h("footer", {}, this.label, this.sendButton, this.editButton, this.removeButton);
    this.bubble = h("div", { class: "bubble" });
    this.node = h("li", { class: "message user" }, this.bubble, this.foot);
  }

  draw(message, index, waits) {
    const shown = JSON.stringify(message);
    if (shown !== this.#shown) {
      this.#shown = shown;
      const { typed, files } = splitContent(message.content);
      this.text.textContent = typed;
      const images = pictures(message.image_ids.map((id) => ({ id })));
      this.bubble.replaceChildren(...[images, this.text, ...message.documents.map((one) => documentCard(one)), ...files.map(fileCard)].filter(Boolean));
    }
    this.#message = message;
    this.label.textContent = index ? `Number ${index + 1} in the queue` : "Next";
    this.label.hidden = waits;
    this.sendButton.hidden = !waits;
  }

  #edit() {
    const { id, content, image_ids: imageIds, documents } = this.#message;
    const images = imageIds.map((image) => ({ id: image, media_type: "image/png" }));
    editQuestion(this.node, { content, images, documents }, {
      label: "Edited message", filesLabel: "Files for the message", verb: "Save",
      send: (text, attachmentIds) => this.#queue.conversation.changeQueued(id, text, attachmentIds), closed: () => this.editButton.focus(),
    });
  }
}
