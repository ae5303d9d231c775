// What a new conversation shows in the place of messages.

import { session } from "./api.js";
import { h } from "./dom.js";
import { icon } from "./icons.js";
import { chosenModel, hasModels, modelName, providers } from "./models.js";

export function welcome() {
  const section = h("section", { class: "welcome" }, icon("flame"));
  if (providers && !hasModels()) {
    import("./nomodel.js").then(({ steps }) => section.append(...steps()), () => {});
  } else {
    const hour = new Date().getHours();
    const greeting = hour < 5 || hour >= 18 ? "Good evening" : hour < 12 ? "Good morning" : "Good afternoon";
    section.append(h("h2", {}, `${greeting}, ${session.user.username}`), h("p", {}, readiness(chosenModel(null))));
  }
  return section;
}

function readiness(choice) {
  if (!choice) return "Looking for a model.";
  if (!choice.provider.online) return `${choice.provider.name} does not respond.`;
  if (choice.model.state === "not-loaded") return `${modelName(choice)} is loaded when you send the first message.`;
  return `${modelName(choice)} is ready.`;
}
