// Settings: how the page looks and behaves in this browser.

import { get } from "./api.js";
import { h } from "./dom.js";
import { notifications } from "./notice.js";

export async function show(place, { theme }) {
  const { version } = await get("/version");
  const choice = (value, label) => h("label", {}, h("input", {
    type: "radio", name: "theme", value, checked: theme.current === value, onchange: () => { theme.current = value; },
  }), label);
  const refused = h("p", { class: "faint", role: "status" });
  const notify = h("input", { type: "checkbox", checked: notifications.wanted, onchange: async () => {
    notify.checked = await notifications.want(notify.checked);
    refused.textContent = notify.checked || Notification.permission !== "denied" ? "" : "This browser refuses. Allow notifications for this page in its settings.";
  } });
  place.append(
    h("fieldset", { class: "choices" }, h("legend", {}, "Theme"),
      choice("system", "System"), choice("light", "Light"), choice("dark", "Dark")),
    h("fieldset", { class: "choices", hidden: !notifications.available }, h("legend", {}, "When an answer is finished"),
      h("label", {}, notify, "Notify me while this tab is hidden")),
    refused,
    h("p", { class: "faint" }, `Fireside ${version}. This page connects only to Fireside.`));
}
