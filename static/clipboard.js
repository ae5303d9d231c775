// Copying text to the clipboard.

import { h } from "./dom.js";
import { icon, iconButton } from "./icons.js";
import { announce } from "./popups.js";

/** Copy text. A page that came over plain http has no `navigator.clipboard`. Resolves to whether it worked. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused, for example when the page has no focus. The older way may still work.
    }
  }
  const focused = document.activeElement;
  const area = h("textarea", { class: "visually-hidden", readonly: true, "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  (focused?.closest("dialog") ?? document.body).append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus({ preventScroll: true });
  return copied;
}

/** A button that copies what `text()` returns, and shows briefly whether it worked. */
export function copyButton(label, text, attributes = {}) {
  const button = iconButton("copy", label, async () => {
    const copied = await copyText(await text());
    button.replaceChildren(icon(copied ? "check" : "alert"));
    announce(copied ? "Copied" : "Could not copy");
    setTimeout(() => button.replaceChildren(icon("copy")), 1600);
  }, attributes);
  return button;
}
