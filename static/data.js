// Settings: export and import.

import { get, jsonLines } from "./api.js";
import { button, download, h } from "./dom.js";
import { broadcast } from "./events.js";
import { counted, fileSize, number } from "./format.js";
import { icon } from "./icons.js";
import { toast } from "./popups.js";

const MAX_REASONS = 200;
const ADDED = ["conversations", "messages", "prompts", "presets"];
const TYPES = { zip: "zip", jsonl: "x-ndjson", ndjson: "x-ndjson", db: "vnd.sqlite3", sqlite: "vnd.sqlite3", sqlite3: "vnd.sqlite3" }; // others are JSON

export function show(place) {
  const result = h("div", { class: "stack", role: "status" });
  let preview = false;
  const run = async (files) => {
    for (const opener of openers) opener.disabled = true;
    const sum = await importFiles(files, result, preview);
    for (const opener of openers) opener.disabled = false;
    input.value = "";
    if (!preview || !ADDED.some((count) => sum[count])) return;
    preview = false;
    const confirm = button("Import these files", () => run(files));
    result.append(confirm);
    confirm.focus();
  };
  const input = h("input", {
    type: "file", accept: ".json,.jsonl,.ndjson,.zip,.db,.sqlite,.sqlite3,application/json,application/zip", multiple: true, hidden: true,
    "aria-label": "Files to import", onchange: () => run([...input.files]),
  });
  const choose = (isPreview) => {
    preview = isPreview;
    input.click();
  };
  const openers = [button([icon("upload"), "Import files"], () => choose(false)), button("Preview an import", () => choose(true))];
  const storage = h("div", { class: "stack" });
  get("/storage").then((sizes) => storage.append(...storageRows(sizes)), (error) => storage.append(h("p", { class: "error" }, error.message)));
  place.append(
    h("h3", {}, "Storage"), storage,
    h("h3", {}, "Export"),
    h("p", { class: "faint" }, "All your chats in one zip file, as JSON and as Markdown, with your prompts and presets."),
    button([icon("download"), "Export everything"], () => download("/export")),
    h("h3", {}, "Import"),
    h("p", { class: "faint" }, "Exports of ChatGPT, Claude, Gemini, LibreChat, Open WebUI, LM Studio, Jan, SillyTavern, Ollama, llm, llama.cpp's web UI or Fireside, OpenAI messages, and Open WebUI's prompts. Existing chats, prompts and presets do not change."),
    h("div", { class: "row" }, ...openers), input, result);
}

function storageRows({ used_bytes: used, image_bytes: images, document_bytes: documents, limit_bytes: limit, server }) {
  const own = `${fileSize(used)}${limit ? ` of ${fileSize(limit)}` : ""}`;
  const rows = [["Your data", own, `Images: ${fileSize(images)}, documents: ${fileSize(documents)}`]];
  if (server) {
    rows.push(
      ["Database, of all users", fileSize(server.database_bytes), `Images: ${fileSize(server.image_bytes)}, documents: ${fileSize(server.document_bytes)}`],
      ["Backups", fileSize(server.backup_bytes), counted(server.backups, "file")],
      ["Free on the disk", fileSize(server.free_bytes)]);
  }
  return [
    limit && h("meter", { min: 0, max: limit, value: used, high: limit * 0.9, optimum: 0, "aria-label": "Share of your storage that is used" }),
    h("dl", { class: "sizes" }, rows.map(([name, size, part]) => [h("dt", {}, name), h("dd", {}, size, part && h("small", {}, part))]).flat()),
  ].filter(Boolean);
}

/** Import files one after the other, or only preview that, and show one result for all. Resolves to the sum of the reports. */
async function importFiles(files, result, preview) {
  const sum = { conversations: 0, messages: 0, prompts: 0, presets: 0, unchanged: 0, skipped: [], losses: [], folders: [] };
  for (const [index, file] of files.entries()) {
    const position = files.length > 1 ? ` (${index + 1} of ${files.length})` : "";
    const progress = h("progress", { "aria-label": "Importing" });
    result.replaceChildren(h("p", { class: "faint" }, `${preview ? "Reading" : "Importing"} ${file.name}${position}`), progress);
    try {
      add(sum, await importFile(file, preview, progress));
    } catch (error) {
      sum.skipped.push({ file: file.name, reason: error.message });
    }
  }
  if (!preview && (sum.messages || sum.conversations)) broadcast("list");
  if (!preview && (sum.prompts || sum.presets)) broadcast("library");
  result.replaceChildren(...summary(sum, preview));
  if (!result.isConnected) toast(result.firstChild.textContent); // another section is shown
  return sum;
}

function add(sum, report) {
  for (const count of [...ADDED, "unchanged"]) sum[count] += report[count];
  sum.skipped.push(...report.skipped);
  sum.folders = [...new Set([...sum.folders, ...report.folders])];
  for (const loss of report.losses) {
    const known = sum.losses.find((one) => one.kind === loss.kind);
    if (!known) {
      sum.losses.push(loss);
      continue;
    }
    known.count += loss.count;
    known.conversations.push(...loss.conversations);
  }
}

async function importFile(file, preview, progress) {
  const suffix = /[^.]*$/.exec(file.name)[0].toLowerCase(); // browsers report several types for zip files
  const upload = new Blob([file], { type: `application/${TYPES[suffix] ?? "json"}` });
  let report;
  for await (const step of jsonLines("POST", `/import?progress=true&dry_run=${preview}`, upload)) {
    if (step.error) throw new Error(step.error);
    progress.value = step.done;
    ({ report } = step);
  }
  const original = (name) => name.replace(/^upload\.[a-z]+\b/, () => file.name); // the request has no file name
  return { ...report, skipped: report.skipped.map((one) => ({ ...one, file: original(one.file) })) };
}

function summary({ conversations, messages, prompts, presets, unchanged, skipped, losses, folders }, preview) {
  const saved = [prompts && counted(prompts, "prompt"), presets && counted(presets, "preset")].filter(Boolean);
  const chats = conversations || messages || !saved.length ? [counted(conversations, "chat"), counted(messages, "message")] : [];
  const some = conversations || messages || unchanged || saved.length;
  const added = new Intl.ListFormat("en").format([...chats, ...saved]);
  const were = preview ? "would be" : conversations + messages + prompts + presets === 1 && !chats.length ? "was" : "were";
  const existing = unchanged ? `; ${number(unchanged)} already ${preview ? "exist" : "existed"}` : "";
  const titles = (loss) => loss.conversations.map(({ title, count }) => h("li", {}, `${title}: ${number(count)}`));
  return [
    some
      ? h("p", {}, `${added} ${were} added${existing}.`)
      : h("p", { class: "error" }, skipped.length ? "Nothing was imported." : "Nothing was imported: there are no chats in it."),
    folders.length && h("p", {}, `${preview ? "Folders that would be created" : "New folders"}: ${folders.join(", ")}.`),
    losses.length && h("div", { class: "faint" },
      h("p", {}, preview ? "Would not be kept as it was:" : "Not kept as it was:"),
      losses.map((loss) => h("details", {}, h("summary", {}, `${loss.text}: ${number(loss.count)}`), h("ul", {}, titles(loss))))),
    skipped.length && h("details", { class: "faint", open: !some || skipped.length < 4 },
      h("summary", {}, `Skipped: ${number(skipped.length)}`),
      h("ul", {}, skipped.slice(0, MAX_REASONS).map(({ file, reason }) => h("li", {}, `${file}: ${reason}`)))),
  ].filter(Boolean);
}
