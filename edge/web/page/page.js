// The page: models, panels, dialogs and keys of the keyboard.

import { askForKey, errorView, getJson, key } from "./api.js";
import { Chat } from "./chat.js";
import { $, button, dialog, h } from "./dom.js";
import { embeddings } from "./embeddings.js";
import { images } from "./images.js";
import { code } from "./markdown.js";
import { LANGUAGES, snippet } from "./snippets.js";

// The sections of the page, with the capability of the models that they are for.
const KINDS = { chat: "chat", images: "image", embeddings: "embedding" };
const isNarrow = () => innerWidth <= 900;

class Page {
  constructor() {
    this.models = [];
    this.chat = new Chat(this);
    this.runners = [this.chat.runner, images(this), embeddings(this)];
    for (const kind in KINDS) $(`#open-${kind}`).onclick = () => this.open(kind);
    for (const panel of ["side", "settings"]) {
      $(`#show-${panel}`).onclick = () => this.toggle(panel);
      this.toggle(panel, innerWidth > { side: 900, settings: 1200 }[panel]);
    }
    $("#change-key").onclick = async () => {
      if (await askForKey("The key is kept for this tab only.")) location.reload();
    };
    document.onkeydown = (event) => this.pressed(event);
    this.start();
  }

  async start() {
    try {
      this.models = (await getJson("v1/models")).data;
      // The models themselves first, their other names after them.
      this.models.sort((a, b) => (a.id !== a.root) - (b.id !== b.root));
      this.chat.parameters.describe(await getJson("openapi.json"));
    } catch (error) {
      $("#fault").replaceChildren(errorView(error));
      return;
    }
    const offered = Object.keys(KINDS).filter((kind) => {
      const ids = this.models.map(({ id }) => id).filter((id) => this.can(id, KINDS[kind]));
      for (const select of document.querySelectorAll(`#${kind} .model`)) select.replaceChildren(...ids.map((id) => h("option", id)));
      $(`#open-${kind}`).disabled = !ids.length;
      return ids.length;
    });
    $("[name=size]").placeholder = this.models.find((model) => model.native_size)?.native_size ?? "default";
    this.chat.modelsChanged();
    const asked = location.hash.slice(1);
    if (offered.length) this.open(offered.includes(asked) ? asked : offered[0]);
    else $("#fault").textContent = "No model is served yet. Reload the page once one is loaded.";
  }

  can(id, capability) {
    return this.models.some((model) => model.id === id && model.capabilities.includes(capability));
  }

  open(shown) {
    for (const kind in KINDS) {
      $(`#${kind}`).hidden = kind !== shown;
      $(`#open-${kind}`).setAttribute("aria-current", kind === shown);
    }
    history.replaceState(null, "", `#${shown}`);
    this.chat.input.focus();
  }

  // Shows or hides the conversations ("side") or the parameters ("settings").
  toggle(panel, shown = $(`#${panel}`).hidden) {
    $(`#${panel}`).hidden = !shown;
    const toggle = $(`#show-${panel}`);
    toggle.setAttribute("aria-expanded", shown);
    return toggle;
  }

  choose(conversation) {
    this.toggle("side", !isNarrow());
    this.chat.open(conversation);
  }

  pressed(event) {
    if ($("dialog")) return;
    if (event.key === "Escape") {
      for (const runner of this.runners) runner.stop();
      const panel = isNarrow() && event.target.closest("aside")?.id;
      if (panel) this.toggle(panel, false).focus();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const form = event.target.closest("form");
      (form && form.id !== "parameters" ? form : $("main > :not([hidden]) form")).requestSubmit();
    }
  }

  // The address of the inference service: the edge lists its services in the order of the models.
  async grpcAddress(model) {
    const addresses = Object.keys((await getJson("ready")).upstreams);
    const roots = [...new Set(this.models.map(({ root }) => root))];
    const { root } = this.models.find(({ id }) => id === model);
    return addresses[addresses.length === roots.length ? roots.indexOf(root) : 0];
  }

  codeButton(path, makeBody) {
    return button("Code", () => this.showCode(path, makeBody()));
  }

  async showCode(path, body) {
    const address = await this.grpcAddress(body.model).catch(() => "127.0.0.1:50051");
    const buttons = LANGUAGES.map((language) => button(language, () => show(language)));
    const shown = h("div");
    const show = (language) => {
      shown.replaceChildren(code(snippet(language, path, body, address), language));
      for (const each of buttons) each.setAttribute("aria-pressed", each.textContent === language);
    };
    show(LANGUAGES[0]);
    dialog(`The same request${key() && ", with the key in ISTHMUS_API_KEY"}`, "", h("div.actions", buttons), shown);
  }

  showEvents(log) {
    dialog("Events, with the time since the request was sent", "", code(log.join("\n\n"), "events"));
  }
}

new Page();
