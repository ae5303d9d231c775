// Who is not signed in sees this: the first account, an invite, a login link, or the form.

import { post, signIn } from "./api.js";
import { counter, h, icon, iconButton, styles } from "./dom.js";

await styles("more.css");

/** Shows the form that `kind` ("setup", "invite", "login" or null) asks for. Resolves when somebody is signed in. */
export function signInScreen(place, kind, secret) {
  return new Promise((resolve) => {
    const done = (answer) => {
      signIn(answer);
      resolve();
    };
    const show = (screen) => place.replaceChildren(h("main", { class: "door" }, h("div", { class: "card" }, icon("flame"), ...screen)));
    if (kind === "setup") show(setUp(secret, done));
    else if (kind === "invite") show(joinIn(secret, done));
    else if (kind === "login") redeem(secret, done).catch((error) => show(logIn(done, error.message)));
    else show(logIn(done));
    place.querySelector("input")?.focus();
  });
}

function setUp(token, done) {
  return [
    h("h1", {}, "Welcome to Fireside"),
    h("p", {}, "Choose a name and a password. This first account looks after the others, if there will be any."),
    form("Create account", true, (name, password) => post("/admin/bootstrap", { token, username: name, password }), done),
  ];
}

function joinIn(code, done) {
  return [
    h("h1", {}, "You are invited"),
    h("p", {}, "Choose a name and a password. Nobody else sees your conversations."),
    form("Create account", true, (name, password) => post("/auth/register", { invite_code: code, username: name, password }), done),
  ];
}

function logIn(done, problem = "") {
  return [
    h("h1", {}, "Fireside"),
    form("Sign in", false, (name, password) => post("/auth/login", { username: name, password }), done, problem),
    h("p", { class: "faint" }, "First time here? Open the link that Fireside printed in its terminal, or the one you were invited with."),
  ];
}

async function redeem(token, done) {
  done(await post("/auth/link", { token }));
}

function form(verb, isNew, send, done, problem = "") {
  const name = input("Name", { autocomplete: "username", autocapitalize: "none", spellcheck: "false", maxlength: "64" });
  const password = input(isNew ? "Password, 12 characters or more" : "Password", {
    type: "password", autocomplete: isNew ? "new-password" : "current-password", minlength: isNew ? "12" : null, maxlength: "256",
  });
  const reveal = iconButton("eye", "Show the password", () => {
    const hidden = password.field.type === "password";
    password.field.type = hidden ? "text" : "password";
    reveal.setAttribute("aria-pressed", String(hidden));
  }, { "aria-pressed": "false" });
  const error = h("p", { class: "error", role: "alert" }, problem);
  const button = h("button", { type: "submit", class: "primary" }, verb);
  const onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    error.textContent = "";
    try {
      done(await send(name.field.value.trim(), password.field.value));
    } catch (refusal) {
      error.textContent = refusal.retryAfter ? `${refusal.message} Wait ${refusal.retryAfter} s.` : refusal.message;
      button.disabled = false;
      password.field.select();
    }
  };
  return h("form", { onsubmit }, name.node, h("div", { class: "with-button" }, password.node, reveal), error, button);
}

function input(label, attributes) {
  const id = `field-${counter()}`;
  const field = h("input", { id, required: true, ...attributes });
  return { field, node: h("div", { class: "field" }, h("label", { for: id }, label), field) };
}
