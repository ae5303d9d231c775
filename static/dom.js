// Small tools for building the page: nodes, icons, dialogs, menus, toasts, the clipboard, and how times and sizes read.

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

// One path each, on a grid of 24, drawn with a line, or filled where the name stands in SOLID.
const PATHS = {
  flame: "M12.9 2c.5 3.5-1.2 4.9-3.1 7C7.9 11 6 12.9 6 15.9 6 19.6 8.8 22 12 22s6-2.4 6-6.1c0-2.1-.9-3.9-2.2-5.4-.2 1.4-.7 2.3-1.7 2.9.6-4.1.5-8.2-1.2-11.4Zm-.8 12.4c1.6 1.4 2.5 2.4 2.5 3.9a2.6 2.6 0 0 1-5.2 0c0-1.6 1.5-2.4 2.7-3.9Z",
  new: "M12 4H7a3 3 0 0 0-3 3v10a3 3 0 0 0 3 3h10a3 3 0 0 0 3-3v-5M9.5 14.5l.6-3L18.3 3.3a1.7 1.7 0 0 1 2.4 2.4L12.5 14l-3 .5Z",
  search: "M4.5 11a6.5 6.5 0 1 0 13 0 6.5 6.5 0 1 0-13 0ZM16 16l4.5 4.5",
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "m6 6 12 12M18 6 6 18",
  more: "M3.9 12a1.6 1.6 0 1 0 3.2 0 1.6 1.6 0 1 0-3.2 0ZM10.4 12a1.6 1.6 0 1 0 3.2 0 1.6 1.6 0 1 0-3.2 0ZM16.9 12a1.6 1.6 0 1 0 3.2 0 1.6 1.6 0 1 0-3.2 0Z",
  sliders: "M4 7h9M19 7h1M4 17h1M11 17h9M13.5 7a2.5 2.5 0 1 0 5 0 2.5 2.5 0 1 0-5 0ZM5.5 17a2.5 2.5 0 1 0 5 0 2.5 2.5 0 1 0-5 0Z",
  send: "M12 19V5M5.5 11.5 12 5l6.5 6.5",
  stop: "M9 7h6a2 2 0 0 1 2 2v6a2 2 0 0 1-2 2h-6a2 2 0 0 1-2-2v-6a2 2 0 0 1 2-2Z",
  copy: "M11.5 9h6a2.5 2.5 0 0 1 2.5 2.5v6a2.5 2.5 0 0 1-2.5 2.5h-6a2.5 2.5 0 0 1-2.5-2.5v-6a2.5 2.5 0 0 1 2.5-2.5ZM5.5 15H5a1.5 1.5 0 0 1-1.5-1.5v-8A2 2 0 0 1 5.5 3.5h8A1.5 1.5 0 0 1 15 5v.5",
  check: "m4.5 12.5 5 5 10-11",
  retry: "M19.5 12a7.5 7.5 0 1 1-2.3-5.4L20 9M20 4.5V9h-4.5",
  edit: "m4 20 1-4.5L16 4.5a2 2 0 0 1 2.8 0l.7.7a2 2 0 0 1 0 2.8L8.5 19 4 20ZM14 6.5l3.5 3.5",
  left: "m14.5 6-6 6 6 6",
  right: "m9.5 6 6 6-6 6",
  down: "m6 9.5 6 6 6-6",
  bottom: "M12 5v14M5.5 12.5 12 19l6.5-6.5",
  pin: "M9 4h6l-.7 6.3L17.5 14h-11l3.2-3.7L9 4ZM12 14v6.5",
  trash: "M4.5 6.5h15M9.5 6V4h5v2M6.5 6.5l.8 12a2 2 0 0 0 2 1.8h5.4a2 2 0 0 0 2-1.8l.8-12M10 10.5v6M14 10.5v6",
  restore: "M8.5 5 4.5 9l4 4M5 9h9a5.5 5.5 0 0 1 0 11H8",
  gear: "M9 12a3 3 0 1 0 6 0 3 3 0 1 0-6 0ZM10.3 3.5l-.5 2.3-1.7 1-2.3-.7-1.7 3 1.7 1.6v2.6l-1.7 1.6 1.7 3 2.3-.7 1.7 1 .5 2.3h3.4l.5-2.3 1.7-1 2.3.7 1.7-3-1.7-1.6v-2.6l1.7-1.6-1.7-3-2.3.7-1.7-1-.5-2.3Z",
  out: "M14 4H7a2 2 0 0 0-2 2v12a2 2 0 0 0 2 2h7M10 12h10.5M17 8.5l3.5 3.5-3.5 3.5",
  keys: "M5.5 6h13a2.5 2.5 0 0 1 2.5 2.5v7a2.5 2.5 0 0 1-2.5 2.5h-13a2.5 2.5 0 0 1-2.5-2.5v-7a2.5 2.5 0 0 1 2.5-2.5ZM7 10h.01M10.3 10h.01M13.7 10h.01M17 10h.01M8 14h8",
  download: "M12 4v11M7.5 10.5 12 15l4.5-4.5M5 20h14",
  upload: "M12 15V4M7.5 8.5 12 4l4.5 4.5M5 20h14",
  link: "M10 14a4 4 0 0 0 5.7 0l3.1-3.1a4 4 0 0 0-5.7-5.7L12 6.3M14 10a4 4 0 0 0-5.7 0l-3.1 3.1a4 4 0 0 0 5.7 5.7l1.1-1.1",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12ZM9.3 12a2.7 2.7 0 1 0 5.4 0 2.7 2.7 0 1 0-5.4 0Z",
  clip: "M20 11.5l-7.8 7.8a5 5 0 0 1-7.1-7.1l8-8a3.4 3.4 0 0 1 4.8 4.8L10 16.9a1.7 1.7 0 0 1-2.4-2.4l7.2-7.2",
  file: "M13.5 3.5H7a2 2 0 0 0-2 2v13a2 2 0 0 0 2 2h10a2 2 0 0 0 2-2V9ZM13.5 3.5V9H19",
  image: "M6 4.5h12a2.5 2.5 0 0 1 2.5 2.5v10a2.5 2.5 0 0 1-2.5 2.5h-12a2.5 2.5 0 0 1-2.5-2.5v-10a2.5 2.5 0 0 1 2.5-2.5ZM7.5 10a1.5 1.5 0 1 0 3 0 1.5 1.5 0 1 0-3 0ZM4.5 18l5-4.5 3 2.5 4-4 4 4",
  alert: "M12 4 2.8 19.5h18.4L12 4ZM12 10v4.5M12 17h.01",
  thought: "M9.5 18.5h5M10.5 21h3M12 3a6.5 6.5 0 0 0-4 11.6c.8.7 1.3 1.4 1.5 2.4h5c.2-1 .7-1.7 1.5-2.4A6.5 6.5 0 0 0 12 3Z",
  wrap: "M4 6.5h16M4 12h12.5a3.5 3.5 0 0 1 0 7H12M14.5 16.5 12 19l2.5 2.5M4 19h3.5",
  "go-on": "M5 6v12l8-6-8-6ZM18.5 6v12",
};
const SOLID = new Set(["flame", "more", "stop"]);

export function icon(name) {
  const look = SOLID.has(name) ? "icon solid" : "icon";
  return svg("svg", { class: look, viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));
}

export function button(label, onclick, attributes = {}) {
  return h("button", { type: "button", onclick, ...attributes }, label);
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
    else if (parent.isConnected && node.isConnected && parent.moveBefore) parent.moveBefore(node, next); // it keeps its focus
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
      h("footer", {}, button("Cancel", () => dialog.close()), button(verb, agree, { class: "danger" })),
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

/** A short message at the foot of the page, with one action at most. Returns what takes it away. */
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
  if (tray.matches(":popover-open")) tray.hidePopover(); // shown anew, so that it lies above a dialog
  tray.showPopover();
  // It waits for whoever is about to use it.
  const expire = () => (node.matches(":hover, :focus-within") ? setTimeout(expire, 2000) : node.isConnected && close());
  setTimeout(expire, action ? 10_000 : 5000);
  return close;
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

const sheets = new Map();

/** Waits until a style sheet of /static/ is in force. What only some visits need comes with the module that needs it. */
export function styles(name) {
  if (!sheets.has(name)) {
    sheets.set(name, new Promise((resolve) => {
      document.head.append(h("link", { rel: "stylesheet", href: `/static/${name}`, onload: resolve, onerror: resolve }));
    }));
  }
  return sheets.get(name);
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

/** `what` in its plural, unless it is one. */
export const counted = (count, what) => `${number(count)} ${what}${count === 1 ? "" : "s"}`;

export function seconds(milliseconds) {
  if (milliseconds < 100) return `${number(Math.ceil(milliseconds))} ms`;
  if (milliseconds < 10_000) return `${number(milliseconds / 1000, 1)} s`;
  const whole = Math.round(milliseconds / 1000);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

export function bytes(value) {
  const unit = value < 1e6 ? ["kB", 1e3] : value < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  return `${number(value / unit[1], unit[0] === "GB" ? 1 : 0)} ${unit[0]}`;
}
