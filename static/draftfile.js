// A file of a draft: on its way to the server, read there, ready to be sent. It draws nothing.

import { get, post, session } from "./api.js";
import { Emitter, on } from "./events.js";

const FIRST_PAUSE_MS = 300; // between two looks at how far the server has read
const MAX_PAUSE_MS = 2000;
const MAX_UPLOADS = 2; // at a time: a browser has six connections to a server, and answers need some of them
const GONE = "Fireside no longer has this file. Remove it and attach it again.";

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

/**
 * `state` is "waiting", "uploading", "lost" (the connection), "refused", or the status that the server has for it: "reading", "ready", "no_text",
 * "encrypted", "failed". `problem` says what is wrong. Its event `changed` follows each change.
 */
export class DraftFile extends Emitter {
  id = null;
  attachment = null; // as the server describes it
  share = 0; // that is uploaded
  problem = "";
  #file; // null if it was uploaded earlier
  #isHopeless = false; // another try would be refused too
  #ended = new AbortController();

  /** `file` is a File. */
  static upload(file) {
    const one = new DraftFile(file.name.replace(/\s+/g, " "), file.type, "waiting", file);
    one.#upload();
    return one;
  }

  /** A file that is saved in a draft. */
  static restore({ id, name, media_type }) {
    const one = new DraftFile(name, media_type, "reading");
    one.id = id;
    one.#follow();
    return one;
  }

  /** A file of a message. */
  static of(attachment) {
    const one = new DraftFile(attachment.name ?? "", attachment.media_type, attachment.status ?? "ready");
    one.id = attachment.id;
    one.attachment = attachment;
    return one;
  }

  constructor(name, mediaType, state, file = null) {
    super();
    this.name = name;
    this.media_type = mediaType;
    this.state = state;
    this.#file = file;
  }

  get isImage() {
    return this.media_type.startsWith("image/") && this.media_type !== "image/svg+xml";
  }

  get isPending() {
    return ["waiting", "uploading", "lost", "reading"].includes(this.state);
  }

  get canRetry() {
    return this.#file !== null && !this.#isHopeless && ["lost", "refused"].includes(this.state);
  }

  /** Why it cannot be sent as it is; "" if it can. */
  get obstacle() {
    if (this.state === "encrypted") return "It needs its password.";
    return ["refused", "failed"].includes(this.state) ? this.problem : "";
  }

  /** End the upload, or stop following it. */
  cancel() {
    this.#ended.abort();
  }

  retry() {
    if (this.canRetry) this.#upload();
  }

  /** Look whether the server still has the file: a draft may be older than what the server keeps. */
  async check() {
    if (this.state !== "ready" && this.state !== "no_text") return;
    try {
      await get(`/attachments/${this.id}`);
    } catch (error) {
      if (error.status === 404) this.#set("refused", GONE);
    }
  }

  /** Have an encrypted file read with its password. */
  async unlock(password) {
    this.#set("reading");
    try {
      this.#accept(await post(`/attachments/${this.id}/password`, { password }));
    } catch (error) {
      return this.#set("encrypted", error.message);
    }
    await this.#follow();
    if (this.state === "encrypted") this.#set("encrypted", "This password does not open it.");
  }

  #set(state, problem = "") {
    if (this.#ended.signal.aborted) return;
    this.state = state;
    this.problem = problem;
    this.emit("changed");
  }

  async #upload() {
    const { signal } = this.#ended;
    this.share = 0;
    this.#set("waiting");
    await takeTurn();
    try {
      if (signal.aborted) return;
      this.#set("uploading");
      const { upload } = await import("./files.js");
      this.#accept(await upload(this.#file, this.name, signal, (share) => {
        this.share = share;
        this.#set("uploading");
      }));
    } catch (error) {
      this.#isHopeless = error.isUnreadable || (error.status >= 400 && error.status < 500 && ![401, 408, 429].includes(error.status));
      if (error.status || error.isUnreadable) return this.#set("refused", error.message);
      this.#set("lost", "The connection was lost.");
      return this.#retryOnline();
    } finally {
      endTurn();
    }
    await this.#follow();
  }

  #retryOnline() {
    const stop = on("online", () => {
      stop();
      if (this.state === "lost" && !this.#ended.signal.aborted) this.#upload();
    });
  }

  #accept(attachment) {
    this.id = attachment.id;
    this.attachment = { ...attachment, name: this.name };
    this.media_type = attachment.media_type;
    this.#set(attachment.status, attachment.problem ?? "");
  }

  /** Ask the server until it has read the file. */
  async #follow() {
    let wait = this.attachment ? FIRST_PAUSE_MS : 0;
    while (this.state === "reading" && !this.#ended.signal.aborted) {
      await pause(wait);
      wait = Math.min(MAX_PAUSE_MS, Math.max(FIRST_PAUSE_MS, wait * 1.5));
      if (!session.user) continue;
      try {
        this.#accept(await get(`/attachments/${this.id}`));
      } catch (error) {
        if (error.status === 404) return this.#set("refused", GONE);
      }
    }
  }
}

// ---- whose turn it is to upload

let uploads = 0;
const waiting = [];

function takeTurn() {
  uploads += 1;
  return uploads <= MAX_UPLOADS ? Promise.resolve() : new Promise((resolve) => { waiting.push(resolve); });
}

function endTurn() {
  uploads -= 1;
  waiting.shift()?.();
}
