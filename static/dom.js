// Elements: making them, ordering them, moving the focus among them.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. `on...` attributes are listeners. An attribute or child that is false, null or undefined is left out. */
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

export function button(label, onclick, attributes = {}) {
  return h("button", { type: "button", onclick, ...attributes }, label);
}

/** Make `nodes` the children of `parent`, moving only those that are out of place. The focus stays. */
export function arrange(parent, nodes) {
  const focused = document.activeElement;
  let next = parent.firstChild;
  for (const node of nodes) {
    if (node === next) next = next.nextSibling;
    else if (parent.isConnected && node.isConnected && parent.moveBefore) parent.moveBefore(node, next);
    else parent.insertBefore(node, next);
  }
  while (next) {
    const unwanted = next;
    next = next.nextSibling;
    unwanted.remove();
  }
  if (focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true }); // WebKit has no moveBefore
}

/** Move the focus among `nodes` by the arrow keys, Home and End. */
export function stepFocus(event, nodes) {
  const last = nodes.length - 1;
  const at = nodes.indexOf(document.activeElement);
  const to = { ArrowDown: at < last ? at + 1 : 0, ArrowUp: at > 0 ? at - 1 : last, Home: 0, End: last }[event.key];
  if (to === undefined || last < 0) return;
  event.preventDefault();
  nodes[to].focus();
}

let ids = 0;
export const uniqueId = (prefix) => `${prefix}-${++ids}`;

const sheets = new Map();

/** Load a style sheet of /static/. A module that not every visit needs loads its own. */
export function styles(name) {
  if (!sheets.has(name)) {
    sheets.set(name, new Promise((resolve) => {
      document.head.append(h("link", { rel: "stylesheet", href: `/static/${name}`, onload: resolve, onerror: resolve }));
    }));
  }
  return sheets.get(name);
}

/** Have the browser save a file of the server. */
export function download(path) {
  const link = h("a", { href: path, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}
