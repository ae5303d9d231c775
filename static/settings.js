// The settings dialog: a tab for each section.

import { Latest, session } from "./api.js";
import { openDialog } from "./dialogs.js";
import { button, h, uniqueId } from "./dom.js";
import { icon } from "./icons.js";

// In this order. `load` resolves to a module with `show(place)`.
const SECTIONS = [
  { id: "general", label: "General", icon: "gear", load: () => import("./general.js") },
  { id: "prompts", label: "Prompts", icon: "bookmark", load: () => import("./prompts.js") },
  { id: "presets", label: "Presets", icon: "sliders", load: () => import("./presets.js") },
  { id: "account", label: "Account", icon: "person", load: () => import("./account.js") },
  { id: "tokens", label: "Other programs", icon: "key", load: () => import("./tokens.js") },
  { id: "data", label: "Your data", icon: "download", load: () => import("./data.js") },
  { id: "bin", label: "Bin", icon: "trash", load: () => import("./bin.js") },
  { id: "usage", label: "Usage", icon: "chart", load: () => import("./usage.js") },
  { id: "servers", label: "Model servers", icon: "server", load: () => import("./servers.js"), admin: true },
  { id: "household", label: "Users and invites", icon: "people", load: () => import("./household.js"), admin: true },
];

/** Open the dialog at a section. */
export function openSettings(firstId) {
  const body = h("div", { class: "settings-body", role: "tabpanel", tabindex: "0", id: uniqueId("settings") });
  const selections = new Latest();
  const select = async (section) => {
    const selection = selections.begin();
    for (const tab of tabs) {
      const selected = tab.dataset.section === section.id;
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      if (!selected) continue;
      body.setAttribute("aria-labelledby", tab.id);
      tab.scrollIntoView({ block: "nearest", inline: "center" });
    }
    const place = h("div", { class: "section" });
    try {
      const { show } = await section.load();
      await show(place);
    } catch (error) {
      place.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
    }
    if (selection.isNewest()) body.replaceChildren(place);
  };
  const sections = SECTIONS.filter(({ admin }) => !admin || session.user.role === "admin");
  const tabs = sections.map((section) => button([icon(section.icon), section.label], () => select(section), {
    role: "tab", id: uniqueId("tab"), "data-section": section.id, "aria-controls": body.id,
  }));
  const onkeydown = (event) => {
    const at = tabs.indexOf(document.activeElement);
    const { length } = tabs;
    const next = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const tab = tabs[(next + length) % length];
    tab.focus();
    tab.click();
  };
  // On a narrow page the tabs are a row, which fades out where it can be scrolled.
  const fade = () => {
    const right = list.scrollWidth - list.clientWidth - list.scrollLeft;
    list.classList.toggle("more-left", list.scrollLeft > 1);
    list.classList.toggle("more-right", right > 1);
  };
  const list = h("div", { role: "tablist", onscroll: fade, "aria-label": "Sections", "aria-orientation": "vertical", onkeydown }, tabs);
  openDialog("Settings", { className: "settings" }, h("div", { class: "settings-grid" }, list, body));
  select(sections.find(({ id }) => id === firstId));
  fade();
}
