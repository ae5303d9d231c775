// Settings: the password, and the sessions of the account.

import { get, post, remove, session } from "./api.js";
import { button, h } from "./dom.js";
import { newPasswordField, passwordField } from "./fields.js";
import { timeNode } from "./format.js";
import { action } from "./rows.js";

export async function show(place) {
  const { sessions } = await get("/auth/sessions");
  const current = passwordField("Current password", "current-password");
  const chosen = newPasswordField("New password");
  const result = h("p", { class: "faint", role: "status" });
  const rows = h("ul", { class: "rows" }, sessions.map(sessionRow));
  const onsubmit = async (event) => {
    event.preventDefault();
    try {
      await post("/auth/password", { current_password: current.control.value, new_password: chosen.control.value });
      event.target.reset();
      result.className = "faint";
      result.textContent = "Changed. All other sessions have ended.";
      rows.replaceChildren(...sessions.filter((one) => one.current).map(sessionRow));
    } catch (error) {
      result.className = "error";
      result.textContent = error.message;
    }
  };
  place.append(
    h("h3", {}, "Password"),
    h("form", { class: "stack", onsubmit },
      h("input", { type: "text", autocomplete: "username", value: session.user.username, hidden: true }),
      current.node, chosen.node, h("div", { class: "row" }, h("button", { type: "submit" }, "Change password"), result)),
    h("h3", {}, "Where you are signed in"), rows);
}

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
