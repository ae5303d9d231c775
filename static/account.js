// Settings: the name, the password, the sessions of the account, and its deletion.

import { get, post, remove, session } from "./api.js";
import { forgetDrafts } from "./composer.js";
import { openForm } from "./dialogs.js";
import { button, download, h } from "./dom.js";
import { broadcast } from "./events.js";
import { inputField, newPasswordField, passwordField } from "./fields.js";
import { counted, timeNode } from "./format.js";
import { icon } from "./icons.js";
import { toast } from "./popups.js";
import { action } from "./rows.js";

export async function show(place) {
  const { sessions } = await get("/auth/sessions");
  const rows = h("ul", { class: "rows" }, sessions.map(sessionRow));
  const endOthers = () => rows.replaceChildren(...sessions.filter((one) => one.current).map(sessionRow));
  const name = h("small", {}, session.user.display_name);
  place.append(
    h("ul", { class: "rows" },
      settingRow("Name", name, "Change name", (opener) => changeName(opener, name)),
      settingRow("Password", h("small", {}, "A new password ends all other sessions."), "Change password", (opener) => changePassword(opener, endOthers)),
      settingRow("Account", h("small", {}, "Deleting it deletes all your chats."), "Delete account", deleteAccount, "danger")),
    h("h3", {}, "Where you are signed in"), rows);
}

function settingRow(title, detail, verb, open, className = null) {
  const pressed = button(verb, action(() => open(pressed)), { class: className, "aria-haspopup": "dialog" });
  return h("li", {}, h("span", {}, h("strong", {}, title), detail), pressed);
}

function changeName(opener, shown) {
  const name = inputField("Name", { autocomplete: "username", spellcheck: "false", maxlength: "64" });
  name.control.value = session.user.display_name;
  openPasswordForm(opener, "Change name", [h("p", { class: "faint" }, "You also sign in with this name. Capital letters make no difference."), name.node], async (current_password) => {
    const { user } = await post("/auth/name", { username: name.control.value, current_password });
    broadcast("account", { user });
    shown.textContent = user.display_name;
    toast(`You are now ${user.display_name}.`);
  });
}

function changePassword(opener, endOthers) {
  const chosen = newPasswordField("New password");
  openPasswordForm(opener, "Change password", [chosen.node], async (current_password) => {
    await post("/auth/password", { current_password, new_password: chosen.control.value });
    endOthers();
    toast("Password changed. All other sessions have ended.");
  });
}

async function deleteAccount(opener) {
  const { conversations, images, daily_backups } = await get("/storage");
  const stored = counted(conversations, "chat") + (images ? ` and ${counted(images, "image")}` : "");
  const days = daily_backups ? `: the daily ones for ${counted(daily_backups, "day")}, others until they are deleted there` : " until they are deleted there";
  openPasswordForm(opener, "Delete account", [
    h("p", {}, `This deletes your account with ${stored}, those in the bin included. You cannot undo it.`),
    h("p", { class: "faint" }, `You are signed out everywhere. Backups on the computer that runs Fireside keep a copy${days}.`),
    button([icon("download"), "Save my chats first"], () => download("/export")),
  ], async (current_password) => {
    const { id } = session.user;
    await post("/auth/delete", { current_password });
    forgetDrafts(id);
    session.user = null;
    broadcast("session");
    location.assign("/");
  }, true);
}

/** Open a dialog that asks for the current password too. */
async function openPasswordForm(opener, verb, nodes, send, danger = false) {
  const current = passwordField("Current password", "current-password");
  const username = h("input", { type: "text", autocomplete: "username", value: session.user.username, hidden: true });
  await openForm(verb, { verb, danger }, [username, ...nodes, current.node], () => send(current.control.value));
  opener.focus();
}

// ---- sessions

function sessionRow({ id, client, last_seen, current }) {
  const row = h("li", {},
    h("span", {}, h("strong", {}, clientName(client)), h("small", {}, current ? "This browser" : ["Last seen ", timeNode(last_seen)])),
    !current && button("End", action(async () => {
      await remove(`/auth/sessions/${id}`);
      row.remove();
    })));
  return row;
}

const BROWSERS = { Edg: "Edge", OPR: "Opera", Firefox: "Firefox", Chrome: "Chrome", Safari: "Safari" };
const SYSTEMS = { iPhone: "iPhone", iPad: "iPad", Android: "Android", Windows: "Windows", "Mac OS": "Mac", Linux: "Linux" };

/** "Firefox on Linux", for a User-Agent header. */
function clientName(client) {
  const find = (names) => Object.entries(names).find(([mark]) => client.includes(mark))?.[1];
  return [find(BROWSERS), find(SYSTEMS)].filter(Boolean).join(" on ") || client || "Unknown";
}
