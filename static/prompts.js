// Saved prompts: their section in the settings, and the dialogs that ask for a prompt and for its variables.

import { patch, post, remove } from "./api.js";
import { confirm, openForm } from "./dialogs.js";
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
  const name = field("Name", h("input", { required: true, maxlength: LIMITS.name, value: prompt?.name ?? "", autocomplete: "off" }));
  const text = field("Text", h("textarea", { required: true, rows: "8", maxlength: LIMITS.content }, prompt?.content ?? content), {},
    h("small", {}, "Words in double braces, such as {{language}}, are asked for when you insert the prompt."));
  return openForm(prompt ? "Edit prompt" : "New prompt", { verb: "Save", className: "form" }, [name.node, text.node], async () => {
    const fields = { name: name.control.value, content: text.control.value };
    if (prompt) await patch(`/prompts/${prompt.id}`, fields);
    else await post("/prompts", fields);
    await refreshLibrary();
    broadcast("library");
    if (!prompt) toast(`“${fields.name.trim()}” saved. Type / in the message box to insert it.`);
  });
}

/** Resolves to the text of a prompt, after asking for its variables; to null if that was canceled. */
export async function textOf(prompt) {
  const { name, content } = prompt;
  const names = variablesIn(content);
  const onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    const next = fields[fields.findIndex(({ control }) => control === event.target) + 1];
    if (next && !event.ctrlKey && !event.metaKey) next.control.focus();
    else event.target.form.requestSubmit();
  };
  const fields = names.map((variable) => field(variable, h("textarea", { rows: "1", class: "growing", onkeydown })));
  const note = h("p", { class: "faint" }, "Empty fields stay in the text as variables.");
  if (names.length && !await openForm(name, { verb: "Insert", className: "form" }, [...fields.map(({ node }) => node), note], () => {})) return null;
  notePromptUsed(prompt);
  return fillIn(content, Object.fromEntries(fields.map(({ control }, index) => [names[index], control.value])));
}
