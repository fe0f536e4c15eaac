// The chat: conversations with one model, or with two side by side.
//
// A conversation is { id, title, models, values, turns }. A turn is what was sent and one answer for
// each model: { text, images, answers } or, after calls of tools, { results, answers }.

import { AnswerView, assistantMessage, generate, newAnswer } from "./answers.js";
import { $, button, copy, downloadText, h, readAsDataUrl, say } from "./dom.js";
import { History } from "./history.js";
import { Parameters } from "./parameters.js";

export class Chat {
  constructor(page) {
    this.page = page;
    this.history = new History();
    this.parameters = new Parameters($("#parameters"), () => this.keepValues());
    this.models = [$("#model"), $("#model-2")];
    this.input = $("#message");
    this.images = [];
    this.running = null;
    this.listen();
    this.open(null);
  }

  listen() {
    $("#composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.input.addEventListener("input", () => this.grow());
    $("#stop").addEventListener("click", () => this.stop());
    $("#new").addEventListener("click", () => this.open(null));
    $("#compare").addEventListener("click", () => this.compare($("#model-2").hidden));
    $("#attach").addEventListener("click", () => $("#picture").click());
    $("#picture").addEventListener("change", (event) => this.attach(event.target.files));
    this.input.addEventListener("paste", (event) => this.attach(event.clipboardData.files));
    $("#export").addEventListener("click", () => downloadText("isthmus-conversations.json", this.history.export()));
    $("#import").addEventListener("click", () => $("#import-file").click());
    $("#import-file").addEventListener("change", (event) => this.import(event.target));
    $("#clear").addEventListener("click", () => this.clear());
    for (const select of this.models) select.addEventListener("change", () => this.modelsChanged());
  }

  // Opens a conversation of the history; null opens a new one.
  open(conversation) {
    this.stop();
    this.conversation = conversation ?? { id: crypto.randomUUID?.() ?? String(Math.random()), title: "", models: this.chosen(), values: this.parameters.values, turns: [] };
    if (conversation) {
      this.parameters.values = conversation.values;
      this.models.forEach((select, i) => { if (this.page.hasModel(conversation.models[i])) select.value = conversation.models[i]; });
      this.compare(conversation.models.length > 1, false);
    }
    this.show();
    this.input.focus();
  }

  chosen() {
    return this.models.filter((select) => !select.hidden && select.value).map((select) => select.value);
  }

  modelsChanged() {
    this.conversation.models = this.chosen();
    const sees = this.conversation.models.every((model) => this.page.can(model, "vision"));
    $("#attach").hidden = !sees;
  }

  compare(on, changed = true) {
    $("#model-2").hidden = !on;
    $("#compare").setAttribute("aria-pressed", String(on));
    $("#compare").textContent = on ? "One model" : "Compare";
    if (on && changed) {
      const other = [...$("#model-2").options].find((option) => option.value !== $("#model").value);
      if (other) $("#model-2").value = other.value;
    }
    this.modelsChanged();
  }

  keepValues() {
    this.conversation.values = this.parameters.values;
    if (this.conversation.turns.length) this.save();
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, innerHeight / 3)}px`;
  }

  async attach(files) {
    if ($("#attach").hidden) return;
    for (const file of files) {
      if (/^image\/(png|jpeg|webp|gif)$/.test(file.type)) this.images.push(await readAsDataUrl(file));
    }
    $("#picture").value = "";
    this.showAttached();
  }

  showAttached() {
    $("#attached").replaceChildren(...this.images.map((url, i) => h("figure", {}, h("img", { src: url, alt: `Picture ${i + 1}` }),
      button("Remove", () => {
        this.images.splice(i, 1);
        this.showAttached();
      }))));
  }

  // Sends what is in the message field.
  ask() {
    const text = this.input.value.trim();
    if (this.running || !(text || this.images.length)) return;
    if (this.add({ text, images: this.images, answers: [] })) {
      this.input.value = "";
      this.images = [];
      this.showAttached();
      this.grow();
    }
  }

  // Adds a turn and requests its answers; false if that cannot be.
  add(turn) {
    if (!this.chosen().length) {
      say("No chat model is served.");
      return false;
    }
    const values = this.parameters.body();
    if (!values) {
      this.page.showParameters(true);
      return false;
    }
    const { turns } = this.conversation;
    this.conversation.title ||= (turn.text || "Picture").slice(0, 80);
    turns.push(turn);
    this.run(turns.length - 1, this.conversation.models.map((_, pane) => pane), values);
    return true;
  }

  // Requests the answers to a turn for some of the models; the turns after it are dropped.
  async run(number, panes, values = this.parameters.body()) {
    if (!values || this.running) return;
    const { conversation } = this;
    conversation.turns.length = number + 1;
    const turn = conversation.turns[number];
    const running = (this.running = new AbortController());
    const bodies = panes.map((pane) => this.body(number, pane, values));
    panes.forEach((pane) => { turn.answers[pane] = newAnswer(conversation.models[pane]); });
    this.show();
    document.body.classList.add("busy");
    say(`Waiting for ${panes.map((pane) => conversation.models[pane]).join(" and ")}.`);
    await Promise.all(panes.map((pane, i) => {
      const answer = turn.answers[pane];
      return generate(answer, bodies[i], running.signal, () => this.changed(answer));
    }));
    if (this.running === running) this.running = null;
    if (!this.running) document.body.classList.remove("busy");
    this.save(conversation);
    if (this.conversation === conversation) {
      this.show();
      const answers = panes.map((pane) => turn.answers[pane]);
      say(answers.some(({ error }) => error) ? "The answer failed." : `Answer complete, ${answers.map(({ figures }) => figures.usage?.completion_tokens ?? 0).join(" and ")} tokens.`);
    }
  }

  changed(answer) {
    const view = this.views.get(answer);
    if (!view) return;
    view.schedule();
    const log = $("#conversation");
    // Follows the answer unless the reader has scrolled up.
    if (log.scrollHeight - log.scrollTop - log.clientHeight < 120) requestAnimationFrame(() => { log.scrollTop = log.scrollHeight; });
  }

  // The body of the request for the answer to turn `number` of one model.
  body(number, pane, values) {
    const { models, turns } = this.conversation;
    const system = this.parameters.values.system;
    const messages = system ? [{ role: "system", content: system }] : [];
    turns.slice(0, number + 1).forEach(({ text, images, results, answers }, i) => {
      if (results) messages.push(...results.map(({ id, content }) => ({ role: "tool", tool_call_id: id, content })));
      else messages.push({ role: "user", content: images.length ? [...(text ? [{ type: "text", text }] : []), ...images.map((url) => ({ type: "image_url", image_url: { url } }))] : text });
      const answer = answers[pane] ?? answers[0];
      if (i < number && answer && !(answer.error && !answer.content)) messages.push(assistantMessage(answer));
    });
    return { model: models[pane], messages, ...values, stream: true, stream_options: { include_usage: true } };
  }

  stop() {
    this.running?.abort();
    this.running = null;
    document.body.classList.remove("busy");
  }

  save(conversation = this.conversation) {
    if (!this.history.save(conversation)) say("The browser's storage is full: the oldest conversations are gone.");
    this.showHistory();
  }

  async import(input) {
    try {
      say(`${this.history.import(await input.files[0].text())} conversations imported.`);
    } catch (error) {
      say(`Not imported: ${error.message}`);
    }
    input.value = "";
    this.showHistory();
  }

  async clear() {
    if (!(await this.page.confirm("Delete all conversations of this browser?"))) return;
    this.history.clear();
    this.open(null);
  }

  show() {
    this.views = new Map();
    const { turns, models } = this.conversation;
    $("#welcome").hidden = turns.length > 0;
    $("#turns").classList.toggle("two", models.length > 1);
    $("#turns").replaceChildren(...turns.map((turn, number) => this.showTurn(turn, number)));
    $("#conversation").scrollTop = $("#conversation").scrollHeight;
    this.showHistory();
  }

  showTurn(turn, number) {
    const last = number === this.conversation.turns.length - 1;
    const answers = turn.answers.map((answer, pane) => {
      if (!answer) return null;
      const view = new AnswerView(answer, this.actions(answer, number, pane));
      this.views.set(answer, view);
      return view.node;
    });
    const calls = last && !this.running && turn.answers.length === 1 && !turn.answers[0].error ? turn.answers[0].calls : [];
    return h("article", {}, this.showSent(turn, number), h("div", { class: "answers" }, answers), calls.length > 0 && this.resultForm(calls));
  }

  showSent({ text, images, results }, number) {
    if (results) return h("div", { class: "sent" }, results.map(({ content }) => h("div", {}, h("span", { class: "tag" }, "result"), h("pre", {}, content))));
    const sent = h("div", { class: "sent" }, h("h3", { class: "offscreen" }, "You"), h("div", { class: "text" }, text), images.map((url, i) => h("img", { src: url, alt: `Picture ${i + 1}` })));
    sent.append(h("div", { class: "actions" }, button("Edit", () => this.edit(sent, number)), button("Copy", () => copy(text))));
    return sent;
  }

  edit(sent, number) {
    const turn = this.conversation.turns[number];
    const area = h("textarea", { "aria-label": "Edit the message", rows: Math.min(10, turn.text.split("\n").length + 1) });
    area.value = turn.text;
    const resend = () => {
      if (this.running || !area.value.trim()) return;
      turn.text = area.value.trim();
      turn.answers = [];
      this.run(number, this.conversation.models.map((_, pane) => pane));
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) resend();
      if (event.key === "Escape") this.show();
    });
    sent.replaceChildren(area, h("div", { class: "actions" }, button("Send again", resend), button("Cancel", () => this.show())));
    area.focus();
  }

  resultForm(calls) {
    const fields = calls.map(({ name }, i) => h("label", {}, `Result of ${name}`, h("textarea", { rows: 2, class: "mono", id: `result-${i}` })));
    return h("form", {
      class: "results",
      onsubmit: (event) => {
        event.preventDefault();
        this.add({ results: calls.map(({ id }, i) => ({ id, content: $(`#result-${i}`).value })), answers: [] });
      },
    }, fields, h("button", {}, "Send results"));
  }

  actions(answer, number, pane) {
    return [
      button("Copy", () => copy(answer.content)),
      button("Regenerate", () => this.run(number, [pane])),
      button("Code", () => this.page.showCode("v1/chat/completions", answer.body ?? this.body(number, pane, this.parameters.body() ?? {}))),
      answer.raw && button("Events", () => this.page.showEvents(answer.raw)),
    ];
  }

  showHistory() {
    $("#history").replaceChildren(...this.history.conversations.map((conversation) => h("li", {},
      button(conversation.title || "Untitled", () => {
        this.open(conversation);
        this.page.showHistory(false);
      }, { class: "title", "aria-current": conversation.id === this.conversation?.id ? "true" : null }),
      button("×", () => {
        this.history.remove(conversation.id);
        if (conversation.id === this.conversation.id) this.open(null);
        else this.showHistory();
      }, { "aria-label": `Delete ${conversation.title}` }))));
    $("#no-history").hidden = this.history.conversations.length > 0;
  }
}
