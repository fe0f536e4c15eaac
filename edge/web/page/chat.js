// The chat: conversations with one model, or with two side by side.

import { CHAT, answerView, assistantMessage, generate, newAnswer } from "./answers.js";
import { $, Runner, button, copy, dialog, download, h, readAsDataUrl, say } from "./dom.js";
import { History } from "./history.js";
import { Parameters } from "./parameters.js";

export class Chat {
  constructor(page) {
    this.page = page;
    this.history = new History();
    this.parameters = new Parameters($("#parameters"), () => {
      this.conversation.values = this.parameters.values;
      if (this.conversation.turns.length) this.save();
    });
    this.models = [$("#model"), $("#model-2")];
    this.input = $("#message");
    this.images = [];
    this.runner = new Runner($("#composer"), () => this.ask());
    this.input.onpaste = (event) => this.attach(event.clipboardData.files);
    $("#attach").onclick = () => $("#picture").click();
    $("#picture").onchange = (event) => this.attach(event.target.files);
    $("#compare").onclick = () => this.compare();
    $("#new").onclick = () => page.choose();
    $("#export").onclick = () => download("isthmus-conversations.json", URL.createObjectURL(new Blob([this.history.export()])));
    $("#import").onclick = () => $("#import-file").click();
    $("#import-file").onchange = (event) => this.import(event.target);
    $("#clear").onclick = () => this.clear();
    for (const select of this.models) select.onchange = () => this.modelsChanged();
    this.open();
  }

  // Opens a conversation of the history, or a new one.
  open(conversation) {
    this.runner.stop();
    this.conversation = conversation ?? { id: `${Date.now()}-${Math.random()}`, title: "", models: [], values: this.parameters.values, turns: [] };
    if (conversation) {
      const { models, values } = conversation;
      this.parameters.values = values;
      this.models.forEach((select, i) => { if (this.page.can(models[i], "chat")) select.value = models[i]; });
      this.models[1].hidden = models.length < 2;
    }
    this.modelsChanged();
    this.show();
    if (this.editing === undefined) this.input.focus();
    else this.edit();
  }

  modelsChanged() {
    const chosen = this.models.filter(({ hidden, value }) => !hidden && value).map(({ value }) => value);
    this.conversation.models = chosen;
    $("#compare").setAttribute("aria-pressed", !this.models[1].hidden);
    $("#attach").hidden = !chosen.every((model) => this.page.can(model, "vision"));
  }

  compare() {
    const [first, second] = this.models;
    second.hidden = !second.hidden;
    if (second.value === first.value) second.value = [...second.options].find(({ value }) => value !== first.value)?.value ?? first.value;
    this.modelsChanged();
  }

  async attach(files) {
    if ($("#attach").hidden) return;
    for (const file of files) {
      if (file.type.startsWith("image/")) this.images.push(await readAsDataUrl(file));
    }
    $("#picture").value = "";
    this.showAttached(this.images);
  }

  // Puts a message into the composer, to be replaced; none empties the composer.
  edit(number, { text, images } = { text: "", images: [] }) {
    this.editing = number;
    this.input.value = text;
    this.showAttached(images);
  }

  showAttached(images) {
    this.images = images;
    const note = h("p.small", "Sending replaces the message and what follows it. ", button("Cancel", () => this.edit()));
    $("#attached").replaceChildren(...(this.editing === undefined ? [] : [note]),
      ...images.map((url, i) => h("figure", picture(url, i), button("Remove", () => this.showAttached(images.toSpliced(i, 1))))));
    this.input.focus();
  }

  // Sends what is in the message field.
  ask() {
    const text = this.input.value.trim();
    if ((text || this.images.length) && this.add({ text, images: this.images, answers: [] }, this.editing)) this.edit();
  }

  // Adds a turn and requests its answers; false if that cannot be.
  add(turn, number = this.conversation.turns.length) {
    const values = this.values();
    const { turns, models } = this.conversation;
    const panes = [...models.keys()].filter((pane) => turn.results?.some((each) => each.pane === pane) ?? true);
    if (!values || !panes.length || this.runner.running) return false;
    if (!number) this.conversation.title = (turn.text || "Picture").slice(0, 80);
    turns.splice(number, Infinity, turn);
    this.run(number, panes, values);
    return true;
  }

  // The parameters of the next request; null if one cannot be read, which the form shows.
  values() {
    const values = this.parameters.body();
    if (!values) {
      this.page.toggle("settings", true);
      this.parameters.form.reportValidity();
    }
    return values;
  }

  // Requests the answers to a turn from some of the models; the turns after it are dropped.
  run(number, panes, values = this.values()) {
    if (!values || this.runner.running) return;
    const { conversation } = this;
    const turn = conversation.turns[number];
    conversation.turns.length = number + 1;
    const bodies = panes.map((pane) => this.body(number, pane, values));
    const answers = panes.map((pane, i) => (turn.answers[pane] = newAnswer(bodies[i].model)));
    say(`Waiting for ${answers.map(({ model }) => model).join(" and ")}.`);
    this.runner.run(async (signal) => {
      const ended = answers.map((answer, i) => generate(answer, bodies[i], signal, () => this.changed(answer)));
      this.save();
      this.show();
      await Promise.all(ended);
      // Unless it has been deleted.
      if (this.history.conversations.includes(conversation)) this.save(conversation);
      say(answers.some(({ error }) => error) ? "The answer failed." : `Complete: ${answers.map(({ figures }) => figures).join("; ")}.`);
    }).then(() => { if (this.conversation === conversation && answers.some(({ calls }) => calls.length)) this.show(); });
  }

  changed(answer) {
    const log = $("#conversation");
    answer.live.frame ??= requestAnimationFrame(() => {
      answer.live.frame = undefined;
      // Follows the answer unless the reader has scrolled up.
      const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 120;
      answer.live.update();
      if (follows) log.scrollTop = log.scrollHeight;
    });
  }

  // The body of the request for the answer of one model to turn `number`.
  body(number, pane, values) {
    const { models, turns } = this.conversation;
    const { system } = this.parameters.values;
    const messages = system ? [{ role: "system", content: system }] : [];
    // Where this model has no answer, it continues the first one's.
    let source = pane;
    turns.slice(0, number + 1).forEach(({ text, images, results, answers }, i) => {
      const own = results?.filter((each) => each.pane === source);
      // Only the other model has called a tool.
      if (own?.length === 0) return;
      const parts = [...(text ? [{ type: "text", text }] : []), ...(images ?? []).map((url) => ({ type: "image_url", image_url: { url } }))];
      if (own) messages.push(...own.map(({ id, content }) => ({ role: "tool", tool_call_id: id, content })));
      else messages.push({ role: "user", content: images.length ? parts : text });
      source = answers[pane] ? pane : 0;
      const answer = answers[source];
      if (i < number && answer && (answer.content || !answer.error)) messages.push(assistantMessage(answer));
    });
    return { model: models[pane] ?? turns[number].answers[pane].model, messages, ...values, stream: true, stream_options: { include_usage: true } };
  }

  save(conversation = this.conversation) {
    if (!this.history.save(conversation)) say("The storage is full: the oldest conversations are gone.");
    this.showHistory();
  }

  async import(input) {
    try {
      say(`${this.history.import(await input.files[0].text())} conversations imported.`);
    } catch {
      say("This file has no conversations of this page.");
    }
    input.value = "";
    this.showHistory();
  }

  async clear() {
    if (!(await dialog("Delete all conversations of this browser?", "Delete"))) return;
    this.history.keep(() => false);
    this.open();
  }

  show() {
    const { turns, models } = this.conversation;
    const isFocused = $("#turns").contains(document.activeElement);
    $("#welcome").hidden = turns.length > 0;
    $("#turns").classList.toggle("two", models.length > 1);
    $("#turns").replaceChildren(...turns.map((turn, number) => this.showTurn(turn, number)));
    $("#conversation").scrollTop = $("#conversation").scrollHeight;
    if (isFocused) $("#conversation").focus();
    this.showHistory();
  }

  showTurn(turn, number) {
    // A model without an answer keeps its column.
    const views = Array.from(turn.answers, (answer, pane) => {
      if (!answer) return h("div");
      const view = answerView(answer, this.actions(answer, number, pane));
      if (answer.live) answer.live.update = view.update;
      return view.node;
    });
    const isOpen = number === this.conversation.turns.length - 1 && !this.runner.running;
    return h("article", this.showSent(turn, number), h("div.answers", views), isOpen && this.resultForm(turn.answers));
  }

  showSent({ text, images, results }, number) {
    const sent = h("div.sent", { role: "group", "aria-label": "You" });
    if (results) sent.append("Results", ...results.map(({ content }) => h("pre", content)));
    else {
      const actions = [button("Edit", () => this.edit(number, { text, images })), button("Copy", () => copy(text))];
      sent.append(h("div.text", text), ...images.map(picture), h("div.actions", actions));
    }
    return sent;
  }

  // The form for the results of all calls in the answers; false if there are none.
  resultForm(answers) {
    const calls = answers.flatMap((answer, pane) => (answer?.calls ?? []).map(({ id, name }) => (
      { id, pane, name: answers.length > 1 ? `${name} for ${answer.model}` : name, area: h("textarea.mono", { rows: 2 }) })));
    const submit = (event) => {
      event.preventDefault();
      this.add({ results: calls.map(({ id, pane, area }) => ({ id, pane, content: area.value })), answers: [] });
    };
    const labels = calls.map(({ name, area }) => h("label", `Result of ${name}`, area));
    return calls.length > 0 && h("form.calls", { onsubmit: submit }, labels, h("button", "Send results"));
  }

  actions(answer, number, pane) {
    const { live } = answer;
    return [
      button("Copy", () => copy(answer.content)),
      button("Regenerate", () => this.run(number, [pane])),
      this.page.codeButton(CHAT, () => live?.body ?? this.body(number, pane, this.parameters.body())),
      live && button("Events", () => this.page.showEvents(live.log)),
    ];
  }

  showHistory() {
    const remove = ({ id }) => {
      this.history.keep((other) => other.id !== id);
      if (id === this.conversation.id) this.open();
      this.showHistory();
      $("#new").focus();
    };
    $("#history").replaceChildren(...this.history.conversations.map((each) => h("li",
      button(each.title, () => this.page.choose(each), { class: "title", "aria-current": each.id === this.conversation.id }),
      button("×", () => remove(each), { "aria-label": `Delete ${each.title}` }))));
  }
}

const picture = (url, i) => h("img", { src: url, alt: `Picture ${i + 1}` });
