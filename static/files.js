// Reading files to attach: an image becomes {name, media_type, data} with base64 data; a text becomes {name, text}.

import { h } from "./dom.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const SMALL_BYTES = 600_000; // a larger image is scaled down, because each later question sends it to the model again
const MAX_SIDE_PIXELS = 1536;
const MAX_BYTES = 8 * 1024 * 1024; // of an image that the server accepts with a message; an imported one may be larger

export const isImage = ({ type }) => type.startsWith("image/") && type !== "image/svg+xml";

/** Read a file that a person attaches. Throws an Error whose message is for the person. */
export async function attachment(file) {
  const name = file.name.replace(/\s+/g, " ");
  try {
    return { name, ...(isImage(file) ? await encode(file) : { text: await textOf(file) }) };
  } catch {
    throw new Error(isImage(file) ? `${name} is not an image that this browser can read.` : `${name} is neither a text file nor an image. Paste its text instead.`);
  }
}

async function textOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const encoding = { 0xfffe: "utf-16le", 0xfeff: "utf-16be" }[(bytes[0] << 8) | bytes[1]] ?? "utf-8";
  let text;
  try {
    text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch (error) {
    text = new TextDecoder("windows-1252").decode(bytes); // as older programs on Windows write
    if (/[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]/.test(text) || text.startsWith("%PDF-")) throw error;
  }
  if (text.includes("\0")) throw new TypeError();
  return text.replace(/\r\n?/g, "\n").replace(/\n$/, "");
}

/** Load an image of a message, unchanged: encoding it again would lose quality. */
export async function loadImage({ id }) {
  const response = await fetch(`/images/${id}`).catch(() => null);
  if (!response?.ok) throw new Error("The question's images could not be loaded. Your text is still here.");
  const image = await response.blob();
  return image.size <= MAX_BYTES ? base64(image) : encode(image);
}

/** Encode an image: unchanged if the server accepts it and it is small, else as a smaller JPEG. */
export async function encode(file) {
  let image = file;
  if (file.size > SMALL_BYTES || !TYPES.includes(file.type)) {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, MAX_SIDE_PIXELS / Math.max(bitmap.width, bitmap.height));
    const canvas = h("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff"; // JPEG would turn transparent pixels black
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    image = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
  }
  return base64(image);
}

async function base64(image) {
  const data = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(image);
  });
  return { media_type: image.type, data };
}
