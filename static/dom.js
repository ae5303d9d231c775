// Small tools for building the page: nodes, dialogs, menus, toasts, the clipboard, and how times and sizes read.

import { icon } from "./icons.js";

const SVG = "http://www.w3.org/2000/svg";

/** An element. `on...` attributes are listeners; false, null and undefined leave an attribute or a child out. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

/** A button that shows only an icon; `label` is its name and its tooltip. */
export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

/** Makes `nodes` the children of `parent`, moving only those that are out of place. */
export function arrange(parent, nodes) {
  let next = parent.firstChild;
  for (const node of nodes) {
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

/** A modal dialog with a title and a close button. It removes itself when it closes. */
export function openDialog(title, { className = "", onclose } = {}, ...content) {
  const heading = h("h2", { id: `dialog-${counter()}` }, title);
  const dialog = h(
    "dialog", { class: className, "aria-labelledby": heading.id },
    h("header", {}, heading, iconButton("close", "Close", () => dialog.close())),
    ...content,
  );
  dialog.addEventListener("pointerdown", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    onclose?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Puts a text box in the place of `node` until Enter or Escape; `save(title)` is called where the title became another. */
export function renameInPlace(node, title, save) {
  const input = h("input", { class: "rename", value: title, maxlength: "200", "aria-label": "Title", autocomplete: "off" });
  let over = false;
  const end = (keep) => {
    if (over) return;
    over = true;
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

/** Asks before what cannot be undone. Resolves to whether the person agreed. */
export function confirmed(question, explanation, verb) {
  return new Promise((resolve) => {
    let agreed = false;
    const agree = () => {
      agreed = true;
      dialog.close();
    };
    const dialog = openDialog(
      question, { className: "small", onclose: () => resolve(agreed) },
      h("p", {}, explanation),
      h("footer", {},
        h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        h("button", { type: "button", class: "danger", onclick: agree }, verb)),
    );
  });
}

/** A menu beside `anchor`. Items are {label, icon, act, danger}. Arrow keys move, Escape and a click elsewhere close. */
export function openMenu(anchor, items) {
  const close = () => menu.hidePopover();
  const menu = h("div", { class: "menu", popover: "auto", role: "menu" }, items.filter(Boolean).map((item) =>
    h("button", {
      type: "button", role: "menuitem", class: item.danger ? "danger" : null,
      onclick: () => {
        close();
        item.act();
      },
    }, icon(item.icon), item.label)));
  menu.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.stopPropagation(); // it closes the menu, and nothing else
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

function placeBeside(menu, anchor) {
  const at = anchor.getBoundingClientRect();
  const left = Math.min(at.left, innerWidth - menu.offsetWidth - 8);
  const below = at.bottom + 4;
  menu.style.left = `${Math.max(8, left)}px`;
  menu.style.top = `${below + menu.offsetHeight > innerHeight ? at.top - menu.offsetHeight - 4 : below}px`;
}

/** Moves the focus among `nodes` by the arrow keys, Home and End. */
export function stepFocus(event, nodes) {
  const last = nodes.length - 1;
  const at = nodes.indexOf(document.activeElement);
  const to = { ArrowDown: at < last ? at + 1 : 0, ArrowUp: at > 0 ? at - 1 : last, Home: 0, End: last }[event.key];
  if (to === undefined || last < 0) return;
  event.preventDefault();
  nodes[to].focus();
}

/** A short message at the foot of the page, with one action at most. */
export function toast(text, action = null, perform = null) {
  const tray = document.getElementById("toasts");
  const close = () => {
    node.remove();
    if (!tray.firstChild) tray.hidePopover();
  };
  const node = h("div", { class: "toast" }, h("span", {}, text), action && h("button", {
    type: "button",
    onclick: () => {
      close();
      perform();
    },
  }, action), iconButton("close", "Dismiss", close));
  while (tray.children.length > 2) tray.firstChild.remove();
  tray.append(node);
  if (tray.matches(":popover-open")) tray.hidePopover(); // shown anew, so that it lies above a dialog
  tray.showPopover();
  // It waits for whoever is about to use it.
  const expire = () => (node.matches(":hover, :focus-within") ? setTimeout(expire, 2000) : node.isConnected && close());
  setTimeout(expire, action ? 10_000 : 5000);
}

/** Says something to screen readers, once. */
export function announce(text) {
  const region = document.getElementById("announcer");
  region.replaceChildren(h("p", {}, text));
}

/** Copies text, also where the page came over plain http and has no `navigator.clipboard`. Resolves to whether it worked. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused, as when the page has no focus: the older way may still work.
    }
  }
  const focused = document.activeElement;
  const area = h("textarea", { class: "unseen", readonly: true, "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  (focused?.closest("dialog") ?? document.body).append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus({ preventScroll: true });
  return copied;
}

/** A button that copies what `text()` returns, and shows for a moment that it did. */
export function copyButton(label, text, attributes = {}) {
  const button = iconButton("copy", label, async () => {
    const copied = await copyText(await text());
    button.replaceChildren(icon(copied ? "check" : "alert"));
    announce(copied ? "Copied" : "Could not copy");
    setTimeout(() => button.replaceChildren(icon("copy")), 1600);
  }, attributes);
  return button;
}

let count = 0;
export const counter = () => ++count;

/** A random id, also where `crypto.randomUUID` is missing because the page came over plain http. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** At most one call every `wait` milliseconds, the last one always. */
export function debounce(wait, act) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(act, wait, ...values);
  };
}

/** A time of the API, which is UTC without an offset. */
export const parseTime = (text) => new Date(`${text.slice(0, 23)}Z`);

const daysAgo = (date) => Math.round((new Date().setHours(0, 0, 0, 0) - new Date(date).setHours(0, 0, 0, 0)) / 86_400_000);

const monthAndYear = new Intl.DateTimeFormat(undefined, { month: "long", year: "numeric" }); // once: making one is slow

/** The heading under which the list shows a conversation of this time. */
export function dayGroup(date) {
  const days = daysAgo(date);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days <= 7) return "Previous 7 days";
  if (days <= 30) return "Previous 30 days";
  return monthAndYear.format(date);
}

/** A moment, as short as it can be told: a time today, else a date. */
export function shortTime(date) {
  if (daysAgo(date) === 0) return date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
  const year = date.getFullYear() === new Date().getFullYear() ? undefined : "numeric";
  return date.toLocaleDateString(undefined, { day: "numeric", month: "short", year });
}

export function timeNode(text) {
  const date = parseTime(text);
  return h("time", { datetime: date.toISOString(), title: date.toLocaleString() }, shortTime(date));
}

export const number = (value, digits = 0) =>
  value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });

export function seconds(milliseconds) {
  const value = milliseconds / 1000;
  if (value < 10) return `${number(value, 1)} s`;
  if (value < 60) return `${number(value)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

export function bytes(value) {
  const unit = value < 1e6 ? ["kB", 1e3] : value < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  return `${number(value / unit[1], unit[0] === "GB" ? 1 : 0)} ${unit[0]}`;
}
