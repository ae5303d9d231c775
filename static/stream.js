// The stream of an answer: reading it, leaving it, resuming it, stopping it.

import { get, post, serverSentEvents } from "./api.js";
import { on } from "./events.js";

const SILENCE_MS = 40_000; // the server sends an event at least every 15 s
const RECONNECT_MS = [250, 5000]; // after the first and after many failures
const HIDDEN_POLL_MS = 2000;

/**
 * The events of one answer, each exactly once, until its `done`. `source` is {path, body}, a request that starts or joins the
 * answer, or {generationId, after}, which continues after the event with that id. A connection that breaks or falls silent is
 * resumed, except before the first event: without the generation's id, a second request could start another answer.
 */
export async function* answerEvents(source, signal) {
  let { generationId = null, after = -1 } = source;
  for (let wait = RECONNECT_MS[0]; ; wait = Math.min(wait * 2, RECONNECT_MS[1])) {
    const connection = new AbortController();
    const either = AbortSignal.any([signal, connection.signal]);
    const stream = generationId
      ? serverSentEvents("GET", `/generations/${generationId}/stream${after < 0 ? "" : `?after=${after}`}`, undefined, either)
      : serverSentEvents("POST", source.path, source.body, either);
    let silence = setTimeout(() => connection.abort(), SILENCE_MS);
    let silent = true;
    try {
      for await (const event of stream) {
        silent = false;
        clearTimeout(silence);
        silence = setTimeout(() => connection.abort(), SILENCE_MS);
        wait = RECONNECT_MS[0];
        generationId = event.data.generation_id ?? generationId;
        if (event.event === "reset") after = -1;
        else if (event.id !== null && event.id <= after) continue;
        after = event.id ?? after;
        yield event;
        if (event.event === "done") return;
      }
      if (silent && after >= 0) return; // all events were read before: a server that shuts down sends `done`, then closes the stream
    } catch (error) {
      if (signal.aborted || !generationId || (error.status ?? 0) !== 0) throw error;
    } finally {
      clearTimeout(silence);
    }
    await reconnectTime(wait, signal);
  }
}

/** Resolves after `wait` ms, or as soon as the server can be reached again. */
function reconnectTime(wait, signal) {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      stopListening();
      signal.removeEventListener("abort", end);
      signal.aborted ? reject(signal.reason) : resolve();
    };
    const timer = setTimeout(end, wait);
    const stopListening = on("online", end);
    signal.addEventListener("abort", end);
  });
}

/** Start an answer that is not shown. Resolves once it has begun. */
export async function startAnswer(source) {
  try {
    for await (const _ of answerEvents(source, new AbortController().signal)) return;
  } catch {
    // The conversation shows that the question is unanswered.
  }
}

/** Reads the answer of a conversation, and emits its events busy, begun, part, ended, ended-hidden, failed and problem. */
export class AnswerReader {
  #stream = null; // {controller, generationId, messageId, after, stopRequested, stopping} of the stream being read
  #left = null; // the stream that was left last
  #polling = new AbortController(); // of the poll of a hidden tab

  constructor(conversation) {
    this.conversation = conversation;
  }

  get busy() {
    return this.#stream !== null;
  }

  /** `source` is as for answerEvents, with the messageId if `after` skips the event that has it. */
  async read(source) {
    this.leave();
    const { generationId = null, messageId = null, after = -1 } = source;
    const stream = (this.#stream = { controller: new AbortController(), generationId, messageId, after });
    this.conversation.emit("busy");
    try {
      for await (const { event, id, data } of answerEvents(source, stream.controller.signal)) {
        stream.after = id ?? stream.after;
        if (event === "done") return this.#end(stream, { messageId: data.message_id, generationId: data.generation_id });
        if (event !== "ping") this.conversation.emit("part", { messageId: stream.messageId, event, data });
        else if (data.message_id) this.#begin(stream, data);
      }
      this.#end(stream, {});
    } catch (error) {
      if (this.#stream !== stream) return;
      this.leave();
      this.conversation.emit("failed", error);
    }
  }

  /** Read the answer of this generation, from where its stream was left. A hidden tab reads nothing. */
  follow(generationId) {
    if (document.hidden || generationId === this.#stream?.generationId) return;
    this.#polling.abort();
    this.read(this.#left?.generationId === generationId ? this.#left : { generationId });
  }

  leave() {
    if (!this.#stream) return;
    this.#stream.controller.abort();
    this.#left = this.#stream;
    this.#stream = null;
    this.conversation.emit("busy");
  }

  /** Leave the stream, to read it from the beginning next time. */
  forget() {
    this.leave();
    this.#polling.abort();
    this.#left = null;
  }

  /** Leave the stream of a hidden tab, and poll: a browser has six connections for all tabs. */
  hide() {
    if (!this.#stream) return;
    this.leave();
    this.#polling.abort();
    this.#polling = new AbortController();
    this.#poll(`/conversations/${this.conversation.id}`, this.#polling);
  }

  /** Poll until the answer has ended, the tab is shown, or the conversation no longer exists. */
  async #poll(path, { signal }) {
    for (;;) {
      await new Promise((resolve) => { setTimeout(resolve, HIDDEN_POLL_MS); });
      if (signal.aborted || !document.hidden) return;
      try {
        const { generation_id } = await get(path, { signal });
        if (generation_id === null) return this.conversation.emit("ended-hidden");
      } catch (error) {
        if ([401, 404].includes(error.status)) return;
      }
    }
  }

  /** Stop the answer. If its generation's id is not known yet, the first event brings it: the answer is stopped then. */
  async stop() {
    const stream = this.#stream;
    if (!stream) return;
    stream.stopRequested = true;
    if (!stream.generationId || stream.stopping) return;
    stream.stopping = true;
    try {
      await post(`/chat/cancel/${stream.generationId}`);
    } catch (error) {
      stream.stopping = false;
      if (error.status === 0) this.conversation.emit("problem", "The answer will be stopped as soon as Fireside can be reached.");
      else if (error.status !== 404) this.conversation.emit("problem", error.message);
    }
  }

  retryStop() {
    if (this.#stream?.stopRequested) this.stop();
  }

  #begin(stream, { message_id: messageId, generation_id: generationId }) {
    const isNew = stream.generationId === null;
    Object.assign(stream, { messageId, generationId });
    this.conversation.emit("begun", { messageId, generationId, isNew });
    this.retryStop();
  }

  #end(stream, answer) {
    if (this.#stream !== stream) return;
    this.leave();
    this.conversation.emit("ended", answer);
  }
}
