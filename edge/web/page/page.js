// The page: models, tabs, dialogs and keys of the keyboard.

import { askForKey, getJson, key } from "./api.js";
import { Chat } from "./chat.js";
import { $, copy, h, say } from "./dom.js";
import { shownError } from "./answers.js";
import { Embeddings } from "./embeddings.js";
import { Images } from "./images.js";
import { LANGUAGES, snippet } from "./snippets.js";

const TABS = ["chat", "images", "embeddings"];
const KINDS = { "#model": "chat", "#model-2": "chat", "#image-model": "image", "#embedding-model": "embedding" };

class Page {
  constructor() {
    this.models = [];
    this.chat = new Chat(this);
    this.images = new Images(this);
    this.embeddings = new Embeddings(this);
    this.listen();
    this.start();
  }

  async start() {
    try {
      this.models = (await getJson("v1/models")).data;
    } catch (error) {
      $("#fault").replaceChildren(...shownError({ ...error, message: `The models cannot be listed: ${error.message}` }));
      return;
    }
    for (const [selector, kind] of Object.entries(KINDS)) this.offer($(selector), kind);
    for (const [tab, kind] of [["chat", "chat"], ["images", "image"], ["embeddings", "embedding"]]) {
      $(`#tab-${tab}`).disabled = !this.models.some((model) => model.capabilities.includes(kind));
    }
    const first = TABS.find((tab) => !$(`#tab-${tab}`).disabled);
    if (first) this.open(TABS.includes(location.hash.slice(1)) && !$(`#tab-${location.hash.slice(1)}`).disabled ? location.hash.slice(1) : first);
    else $("#fault").textContent = "No model is served yet. Reload the page once one is loaded.";
    const native = this.models.find((model) => model.native_size)?.native_size;
    if (native) $("#image-size").placeholder = `for example ${native}`;
    this.chat.modelsChanged();
    this.chat.parameters.describe(await getJson("openapi.json"));
  }

  // Fills a list of models: the models themselves first, their other names after them.
  offer(select, kind) {
    const models = this.models.filter((model) => model.capabilities.includes(kind));
    const option = ({ id }) => h("option", { value: id }, id);
    const others = models.filter(({ id, root }) => id !== root);
    select.replaceChildren(...models.filter(({ id, root }) => id === root).map(option), ...(others.length ? [h("optgroup", { label: "Other names" }, others.map(option))] : []));
  }

  hasModel(id) {
    return this.models.some((model) => model.id === id);
  }

  can(id, capability) {
    return this.models.some((model) => model.id === id && model.capabilities.includes(capability));
  }

  listen() {
    TABS.forEach((tab, i) => {
      const button = $(`#tab-${tab}`);
      button.addEventListener("click", () => this.open(tab));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const enabled = TABS.filter((each) => !$(`#tab-${each}`).disabled);
        const next = enabled[(enabled.indexOf(TABS[i]) + step + enabled.length) % enabled.length];
        this.open(next);
        $(`#tab-${next}`).focus();
      });
    });
    $("#show-history").addEventListener("click", () => this.showHistory($("#side").classList.contains("closed")));
    $("#show-parameters").addEventListener("click", () => this.showParameters($("#settings").hidden));
    $("#change-key").addEventListener("click", async () => {
      if (await askForKey("The key is kept for this tab only.")) location.reload();
    });
    for (const button of document.querySelectorAll("dialog [value=cancel]")) button.addEventListener("click", () => button.closest("dialog").close(""));
    document.addEventListener("keydown", (event) => this.pressed(event));
    this.showHistory(innerWidth > 900);
    this.showParameters(innerWidth > 1200);
  }

  pressed(event) {
    const open = $("dialog[open]");
    if (event.key === "Escape" && !open && document.body.classList.contains("busy")) {
      this.chat.stop();
      this.images.stop();
      event.preventDefault();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !open) {
      const form = event.target.closest?.("form");
      if (form && form.id !== "parameters") form.requestSubmit();
      else if (this.tab === "chat" && !event.target.closest?.(".sent")) this.chat.ask();
    }
  }

  open(tab) {
    this.tab = tab;
    for (const each of TABS) {
      $(`#${each}`).hidden = each !== tab;
      $(`#tab-${each}`).setAttribute("aria-selected", String(each === tab));
      $(`#tab-${each}`).tabIndex = each === tab ? 0 : -1;
    }
    history.replaceState(null, "", `#${tab}`);
  }

  showHistory(shown) {
    $("#side").classList.toggle("closed", !shown);
    $("#show-history").setAttribute("aria-expanded", String(shown));
  }

  showParameters(shown) {
    $("#settings").hidden = !shown;
    $("#show-parameters").setAttribute("aria-expanded", String(shown));
  }

  async confirm(question) {
    const dialog = $("#confirm-dialog");
    $("#question").textContent = question;
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    return dialog.returnValue === "ok";
  }

  // The address of the inference service, for grpcurl: the edge lists its upstreams in the order of
  // the models, and another one can be typed.
  async grpcAddress(model) {
    const { upstreams } = await (await fetch(new URL("ready", document.baseURI))).json();
    const addresses = Object.keys(upstreams);
    const roots = [...new Set(this.models.map(({ root }) => root))];
    const { root } = this.models.find(({ id }) => id === model) ?? {};
    return (addresses.length === roots.length ? addresses[roots.indexOf(root)] : addresses[0]) ?? "127.0.0.1:50051";
  }

  async showCode(path, body) {
    const address = await this.grpcAddress(body.model).catch(() => "127.0.0.1:50051");
    const shown = $("#code");
    const show = (language) => {
      shown.textContent = snippet(language, path, body, address);
      for (const each of $("#languages").children) each.setAttribute("aria-pressed", String(each.textContent === language));
    };
    $("#languages").replaceChildren(...LANGUAGES.map((language) => h("button", { type: "button", onclick: () => show(language) }, language)));
    $("#code-key").hidden = !key();
    $("#copy-code").onclick = () => copy(shown.textContent);
    show(LANGUAGES[0]);
    $("#code-dialog").showModal();
  }

  showEvents(raw) {
    $("#events").textContent = raw.join("\n\n");
    $("#copy-events").onclick = () => copy($("#events").textContent);
    $("#event-count").textContent = `${raw.length} events, with the time since the request was sent.`;
    $("#events-dialog").showModal();
  }
}

addEventListener("unhandledrejection", ({ reason }) => say(`Something failed: ${reason?.message ?? reason}`));
new Page();
