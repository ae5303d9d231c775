// Saved prompts: their section in the settings, and the dialogs that ask for a prompt and for its variables.

import { patch, post, remove } from "./api.js";
import { confirm, openDialog } from "./dialogs.js";
import { button, h } from "./dom.js";
import { broadcast } from "./events.js";
import { field } from "./fields.js";
import { icon, iconButton } from "./icons.js";
import { fillIn, library, notePromptUsed, refreshLibrary, variablesIn } from "./library.js";
import { toast } from "./popups.js";
import { action } from "./rows.js";

const LIMITS = { name: 100, content: 20_000 }; // characters, of the server

export async function show(place) {
  await refreshLibrary();
  draw(place);
}

function draw(place) {
  const add = async () => {
    if (await editPrompt()) draw(place);
    place.querySelector("button").focus();
  };
  place.replaceChildren(
    h("p", { class: "faint" }, "Texts that you use often. Type ", h("kbd", {}, "/"), " in the message box to insert one."),
    button([icon("plus"), "New prompt"], add),
    h("ul", { class: "rows" }, library.prompts.map((prompt) => row(prompt, place))));
}

function row(prompt, place) {
  const { id, name, content } = prompt;
  const ask = () => confirm("Delete this prompt?", `“${name}” cannot be restored after this.`, "Delete");
  const erase = async () => {
    await remove(`/prompts/${id}`);
    broadcast("library");
  };
  return h("li", {},
    h("span", {}, h("strong", {}, name), h("small", { class: "one-line" }, content)),
    iconButton("edit", `Edit ${name}`, action(() => editPrompt(prompt), { place, draw: show })),
    iconButton("trash", `Delete ${name}`, action(erase, { place, draw: show, ask })));
}

/** Ask for a new prompt with this content, or for changes of one. Resolves to whether it was saved. */
export function editPrompt(prompt = null, content = "") {
  return new Promise((resolve) => {
    let saved = false;
    const name = field("Name", h("input", { required: true, maxlength: LIMITS.name, value: prompt?.name ?? "", autocomplete: "off" }));
    const text = field("Text", h("textarea", { required: true, rows: "8", maxlength: LIMITS.content }, prompt?.content ?? content), {},
      h("small", {}, "Words in double braces, such as {{language}}, are asked for when you insert the prompt."));
    const error = h("p", { class: "error", role: "alert" });
    const onsubmit = async (event) => {
      event.preventDefault();
      const fields = { name: name.control.value, content: text.control.value };
      try {
        if (prompt) await patch(`/prompts/${prompt.id}`, fields);
        else await post("/prompts", fields);
        await refreshLibrary();
      } catch (refusal) {
        error.textContent = refusal.message;
        return;
      }
      broadcast("library");
      saved = true;
      dialog.close();
      if (!prompt) toast(`“${fields.name.trim()}” saved. Type / in the message box to insert it.`);
    };
    const form = h("form", { class: "stack", onsubmit }, name.node, text.node, error,
      h("div", { class: "row end" }, button("Cancel", () => dialog.close()), h("button", { type: "submit", class: "primary" }, "Save")));
    const dialog = openDialog(prompt ? "Edit prompt" : "New prompt", { className: "form", onclose: () => resolve(saved) }, form);
    name.control.focus();
  });
}

/** Resolves to the text of a prompt, after asking for its variables; to null if that was canceled. */
export function textOf(prompt) {
  const { name, content } = prompt;
  const names = variablesIn(content);
  if (!names.length) {
    notePromptUsed(prompt);
    return Promise.resolve(content);
  }
  return new Promise((resolve) => {
    let text = null;
    const onsubmit = (event) => {
      event.preventDefault();
      text = fillIn(content, Object.fromEntries(fields.map(({ control }, index) => [names[index], control.value])));
      notePromptUsed(prompt);
      dialog.close();
    };
    const onkeydown = (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      const next = fields[fields.findIndex(({ control }) => control === event.target) + 1];
      if (next && !event.ctrlKey && !event.metaKey) next.control.focus();
      else form.requestSubmit();
    };
    const fields = names.map((variable) => field(variable, h("textarea", { rows: "1", class: "growing", onkeydown })));
    const form = h("form", { class: "stack", onsubmit }, fields.map(({ node }) => node),
      h("p", { class: "faint" }, "Empty fields stay in the text as variables."),
      h("div", { class: "row end" }, button("Cancel", () => dialog.close()), h("button", { type: "submit", class: "primary" }, "Insert")));
    const dialog = openDialog(name, { className: "form", onclose: () => resolve(text) }, form);
    fields[0].control.focus();
  });
}
