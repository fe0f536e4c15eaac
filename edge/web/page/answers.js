// One answer of a chat model: requesting it, and showing it as it arrives.

import { errorView, stream } from "./api.js";
import { h } from "./dom.js";
import { Markdown, code } from "./markdown.js";

export const CHAT = "v1/chat/completions";
// Over fewer milliseconds a rate means nothing: the tokens may have come together.
const RATE_SPAN = 50;

// An answer as the history stores it.
export const newAnswer = (model) => ({ model, content: "", reasoning: "", calls: [], figures: "", error: null });

// Streams the answer to `body` into `answer`; `changed` is called after each event. What is not
// stored is in `answer.live`.
export async function generate(answer, body, signal, changed) {
  const live = { body, log: [], chunks: 0 };
  Object.defineProperty(answer, "live", { value: live, configurable: true });
  try {
    for await (const { data, at } of stream(CHAT, body, signal, live.log)) {
      add(answer, data, at);
      changed();
    }
    if (!live.finish) throw new Error("The stream ended before the answer did.");
  } catch ({ message, details = "", requestId = live.log.requestId ?? "" }) {
    if (signal.aborted) live.finish = "stopped";
    else answer.error = { message, details, requestId };
  }
  live.done = true;
  answer.figures = figures(live);
  changed();
}

function add(answer, { choices: [choice], usage }, at) {
  const { live, calls } = answer;
  if (usage) live.usage = usage;
  if (choice) {
    const { content, reasoning, tool_calls: parts } = choice.delta;
    if (content || reasoning || parts) {
      live.first ??= at;
      live.last = at;
      live.chunks += 1;
    }
    answer.content += content ?? "";
    answer.reasoning += reasoning ?? "";
    for (const { index, id, function: { name, arguments: text } } of parts ?? []) {
      calls[index] ??= { id, name, arguments: "" };
      calls[index].arguments += text ?? "";
    }
    live.finish = choice.finish_reason ?? live.finish;
  }
  answer.figures = figures(live);
}

function figures({ first, last, chunks, usage, finish }) {
  // Until the usage arrives, a chunk counts as one token.
  const tokens = usage?.completion_tokens ?? chunks;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  return [
    first !== undefined && `first token ${Math.round(first)} ms`,
    tokens > 1 && last > first + RATE_SPAN && `${(((tokens - 1) * 1000) / (last - first)).toFixed(1)} tokens/s`,
    usage && `${usage.prompt_tokens} tokens in${cached ? ` (${cached} cached)` : ""}, ${usage.completion_tokens} out`,
    finish,
  ].filter(Boolean).join(" · ");
}

// The message that an answer adds to the conversation.
export const assistantMessage = ({ content, reasoning, calls }) => ({
  role: "assistant",
  content: content || (calls.length ? null : ""),
  ...(reasoning && { reasoning }),
  ...(calls.length && { tool_calls: calls.map(({ id, ...call }) => ({ id, type: "function", function: call })) }),
});

// The element of an answer, and a function that shows the answer as it is now. `actions` are its
// buttons once it has ended.
export function answerView(answer, actions) {
  const thought = h("div.thought");
  const reasoning = h("details", h("summary", "Reasoning"), thought);
  const content = h("div.content");
  const markdown = new Markdown(content);
  const rest = h("div");
  const buttons = h("div.actions", actions);
  const node = h("div.answer", h("h2", answer.model), reasoning, content, rest, buttons);
  const update = () => {
    const { calls, error, figures: line, live } = answer;
    const running = Boolean(live && !live.done);
    const json = !running && asJson(answer.content);
    reasoning.hidden = !answer.reasoning;
    thought.textContent = answer.reasoning;
    if (json) content.replaceChildren(code(json, "json"));
    else markdown.update(answer.content);
    rest.replaceChildren(
      ...calls.map(({ name, arguments: text }) => h("div.call", h("strong", `Calls ${name}`), code(asJson(text) || text, "json"))),
      ...(error ? [errorView(error)] : []),
      h("p.small", line));
    node.classList.toggle("running", running);
    buttons.hidden = running;
  };
  update();
  return { node, update };
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
