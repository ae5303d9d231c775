// The messages that wait for the answer before them, below the last message of the chat.

import { arrange, button, h } from "./dom.js";
import { counted } from "./format.js";
import { icon, iconButton } from "./icons.js";

export class Queue {
  #items = new Map(); // by the message's id

  constructor(conversation, focusComposer) {
    this.conversation = conversation;
    this.focusComposer = focusComposer;
    this.list = h("ol", {});
    this.note = h("p", { class: "halted" }, "Not sent: the answer above was not finished.");
    this.node = h("section", { class: "queue", "aria-label": "Messages in the queue" }, this.list);
  }

  draw() {
    const { queue, queueWaits } = this.conversation;
    const items = new Map();
    for (const [index, message] of queue.entries()) {
      const item = this.#items.get(message.id) ?? new Item(this, message.id);
      item.draw(message, index, queueWaits);
      items.set(message.id, item);
    }
    this.#items = items;
    arrange(this.list, [...items.values()].map(({ node }) => node));
    arrange(this.node, queueWaits ? [this.note, this.list] : [this.list]);
  }

  /** Remove a message, and move the focus to the next one, or to the composer. */
  async remove(id) {
    const ids = [...this.#items.keys()];
    const next = this.#items.get(ids[ids.indexOf(id) + 1]);
    if (await this.conversation.removeQueued(id)) next ? next.removeButton.focus() : this.focusComposer();
  }
}

class Item {
  #queue;
  #id;
  #content = "";
  #editing = false;

  constructor(queue, id) {
    this.#queue = queue;
    this.#id = id;
    this.label = h("span", { class: "label" });
    this.text = h("div", { class: "text", dir: "auto" });
    this.images = h("small", {});
    this.sendButton = button([icon("send"), "Send now"], () => queue.conversation.sendQueued(id));
    this.editButton = iconButton("edit", "Edit queued message", () => this.#edit());
    this.removeButton = iconButton("close", "Remove queued message", () => queue.remove(id));
    this.foot = h("footer", {}, this.label, this.sendButton, this.editButton, this.removeButton);
    this.bubble = h("div", { class: "bubble" }, this.text, this.images);
    this.node = h("li", { class: "message user" }, this.bubble, this.foot);
  }

  draw({ content, images }, index, waits) {
    this.#content = content;
    this.text.textContent = content;
    this.images.textContent = images ? counted(images, "image") : "";
    this.images.hidden = !images;
    this.label.textContent = index ? `Number ${index + 1} in the queue` : "Next";
    this.label.hidden = waits;
    this.sendButton.hidden = !waits;
  }

  #edit() {
    if (this.#editing) return;
    this.#editing = true;
    const area = h("textarea", { "aria-label": "Edited message", rows: "3" }, this.#content);
    const close = () => {
      this.#editing = false;
      this.node.replaceChildren(this.bubble, this.foot);
      this.editButton.focus();
    };
    const save = async () => {
      if (await this.#queue.conversation.changeQueued(this.#id, area.value.trim())) close();
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
    this.node.replaceChildren(h("div", { class: "editor", onkeydown }, area,
      h("div", { class: "row end" }, button("Cancel", close), button("Save", save, { class: "primary" }))));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}
