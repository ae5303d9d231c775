// The server, as the page sees it: requests, streams, whether it can be reached, and what changed.

/** A refused request. `status` is 0 and `code` OFFLINE when the server could not be reached at all. */
export class ApiError extends Error {
  constructor(status, code, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** Who is signed in. `csrf` goes with every write; it lives in memory only. */
export const session = { user: null, csrf: "" };

export function signIn({ user, csrf_token }) {
  session.user = user;
  session.csrf = csrf_token;
}

/**
 * Dispatches "list" (a conversation appeared, went or was renamed: {id}), "conversation" (its messages changed: {id}),
 * "bin" (a conversation is not in it any more: {id}), "session" (somebody signed in or out), and in this tab alone "models", "listed"
 * (the open conversation, as the list has it), "offline", "online" and "signed-out".
 */
const changes = new EventTarget();
const tabs = new BroadcastChannel("fireside");

tabs.onmessage = ({ data }) => tell(data.kind, { ...data.detail, elsewhere: true });

/** Tells this tab alone. */
export function tell(kind, detail = {}) {
  changes.dispatchEvent(new CustomEvent(kind, { detail }));
}

/** Tells this tab and the browser's other tabs. */
export function changed(kind, detail = {}) {
  tell(kind, detail);
  tabs.postMessage({ kind, detail });
}

/** Returns what ends the listening. */
export function onChange(kind, listener) {
  const heard = (event) => listener(event.detail);
  changes.addEventListener(kind, heard);
  return () => changes.removeEventListener(kind, heard);
}

/** One request; resolves to the parsed JSON. `body` is sent as JSON, unless it is a File, which goes as it is. */
export async function api(method, path, body, { signal } = {}) {
  const response = await send(method, path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw lost(error, signal);
  }
}

export const get = (path, options) => api("GET", path, undefined, options);
export const post = (path, body = {}, options) => api("POST", path, body, options);
export const patch = (path, body) => api("PATCH", path, body);
export const remove = (path) => api("DELETE", path);

/**
 * The events of a stream, as {event, id, data}. Ends when the server closes it, also before its `done`: then the caller
 * comes back for the rest. Lines end in LF, CR or CRLF only; U+2028 is an ordinary character of the text.
 */
export async function* events(method, path, body, signal) {
  const response = await send(method, path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = fresh();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (event.data !== "") yield { ...event, data: JSON.parse(event.data) };
          event = fresh();
        } else {
          readField(event, line);
        }
      }
    }
  } catch (error) {
    throw lost(error, signal);
  } finally {
    reader.cancel().catch(() => {}); // of a stream that has already failed: the failure has been told
  }
}

const SILENCE = 40_000; // ms; a live stream says something every 15 s

/**
 * The events of one answer, each exactly once, until its `done`. `source` is {path, body}, which starts or attaches, or
 * {generationId, after}, to follow what came after the event of that id. A connection that is lost or falls silent is
 * taken up where it broke; only one that is lost before it has told its generation's id is an error, for to ask again
 * might start another answer. Without a `done` it ends when that had come before `after`.
 */
export async function* answerEvents(source, signal) {
  let { generationId = null, after = -1 } = source;
  for (let wait = 250; ; wait = Math.min(wait * 2, 5000)) {
    const connection = new AbortController();
    const either = AbortSignal.any([signal, connection.signal]);
    const stream = generationId
      ? events("GET", `/generations/${generationId}/stream${after < 0 ? "" : `?after=${after}`}`, undefined, either)
      : events("POST", source.path, source.body, either);
    let silence = setTimeout(() => connection.abort(), SILENCE);
    let silent = true;
    try {
      for await (const event of stream) {
        silent = false;
        clearTimeout(silence);
        silence = setTimeout(() => connection.abort(), SILENCE);
        wait = 250;
        generationId = event.data.generation_id ?? generationId;
        if (event.event === "reset") after = -1;
        else if (event.id !== null && event.id <= after) continue;
        after = event.id ?? after;
        yield event;
        if (event.event === "done") return;
      }
      if (silent && after >= 0) return; // a server that goes away says so first
    } catch (error) {
      if (signal.aborted || !generationId || (error.status ?? 0) !== 0) throw error;
    } finally {
      clearTimeout(silence);
    }
    await backOnline(wait, signal);
  }
}

/** After `wait` ms, or as soon as the server is known to be back. */
function backOnline(wait, signal) {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      stop();
      signal.removeEventListener("abort", end);
      signal.aborted ? reject(signal.reason) : resolve();
    };
    const timer = setTimeout(end, wait);
    const stop = onChange("online", end);
    signal.addEventListener("abort", end);
  });
}

const fresh = () => ({ event: "message", id: null, data: "" });

function readField(event, line) {
  const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
  if (name === "event") event.event = value;
  else if (name === "id") event.id = Number(value);
  else if (name === "data") event.data += value;
}

async function send(method, path, body, signal, again = true) {
  const headers = {};
  if (method !== "GET") headers["X-CSRF-Token"] = session.csrf;
  if (body instanceof Blob) headers["Content-Type"] = body.type || "application/json";
  else if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers, signal, body: body === undefined || body instanceof Blob ? body : JSON.stringify(body),
    });
  } catch (error) {
    throw lost(error, signal);
  }
  reachable();
  if (response.ok) return response;

  const problem = await response.json().catch(() => ({}));
  if (problem.code === "CSRF_INVALID" && again && path !== "/auth/me") {
    signIn(await get("/auth/me")); // another tab has signed in anew
    return send(method, path, body, signal, false);
  }
  if (problem.code === "AUTH_REQUIRED") tell("signed-out");
  throw new ApiError(
    response.status, problem.code ?? "", readable(problem.message ?? `The server answered ${response.status}.`),
    Number(response.headers.get("Retry-After")) || null,
  );
}

/** Names the field of a validation error in words: "new_password must ..." becomes "New password must ...". */
function readable(message) {
  return message.replace(/^([a-z])([a-z_]*)(?= (is|must) )/, (_, first, rest) => first.toUpperCase() + rest.replaceAll("_", " "));
}

function lost(error, signal) {
  if (signal?.aborted || error instanceof ApiError) return error;
  unreachable();
  return new ApiError(0, "OFFLINE", "Fireside cannot be reached.");
}

// Whether the server can be reached is learnt from what the page asks anyway; only while it cannot is it asked on purpose.

let online = true;
let probe = 0;

function reachable() {
  if (online) return;
  online = true;
  clearTimeout(probe);
  tell("online");
}

function unreachable(wait = 500) {
  if (online) {
    online = false;
    tell("offline");
  }
  clearTimeout(probe);
  probe = setTimeout(async () => {
    try {
      const response = await fetch("/health");
      if (response.ok) reachable();
      else unreachable(5000);
    } catch {
      unreachable(Math.min(wait * 2, 5000));
    }
  }, wait);
}

window.addEventListener("online", () => online || unreachable(0));
document.addEventListener("visibilitychange", () => online || document.hidden || unreachable(0));
