// The page: signing in, the conversation in the address, the account's menu, the keyboard.

import { get, post, session, signIn } from "./api.js";
import { showDocument } from "./attachments.js";
import { Chat } from "./chat.js";
import { forgetDrafts } from "./composer.js";
import { Conversation } from "./conversation.js";
import { h } from "./dom.js";
import { broadcast, on } from "./events.js";
import { icon } from "./icons.js";
import { ConversationList } from "./list.js";
import { refreshModels } from "./models.js";
import { noticeAnswer, setTitle } from "./notice.js";
import { openMenu, toast } from "./popups.js";
import "./preferences.js";
import { Sidebar } from "./sidebar.js";

const page = document.getElementById("page");
const narrow = matchMedia("(max-width: 820px)");
const SIDEBAR_HIDDEN = "fireside.sidebar.hidden"; // in localStorage: "yes" or absent
const SIDEBAR_WIDTH = "fireside.sidebar.width"; // in localStorage, in pixels
const SIDEBAR_PIXELS = { least: 200, usual: 280, most: 480 };

// ---- signing in

let shell = null; // from the first sign-in on

/** Remove the secret of a link such as `#setup=...` from the address. Returns {kind, secret}, both null without one. */
function takeSecret() {
  const [, kind = null, secret = null] = /^#(setup|invite|reset|login)=(.+)$/.exec(location.hash) ?? [];
  if (kind) history.replaceState(null, "", "/");
  try {
    return { kind, secret: secret && decodeURIComponent(secret) };
  } catch {
    return { kind, secret }; // a damaged link: the server refuses it
  }
}

async function start() {
  const { kind, secret } = takeSecret();
  if (kind === null || kind === "login") {
    try {
      signIn(await get("/auth/me"));
      return showShell();
    } catch (error) {
      if (error.status === 0) return waitForServer();
    }
  }
  await showSignIn(kind, secret);
}

async function showSignIn(kind = null, secret = null) {
  session.user = null;
  document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
  setTitle("Fireside");
  const { signInScreen } = await import("./signin.js");
  await signInScreen(page, kind, secret);
  broadcast("session");
  showShell();
}

function waitForServer() {
  page.replaceChildren(h("main", { class: "welcome", role: "status" }, icon("flame"),
    h("h1", {}, "Fireside is not running"), h("p", {}, "Start it. This page then continues by itself.")));
  const stopListening = on("online", () => {
    stopListening();
    start();
  });
}

function showShell() {
  if (shell && shell.userId !== session.user.id) return location.reload(); // nothing of the previous user stays in memory
  shell ??= new Shell();
  page.replaceChildren(shell.node);
  shell.sidebar.showAccount();
  shell.list.refresh();
  refreshModels().catch(() => {}); // the banner shows that the server cannot be reached
  followAddress();
}

on("signed-out", () => session.user && showSignIn());
on("session", ({ elsewhere }) => elsewhere && location.reload());
on("account", ({ user }) => { session.user = user; });

// ---- the page of a signed-in user

class Shell {
  userId = session.user.id;
  conversation = new Conversation();
  list = new ConversationList();

  constructor() {
    const openConversation = (id) => {
      this.list.currentId = id; // at once: the address is followed a moment later
      location.hash = id === null ? "#/" : `#/c/${id}`;
    };
    const folderName = (id) => this.list.folders.find((one) => one.id === id)?.name ?? "";
    this.chat = new Chat(this.conversation, this.list, { openList: () => this.showList(true), openSettings, folderName });
    this.sidebar = new Sidebar(this.list, {
      open: openConversation, openAccount, hide: () => this.showList(false), close: () => narrow.matches && this.showList(false),
      print: (id) => {
        openConversation(id);
        this.chat.print(id);
      },
    });
    this.sidebar.node.append(this.#resizer());
    this.node = h("div", { class: "shell" },
      this.sidebar.node, h("div", { class: "scrim", onclick: () => this.showList(false) }), this.chat.node);
    this.list.on("changed", () => this.chat.temporary.draw()); // the folders may be read after the first drawing
    this.list.on("answered", noticeAnswer);
    this.conversation.on("created", (id) => {
      history.replaceState(null, "", `#/c/${id}`);
      this.list.currentId = id;
    });
    this.#drawList();
    narrow.addEventListener("change", () => {
      this.node.classList.remove("list-open");
      this.#drawList();
    });
    this.sidebar.node.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !narrow.matches) return;
      event.stopPropagation(); // it does not stop the answer too
      this.showList(false);
    });
  }

  /** Show or hide the list. On a narrow page it covers the chat; on a wide one, this browser remembers it. */
  showList(shown) {
    if (narrow.matches) this.node.classList.toggle("list-open", shown);
    else if (shown) localStorage.removeItem(SIDEBAR_HIDDEN);
    else localStorage.setItem(SIDEBAR_HIDDEN, "yes");
    this.#drawList();
    if (shown) this.sidebar.node.focus();
    else this.chat.composer.focus();
  }

  #drawList() {
    const hidden = !narrow.matches && localStorage.getItem(SIDEBAR_HIDDEN) === "yes";
    document.documentElement.classList.toggle("list-hidden", hidden);
    this.sidebar.node.inert = hidden || (narrow.matches && !this.node.classList.contains("list-open"));
  }

  /** The line that one drags, or moves by the arrow keys, to make the list wider. */
  #resizer() {
    const { least, usual, most } = SIDEBAR_PIXELS;
    let width = Number(localStorage.getItem(SIDEBAR_WIDTH)) || usual;
    const resize = (wanted) => {
      width = Math.round(Math.max(least, Math.min(most, wanted)));
      if (width !== usual) localStorage.setItem(SIDEBAR_WIDTH, width);
      else localStorage.removeItem(SIDEBAR_WIDTH);
      document.documentElement.style.setProperty("--wide-sidebar", `${width}px`);
      line.setAttribute("aria-valuenow", width);
    };
    const line = h("div", {
      class: "resizer", role: "separator", tabindex: "0", title: "Drag to resize, double-click to reset",
      "aria-label": "Width of the list", "aria-orientation": "vertical", "aria-valuemin": least, "aria-valuemax": most,
      onpointerdown: (event) => {
        event.preventDefault();
        line.setPointerCapture(event.pointerId);
      },
      onpointermove: (event) => line.hasPointerCapture(event.pointerId) && resize(event.clientX),
      onkeydown: ({ key }) => resize({ ArrowLeft: width - 20, ArrowRight: width + 20, Home: least, End: most }[key] ?? width),
      ondblclick: () => resize(usual),
    });
    resize(width);
    return line;
  }
}

function followAddress() {
  if (!shell || !session.user) return;
  const [, folderId] = /^#\/f\/(\d+)$/.exec(location.hash) ?? [];
  const [, id, messageId, documentId, page, query] = /^#\/c\/(\d+)(?:\/m\/(\d+))?(?:\/d\/(\d+)\/(\d+)\/([^/]*))?$/.exec(location.hash) ?? [];
  shell.list.currentId = id ? Number(id) : null;
  shell.chat.open(id ? Number(id) : null, messageId ? Number(messageId) : null);
  if (documentId) {
    history.replaceState(null, "", `#/c/${id}${messageId ? `/m/${messageId}` : ""}`); // a reload opens the chat only
    showDocument({ id: Number(documentId) }, { page: Number(page), query: new URLSearchParams(`q=${query}`).get("q") }); // decodeURIComponent would throw for an invalid escape
  }
  if (!id) shell.conversation.change({ folder_id: folderId ? Number(folderId) : null });
}

window.addEventListener("hashchange", () => (/^#(setup|invite|reset|login)=/.test(location.hash) ? start() : followAddress()));

function openAccount(anchor) {
  openMenu(anchor, [
    { icon: "gear", label: "Settings", act: () => openSettings("general") },
    { icon: "trash", label: "Bin", act: () => openSettings("bin") },
    { icon: "keys", label: "Keyboard shortcuts", act: openShortcuts },
    { icon: "out", label: "Sign out", act: signOut },
  ]);
}

const openSettings = async (section) => (await import("./settings.js")).openSettings(section);
const openShortcuts = async () => (await import("./shortcuts.js")).openShortcuts();

async function signOut() {
  const { id } = session.user; // null as soon as another request finds that the session has ended
  try {
    await shell.chat.temporary.leave();
    await post("/auth/logout");
  } catch (error) {
    if (error.status !== 401) return toast(error.message);
  }
  forgetDrafts(id);
  session.user = null;
  broadcast("session");
  location.assign("/");
}

// ---- the keyboard; shortcuts.js lists it for the user

function shortcut(event) {
  const { chat, conversation, sidebar } = shell;
  const command = (event.ctrlKey || event.metaKey) && !event.altKey;
  const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
  const key = event.key.toLowerCase();
  if (command && !event.shiftKey && key === "k") {
    return () => {
      shell.showList(true);
      sidebar.search.focus();
    };
  }
  if (command && !event.shiftKey && key === "p" && conversation.id !== null) return () => chat.print(conversation.id);
  if (command && event.shiftKey && key === "o") return () => sidebar.open(null);
  if (command && event.shiftKey && key === "enter") return () => conversation.retry();
  if (command && event.shiftKey && key === "c" && !String(getSelection())) return () => chat.copyLast();
  if (command && !event.shiftKey && key === ".") return () => chat.head.pickModel();
  if (event.altKey && !command && key === "arrowup") return () => sidebar.step(-1);
  if (event.altKey && !command && key === "arrowdown") return () => sidebar.step(1);
  // A held Escape that has closed a menu does not stop the answer too.
  if (key === "escape" && conversation.busy && !event.repeat) return () => conversation.stop();
  if (key === "?" && !isTyping) return openShortcuts;
  return null;
}

document.addEventListener("keydown", (event) => {
  if (!shell?.node.isConnected || event.isComposing || document.querySelector("dialog[open], .menu:popover-open")) return;
  const act = shortcut(event);
  if (!act) return;
  event.preventDefault();
  act();
});

start();
