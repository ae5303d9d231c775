// Dialogs. They are loaded with the modules that open one.

import { button, h, styles, uniqueId } from "./dom.js";
import { iconButton } from "./icons.js";

await styles("more.css");

/** Open a modal dialog with a title and a close button. It is removed when it closes. */
export function openDialog(title, { className = "", onclose } = {}, ...content) {
  const heading = h("h2", { id: uniqueId("dialog") }, title);
  const dialog = h(
    "dialog", { class: className, "aria-labelledby": heading.id },
    h("header", { role: "presentation" }, heading, iconButton("close", "Close", () => leave())),
    ...content,
  );
  const isTyped = () => dialog.matches(".form") && [...dialog.querySelectorAll("input, textarea")].some(({ value, defaultValue }) => value !== defaultValue);
  const leave = async () => {
    if (!isTyped() || await confirm("Discard what you typed?", "It is not saved yet.", "Discard")) dialog.close();
  };
  dialog.addEventListener("pointerdown", (event) => event.target === dialog && leave());
  dialog.addEventListener("cancel", (event) => {
    if (event.target !== dialog || !isTyped()) return; // a file chooser sends this event too
    event.preventDefault();
    leave();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    // In Chromium the selection was in a field of the dialog: without this, the text box that is focused now ignores the keys.
    const { activeElement: focused } = document;
    if (focused.selectionStart != null) focused.setSelectionRange(focused.selectionStart, focused.selectionEnd);
    onclose?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Open a dialog with a form. It closes when `send()` has resolved, except to false; an error is shown in it. Resolves to whether it was sent.
 * A dialog of the class "form" asks before it discards what was typed.
 */
export function openForm(title, { verb, className = "small", danger = false, novalidate = false }, nodes, send) {
  return new Promise((resolve) => {
    let sent = false;
    const problem = h("p", { class: "error", role: "alert" });
    const waiting = h("span", { class: "pulse", role: "img", "aria-label": "Please wait" });
    const submit = h("button", { type: "submit", class: danger ? "danger" : "primary" }, verb);
    const onsubmit = async (event) => {
      event.preventDefault();
      submit.disabled = true;
      submit.prepend(waiting);
      problem.textContent = "";
      try {
        sent = await send() !== false;
        if (sent) dialog.close();
      } catch (error) {
        problem.textContent = error.message;
      }
      submit.disabled = false;
      waiting.remove();
    };
    const dialog = openDialog(title, { className, onclose: () => resolve(sent) },
      h("form", { class: "stack", onsubmit, novalidate }, nodes, problem, h("footer", {}, button("Cancel", () => dialog.close()), submit)));
    dialog.querySelector("form :is(input, textarea, select):not([hidden])").focus();
  });
}

/** Ask before an action that cannot be undone. Resolves to the answer. */
export function confirm(question, explanation, verb) {
  return new Promise((resolve) => {
    let confirmed = false;
    const act = () => {
      confirmed = true;
      dialog.close();
    };
    const dialog = openDialog(
      question, { className: "small", onclose: () => resolve(confirmed) },
      h("p", {}, explanation),
      h("footer", {}, button("Cancel", () => dialog.close()), button(verb, act, { class: "danger" })),
    );
  });
}
