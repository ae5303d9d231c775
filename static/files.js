// Uploading a file that a person attaches. An image is made smaller first.

import { ApiError, get, session, signIn } from "./api.js";
import { h } from "./dom.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const SMALL_BYTES = 600_000; // a larger image is scaled down, because each later question sends it to the model again
const MAX_SIDE_PIXELS = 1536;
const MAX_BYTES = 50 * 1000 * 1000;

const isImage = ({ type }) => type.startsWith("image/") && type !== "image/svg+xml";

/** A problem of the file itself. Another try does not help. */
function unreadable(message) {
  return Object.assign(new Error(message), { isUnreadable: true });
}

/** Upload a File. Resolves to the attachment; rejects with an ApiError or an Error whose message is for the person. `progress(share)`. */
export async function upload(file, name, signal, progress) {
  if (file.size > MAX_BYTES) throw unreadable("It is too large: a file can have at most 50 MB.");
  let content = file;
  if (isImage(file)) {
    content = await encode(file).catch(() => { throw unreadable("This browser cannot read this image."); });
  } else {
    // A folder that was dropped, and a file that has changed since, cannot be read.
    await file.slice(0, 1).arrayBuffer().catch(() => { throw unreadable("It cannot be read. Is it a folder?"); });
  }
  const path = `/attachments?name=${encodeURIComponent(name)}`;
  try {
    return await send(path, content, signal, progress);
  } catch (error) {
    if (signal.aborted || ![0, 401, 403].includes(error.status)) throw error;
    signIn(await get("/auth/me")); // shows whether the server can be reached; another tab may have started a new session
    if (error.code !== "CSRF_INVALID") throw error;
    return send(path, content, signal, progress);
  }
}

/** `fetch` does not tell how much of a request was sent. */
function send(path, content, signal, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("X-CSRF-Token", session.csrf);
    request.setRequestHeader("Content-Type", content.type || "application/octet-stream");
    request.responseType = "json";
    request.upload.onprogress = ({ loaded, total }) => progress(total ? loaded / total : 0);
    request.onload = () => {
      const { status, response } = request;
      if (status === 200 && response) resolve(response);
      else reject(new ApiError(status, response?.code ?? "", response?.message ?? `The server responded with status ${status}.`));
    };
    request.onerror = () => reject(new ApiError(0, "OFFLINE", "Fireside cannot be reached."));
    request.onabort = request.onerror;
    signal.addEventListener("abort", () => request.abort());
    request.send(content);
  });
}

/** Encode an image as a Blob: unchanged if the server accepts it and it is small, else as a smaller JPEG. */
export async function encode(file) {
  if (file.size <= SMALL_BYTES && TYPES.includes(file.type)) {
    (await createImageBitmap(file)).close(); // rejects if it is damaged
    return file;
  }
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MAX_SIDE_PIXELS / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG would turn transparent pixels black
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
}
