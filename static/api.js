// Requests to the server, and whether it can be reached.

import { emit } from "./events.js";

/** A refused request. Without a connection, `status` is 0. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The signed-in user, and the CSRF token that every write carries. */
export const session = { user: null, csrf: "" };

export function signIn({ user, csrf_token }) {
  session.user = user;
  session.csrf = csrf_token;
}

/** Send a request. Resolves to the parsed JSON. `body` is sent as JSON; a Blob is sent as it is. */
export async function api(method, path, body, { signal } = {}) {
  const response = await request(method, path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw connectionError(error, signal);
  }
}

export const get = (path, options) => api("GET", path, undefined, options);
export const post = (path, body = {}, options) => api("POST", path, body, options);
export const patch = (path, body) => api("PATCH", path, body);
export const remove = (path) => api("DELETE", path);

/** Orders overlapping reads of the same thing, whose results may arrive in another order. The latest read wins. */
export class Latest {
  #begun = 0;
  #accepted = 0;

  /** Begin a read. `accept()` is false once the result of a later read was accepted; `isNewest()` once a later read has begun. */
  begin() {
    const turn = ++this.#begun;
    return {
      isNewest: () => turn === this.#begun,
      accept: () => {
        if (turn < this.#accepted) return false;
        this.#accepted = turn;
        return true;
      },
    };
  }

  /** Accept no result of a read that has begun. */
  discard() {
    this.#accepted = ++this.#begun;
  }
}

/** The server-sent events of a response, as {event, id, data}. Lines end in LF, CR or CRLF only, not at U+2028. */
export async function* serverSentEvents(method, path, body, signal) {
  const response = await request(method, path, body, signal);
  if (response.status === 204) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = emptyEvent();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (event.data !== "") yield { ...event, data: JSON.parse(event.data) };
          event = emptyEvent();
        } else {
          readField(event, line);
        }
      }
    }
  } catch (error) {
    throw connectionError(error, signal);
  } finally {
    reader.cancel().catch(() => {}); // rejects if the stream has failed
  }
}

/** The values of a response with JSON Lines. */
export async function* jsonLines(method, path, body) {
  const response = await request(method, path, body);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      yield* lines.map((line) => JSON.parse(line));
    }
  } catch (error) {
    throw connectionError(error);
  } finally {
    reader.cancel().catch(() => {}); // rejects if the stream has failed
  }
}

const emptyEvent = () => ({ event: "message", id: null, data: "" });

function readField(event, line) {
  const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
  if (name === "event") event.event = value;
  else if (name === "id") event.id = Number(value);
  else if (name === "data") event.data += value;
}

async function request(method, path, body, signal, canRetry = true) {
  const headers = {};
  const isBlob = body instanceof Blob;
  if (method !== "GET") headers["X-CSRF-Token"] = session.csrf;
  if (body !== undefined) headers["Content-Type"] = (isBlob && body.type) || "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: isBlob ? body : JSON.stringify(body) });
  } catch (error) {
    throw connectionError(error, signal);
  }
  setOnline();
  if (response.ok) return response;

  const problem = await response.json().catch(() => ({}));
  if (problem.code === "CSRF_INVALID" && canRetry && path !== "/auth/me") {
    signIn(await get("/auth/me")); // another tab has started a new session
    return request(method, path, body, signal, false);
  }
  if (problem.code === "AUTH_REQUIRED") emit("signed-out");
  throw new ApiError(response.status, problem.code ?? "", fieldInWords(problem.message ?? `The server responded with status ${response.status}.`));
}

/** "new_password must be ..." becomes "New password must be ...", and "message.content is ..." becomes "Content is ...". */
function fieldInWords(message) {
  return message.replace(/^(?:[a-z_]+(?:\[\d+\])?\.)*([a-z])([a-z_]*)(?= (?:is|must) )/, (_, first, rest) => first.toUpperCase() + rest.replaceAll("_", " "));
}

/** The error to throw for a failed fetch or read. Unless it was aborted, the server cannot be reached. */
function connectionError(error, signal) {
  if (signal?.aborted || error instanceof ApiError) return error;
  setOffline();
  return new ApiError(0, "OFFLINE", "Fireside cannot be reached.");
}

// Each request shows whether the server can be reached. While it cannot, the page probes.

const MAX_PROBE_MS = 5000;
let online = true;
let probe = 0;

export const isOnline = () => online;

function setOnline() {
  if (online) return;
  online = true;
  clearTimeout(probe);
  emit("online");
}

function setOffline(wait = 500) {
  if (online) {
    online = false;
    emit("offline");
  }
  clearTimeout(probe);
  probe = setTimeout(async () => {
    try {
      const response = await fetch("/health");
      if (response.ok) setOnline();
      else setOffline(MAX_PROBE_MS);
    } catch {
      setOffline(Math.min(wait * 2, MAX_PROBE_MS));
    }
  }, wait);
}

window.addEventListener("online", () => online || setOffline(0));
document.addEventListener("visibilitychange", () => online || document.hidden || setOffline(0));
