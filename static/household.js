// Settings for administrators: the users, and invites for new ones.

import { get, patch, post, session } from "./api.js";
import { copyButton } from "./clipboard.js";
import { button, h } from "./dom.js";
import { parseTime, shortTime, timeNode } from "./format.js";
import { icon } from "./icons.js";
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
  const isAdmin = user.role === "admin";
  const isActive = user.status === "active";
  const badges = [isSelf && "you", isAdmin && "administrator", !isActive && "disabled"].filter(Boolean);
  const change = (label, fields) => button(label, action(() => patch(`/admin/users/${user.id}`, fields), { place, draw: show }), {
    class: label === "Disable" ? "danger" : null, "aria-label": `${label} ${user.username}`,
  });
  return h("li", {},
    h("span", {}, h("strong", {}, user.username, badges.map((badge) => h("span", { class: "badge" }, badge))),
      h("small", {}, user.last_login ? ["Signed in ", timeNode(user.last_login)] : "Has not signed in yet")),
    !isSelf && h("span", { class: "row" },
      isAdmin ? change("Make member", { role: "user" }) : change("Make admin", { role: "admin" }),
      isActive ? change("Disable", { status: "disabled" }) : change("Enable", { status: "active" })));
}

const LOOPBACK = /^(localhost|127\.[\d.]+|\[::1\])$/;

function inviteLink({ id, invite_code, expires_at }) {
  const address = `${location.origin}/#invite=${encodeURIComponent(invite_code)}`;
  return [
    h("div", { class: "command", "data-invite": id }, h("code", {}, address), copyButton("Copy invite link", () => address)),
    h("p", { class: "faint" }, `The link is shown only now. It works until ${parseTime(expires_at).toLocaleString()}.`),
    LOOPBACK.test(location.hostname) && h("p", { class: "advice" },
      "Only this computer can connect. For other devices, start Fireside with ", h("code", {}, "fireside serve --lan"),
      `. The link then begins with this computer's address in your network instead of ${location.host}.`),
  ].filter(Boolean);
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
