// The settings: how it looks, one's own account and data, the bin, the use that was made, and the household.

import { changed, get, patch, post, remove, session } from "./api.js";
import {
  button, confirmed, copyButton, counter, h, icon, iconButton, number, openDialog, parseTime, shortTime, styles, timeNode, toast,
} from "./dom.js";
import { saveAs } from "./sidebar.js";

await styles("more.css");

const SECTIONS = [
  { id: "general", label: "General", show: general },
  { id: "account", label: "Account", show: account },
  { id: "data", label: "Your data", show: data },
  { id: "bin", label: "Bin", show: bin },
  { id: "usage", label: "Usage", show: async (place) => (await import("./usage.js")).showUsage(place) },
  { id: "household", label: "Household", show: household, admin: true },
];

/** Opens the dialog at one of its sections. `context` has the page's `theme`. */
export function openSettings(first, context) {
  const body = h("div", { class: "settings-body", role: "tabpanel", tabindex: "0", id: `settings-${counter()}` });
  let turn = 0;
  const select = async (section) => {
    const mine = ++turn;
    for (const tab of tabs) {
      const here = tab.dataset.section === section.id;
      tab.setAttribute("aria-selected", String(here));
      tab.tabIndex = here ? 0 : -1;
      if (here) body.setAttribute("aria-labelledby", tab.id);
    }
    const place = h("div", { class: "section" });
    try {
      await section.show(place, context);
    } catch (error) {
      place.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
    }
    if (mine === turn) body.replaceChildren(place);
  };
  const sections = SECTIONS.filter(({ admin }) => !admin || session.user.role === "admin");
  const tabs = sections.map((section) => button(section.label, () => select(section), {
    role: "tab", id: `tab-${counter()}`, "data-section": section.id, "aria-controls": body.id,
  }));
  const move = (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  };
  const list = h("div", { role: "tablist", "aria-label": "Sections", "aria-orientation": "vertical", onkeydown: move }, tabs);
  openDialog("Settings", { className: "settings" }, h("div", { class: "settings-grid" }, list, body));
  select(sections.find(({ id }) => id === first));
}

async function general(place, { theme }) {
  const { version } = await get("/version");
  const choose = (event) => { theme.current = event.target.value; };
  const choice = (value, label) => h("label", {},
    h("input", { type: "radio", name: "theme", value, checked: theme.current === value, onchange: choose }), label);
  place.append(
    h("fieldset", { class: "choices" }, h("legend", {}, "Theme"),
      choice("system", "As the system"), choice("light", "Light"), choice("dark", "Dark")),
    h("p", { class: "faint" }, `Fireside ${version}. Nothing on this page is asked of any other server than this one.`));
}

// ---- account

async function account(place) {
  const { sessions } = await get("/auth/sessions");
  const current = passwordField("Current password", "current-password");
  const fresh = passwordField("New password, 12 characters or more", "new-password", 12);
  const told = h("p", { class: "faint", role: "status" });
  const onsubmit = async (event) => {
    event.preventDefault();
    try {
      await post("/auth/password", { current_password: current.field.value, new_password: fresh.field.value });
      event.target.reset();
      told.textContent = "Changed. All other sessions have ended.";
    } catch (error) {
      told.textContent = error.message;
    }
  };
  place.append(
    h("h3", {}, "Password"),
    h("form", { class: "stack", onsubmit },
      h("input", { type: "text", autocomplete: "username", value: session.user.username, hidden: true }),
      current.node, fresh.node, h("div", { class: "row" }, h("button", { type: "submit" }, "Change password"), told)),
    h("h3", {}, "Where you are signed in"),
    h("ul", { class: "rows" }, sessions.map(sessionRow)));
}

function passwordField(label, autocomplete, minlength = null) {
  const id = `field-${counter()}`;
  const field = h("input", { id, type: "password", required: true, autocomplete, minlength, maxlength: "256" });
  return { field, node: h("div", { class: "field" }, h("label", { for: id }, label), field) };
}

function sessionRow({ id, client, last_seen, current }) {
  const row = h("li", {},
    h("span", {}, h("strong", {}, clientName(client)), h("small", {}, current ? "This browser" : ["Last seen ", timeNode(last_seen)])),
    !current && button("End", async () => {
      try {
        await remove(`/auth/sessions/${id}`);
        row.remove();
      } catch (error) {
        toast(error.message);
      }
    }));
  return row;
}

const BROWSERS = { Edg: "Edge", OPR: "Opera", Firefox: "Firefox", Chrome: "Chrome", Safari: "Safari" };
const SYSTEMS = { iPhone: "iPhone", iPad: "iPad", Android: "Android", Windows: "Windows", "Mac OS": "Mac", Linux: "Linux" };

function clientName(client) {
  const known = (names) => Object.entries(names).find(([mark]) => client.includes(mark))?.[1];
  return [known(BROWSERS), known(SYSTEMS)].filter(Boolean).join(" on ") || client || "Unknown";
}

// ---- data

function data(place) {
  const told = h("div", { role: "status" });
  const file = h("input", {
    type: "file", accept: ".json,.zip,application/json,application/zip", hidden: true, "aria-label": "File to import",
    onchange: () => importFile(file, opener, told),
  });
  const opener = button([icon("upload"), "Import a file"], () => file.click());
  place.append(
    h("h3", {}, "Take it with you"),
    h("p", { class: "faint" }, "All your conversations in one zip, as JSON and as Markdown that any editor reads."),
    button([icon("download"), "Export everything"], () => saveAs("/export")),
    h("h3", {}, "Bring it here"),
    h("p", { class: "faint" }, "An export of ChatGPT, Open WebUI, LM Studio or Fireside. What is here already stays as it is."),
    opener, file, told);
}

async function importFile(file, opener, told) {
  const [chosen] = file.files;
  if (!chosen) return;
  opener.disabled = true;
  told.replaceChildren(h("p", { class: "faint" }, "Importing"), h("progress", { "aria-label": "Importing" }));
  try {
    const type = /\.zip$/i.test(chosen.name) ? "application/zip" : "application/json"; // browsers name a zip in many ways
    const result = await post("/import", new Blob([chosen], { type }));
    const [conversations, messages, unchanged] = [result.conversations, result.messages, result.unchanged].map((count) => number(count));
    told.replaceChildren(
      h("p", {}, `${conversations} conversations and ${messages} messages were added; ${unchanged} were here already.`),
      result.skipped.length > 0 && h("details", { class: "faint" }, h("summary", {}, `${number(result.skipped.length)} were left out`),
        h("ul", {}, result.skipped.slice(0, 200).map(({ file: name, reason }) => h("li", {}, `${name}: ${reason}`)))) || "");
    changed("list");
  } catch (error) {
    told.replaceChildren(h("p", { class: "error" }, error.message));
  }
  opener.disabled = false;
  file.value = "";
}

// ---- bin

async function bin(place) {
  const deleted = await get("/conversations?deleted=true");
  if (!deleted.length) return place.append(h("p", { class: "faint" }, "The bin is empty. What you delete waits here for 30 days."));
  const list = h("ul", { class: "rows" }, deleted.map(({ id, title, deleted_at }) => {
    const act = (request) => async () => {
      try {
        if (await request() === false) return;
        row.remove();
        changed("list", { id });
      } catch (error) {
        toast(error.message);
      }
    };
    const row = h("li", {},
      h("span", {}, h("strong", {}, title), h("small", {}, "Deleted ", timeNode(deleted_at))),
      iconButton("restore", `Restore ${title}`, act(() => post(`/conversations/${id}/restore`))),
      iconButton("trash", `Delete ${title} for good`, act(async () => {
        if (!await confirmed("Delete for good?", `“${title}” cannot be brought back after this.`, "Delete")) return false;
        return remove(`/conversations/${id}?purge=true`);
      })));
    return row;
  }));
  place.append(h("p", { class: "faint" }, "What you delete waits here for 30 days."), list);
}

// ---- household

async function household(place) {
  const [{ users }, { invites }] = await Promise.all([get("/admin/users"), get("/admin/invites")]);
  const again = () => household(place);
  const open = invites.filter(({ status }) => status === "open");
  const link = h("div", { role: "status" });
  const role = h("select", { "aria-label": "Role" },
    h("option", { value: "user" }, "as a member"), h("option", { value: "admin" }, "as an administrator"));
  const invite = button([icon("link"), "Make an invite"], () => makeInvite(role.value, link), { class: "primary" });
  place.replaceChildren(
    h("h3", {}, "Who lives here"),
    h("ul", { class: "rows" }, users.map((user) => userRow(user, again))),
    h("h3", {}, "Invite somebody"),
    h("p", { class: "faint" }, "A link that works once, for a day. Everybody has conversations of their own, which nobody else sees."),
    h("div", { class: "row" }, invite, role), link,
    h("ul", { class: "rows" }, open.map((one) => inviteRow(one, again))));
}

function userRow(user, again) {
  const self = user.id === session.user.id;
  const change = (fields) => async () => {
    try {
      await patch(`/admin/users/${user.id}`, fields);
    } catch (error) {
      toast(error.message);
    }
    await again();
  };
  const admin = user.role === "admin";
  const active = user.status === "active";
  const badges = [self && "you", admin && "administrator", !active && "disabled"].filter(Boolean);
  return h("li", {},
    h("span", {}, h("strong", {}, user.username, badges.map((badge) => h("span", { class: "badge" }, badge))),
      h("small", {}, user.last_login ? ["Signed in ", timeNode(user.last_login)] : "Has not signed in yet")),
    !self && userButton(admin ? "Make member" : "Make admin", user, change({ role: admin ? "user" : "admin" })),
    !self && userButton(active ? "Disable" : "Enable", user, change({ status: active ? "disabled" : "active" })));
}

function userButton(label, { username }, onclick) {
  return button(label, onclick, { class: label === "Disable" ? "danger" : null, "aria-label": `${label} ${username}` });
}

async function makeInvite(role, place) {
  try {
    const { invite_code, expires_at } = await post("/admin/invites", { role });
    const address = `${location.origin}/#invite=${encodeURIComponent(invite_code)}`;
    const alone = ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
    place.replaceChildren(
      h("div", { class: "command" }, h("code", {}, address), copyButton("Copy invite link", () => address)),
      h("p", { class: "faint" }, `Shown this once. It works until ${parseTime(expires_at).toLocaleString()}.`,
        alone && " On another device, put this computer's address in your network in the place of the first part."));
  } catch (error) {
    place.replaceChildren(h("p", { class: "error" }, error.message));
  }
}

function inviteRow({ id, role, expires_at }, again) {
  const revoke = async () => {
    try {
      await post(`/admin/invites/${id}/revoke`);
    } catch (error) {
      toast(error.message);
    }
    await again();
  };
  return h("li", {},
    h("span", {}, h("strong", {}, role === "admin" ? "Invite for an administrator" : "Invite for a member"),
      h("small", {}, `Open until ${shortTime(parseTime(expires_at))}`)),
    button("Revoke", revoke));
}
