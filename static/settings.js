// The settings: how it looks, what new chats begin with, one's own account and data, the bin, the use that was made, and the household.

import { changed, get, patch, post, remove, session } from "./api.js";
import {
  button, confirmed, copyButton, counted, counter, h, icon, iconButton, number, openDialog, parseTime, shortTime, styles, timeNode, toast,
} from "./dom.js";
import { saveAs } from "./sidebar.js";

await styles("more.css");

const SECTIONS = [
  { id: "general", label: "General", show: general },
  { id: "fresh", label: "New chats", show: fresh },
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

async function fresh(place) {
  const [defaults, { answerFields }] = await Promise.all([get("/defaults"), import("./panel.js")]);
  const save = async (fields) => {
    try {
      return Boolean(await patch("/defaults", fields));
    } catch (error) {
      toast(error.message);
      return false;
    }
  };
  place.append(
    h("p", { class: "faint" }, "What each new chat begins with. Those that are there already stay as they are."),
    ...answerFields(defaults, save).nodes);
}

// ---- account

async function account(place) {
  const { sessions } = await get("/auth/sessions");
  const current = passwordField("Current password", "current-password");
  const fresh = passwordField("New password, 12 characters or more", "new-password", 12);
  const told = h("p", { class: "faint", role: "status" });
  const rows = h("ul", { class: "rows" }, sessions.map(sessionRow));
  const onsubmit = async (event) => {
    event.preventDefault();
    try {
      await post("/auth/password", { current_password: current.field.value, new_password: fresh.field.value });
      event.target.reset();
      told.className = "faint";
      told.textContent = "Changed. All other sessions have ended.";
      rows.replaceChildren(...sessions.filter((one) => one.current).map(sessionRow));
    } catch (error) {
      told.className = "error";
      told.textContent = error.message;
    }
  };
  place.append(
    h("h3", {}, "Password"),
    h("form", { class: "stack", onsubmit },
      h("input", { type: "text", autocomplete: "username", value: session.user.username, hidden: true }),
      current.node, fresh.node, h("div", { class: "row" }, h("button", { type: "submit" }, "Change password"), told)),
    h("h3", {}, "Where you are signed in"), rows);
}

function passwordField(label, autocomplete, minlength = null) {
  const id = `field-${counter()}`;
  const field = h("input", { id, type: "password", required: true, autocomplete, minlength, maxlength: "256" });
  return { field, node: h("div", { class: "field" }, h("label", { for: id }, label), field) };
}

function sessionRow({ id, client, last_seen, current }) {
  const row = h("li", {},
    h("span", {}, h("strong", {}, clientName(client)), h("small", {}, current ? "This browser" : ["Last seen ", timeNode(last_seen)])),
    !current && button("End", async ({ currentTarget: pressed }) => {
      pressed.disabled = true;
      try {
        await remove(`/auth/sessions/${id}`);
        row.remove();
      } catch (error) {
        toast(error.message);
        pressed.disabled = false;
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
  const told = h("div", { class: "stack", role: "status" });
  const file = h("input", {
    type: "file", accept: ".json,.zip,application/json,application/zip", multiple: true, hidden: true, "aria-label": "Files to import",
    onchange: async () => {
      opener.disabled = true;
      await importFiles([...file.files], told);
      opener.disabled = false;
      file.value = "";
    },
  });
  const opener = button([icon("upload"), "Import files"], () => file.click());
  place.append(
    h("h3", {}, "Take it with you"),
    h("p", { class: "faint" }, "All your conversations in one zip, as JSON and as Markdown that any editor reads."),
    button([icon("download"), "Export everything"], () => saveAs("/export")),
    h("h3", {}, "Bring it here"),
    h("p", { class: "faint" }, "Exports of ChatGPT, Open WebUI, LM Studio or Fireside. What is here already stays as it is."),
    opener, file, told);
}

/** One after the other; what became of them is told of all together. */
async function importFiles(files, told) {
  const sum = { conversations: 0, messages: 0, unchanged: 0, skipped: [] };
  for (const [index, file] of files.entries()) {
    const place = files.length > 1 ? ` (${index + 1} of ${files.length})` : "";
    told.replaceChildren(h("p", { class: "faint" }, `Importing ${file.name}${place}`), h("progress", { "aria-label": "Importing" }));
    try {
      const result = await importFile(file);
      for (const count of ["conversations", "messages", "unchanged"]) sum[count] += result[count];
      sum.skipped.push(...result.skipped);
    } catch (error) {
      sum.skipped.push({ file: file.name, reason: error.message });
    }
  }
  if (sum.messages || sum.conversations) changed("list");
  told.replaceChildren(...outcome(sum));
  if (!told.isConnected) toast(told.firstChild.textContent); // the person has gone elsewhere meanwhile
}

async function importFile(file) {
  const kind = /\.zip$/i.test(file.name) ? "zip" : "json"; // browsers name the type of a zip in many ways
  const result = await post("/import", new Blob([file], { type: `application/${kind}` }));
  const named = (name) => name.replace(new RegExp(`^upload\\.${kind}\\b`), () => file.name); // the server never learns the name
  return { ...result, skipped: result.skipped.map((one) => ({ ...one, file: named(one.file) })) };
}

function outcome({ conversations, messages, unchanged, skipped }) {
  const some = conversations || messages || unchanged;
  const here = unchanged ? `; ${number(unchanged)} ${unchanged === 1 ? "was" : "were"} here already` : "";
  return [
    some
      ? h("p", {}, `${counted(conversations, "conversation")} and ${counted(messages, "message")} were added${here}.`)
      : h("p", { class: "error" }, skipped.length ? "Nothing was imported." : "Nothing was imported: there is no conversation in it."),
    skipped.length && h("details", { class: "faint", open: !some || skipped.length < 4 },
      h("summary", {}, `Left out: ${number(skipped.length)}`),
      h("ul", {}, skipped.slice(0, 200).map(({ file, reason }) => h("li", {}, `${file}: ${reason}`)))),
  ].filter(Boolean);
}

// ---- bin

async function bin(place) {
  const deleted = await get("/conversations?deleted=true");
  const note = h("p", { class: "faint" }, "What you delete waits here for 30 days.");
  if (!deleted.length) return place.replaceChildren(h("p", { class: "faint" }, `The bin is empty. ${note.textContent}`));
  const gone = ({ id }) => changed("bin", { id });
  const purge = async (one) => {
    await remove(`/conversations/${one.id}?purge=true`);
    gone(one);
    return true;
  };
  const empty = button([icon("trash"), "Empty the bin"], async () => {
    const what = deleted.length === 1 ? "One conversation" : `All ${counted(deleted.length, "conversation")} in it`;
    if (!await confirmed("Empty the bin?", `${what} cannot be brought back after this.`, "Empty it")) return;
    empty.disabled = true;
    try {
      const still = new Set((await get("/conversations?deleted=true")).map(({ id }) => id)); // some may have been restored elsewhere
      for (const one of deleted) await (still.has(one.id) ? purge(one) : gone(one));
    } catch (error) {
      toast(error.message);
    }
    await again(place, bin, empty);
  }, { class: "danger" });
  const act = (request) => async ({ currentTarget: pressed }) => {
    pressed.disabled = true;
    try {
      if (await request()) return await again(place, bin, pressed);
    } catch (error) {
      toast(error.message);
    }
    pressed.disabled = false;
  };
  place.replaceChildren(h("div", { class: "row" }, note, empty), h("ul", { class: "rows" }, deleted.map((one) => h("li", {},
    h("span", {}, h("strong", {}, one.title), h("small", {}, "Deleted ", timeNode(one.deleted_at))),
    iconButton("restore", `Restore ${one.title}`, act(async () => {
      await post(`/conversations/${one.id}/restore`);
      changed("list", { id: one.id });
      gone(one);
      return true;
    })),
    iconButton("trash", `Delete ${one.title} for good`, act(async () =>
      await confirmed("Delete for good?", `“${one.title}” cannot be brought back after this.`, "Delete") && purge(one)))))));
}

// ---- household

async function household(place) {
  const { users } = await get("/admin/users");
  const open = h("ul", { class: "rows" });
  const link = h("div", { class: "stack", role: "status" });
  const role = h("select", { "aria-label": "Role" },
    h("option", { value: "user" }, "as a member"), h("option", { value: "admin" }, "as an administrator"));
  const invite = button([icon("link"), "Make an invite"], async () => {
    invite.disabled = true;
    try {
      link.replaceChildren(...inviteLink(await post("/admin/invites", { role: role.value })));
      await listInvites(open, link);
    } catch (error) {
      toast(error.message);
    }
    invite.disabled = false;
    invite.focus();
  }, { class: "primary" });
  await listInvites(open, link);
  place.replaceChildren(
    h("h3", {}, "Who lives here"),
    h("ul", { class: "rows" }, users.map((user) => userRow(user, place))),
    h("h3", {}, "Invite somebody"),
    h("p", { class: "faint" }, "A link that works once, for a day. Everybody has conversations of their own, which nobody else sees."),
    h("div", { class: "row" }, invite, role), link, open);
}

function userRow(user, place) {
  const self = user.id === session.user.id;
  const change = (fields) => async ({ currentTarget: pressed }) => {
    try {
      await patch(`/admin/users/${user.id}`, fields);
    } catch (error) {
      toast(error.message);
    }
    await again(place, household, pressed);
  };
  const admin = user.role === "admin";
  const active = user.status === "active";
  const badges = [self && "you", admin && "administrator", !active && "disabled"].filter(Boolean);
  return h("li", {},
    h("span", {}, h("strong", {}, user.username, badges.map((badge) => h("span", { class: "badge" }, badge))),
      h("small", {}, user.last_login ? ["Signed in ", timeNode(user.last_login)] : "Has not signed in yet")),
    !self && h("span", { class: "row" },
      userButton(admin ? "Make member" : "Make admin", user, change({ role: admin ? "user" : "admin" })),
      userButton(active ? "Disable" : "Enable", user, change({ status: active ? "disabled" : "active" }))));
}

function userButton(label, { username }, onclick) {
  return button(label, onclick, { class: label === "Disable" ? "danger" : null, "aria-label": `${label} ${username}` });
}

const LOOPBACK = /^(localhost|127\.[\d.]+|\[::1\])$/;

function inviteLink({ id, invite_code, expires_at }) {
  const address = `${location.origin}/#invite=${encodeURIComponent(invite_code)}`;
  return [
    h("div", { class: "command", "data-invite": id }, h("code", {}, address), copyButton("Copy invite link", () => address)),
    h("p", { class: "faint" }, `Shown this once. It works until ${parseTime(expires_at).toLocaleString()}.`),
    LOOPBACK.test(location.hostname) && h("p", { class: "advice" },
      "So far it opens on this computer alone. Other devices need Fireside started with ", h("code", {}, "fireside serve --lan"),
      `; the link then begins with this computer's address in your network, not with ${location.host}.`),
  ].filter(Boolean);
}

/** The open ones. A link goes when it can no longer be used. */
async function listInvites(list, link) {
  const open = (await get("/admin/invites")).invites.filter(({ status }) => status === "open");
  const shown = link.firstElementChild?.dataset.invite;
  if (shown && !open.some(({ id }) => id === Number(shown))) link.replaceChildren();
  list.replaceChildren(...open.map(({ id, role, expires_at }) => h("li", {},
    h("span", {}, h("strong", {}, role === "admin" ? "Invite for an administrator" : "Invite for a member"),
      h("small", {}, `Open until ${shortTime(parseTime(expires_at))}`)),
    button("Revoke", async ({ currentTarget: pressed }) => {
      try {
        await post(`/admin/invites/${id}/revoke`);
      } catch (error) {
        toast(error.message);
      }
      await again(list, () => listInvites(list, link), pressed);
    }))));
}

/** Draws a place anew. The focus stays with the button in its place. */
async function again(place, draw, pressed = document.activeElement) {
  const buttons = () => [...place.querySelectorAll("button")];
  const at = buttons().indexOf(pressed);
  try {
    await draw(place);
  } catch (error) {
    toast(error.message);
  }
  if (at >= 0) (buttons()[Math.min(at, buttons().length - 1)] ?? place.closest("[role=tabpanel]"))?.focus();
}
