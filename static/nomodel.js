// What to do while there is no model. The page replaces it as soon as one appears.

import { session } from "./api.js";
import { copyButton } from "./clipboard.js";
import { button, h, styles } from "./dom.js";
import { providers, starting, startServer } from "./models.js";
import { toast } from "./popups.js";

await styles("more.css");

const START_COMMAND = "lms server start";

export function steps() {
  const running = providers.find((provider) => provider.online);
  if (running && !running.models_known) {
    return [h("h2", {}, "Which model?"), h("p", {}, `${running.name} does not list its models. Click “No model” above and type the name of one.`)];
  }
  const list = running
    ? [[h("strong", {}, "Download a model in LM Studio."), " Its Discover tab suggests what fits your computer."]]
    : [
      [h("strong", {}, "Open LM Studio."), " Download a model there if you have none yet."],
      [h("strong", {}, "Start its server:"), " the Developer tab, then Start server. Or in a terminal:",
        h("span", { class: "command" }, h("code", {}, START_COMMAND), copyButton("Copy command", () => START_COMMAND))],
    ];
  list.push(["This page then continues by itself."]);
  return [
    h("h2", {}, running ? "No model yet" : "No model server yet"),
    h("p", {}, running
      ? `${running.name} is running, but has no chat model.`
      : "Fireside talks to the models in LM Studio, whose server is off until you start it."),
    h("ol", {}, list.map((step) => h("li", {}, ...step))),
    startButton(),
    h("p", { class: "looking" }, h("span", { class: "pulse" }), "Looking for a model"),
    h("details", { class: "faint" }, h("summary", {}, "Where Fireside looks"),
      h("ul", {}, providers.map(({ name, online, error }) => h("li", {}, online ? `${name} is running` : error || `${name} does not respond`)))),
  ].filter(Boolean);
}

/** For administrators, if LM Studio is on the computer that runs Fireside. */
function startButton() {
  const provider = session.user.role === "admin" && providers.find(({ can_start }) => can_start);
  const start = () => startServer(provider).catch((error) => toast(error.message));
  return provider && button(starting ? "Starting LM Studio…" : "Start LM Studio's server", start, { class: "primary", disabled: starting });
}
