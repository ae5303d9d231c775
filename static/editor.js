// The text box in the place of a message that is edited.

import { splitContent } from "./attachments.js";
import { button, h } from "./dom.js";
import { Attachments } from "./draft.js";
import { toast } from "./popups.js";

/**
 * Put `area` in the place of what `node` shows, above a button `verb`. `act(pressed)` resolves to whether to close. `above` and `below` are
 * further nodes. `closed(isSent)` is called at the end. Returns the editor's node.
 */
export function openEditor(node, area, { verb, above = null, below = [], act, closed }) {
  const shown = [...node.childNodes];
  const close = (isSent) => {
    node.replaceChildren(...shown);
    closed(isSent);
  };
  const cancel = () => close(false);
  const send = async () => await act(sendButton) && close(true);
  const sendButton = button(verb, send, { class: "primary" });
  const onkeydown = (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation(); // it does not stop the answer too
      cancel();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      send();
    }
  };
  const editor = h("div", { class: "editor", onkeydown }, above, area, h("div", { class: "row end" }, below, button("Cancel", cancel), sendButton));
  node.replaceChildren(editor);
  area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight / 2)}px`;
  area.focus();
  return editor;
}

/** Edit a question with its files. `send(content, attachmentIds)` resolves to whether it was accepted. */
export function editQuestion(node, message, { label, filesLabel, verb, note = null, send, closed }) {
  const { typed, files } = splitContent(message.content);
  const area = h("textarea", { "aria-label": label, rows: "3", onpaste: (event) => attached.paste(event) }, typed);
  const attached = new Attachments({ label: filesLabel, typed: () => area.value, focus: () => area.focus() });
  attached.showMessage(message, files);
  const act = async (pressed) => {
    if (!await attached.settledFor(pressed)) return false;
    if (!attached.obstacle) return !attached.empty && send(attached.content, attached.ids);
    toast(attached.obstacle);
    return false;
  };
  const below = [attached.controls, note && h("small", {}, note)].flat();
  const editor = openEditor(node, area, { verb, above: attached.node, below, act, closed });
  attached.acceptDrops(editor, editor);
  area.setSelectionRange(area.value.length, area.value.length);
}
