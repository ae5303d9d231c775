// The screen for a person who is not signed in: the first account, an invite, a login link, or the sign-in form.

import { post, signIn } from "./api.js";
import { h, styles } from "./dom.js";
import { inputField, newPasswordField, passwordField } from "./fields.js";
import { icon, iconButton } from "./icons.js";

const RESET_COMMAND = 'fireside reset-password --user "NAME"';

await styles("more.css");

/** Show the form for a `kind` of link: "setup", "invite", "reset", "login" or null. Resolves when the person is signed in. */
export function signInScreen(place, kind, secret) {
  return new Promise((resolve) => {
    const done = (answer) => {
      signIn(answer);
      resolve();
    };
    const show = (screen) => place.replaceChildren(h("main", { class: "signin" }, h("div", { class: "card" }, icon("flame"), ...screen)));
    if (kind === "setup") show(firstAccount(secret, done));
    else if (kind === "invite") show(invitedAccount(secret, done));
    else if (kind === "reset") show(newPassword(secret, done));
    else if (kind === "login") post("/auth/link", { token: secret }).then(done, (error) => show(signInForm(done, error.message)));
    else show(signInForm(done));
    place.querySelector("input")?.focus();
  });
}

function firstAccount(token, done) {
  return [
    h("h1", {}, "Welcome to Fireside"),
    h("p", {}, "Choose a name and a password. This first account can invite and manage others."),
    newAccountForm((username, password) => post("/admin/bootstrap", { token, username, password }), done),
  ];
}

function invitedAccount(invite_code, done) {
  return [
    h("h1", {}, "You are invited"),
    h("p", {}, "Choose a name and a password. Other users cannot see your chats."),
    newAccountForm((username, password) => post("/auth/register", { invite_code, username, password }), done),
  ];
}

function newPassword(token, done) {
  const password = newPasswordField("New password");
  return [
    h("h1", {}, "Choose a new password"),
    h("p", {}, "It replaces your old one. All your other sessions end."),
    form("Set password", null, password, () => post("/auth/reset", { token, password: password.control.value }), done),
  ];
}

function signInForm(done, problem = "") {
  const password = passwordField("Password", "current-password");
  return [
    h("h1", {}, "Fireside"),
    form("Sign in", nameField("none"), password, (username, password) => post("/auth/login", { username, password }), done, problem),
    h("p", { class: "faint" }, "First time here? Open the link that Fireside printed in its terminal, or your invite link."),
    h("details", { class: "faint" }, h("summary", {}, "Forgot your password?"),
      h("p", {}, "Ask an administrator for a link to set a new one. They make it in Settings, Users and invites."),
      h("p", {}, "Or run this on the computer that runs Fireside. It asks for a new password:"),
      h("p", { class: "command" }, h("code", {}, RESET_COMMAND))),
  ];
}

const newAccountForm = (send, done) => form("Create account", nameField("words"), newPasswordField("Password"), send, done);

const nameField = (autocapitalize) => inputField("Name", { autocomplete: "username", autocapitalize, spellcheck: "false", maxlength: "64" });

/** `name` is null where the link names the user. */
function form(verb, name, password, send, done, problem = "") {
  const reveal = iconButton("eye", "Show the password", () => {
    const hidden = password.control.type === "password";
    password.control.type = hidden ? "text" : "password";
    reveal.setAttribute("aria-pressed", String(hidden));
  }, { "aria-pressed": "false" });
  const error = h("p", { class: "error", role: "alert" }, problem);
  const submit = h("button", { type: "submit", class: "primary" }, verb);
  const onsubmit = async (event) => {
    event.preventDefault();
    submit.disabled = true;
    error.textContent = "";
    try {
      done(await send(name?.control.value, password.control.value));
    } catch (refusal) {
      error.textContent = refusal.message;
      submit.disabled = false;
      password.control.select();
    }
  };
  return h("form", { onsubmit }, name?.node, h("div", { class: "with-button" }, password.node, reveal), error, submit);
}
