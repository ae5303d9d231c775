// Form fields with their labels, built as {node, control}.

import { h, uniqueId } from "./dom.js";

/** `after` are further nodes below the control. */
export function field(label, control, { className = "field" } = {}, ...after) {
  control.id = uniqueId("field");
  return { control, node: h("div", { class: className }, h("label", { for: control.id }, label), control, ...after) };
}

export const inputField = (label, attributes) => field(label, h("input", { required: true, ...attributes }));

export const passwordField = (label, autocomplete, minlength = null) =>
  inputField(label, { type: "password", autocomplete, minlength, maxlength: "256" });

export const newPasswordField = (label) => passwordField(`${label}, 12 characters or more`, "new-password", "12");
