// What to do while there is no model. The page goes on as soon as one appears.

import { session } from "./api.js";
import { copyButton } from "./clipboard.js";
import { button, h, styles } from "./dom.js";
import { providers, starting, startServer } from "./models.js";
import { toast } from "./popups.js";
import { serverForm } from "./servers.js";

await styles("more.css");

let form = null; // kept while the screen is drawn again, with what was typed
let connect = null; // the section that contains it

export function steps() {
  const isAdmin = session.user.role === "admin";
  const running = providers.find((provider) => provider.online);
  if (running && !running.models_known) {
    return [h("h2", {}, "Which model?"), h("p", {}, `${running.name} does not list its models. Click “No model” above and type the name of one.`)];
  }
  const looking = h("p", { class: "looking" }, h("span", { class: "pulse" }), "Looking for a model");
  const where = h("details", { class: "faint" }, h("summary", {}, "Where Fireside looks"),
    h("ul", {}, providers.map(({ name, online, error }) => h("li", {}, online ? `${name} is running` : error || `${name} does not respond`))));
  if (!isAdmin) {
    return [
      h("h2", {}, "No model yet"),
      h("p", {}, running ? `${running.name} is running, but has no chat model.` : "No model server is running."),
      h("p", {}, "Ask an administrator to start one. This page continues as soon as there is a model."),
      looking, where,
    ];
  }
  form ??= serverForm(null, () => { form = null; });
  return [
    h("h2", {}, running ? "No model yet" : "Connect a model"),
    h("p", {}, running
      ? `${running.name} is running, but has no chat model.`
      : "Fireside talks to models that run in one of these programs. As soon as there is a model, this page continues by itself."),
    startButton(),
    h("div", { class: "programs" },
      program("LM Studio", [
        ["Download a model under ", h("strong", {}, "Discover"), "."],
        ["Under ", h("strong", {}, "Developer"), ", turn on the server."],
        ["Or, instead of step 2, in a terminal: ", command("lms server start")],
      ]),
      program("Ollama", [
        ["Install it from ollama.com."],
        ["In a terminal: ", command("ollama pull qwen3:4b")],
        ["Connect it at ", address("localhost:11434")],
      ]),
      program("llama.cpp", [
        ["Download a model file, which ends in .gguf."],
        ["In a terminal: ", command("llama-server -m model.gguf")],
        ["Connect it at ", address("localhost:8080")],
      ]),
      program("Inside Fireside", providers.some(({ kind }) => kind === "embedded")
        ? [
          ["The embedded engine is installed."],
          ["Download a model file, which ends in .gguf."],
          ["Put it into LM Studio's models folder."],
        ]
        : [
          ["Stop Fireside, and install it with ", command("pipx inject fireside xllamacpp")],
          ["Put a .gguf file into LM Studio's models folder."],
          ["Start Fireside again."],
        ])),
    connect = h("section", { class: "connect", "aria-label": "Connect a model server", oninput: showForm },
      h("h3", {}, "Another address or computer"), form),
    looking, where,
  ].filter(Boolean);
}

const program = (name, lines) => h("section", { "aria-label": name }, h("h3", {}, name), h("ol", {}, lines.map((line) => h("li", {}, ...line))));

const command = (text) => h("span", { class: "command" }, h("code", {}, text), copyButton("Copy command", () => text));

const address = (text) => button(text, () => {
    form.fill(text);
    showForm();
  }, { class: "address", title: `Test ${text}` });

/** The result of the test appears below the address. */
function showForm() {
  connect.scrollIntoView({ block: "nearest" });
}

/** If LM Studio is on the computer that runs Fireside. */
function startButton() {
  const provider = providers.find(({ can_start }) => can_start);
  const start = () => startServer(provider).catch((error) => toast(error.message));
  return provider && button(starting ? "Starting LM Studio…" : "Start LM Studio's server", start, { class: "primary", disabled: starting });
}
