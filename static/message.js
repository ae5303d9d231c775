// The view of a message: a question as it was typed, or an answer with its reasoning, its state and its figures.

import { documentCard, fileCard, pictures, showDocument, splitContent } from "./attachments.js";
import { copyButton } from "./clipboard.js";
import { arrange, button, h } from "./dom.js";
import { editQuestion, openEditor } from "./editor.js";
import { counted, duration, number, timeNode } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { build, Markdown } from "./markdown.js";
import { canGrow } from "./models.js";
import { openMenu, placeBeside } from "./popups.js";
import { toolCalls, toolResults } from "./tools.js";

const FOLDED_QUESTION = { characters: 1500, lines: 25 };

/** `actions`: `select(id)` another version, `compare(message)` versions, `edit(message, text, attachmentIds)` a question, `save(message, text)` of an edited
 * answer, `retry(message)`, `retryWith(message)` another model, `continueAnswer()`, `showRequest(message)`, `savePrompt(text)`, `branch(message)`, `remove(message)`, `next(message)` the one
 * below, `documents()` of the chat, `model()` the chosen one, `enlarge()` its context. */
export function messageView(message, actions) {
  return message.role === "user" ? new Question(message, actions) : new Answer(message, actions);
}

class Question {
  #actions;
  #versions = h("span", { class: "versions" });

  constructor(message, actions) {
    this.#actions = actions;
    const { typed, files } = splitContent(message.content);
    this.bubble = h("div", { class: "bubble", dir: "auto" },
      toolResults(message), pictures(message.images), typed !== "" && questionText(typed),
      message.documents?.map((one) => documentCard(one)), files.map(fileCard));
    this.editButton = iconButton("edit", "Edit question", () => this.edit());
    this.foot = h("footer", {},
      timeNode(message.created_at),
      copyButton("Copy question", () => message.content),
      this.editButton,
      iconButton("more", "More about this question", (event) => this.#openMenu(event.currentTarget), { "aria-haspopup": "menu" }),
      this.#versions);
    this.node = h("article", { class: "message user", id: `m${message.id}`, tabindex: "-1", "aria-label": "Question" },
      this.bubble, this.foot);
    this.update(message);
  }

  update(message) {
    if (message === this.message) return;
    this.message = message;
    arrange(this.#versions, versionSwitch(message, this.#actions));
  }

  #openMenu(anchor) {
    const next = this.#actions.next(this.message);
    const answers = next?.role === "assistant" ? next.versions?.ids.length ?? 1 : 0;
    const label = answers ? `Delete question and ${answers === 1 ? "answer" : counted(answers, "answer")}` : "Delete question";
    const note = (answers ? this.#actions.next(next) : next) && "What follows stays";
    const { typed } = splitContent(this.message.content);
    const save = { icon: "bookmark", label: "Save as prompt", act: () => this.#actions.savePrompt(typed) };
    openMenu(anchor, [...(typed ? [save] : []), ...messageMenu(this.message, this.#actions, { label, note })]);
  }

  /** Sending the edited question makes a branch: the old question stays as a version. Cancelling focuses `back`. */
  edit(back = this.editButton) {
    const opened = this.node.querySelector(".editor textarea");
    if (opened) return opened.focus();
    editQuestion(this.node, this.message, {
      label: "Edited question", filesLabel: "Files for the question", verb: "Send", note: "The first version is kept.",
      send: (content, attachmentIds) => this.#actions.edit(this.message, content, attachmentIds), closed: (isSent) => isSent || back.focus(),
    });
  }
}

/** What the menus of questions and answers share. */
function messageMenu(message, actions, deletion) {
  return [
    { icon: "branch", label: "Branch to a new chat", act: () => actions.branch(message) },
    message.versions?.ids.length > 1 && { icon: "columns", label: "Compare versions…", act: () => actions.compare(message) },
    { ...deletion, icon: "trash", danger: true, act: () => actions.remove(message) },
  ].filter(Boolean);
}

const FENCED = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*\n((?:.*\n)*?) {0,3}\1[`~]*[ \t]*$/gm;

/** The text as it was typed, but fenced code as code blocks. */
function questionText(content) {
  const parts = [];
  let end = 0;
  for (const match of content.matchAll(FENCED)) {
    parts.push(content.slice(end, match.index).replace(/\n$/, ""), build(["pre", {}, ["code", { "data-language": match[2] }, match[3]]]));
    end = match.index + match[0].length + 1;
  }
  parts.push(content.slice(end));
  const text = h("div", { class: "text" }, parts.filter((part) => part !== ""));
  const { characters, lines } = FOLDED_QUESTION;
  if (content.length < characters && content.split("\n", lines).length < lines) return text;
  text.classList.add("folded");
  const unfold = button("Show all", () => {
    unfold.textContent = text.classList.toggle("folded") ? "Show all" : "Show less";
  }, { class: "unfold" });
  return [text, unfold];
}

class Answer {
  #actions;
  #markdown = new Markdown();
  #results = h("div", {}); // of tools
  #calls = h("div", {});
  #reasoning = new Reasoning();
  #phase = new Phase();
  #sent = h("div", {}); // which pages of the documents were sent
  #note = h("div", { class: "note" });
  #foot = h("footer", {});
  #speed = new Speed();
  #streaming = false; // its text comes from the stream
  #outdated = false; // the text that is shown comes again
  #writing = false; // the model has begun
  #content = null; // the finished text that is shown
  #checked = ""; // what is drawn of the documents
  #last = false;

  constructor(message, actions) {
    this.#actions = actions;
    this.node = h("article", { class: "message assistant", id: `m${message.id}`, tabindex: "-1", "aria-label": "Answer" },
      this.#results, this.#reasoning.node, pictures(message.images), this.#markdown.node, this.#calls, this.#phase.node, this.#speed.node, this.#sent, this.#note, this.#foot);
    this.update(message);
  }

  /** What a screen reader says at the end. */
  get announcement() {
    if (this.message.status !== "complete") return this.#note.querySelector("p")?.textContent ?? "";
    return `Answer finished. ${this.#markdown.node.textContent.slice(0, 2000)}`;
  }

  /** `last`: whether it is the path's last message. Only that one can be continued. */
  update(message, last = false) {
    if (message === this.message && last === this.#last) return;
    this.message = message;
    this.#last = last;
    const generating = message.status === "generating";
    this.node.classList.toggle("generating", generating);
    this.node.setAttribute("aria-busy", String(generating));
    if (generating) {
      const begins = !this.#streaming;
      this.#streaming = true;
      if (begins) this.clear();
    } else if (this.#streaming || message.content !== this.#content) {
      this.#streaming = false;
      this.#content = message.content;
      this.#markdown.show(message.content, message.blocks ?? [["p", {}, message.content]]);
      this.#reasoning.show(message.reasoning ?? "", message.stats?.reasoning_ms);
      this.#phase.hide();
      this.#speed.stop();
    }
    if (generating) {
      this.#checked = "";
      this.#sent.replaceChildren();
    } else {
      this.#drawDocuments(message);
    }
    this.node.classList.toggle("last", last);
    if (!generating && message.tools) {
      this.#results.replaceChildren(...toolResults(message));
      this.#calls.replaceChildren(...toolCalls(message));
    }
    arrange(this.#note, generating ? [] : this.#notes(message, last));
    arrange(this.#foot, generating ? [] : this.#footer(message, last));
  }

  /** Show which pages were sent, and mark the quotations that were looked up. */
  async #drawDocuments(message) {
    const { stats, citations } = message;
    if (!stats?.documents?.length && !citations?.length) return;
    const checked = JSON.stringify([stats, citations, message.content]);
    if (checked === this.#checked) return; // what has the focus in it stays
    const module = await import("./citations.js").catch(() => null); // without it, the answer is shown all the same
    if (message !== this.message || !module) return;
    this.#checked = checked;
    this.#sent.replaceChildren(...module.sentPages(stats?.documents ?? [], this.#openDocument));
    module.markQuotations(this.#markdown.node, message, this.#actions.documents(), this.#openDocument);
  }

  #openDocument = (attachment, options) => {
    const { documents } = this.message.stats ?? {};
    showDocument(attachment, { sent: documents?.find((one) => one.attachment_id === attachment.id)?.sent, ...options });
  };

  /** All of the text follows again. Until it does, the old one stays. */
  clear() {
    if (!this.#streaming) return;
    this.#outdated = true;
    this.#writing = false;
    this.#phase.show({ phase: "waiting" });
    this.#speed.stop();
  }

  /** Show an event of the stream. Late ones change nothing once the finished message is shown. */
  receive(event, data) {
    if (!this.#streaming) return;
    if (event === "reset") this.clear();
    if (event === "progress") {
      this.#writing ||= data.phase === "generating";
      this.#phase.show(data);
    }
    if (event === "reasoning" || event === "delta") {
      if (this.#outdated) {
        this.#outdated = false;
        this.#markdown.clear();
        this.#reasoning.show("");
      }
      this.#phase.hide();
      if (this.#writing) this.#speed.count(data.delta); // else it is the first part of an answer that is continued
    }
    if (event === "reasoning") this.#reasoning.append(data.delta);
    if (event === "delta") {
      this.#reasoning.end();
      this.#markdown.append(data.delta);
    }
  }

  #notes(message, last) {
    const { status, error, stats } = message;
    const text = {
      error: error?.message ?? "The answer failed.",
      canceled: "Stopped.",
      interrupted: "Fireside was stopped while this answer was written. The text so far was saved.",
    }[status] ?? (stats?.finish_reason === "length" && "The token limit was reached.");
    if (!text) return [];
    const resume = last && message.content && button([icon("continue"), "Continue"], () => this.#actions.continueAnswer());
    const retry = canTryAgain(message, last) && button([icon("retry"), "Try again"], () => this.#actions.retry(message));
    const failed = status === "error";
    const enlarge = last && error?.code === "CONTEXT_OVERFLOW" && canGrow(this.#actions.model())
      && button("Load with a larger context…", () => this.#actions.enlarge());
    return [h("div", { class: failed ? "failed" : "halted" },
      failed && icon("alert"),
      h("p", {}, text, failed && HELP[error?.code] && h("small", {}, HELP[error.code])),
      h("span", { class: "row" }, enlarge, resume, retry))];
  }

  #footer(message, last) {
    return [
      message.content && copyButton("Copy answer", () => message.content, { "data-action": "copy" }),
      !canTryAgain(message, last) && iconButton("retry", "Another answer", () => this.#actions.retry(message)),
      iconButton("more", "More about this answer", (event) => this.#openMenu(event.currentTarget), { "aria-haspopup": "menu" }),
      ...versionSwitch(message, this.#actions),
      ...figuresButton(message),
      message.edited && h("span", { class: "edited" }, "edited"),
    ].filter(Boolean);
  }

  #openMenu(anchor) {
    const { message } = this;
    const note = message.versions?.ids.length > 1 ? "Another version is shown instead" : this.#actions.next(message) && "What follows stays";
    openMenu(anchor, [
      { icon: "swap", label: "Retry with another model…", act: () => this.#actions.retryWith(message) },
      { icon: "edit", label: "Edit answer", act: () => this.#edit() },
      { icon: "file", label: "What was sent…", act: () => this.#actions.showRequest(message) },
      ...messageMenu(message, this.#actions, { label: "Delete answer", note }),
    ]);
  }

  /** What is saved becomes another version. */
  #edit() {
    const { content } = this.message;
    const area = h("textarea", { "aria-label": "Edited answer", rows: "3" }, content);
    const note = this.#actions.next(this.message) ? "Saved as another version. What follows stays with this one." : "Saved as another version.";
    const isUnchanged = () => area.value.trim() === content.trim();
    openEditor(this.node, area, {
      verb: "Save", below: [h("small", {}, note)],
      act: () => isUnchanged() || (area.value.trim() && this.#actions.save(this.message, area.value)),
      closed: (isSent) => (isSent && !isUnchanged()) || this.#foot.querySelector("[aria-haspopup]")?.focus(),
    });
    area.setSelectionRange(0, 0);
    area.scrollTop = 0;
  }
}

/** Whether "Try again" is offered below an answer, instead of "Another answer". */
function canTryAgain({ status }, last) {
  return last && status !== "complete";
}

const HELP = {
  PROVIDER_UNREACHABLE: "In LM Studio: Developer, then Start server.",
  MODEL_NOT_LOADED: "Load it in the list of models, or let LM Studio load models when they are used.",
};

/** A button with the model's name, and the figures that it opens. */
function figuresButton(message) {
  const shown = figures(message);
  if (!shown.length && !message.model) return [];
  const list = h("ul", { class: "figures menu", popover: "auto" }, shown.map(([text, title]) => h("li", {}, text, title && h("small", {}, title))));
  const opener = h("button", { type: "button", class: "quiet model", title: shown.map(([text]) => text).join(" · ") }, message.model || "Figures");
  opener.popoverTargetElement = list;
  list.addEventListener("toggle", ({ newState }) => newState === "open" && placeBeside(list, opener));
  return [opener, list];
}

/** The figures of an answer, each with its explanation. */
function figures({ model, status, content, stats, token_usage: usage }) {
  const shown = [];
  if (stats?.requested_model && stats.requested_model !== model) shown.push([model, `Requested: ${stats.requested_model}`]);
  if (stats?.omitted_messages) shown.push([`${counted(stats.omitted_messages, "older message")} not sent`, "The context was full"]);
  if (stats?.omitted_images) {
    shown.push([`${counted(stats.omitted_images, "older image")} not sent`, "Only the newest images are sent: at most 32 images, and at most 32 MiB in all"]);
  }
  for (const { name, unit, pages, sent } of stats?.documents ?? []) {
    shown.push([name, sent === `1-${pages}` || (sent === "1" && pages === 1) ? "All of it was sent" : `Sent: ${unit}s ${sent} of ${number(pages)}`]);
  }
  if (usage) shown.push([counted(usage.completion_tokens, "token"), `${counted(usage.prompt_tokens, "token")} read`]);
  if (!usage && content && stats?.total_ms && status !== "complete") {
    const tokens = content.length / CHARACTERS_PER_TOKEN;
    const seconds = (stats.total_ms - (stats.ttft_ms ?? 0)) / 1000;
    shown.push([`about ${counted(Math.ceil(tokens), "token")}`, "Estimated: the answer was stopped before its tokens were counted"]);
    if (seconds >= 1) shown.push([`about ${number(tokens / seconds)} tok/s`]);
  }
  if (stats?.tokens_per_second) shown.push([`${number(stats.tokens_per_second, 1)} tok/s`, "Speed of writing"]);
  if (stats?.ttft_ms != null) {
    const first = stats.ttft_ms < 100 ? duration(stats.ttft_ms) : `${number(stats.ttft_ms / 1000, 2)} s`;
    shown.push([`${first} to first token`, stats.total_ms ? `${duration(stats.total_ms)} in all` : ""]);
  } else if (stats?.total_ms) {
    shown.push([`${duration(stats.total_ms)} in all`]);
  }
  return shown;
}

function versionSwitch(message, actions) {
  const { ids, index } = message.versions ?? { ids: [], index: 0 };
  if (ids.length < 2) return [];
  const step = (name, label, to) =>
    iconButton(name, label, () => actions.select(ids[to]), { disabled: !(to in ids), title: to in ids ? `${label}: ${versionName(message, to)}` : label });
  return [h("span", { class: "switch", role: "group", "aria-label": "Versions" },
    step("left", "Previous version", index - 1),
    button(`${index + 1}/${ids.length}`, (event) => openVersionMenu(event.currentTarget, message, actions), {
      class: "quiet", "aria-haspopup": "menu", "aria-label": `Version ${index + 1} of ${ids.length}`, title: "All versions",
    }),
    step("right", "Next version", index + 1))];
}

function openVersionMenu(anchor, message, actions) {
  const { ids, index } = message.versions;
  openMenu(anchor, [
    ...ids.map((id, at) => ({ label: versionName(message, at), checked: at === index, act: () => at === index || actions.select(id) })),
    { icon: "columns", label: "Compare versions…", act: () => actions.compare(message) },
  ]);
}

/** "2 · llama-3.2, edited" */
export function versionName({ role, versions: { models, edited } }, at) {
  const details = [role === "assistant" && (models?.[at] || "Unknown model"), edited?.[at] && "edited"].filter(Boolean);
  return [at + 1, details.join(", ")].filter(Boolean).join(" · ");
}

/** The reasoning of a model, folded, as plain text, with the time that it took. */
class Reasoning {
  #summary = h("span", {});
  #text = document.createTextNode("");
  #started = 0;
  #ended = false;

  constructor() {
    this.node = h("details", { class: "reasoning", hidden: true },
      h("summary", {}, icon("thought"), this.#summary, icon("down")),
      h("div", { class: "thoughts", dir: "auto" }, this.#text));
  }

  show(text, took = null) {
    this.#text.data = text;
    this.#started = 0;
    this.node.hidden = !text;
    this.#end(took);
  }

  append(delta) {
    if (!this.#started) {
      this.#started = performance.now();
      this.#ended = false;
      this.node.hidden = false;
      this.node.classList.add("thinking");
      this.#summary.textContent = "Thinking";
    }
    this.#text.appendData(delta);
  }

  end() {
    if (this.#started && !this.#ended) this.#end(performance.now() - this.#started);
  }

  #end(took) {
    this.#ended = true;
    this.node.classList.remove("thinking");
    this.#summary.textContent = took == null ? "Thoughts" : `Thought for ${took < 100 ? "a moment" : duration(took)}`;
  }
}

const SPEED_WINDOW_MS = 5000;
const CHARACTERS_PER_TOKEN = 4;

/** How long an answer has been written, and how fast. The tokens are counted at the end; until then they are estimated. */
class Speed {
  #began = 0; // 0: not writing
  #counts = []; // {at, characters}, of the last seconds
  #timer = 0;
  node = h("div", { class: "speed faint", hidden: true, "aria-hidden": "true" });

  count(delta) {
    const now = performance.now();
    this.#counts.push({ at: now, characters: delta.length });
    if (this.#began) return;
    this.#began = now;
    this.#timer = setInterval(() => this.#draw(), 1000);
  }

  stop() {
    clearInterval(this.#timer);
    this.#began = 0;
    this.#counts = [];
    this.node.hidden = true;
  }

  #draw() {
    if (!this.node.isConnected) return;
    const now = performance.now();
    this.#counts = this.#counts.filter(({ at }) => now - at < SPEED_WINDOW_MS);
    const characters = this.#counts.reduce((sum, count) => sum + count.characters, 0);
    const seconds = Math.min(SPEED_WINDOW_MS, now - this.#began) / 1000;
    const speed = Math.round(characters / CHARACTERS_PER_TOKEN / seconds);
    this.node.textContent = `${duration(Math.max(1000, now - this.#began))}${speed ? ` · about ${number(speed)} tok/s` : ""}`;
    this.node.hidden = false;
  }
}

/** What happens before the first token, with a progress bar. */
class Phase {
  #label = h("span", {});
  #bar = h("progress", { "aria-label": "Progress" });
  node = h("div", { class: "phase", hidden: true }, this.#label, this.#bar);

  show({ phase, place, done, total }) {
    this.node.hidden = phase === "generating";
    const share = total ? done / total : null;
    this.#label.textContent = {
      queued: `Waiting in the queue${place ? `, place ${place}` : ""}`,
      loading: "Loading the model",
      prompt: share === null ? "Reading the chat" : `Reading the chat, ${number(share * 100)} %`,
    }[phase] ?? "Waiting for the model";
    if (share === null) this.#bar.removeAttribute("value");
    else this.#bar.value = share;
  }

  hide() {
    this.node.hidden = true;
  }
}
