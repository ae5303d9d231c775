// Settings for administrators: the users, and invites for new ones.

import { get, patch, post, remove, session } from "./api.js";
import { copyButton } from "./clipboard.js";
import { confirm, openDialog } from "./dialogs.js";
import { button, h } from "./dom.js";
import { fileSize, parseTime, shortTime, timeNode } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { openMenu } from "./popups.js";
import { action } from "./rows.js";

export async function show(place) {
  const { users } = await get("/admin/users");
  const invites = h("ul", { class: "rows" });
  const link = h("div", { class: "stack", role: "status" });
  const role = h("select", { "aria-label": "Role" },
    h("option", { value: "user" }, "as a member"), h("option", { value: "admin" }, "as an administrator"));
  const invite = async ({ currentTarget: pressed }) => {
    await action(async () => link.replaceChildren(...inviteLink(await post("/admin/invites", { role: role.value }))), {
      place: invites, draw: () => listInvites(invites, link),
    })({ currentTarget: pressed });
    pressed.focus();
  };
  await listInvites(invites, link);
  place.replaceChildren(
    h("h3", {}, "Users"),
    h("ul", { class: "rows" }, users.map((user) => userRow(user, place))),
    h("h3", {}, "Invite a person"),
    h("p", { class: "faint" }, "An invite link works once, within a day. Each user sees only their own chats."),
    h("div", { class: "row" }, button([icon("link"), "Make an invite"], invite, { class: "primary" }), role), link, invites);
}

function userRow(user, place) {
  const isSelf = user.id === session.user.id;
  const badges = [isSelf && "you", user.role === "admin" && "administrator", user.status === "disabled" && "disabled"].filter(Boolean);
  const more = iconButton("more", `Change ${user.display_name}`, () => openMenu(more, userActions(user, place, more)), { "aria-haspopup": "menu" });
  return h("li", {},
    h("span", {}, h("strong", {}, user.display_name, badges.map((badge) => h("span", { class: "badge" }, badge))),
      h("small", {}, user.last_login ? ["Signed in ", timeNode(user.last_login)] : "Has not signed in yet", ` · ${size(user)}`)),
    !isSelf && more);
}

const size = ({ stored_bytes }) => (stored_bytes ? fileSize(Math.max(stored_bytes, 1000)) : "nothing stored");

function userActions(user, place, more) {
  const { id, display_name: name, role, status } = user;
  const item = (icon, label, act, ask, danger = false) => ({
    icon, label, danger, act: () => action(act, { place, draw: show, ask })({ currentTarget: more }),
  });
  const change = (fields) => () => patch(`/admin/users/${id}`, fields);
  const explanation = `The account and its chats (${size(user)}) are deleted for good. You cannot save the chats, because only ${name} can read them. `
    + `Ask ${name} to save them first, in Settings, Your data. Backups keep them until they are deleted.`;
  return [
    role === "admin" ? item("person", "Make member", change({ role: "user" })) : item("people", "Make administrator", change({ role: "admin" })),
    status === "active" && { icon: "link", label: "Reset password", act: () => action(() => openResetLink(user, more))({ currentTarget: more }) },
    status === "active" ? item("stop", "Disable", change({ status: "disabled" })) : item("check", "Enable", change({ status: "active" })),
    item("trash", "Delete", () => remove(`/admin/users/${id}`), () => confirm(`Delete ${name}?`, explanation, "Delete user"), true),
  ].filter(Boolean);
}

async function openResetLink({ id, display_name }, opener) {
  const { token, expires_at } = await post(`/admin/users/${id}/reset-link`);
  openDialog(`Reset the password of ${display_name}`, { className: "small", onclose: () => opener.focus() }, h("div", { class: "stack section" },
    h("p", {}, `Send this link to ${display_name}. It sets a new password once, ends the old password and all sessions, and signs in.`),
    linkToCopy(`reset=${token}`, "Copy reset link", expires_at)));
}

const LOOPBACK = /^(localhost|127\.[\d.]+|\[::1\])$/;

/** A link of this page with a secret, which is shown once. */
function linkToCopy(secret, label, expires_at) {
  const address = `${location.origin}/#${secret}`;
  return [
    h("div", { class: "command" }, h("code", {}, address), copyButton(label, () => address)),
    h("p", { class: "faint" }, `The link is shown only now. It works until ${parseTime(expires_at).toLocaleString()}.`),
    LOOPBACK.test(location.hostname) && h("p", { class: "advice" },
      "Only this computer can connect. For other devices, start Fireside with ", h("code", {}, "fireside serve --lan"),
      `. The link then begins with this computer's address in your network instead of ${location.host}.`),
  ].filter(Boolean);
}

function inviteLink({ id, invite_code, expires_at }) {
  const nodes = linkToCopy(`invite=${encodeURIComponent(invite_code)}`, "Copy invite link", expires_at);
  nodes[0].dataset.invite = id;
  return nodes;
}

/** List the open invites. A link that is shown is removed when its invite is no longer open. */
async function listInvites(list, link) {
  const open = (await get("/admin/invites")).invites.filter(({ status }) => status === "open");
  const shown = link.firstElementChild?.dataset.invite;
  if (shown && !open.some(({ id }) => id === Number(shown))) link.replaceChildren();
  const draw = () => listInvites(list, link);
  list.replaceChildren(...open.map(({ id, role, expires_at }) => h("li", {},
    h("span", {}, h("strong", {}, role === "admin" ? "Invite for an administrator" : "Invite for a member"),
      h("small", {}, `Open until ${shortTime(parseTime(expires_at))}`)),
    button("Revoke", action(() => post(`/admin/invites/${id}/revoke`), { place: list, draw })))));
}
