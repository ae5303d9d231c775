// Settings: export and import.

import { post } from "./api.js";
import { button, download, h } from "./dom.js";
import { broadcast } from "./events.js";
import { counted, number } from "./format.js";
import { icon } from "./icons.js";
import { toast } from "./popups.js";

const MAX_REASONS = 200;

export function show(place) {
  const result = h("div", { class: "stack", role: "status" });
  const input = h("input", {
    type: "file", accept: ".json,.zip,application/json,application/zip", multiple: true, hidden: true, "aria-label": "Files to import",
    onchange: async () => {
      opener.disabled = true;
      await importFiles([...input.files], result);
      opener.disabled = false;
      input.value = "";
    },
  });
  const opener = button([icon("upload"), "Import files"], () => input.click());
  place.append(
    h("h3", {}, "Export"),
    h("p", { class: "faint" }, "All your conversations in one zip file, as JSON and as Markdown."),
    button([icon("download"), "Export everything"], () => download("/export")),
    h("h3", {}, "Import"),
    h("p", { class: "faint" }, "Exports of ChatGPT, Open WebUI, LM Studio or Fireside. Existing conversations do not change."),
    opener, input, result);
}

/** Import files one after the other, and show one result for all. */
async function importFiles(files, result) {
  const sum = { conversations: 0, messages: 0, unchanged: 0, skipped: [] };
  for (const [index, file] of files.entries()) {
    const position = files.length > 1 ? ` (${index + 1} of ${files.length})` : "";
    result.replaceChildren(h("p", { class: "faint" }, `Importing ${file.name}${position}`), h("progress", { "aria-label": "Importing" }));
    try {
      const imported = await importFile(file);
      for (const count of ["conversations", "messages", "unchanged"]) sum[count] += imported[count];
      sum.skipped.push(...imported.skipped);
    } catch (error) {
      sum.skipped.push({ file: file.name, reason: error.message });
    }
  }
  if (sum.messages || sum.conversations) broadcast("list");
  result.replaceChildren(...summary(sum));
  if (!result.isConnected) toast(result.firstChild.textContent); // another section is shown
}

async function importFile(file) {
  const kind = /\.zip$/i.test(file.name) ? "zip" : "json"; // browsers report several types for zip files
  const imported = await post("/import", new Blob([file], { type: `application/${kind}` }));
  const original = (name) => name.replace(new RegExp(`^upload\\.${kind}\\b`), () => file.name); // the request has no file name
  return { ...imported, skipped: imported.skipped.map((one) => ({ ...one, file: original(one.file) })) };
}

function summary({ conversations, messages, unchanged, skipped }) {
  const some = conversations || messages || unchanged;
  const existing = unchanged ? `; ${number(unchanged)} already existed` : "";
  return [
    some
      ? h("p", {}, `${counted(conversations, "conversation")} and ${counted(messages, "message")} were added${existing}.`)
      : h("p", { class: "error" }, skipped.length ? "Nothing was imported." : "Nothing was imported: there are no conversations in it."),
    skipped.length && h("details", { class: "faint", open: !some || skipped.length < 4 },
      h("summary", {}, `Skipped: ${number(skipped.length)}`),
      h("ul", {}, skipped.slice(0, MAX_REASONS).map(({ file, reason }) => h("li", {}, `${file}: ${reason}`)))),
  ].filter(Boolean);
}
