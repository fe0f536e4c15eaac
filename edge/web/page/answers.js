// One answer of a chat model: requesting it, and showing it as it arrives.

import { ApiError, events, send } from "./api.js";
import { button, copy, h } from "./dom.js";
import { Markdown, code } from "./markdown.js";

// Events that the inspector keeps of an answer.
const MOST_EVENTS = 5000;

// An answer that is stored with its conversation; `raw` and `body` are not.
export const newAnswer = (model) => ({ model, content: "", reasoning: "", calls: [], figures: {}, error: null });

// Streams the answer to `body` into `answer`; `changed` is called after each event.
export async function generate(answer, body, signal, changed) {
  const started = performance.now();
  const raw = [];
  Object.defineProperties(answer, { raw: { value: raw, configurable: true }, body: { value: body, configurable: true } });
  const figures = answer.figures;
  try {
    const response = await send("v1/chat/completions", body, signal);
    answer.requestId = response.headers.get("x-request-id") ?? "";
    for await (const event of events(response, started)) {
      if (raw.length < MOST_EVENTS) raw.push(`${event.at.toFixed(0).padStart(6)} ms  ${event.raw}`);
      if (event.data && event.data !== "[DONE]") add(answer, JSON.parse(event.data), event.at);
      changed();
    }
    if (!figures.finish) throw new ApiError({ status: 200 }, { message: "The stream ended before the answer did." });
  } catch (error) {
    if (signal.aborted) figures.finish = "stopped";
    else answer.error = { message: error.message, code: error.code ?? "", param: error.param ?? "", requestId: error.requestId || answer.requestId || "", status: error.status ?? 0 };
  }
  figures.total = performance.now() - started;
  changed();
}

function add(answer, chunk, at) {
  const figures = answer.figures;
  if (chunk.usage) figures.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { content, reasoning, tool_calls: calls } = choice.delta;
  if (content || reasoning || calls) {
    figures.first ??= at;
    figures.last = at;
    figures.chunks = (figures.chunks ?? 0) + 1;
  }
  answer.content += content ?? "";
  answer.reasoning += reasoning ?? "";
  for (const { index, id, function: { name, arguments: text } } of calls ?? []) {
    const call = (answer.calls[index] ??= { id, name, arguments: "" });
    call.arguments += text ?? "";
  }
  if (choice.finish_reason) figures.finish = choice.finish_reason;
}

// The messages that an answer adds to the conversation.
export const assistantMessage = ({ content, reasoning, calls }) => ({
  role: "assistant",
  content: content || (calls.length ? null : ""),
  ...(reasoning && { reasoning }),
  ...(calls.length && {
    tool_calls: calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } })),
  }),
});

// The element of an answer. `actions` are buttons for an answer that has ended.
export class AnswerView {
  constructor(answer, actions) {
    this.answer = answer;
    this.thought = h("div", { class: "thought" });
    this.reasoning = h("details", { class: "reasoning", hidden: true }, h("summary", {}, "Reasoning"), this.thought);
    this.content = h("div", { class: "content" });
    this.markdown = new Markdown(this.content);
    this.calls = h("div", { class: "calls" });
    this.fault = h("div", { class: "error", role: "alert" });
    this.figures = h("p", { class: "figures" });
    this.actions = h("div", { class: "actions" }, actions);
    this.node = h("section", { class: "answer", "aria-label": `Answer of ${answer.model}` },
      h("h3", {}, answer.model), this.reasoning, this.content, this.calls, this.fault, this.figures, this.actions);
    this.update();
  }

  // Shows the answer as it is; many events make one rendering a frame.
  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.update();
    });
  }

  update() {
    const { content, reasoning, calls, error, figures } = this.answer;
    const running = figures.total === undefined && !error;
    this.reasoning.hidden = !reasoning;
    this.thought.textContent = reasoning;
    const json = !running && asJson(content);
    if (json) this.content.replaceChildren(code(json, "json"));
    else this.markdown.update(content);
    this.calls.replaceChildren(...calls.map(({ name, arguments: text }) =>
      h("div", { class: "call" }, h("span", { class: "tag" }, "calls"), h("strong", {}, name), code(asJson(text) || text, "json"))));
    this.fault.replaceChildren(...(error ? shownError(error) : []));
    this.figures.textContent = shownFigures(figures);
    this.node.classList.toggle("running", running);
    this.actions.hidden = running;
  }
}

export function shownError({ message, code: name, param, requestId, status }) {
  const details = [status && `HTTP ${status}`, name, param && `parameter ${param}`].filter(Boolean).join(" · ");
  return [
    h("p", {}, message),
    h("p", { class: "small" }, details, requestId && [" · request ", h("code", {}, requestId), " ", button("Copy id", () => copy(requestId))]),
  ];
}

// An object or array of JSON with indents; "" for any other text.
function asJson(text) {
  if (!/^\s*[{[]/.test(text)) return "";
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return "";
  }
}

function shownFigures({ first, last, chunks, usage, finish }) {
  const parts = [];
  if (first !== undefined) parts.push(`first token ${Math.round(first)} ms`);
  // Until the usage arrives, a chunk counts as one token.
  const tokens = usage?.completion_tokens ?? chunks;
  if (tokens > 1 && last > first) parts.push(`${(((tokens - 1) * 1000) / (last - first)).toFixed(1)} tokens/s`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens;
    parts.push(`${usage.prompt_tokens} tokens in${cached ? ` (${cached} cached)` : ""}`, `${usage.completion_tokens} out`);
  }
  if (finish) parts.push(finish);
  return parts.join(" · ");
}
