// What appears on the page for a while: menus, a title being edited, toasts, announcements.

import { button, h, stepFocus } from "./dom.js";
import { icon, iconButton } from "./icons.js";

/** Open a menu beside `anchor`. Items are {label, icon, act, danger, note}, and {label, act, checked} for one of several choices. Arrow keys move; Escape or a click elsewhere closes. */
export function openMenu(anchor, items) {
  const close = () => menu.hidePopover();
  const menu = h("div", { class: "menu", popover: "auto", role: "menu" }, items.map((item) =>
    h("button", {
      type: "button", role: item.checked === undefined ? "menuitem" : "menuitemradio", "aria-checked": item.checked?.toString(), class: item.danger ? "danger" : null,
      onclick: () => {
        close();
        item.act();
      },
    }, item.checked === false ? h("span", { class: "icon" }) : icon(item.icon ?? "check"),
    item.note ? h("span", {}, item.label, h("small", {}, item.note)) : item.label)));
  menu.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.stopPropagation(); // it closes the menu only
    stepFocus(event, [...menu.children]);
  });
  menu.addEventListener("toggle", (event) => {
    if (event.newState === "open") return;
    anchor.setAttribute("aria-expanded", "false");
    if (menu.contains(document.activeElement) || document.activeElement === document.body) anchor.focus();
    menu.remove();
  });
  (anchor.closest("dialog, nav, main, aside") ?? document.body).append(menu);
  anchor.setAttribute("aria-expanded", "true");
  menu.showPopover();
  placeBeside(menu, anchor);
  menu.firstElementChild.focus();
}

export function placeBeside(menu, anchor) {
  const at = anchor.getBoundingClientRect();
  const left = Math.min(at.left, innerWidth - menu.offsetWidth - 8);
  const below = at.bottom + 4;
  menu.style.left = `${Math.max(8, left)}px`;
  menu.style.top = `${below + menu.offsetHeight > innerHeight ? at.top - menu.offsetHeight - 4 : below}px`;
}

/** Replace `node` by a text box until Enter or Escape. Calls `save(title)` if the title was changed. */
export function renameInPlace(node, title, save) {
  const input = h("input", { class: "rename", value: title, maxlength: "200", "aria-label": "Title", autocomplete: "off" });
  let ended = false;
  const end = (keep) => {
    if (ended) return;
    ended = true;
    const focused = document.activeElement === input;
    input.replaceWith(node);
    if (focused) node.focus();
    const renamed = input.value.trim();
    if (keep && renamed && renamed !== title) save(renamed);
  };
  input.addEventListener("blur", () => end(true));
  input.addEventListener("keydown", (event) => {
    if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
    event.stopPropagation();
    end(event.key === "Enter");
  });
  node.replaceWith(input);
  input.focus();
  input.select();
}

/** Show a short message above the composer, with at most one action. Returns a function that removes it. */
export function toast(text, action = null, perform = null) {
  const tray = document.getElementById("toasts");
  const close = () => {
    node.remove();
    if (!tray.firstChild) tray.hidePopover();
  };
  const act = () => {
    close();
    perform();
  };
  const node = h("div", { class: "toast" }, h("span", {}, text), action && button(action, act), iconButton("close", "Dismiss", close));
  while (tray.children.length > 2) tray.firstChild.remove();
  tray.append(node);
  if (tray.matches(":popover-open")) tray.hidePopover(); // shown again, it lies above an open dialog
  tray.showPopover();
  // Not removed under the pointer or with the focus in it.
  const expire = () => (node.matches(":hover, :focus-within") ? setTimeout(expire, 2000) : node.isConnected && close());
  setTimeout(expire, action ? 10_000 : 5000);
  return close;
}

/** Have screen readers say a text once. */
export function announce(text) {
  document.getElementById("announcer").replaceChildren(h("p", {}, text));
}
