// Files as a message takes them: an image is {name, media_type, data}, base64; a text is {name, block}, a part of what is written.

import { h } from "./dom.js";
import { block } from "./message.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const BYTES = 600_000; // a larger one is scaled down: it is kept, and sent to the model anew with every question below it
const PIXELS = 1536; // of the longer side
const TAKEN = 8 * 1024 * 1024; // bytes of an image that the server takes with a message; an imported one may have more

export const isImage = ({ type }) => type.startsWith("image/") && type !== "image/svg+xml";

/** A file that somebody attaches. Throws what to tell them. */
export async function attachment(file) {
  const name = file.name.replace(/\s+/g, " ");
  try {
    return { name, ...(isImage(file) ? await encode(file) : { block: block(name, await textOf(file)) }) };
  } catch {
    throw new Error(isImage(file) ? `${name} is not an image that this browser can read.` : `${name} is neither a text nor an image.`);
  }
}

async function textOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const encoding = { 0xfffe: "utf-16le", 0xfeff: "utf-16be" }[(bytes[0] << 8) | bytes[1]] ?? "utf-8";
  const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
  if (text.includes("\0")) throw new TypeError();
  return text.replace(/\r\n?/g, "\n").replace(/\n$/, "");
}

/** One that a message has already, as it is: each time that it were made anew it would lose something. */
export async function fetched({ id }) {
  const response = await fetch(`/images/${id}`).catch(() => null);
  if (!response?.ok) throw new Error("The question's images cannot be read just now. Your text is still here.");
  const picture = await response.blob();
  return picture.size <= TAKEN ? base64(picture) : encode(picture);
}

/** An image as it is, or a smaller picture of it. */
export async function encode(file) {
  let picture = file;
  if (file.size > BYTES || !TYPES.includes(file.type)) {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, PIXELS / Math.max(bitmap.width, bitmap.height));
    const canvas = h("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff"; // JPEG would make black of what is transparent
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    picture = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
  }
  return base64(picture);
}

async function base64(picture) {
  const data = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(picture);
  });
  return { media_type: picture.type, data };
}
