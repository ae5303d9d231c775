// What a new conversation shows in the place of messages.

import { session } from "./api.js";
import { h } from "./dom.js";
import { icon } from "./icons.js";
import { hasModels, modelName, providers } from "./models.js";

let noModel = null; // the module of the screen without a model, once it is needed

/** `choice` is the model that would answer. */
export function welcome(choice) {
  const section = h("section", { class: "welcome" }, icon("flame"));
  if (providers && !hasModels()) {
    if (noModel) section.append(...noModel.steps());
    else {
      import("./nomodel.js").then((module) => {
        noModel = module;
        section.append(...module.steps());
      }, () => {});
    }
  } else {
    const hour = new Date().getHours();
    const greeting = hour < 5 || hour >= 18 ? "Good evening" : hour < 12 ? "Good morning" : "Good afternoon";
    section.append(h("h2", {}, `${greeting}, ${session.user.display_name}`), h("p", {}, readiness(choice)));
  }
  return section;
}

/** Draw the welcome in this column again, but not while a person types an address into it. */
export function redrawWelcome(column, choice) {
  const isTyping = !hasModels() && document.activeElement?.matches(".welcome :is(input, textarea)");
  if (!isTyping) column.querySelector(".welcome")?.replaceWith(welcome(choice));
}

function readiness(choice) {
  if (!choice) return "Looking for a model.";
  if (!choice.provider.online) return `${choice.provider.name} does not respond.`;
  if (choice.model.state === "not-loaded") return `${modelName(choice)} is loaded when you send the first message.`;
  return `${modelName(choice)} is ready.`;
}
