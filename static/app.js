// The page: who is signed in, which conversation the address names, the keyboard, and the theme.

import { changed, get, onChange, post, session, signIn } from "./api.js";
import { Chat } from "./chat.js";
import { forgetDrafts } from "./composer.js";
import { h, icon, openMenu, toast } from "./dom.js";
import { refreshModels } from "./models.js";
import { Sidebar } from "./sidebar.js";

const page = document.getElementById("page");
const narrow = matchMedia("(max-width: 820px)");
const THEME = "fireside.theme"; // "light", "dark" or absent: as the system has it

export const theme = {
  get current() {
    return localStorage.getItem(THEME) ?? "system";
  },
  set current(name) {
    if (name === "system") localStorage.removeItem(THEME);
    else localStorage.setItem(THEME, name);
    this.apply();
  },
  apply() {
    document.documentElement.dataset.theme = this.current;
  },
};

theme.apply();
window.addEventListener("storage", (event) => event.key === THEME && theme.apply());

let shell = null; // {chat, sidebar, node}, from the first sign-in on

/** The secret of a link, `#setup=...`, which is taken out of the address before anything else. */
function takeSecret() {
  const [, kind, secret] = /^#(setup|invite|login)=(.+)$/.exec(location.hash) ?? [];
  if (kind) history.replaceState(null, "", "/");
  return { kind: kind ?? null, secret: secret ? decoded(secret) : null };
}

/** Of a link that was damaged on its way the secret is what is written there: the server says that it is none. */
function decoded(secret) {
  try {
    return decodeURIComponent(secret);
  } catch {
    return secret;
  }
}

async function begin() {
  const { kind, secret } = takeSecret();
  if (kind === null || kind === "login") {
    try {
      signIn(await get("/auth/me"));
      return enter();
    } catch (error) {
      if (error.status === 0) return whenBack(begin);
    }
  }
  await knock(kind, secret);
}

/** Asks who is there, then enters. */
async function knock(kind = null, secret = null) {
  session.user = null;
  document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
  document.title = "Fireside";
  const { signInScreen } = await import("./account.js");
  await signInScreen(page, kind, secret);
  changed("session");
  enter();
}

function whenBack(again) {
  page.replaceChildren(h("main", { class: "welcome", role: "status" }, icon("flame"),
    h("h1", {}, "Fireside is not running"), h("p", {}, "Start it, and this page goes on by itself.")));
  const stop = onChange("online", () => {
    stop();
    again();
  });
}

function enter() {
  if (shell && shell.user !== session.user.id) return location.reload(); // nothing of the one before stays
  shell ??= buildShell();
  page.replaceChildren(shell.node);
  shell.sidebar.refresh();
  refreshModels().catch(() => {}); // the page says by itself that the server is gone
  route();
}

function buildShell() {
  const openList = (open) => {
    shell.node.classList.toggle("list-open", open);
    shell.sidebar.node.inert = narrow.matches && !open;
    if (open) shell.sidebar.node.focus();
  };
  const created = (id) => {
    history.replaceState(null, "", `#/c/${id}`);
    sidebar.current = id;
  };
  const chat = new Chat({ openMenu: () => openList(true), created });
  const sidebar = new Sidebar({
    open: (id) => {
      sidebar.current = id; // at once: the address is followed a moment later
      location.hash = id === null ? "#/" : `#/c/${id}`;
    },
    account: openAccount,
    close: () => openList(false),
  });
  narrow.addEventListener("change", () => openList(false));
  sidebar.node.inert = narrow.matches;
  sidebar.node.addEventListener("keydown", (event) => event.key === "Escape" && narrow.matches && openList(false));
  const scrim = h("div", { class: "scrim", onclick: () => openList(false) });
  return { chat, sidebar, user: session.user.id, openList, node: h("div", { class: "shell" }, sidebar.node, scrim, chat.node) };
}

function route() {
  if (!shell || !session.user) return;
  const [, id, messageId] = /^#\/c\/(\d+)(?:\/m\/(\d+))?$/.exec(location.hash) ?? [];
  shell.sidebar.current = id ? Number(id) : null;
  shell.chat.open(id ? Number(id) : null, messageId ? Number(messageId) : null);
}

window.addEventListener("hashchange", () => (/^#(setup|invite|login)=/.test(location.hash) ? begin() : route()));
onChange("signed-out", () => session.user && knock());
onChange("session", ({ elsewhere }) => elsewhere && location.reload());

// ---- the account's menu

function openAccount(button) {
  openMenu(button, [
    { icon: "gear", label: "Settings", act: () => openSettings("general") },
    { icon: "trash", label: "Bin", act: () => openSettings("bin") },
    { icon: "keys", label: "Keyboard shortcuts", act: openShortcuts },
    { icon: "out", label: "Sign out", act: signOut },
  ]);
}

async function openSettings(section) {
  const { openSettings: open } = await import("./settings.js");
  open(section, { theme });
}

async function signOut() {
  try {
    await post("/auth/logout");
  } catch (error) {
    if (error.status !== 401) return toast(error.message);
  }
  forgetDrafts();
  session.user = null;
  changed("session");
  location.assign("/");
}

// ---- the keyboard

async function openShortcuts() {
  const { showShortcuts } = await import("./shortcuts.js");
  showShortcuts();
}

function shortcut(event) {
  const { chat, sidebar, openList } = shell;
  const mod = (event.ctrlKey || event.metaKey) && !event.altKey;
  const writing = event.target.closest("input, textarea, select, [contenteditable]");
  const key = event.key.toLowerCase();
  if (mod && !event.shiftKey && key === "k") {
    openList(true);
    return () => sidebar.search.focus();
  }
  if (mod && event.shiftKey && key === "o") return () => { sidebar.open(null); };
  if (mod && event.shiftKey && key === "enter") return () => chat.retry();
  if (mod && event.shiftKey && key === "c" && !String(getSelection())) return () => chat.copyLast();
  if (mod && !event.shiftKey && key === ".") return () => chat.head.pickModel();
  if (event.altKey && !mod && key === "arrowup") return () => sidebar.step(-1);
  if (event.altKey && !mod && key === "arrowdown") return () => sidebar.step(1);
  if (key === "escape" && chat.busy) return () => chat.stop();
  if (key === "?" && !writing) return openShortcuts;
  return null;
}

document.addEventListener("keydown", (event) => {
  if (!shell?.node.isConnected || event.isComposing || document.querySelector("dialog[open], .menu")) return;
  const act = shortcut(event);
  if (!act) return;
  event.preventDefault();
  act();
});

begin();
