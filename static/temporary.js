// Temporary chats: the switch on an empty chat, the note on one, and telling the server which one this tab has open.

import { post, session } from "./api.js";
import { forgetDraft } from "./composer.js";
import { button, h } from "./dom.js";
import { on } from "./events.js";
import { icon } from "./icons.js";
import { announce } from "./popups.js";

const STILL_OPEN_MS = 5 * 60_000;
const EXPLANATION = "Not in the list, and deleted when you leave it.";

/** The line above the composer. `folderName(id)` returns the name of a folder. */
export class TemporaryLine {
  #openId = null; // of the temporary conversation that this tab has open
  #tab = crypto.getRandomValues(new Uint32Array(4)).join("-");
  #told = Promise.resolve(); // what was told last: the order matters

  constructor(conversation, folderName) {
    this.conversation = conversation;
    this.folderName = folderName;
    this.switch = button([icon("temporary"), "Temporary chat"], () => this.#toggle(), { role: "switch", class: "quiet" });
    this.keep = button("Keep this chat", () => this.#keep());
    this.text = h("span", {});
    this.node = h("p", { class: "temporary-line" }, this.switch, this.text, this.keep);
    conversation.on("changed", () => this.#follow(conversation.details?.temporary ? conversation.id : null));
    conversation.on("leaving", () => this.leave());
    const stillOpen = () => this.#openId !== null && this.#tell(true);
    on("online", stillOpen);
    setInterval(stillOpen, STILL_OPEN_MS);
    window.addEventListener("pageshow", ({ persisted }) => persisted && stillOpen());
    window.addEventListener("pagehide", () => this.#openId !== null && this.#tellLast());
  }

  draw() {
    const { id, details, fields } = this.conversation;
    const isNew = id === null;
    const isTemporary = Boolean(fields.temporary);
    const folder = isNew && fields.folder_id ? this.folderName(fields.folder_id) : "";
    this.switch.hidden = !isNew;
    this.switch.setAttribute("aria-checked", isTemporary);
    this.keep.hidden = isNew || !isTemporary;
    this.text.textContent = isTemporary ? (isNew ? EXPLANATION : `Temporary chat. ${EXPLANATION}`) : folder && `New chat in “${folder}”`;
    this.node.hidden = !isNew && !details?.temporary;
    this.node.parentElement?.classList.toggle("temporary", isTemporary);
  }

  #toggle() {
    this.conversation.change({ temporary: !this.conversation.fields.temporary });
  }

  async #keep() {
    if (await this.conversation.change({ temporary: false })) announce("This chat is kept, and in the list.");
  }

  #follow(id) {
    if (id === this.#openId) return;
    this.leave();
    this.#openId = id;
    if (id !== null) this.#tell(true);
  }

  /** Resolves when the server was told. */
  async leave() {
    if (this.#openId === null) return;
    if (this.conversation.details?.temporary) forgetDraft(this.#openId);
    const told = this.#tell(false);
    this.#openId = null;
    await told;
  }

  #tell(open) {
    const path = this.#path;
    this.#told = this.#told.then(() => post(path, { tab: this.#tab, open })).catch(() => {}); // the chat is gone, or a day decides
    return this.#told;
  }

  /** Tell that the page is left. The request goes on without the page. */
  #tellLast() {
    const headers = { "Content-Type": "application/json", "X-CSRF-Token": session.csrf };
    fetch(this.#path, { method: "POST", keepalive: true, headers, body: JSON.stringify({ tab: this.#tab, open: false }) }).catch(() => {});
  }

  get #path() {
    return `/conversations/${this.#openId}/presence`;
  }
}
