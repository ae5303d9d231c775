// The settings dialog: a tab for each section. A section is a module with `show(place, {theme})`.

import { get, Latest, patch, session } from "./api.js";
import { openDialog } from "./dialogs.js";
import { button, h, uniqueId } from "./dom.js";
import { notifications } from "./notice.js";
import { toast } from "./popups.js";

const SECTIONS = [
  { id: "general", label: "General", load: () => ({ show: showGeneral }) },
  { id: "defaults", label: "Defaults for new chats", load: () => ({ show: showDefaults }) },
  { id: "account", label: "Account", load: () => import("./account.js") },
  { id: "data", label: "Your data", load: () => import("./data.js") },
  { id: "bin", label: "Bin", load: () => import("./bin.js") },
  { id: "usage", label: "Usage", load: () => import("./usage.js") },
  { id: "household", label: "Users and invites", load: () => import("./household.js"), admin: true },
];

/** Open the dialog at a section. `context` has the page's `theme`. */
export function openSettings(firstId, context) {
  const body = h("div", { class: "settings-body", role: "tabpanel", tabindex: "0", id: uniqueId("settings") });
  const selections = new Latest();
  const select = async (section) => {
    const selection = selections.begin();
    for (const tab of tabs) {
      const selected = tab.dataset.section === section.id;
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      if (selected) body.setAttribute("aria-labelledby", tab.id);
    }
    const place = h("div", { class: "section" });
    try {
      const { show } = await section.load();
      await show(place, context);
    } catch (error) {
      place.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
    }
    if (selection.isNewest()) body.replaceChildren(place);
  };
  const sections = SECTIONS.filter(({ admin }) => !admin || session.user.role === "admin");
  const tabs = sections.map((section) => button(section.label, () => select(section), {
    role: "tab", id: uniqueId("tab"), "data-section": section.id, "aria-controls": body.id,
  }));
  const onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  };
  const list = h("div", { role: "tablist", "aria-label": "Sections", "aria-orientation": "vertical", onkeydown }, tabs);
  openDialog("Settings", { className: "settings" }, h("div", { class: "settings-grid" }, list, body));
  select(sections.find(({ id }) => id === firstId));
}

async function showGeneral(place, { theme }) {
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

async function showDefaults(place) {
  const [defaults, { answerFields }] = await Promise.all([get("/defaults"), import("./panel.js")]);
  const save = async (fields) => {
    try {
      return Boolean(await patch("/defaults", fields));
    } catch (error) {
      toast(error.message);
      return false;
    }
  };
  place.append(h("p", { class: "faint" }, "New chats begin with these. Existing chats do not change."), ...answerFields(defaults, save).nodes);
}
