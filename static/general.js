// Settings: how the page looks and behaves in this browser.

import { get } from "./api.js";
import { h } from "./dom.js";
import { notifications } from "./notice.js";
import { preferences } from "./preferences.js";
import { modifier } from "./sidebar.js";

export async function show(place) {
  const { version } = await get("/version");
  const refused = h("p", { class: "faint", role: "status" });
  const notify = h("input", { type: "checkbox", checked: notifications.wanted, onchange: async () => {
    notify.checked = await notifications.want(notify.checked);
    refused.textContent = notify.checked || Notification.permission !== "denied" ? "" : "This browser blocks notifications. Allow them for this page in the browser's settings.";
  } });
  place.append(
    choices("theme", "Theme", { system: "System", light: "Light", dark: "Dark" }),
    choices("textSize", "Text size", { small: "Small", medium: "Medium", large: "Large", largest: "Largest" }),
    choices("sendKey", "Send a message with", { enter: "Enter", "ctrl-enter": `${modifier} Enter` }),
    h("fieldset", { class: "choices", hidden: !notifications.available }, h("legend", {}, "When an answer is finished"),
      h("label", {}, notify, "Notify me while this tab is hidden")),
    refused,
    h("p", { class: "faint" }, `Fireside ${version}. This page connects only to Fireside. The settings on this page are stored in this browser.`));
}

function choices(name, legend, labels) {
  return h("fieldset", { class: "choices" }, h("legend", {}, legend), Object.entries(labels).map(([value, label]) => h("label", {}, h("input", {
    type: "radio", name, value, checked: preferences[name] === value, onchange: () => { preferences[name] = value; },
  }), label)));
}
