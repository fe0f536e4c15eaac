// Requests to this edge: the key, errors with their code and request id, and event streams.

import { button, copy, dialog, h } from "./dom.js";

export const base = new URL(".", document.baseURI);
const STORED = "isthmus-key";

// The key lives in the tab's session storage, and nowhere else.
export const key = () => sessionStorage.getItem(STORED) ?? "";

class ApiError extends Error {
  constructor({ status, headers }, { message, code, type, param } = {}) {
    super(message ?? `HTTP ${status}`);
    const wait = headers.get("retry-after");
    this.details = [`HTTP ${status}`, code ?? type, param && `parameter ${param}`, wait && `retry after ${wait} s`].filter(Boolean).join(" · ");
    this.requestId = headers.get("x-request-id") ?? "";
  }
}

// The element of an error: what failed, and what identifies it.
export const errorView = ({ message, details, requestId }) => h("div.error", { role: "alert" },
  h("p", message),
  h("p.small", details, requestId ? [" · request ", h("code", requestId), " ", button("Copy id", () => copy(requestId))] : []));

let asking;
export function askForKey(message) {
  const input = h("input", { type: "password", autocomplete: "off" });
  asking ??= dialog("API key", "Use it in this tab", h("p", message), h("label", "Key", input)).then((given) => {
    if (given) sessionStorage.setItem(STORED, input.value.trim());
    asking = undefined;
    return given;
  });
  return asking;
}

// Sends a request; a 401 asks for the key and sends it again. Throws ApiError for a failure.
export async function send(path, body, signal) {
  for (;;) {
    const sent = key();
    const headers = { ...(body && { "content-type": "application/json" }), ...(sent && { authorization: `Bearer ${sent}` }) };
    const request = fetch(new URL(path, base), { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    const response = await request.catch((error) => {
      throw new Error(`The server cannot be reached: ${error.message}.`);
    });
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    const failure = new ApiError(response, error);
    // Another request may have asked for it.
    if (response.status !== 401 || (sent === key() && !(await askForKey(failure.message)))) throw failure;
  }
}

export const getJson = async (path) => (await send(path)).json();

// The events that answer a request: { event, data, at }, with `at` in milliseconds since it was
// sent. `log` gets the raw events.
export async function* stream(path, body, signal, log) {
  const started = performance.now();
  const response = await send(path, body, signal);
  log.requestId = response.headers.get("x-request-id") ?? "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    let text = "";
    for (let piece; !(piece = await reader.read()).done; ) {
      const raws = (text + piece.value).split("\n\n");
      text = raws.pop();
      for (const raw of raws) {
        const at = performance.now() - started;
        // An image is shortened.
        if (log.length < 5000) log.push(`${at.toFixed(0).padStart(6)} ms  ${raw.replace(/("b64_json":"[^"]{40})[^"]*/, "$1…")}`);
        const { event, data } = Object.fromEntries(raw.split("\n").map((line) => line.split(/: (.*)/s)));
        if (data === "[DONE]") return;
        if (!data) continue;
        const parsed = JSON.parse(data);
        if (parsed.error) throw new ApiError(response, parsed.error);
        yield { event, data: parsed, at };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
