// How much of the model's context the next question needs, as the server estimates it. It draws nothing.

import { get, Latest, session } from "./api.js";
import { Emitter, on } from "./events.js";
import { modelFields } from "./models.js";

let rates = null; // tokens of a character, an image and a message, as GET /context returns them

/** Count the characters of a text as the rates tell them apart. */
export function charactersOf(text) {
  const others = text.replace(/[\0-\u024f]+/g, "");
  return { latin: text.length - others.length, other: [...others].length };
}

/** Estimate the tokens of so many characters; null while the rates are unknown. */
export const tokensOf = ({ latin, other }) => (rates ? latin * rates.latin + other * rates.other : null);

export const tokensOfImages = (count) => (rates ? count * rates.image : null);

/** Its event `changed` follows each new forecast. */
export class Context extends Emitter {
  #conversation;
  #forecast = null;
  #requested = ""; // the path of the newest request, and what its response depends on
  #reads = new Latest();
  #question = { text: "", images: 0, documents: 0 };

  constructor(conversation) {
    super();
    this.#conversation = conversation;
    conversation.on("opened", () => {
      this.#forecast = null;
      this.#question = { text: "", images: 0, documents: 0 };
      this.#reads.discard();
      this.#requested = "";
    });
    conversation.on("changed", () => this.#refresh());
    on("models", () => this.#refresh());
  }

  /** What is being written: its text, the number of its images, and the tokens of its documents. */
  set question(question) {
    this.#question = question;
    this.#refresh();
  }

  /**
   * Tokens, or null while they are unknown: `size` of the context; `answer`, which are kept free for the answer; `chat` that are sent
   * in any case; `question` without its documents; `documents` that are sent with it; `isPart`: whether those are a part of its documents.
   * `fits`: whether all of it does; `alone`: whether the question would without the chat. `omitted` messages were left out before;
   * `leftOut` would be left out with the question, undefined while that is unknown.
   */
  get usage() {
    const forecast = this.#forecast;
    if (!forecast?.context_length) return null;
    const { context_length: size, answer_tokens: answer, system_tokens: system, used_tokens: chat, omitted_messages: omitted } = forecast;
    const question = this.#questionTokens;
    const room = size - answer;
    const whole = this.#question.documents;
    const isPart = chat + question + whole > room && whole > forecast.document_tokens;
    const documents = isPart ? forecast.document_tokens : whole;
    return {
      size, answer, system, chat, question, documents, isPart, omitted, leftOut: forecast.asked ? forecast.omitted_with_question : undefined,
      fits: chat + question + documents <= room, alone: system + question + documents <= room,
    };
  }

  get #questionTokens() {
    const { text, images } = this.#question;
    return text || images || this.#question.documents ? Math.round(tokensOf(charactersOf(text)) + images * rates.image + rates.message) : 0;
  }

  async #refresh() {
    const { id, details, path } = this.#conversation;
    if (!session.user || (id !== null && !details)) return;
    const { choice } = this.#conversation;
    const last = path.at(-1);
    const { usage } = this;
    const asked = usage?.fits === false ? usage.question + usage.documents : 0;
    const query = new URLSearchParams({ ...modelFields(choice), question_tokens: asked });
    const address = `${id === null ? "" : `/conversations/${id}`}/context?${query}`;
    const requested = JSON.stringify(
      [address, last?.id, last?.status, details?.system_prompt, details?.settings?.max_tokens, choice?.model?.context_length]);
    if (requested === this.#requested) return;
    this.#requested = requested;
    const read = this.#reads.begin();
    try {
      const forecast = await get(address);
      if (!read.accept()) return;
      this.#forecast = { ...forecast, asked };
    } catch {
      if (read.isNewest()) this.#requested = ""; // the next change tries again
      return;
    }
    rates = this.#forecast.rates;
    this.emit("changed");
    this.#refresh(); // what is left out is asked for once it is known that not all fits
  }
}
