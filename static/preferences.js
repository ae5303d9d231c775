// What this browser remembers about how the page looks and behaves.

import { emit } from "./events.js";

const KEYS = { theme: "fireside.theme", textSize: "fireside.text-size", sendKey: "fireside.send-key" }; // in localStorage
const USUAL = { theme: "system", textSize: "medium", sendKey: "enter" }; // not stored

export const preferences = {
  get theme() {
    return read("theme");
  },
  set theme(name) {
    write("theme", name);
  },
  /** small, medium, large or largest */
  get textSize() {
    return read("textSize");
  },
  set textSize(name) {
    write("textSize", name);
  },
  /** enter, or ctrl-enter: then Enter begins a new line */
  get sendKey() {
    return read("sendKey");
  },
  set sendKey(name) {
    write("sendKey", name);
  },
};

const read = (name) => localStorage.getItem(KEYS[name]) ?? USUAL[name];

function write(name, value) {
  if (value === USUAL[name]) localStorage.removeItem(KEYS[name]);
  else localStorage.setItem(KEYS[name], value);
  apply();
}

function apply() {
  document.documentElement.dataset.theme = preferences.theme;
  document.documentElement.dataset.text = preferences.textSize;
  emit("preferences");
}

apply();
window.addEventListener("storage", ({ key }) => Object.values(KEYS).includes(key) && apply());
