// Requests to this edge: the key, errors with their code and request id, and event streams.

import { $ } from "./dom.js";

export const base = new URL(".", document.baseURI);
const STORED = "isthmus-key";

// The key lives in the tab's session storage, and nowhere else.
export const key = () => sessionStorage.getItem(STORED) ?? "";

export class ApiError extends Error {
  constructor(response, error) {
    super(error.message ?? `HTTP ${response.status}`);
    this.status = response.status;
    this.code = error.code ?? error.type ?? "";
    this.param = error.param ?? "";
    this.requestId = response.headers?.get("x-request-id") ?? "";
  }
}

let asking;
export function askForKey(message) {
  asking ??= new Promise((resolve) => {
    const dialog = $("#key-dialog");
    $("#key-message").textContent = message;
    $("#key").value = key();
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok";
      if (given) sessionStorage.setItem(STORED, $("#key").value.trim());
      $("#key").value = "";
      asking = undefined;
      resolve(given);
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}

// Sends a request; a 401 asks for the key and sends it again. Throws ApiError for a failure.
export async function send(path, body, signal) {
  for (;;) {
    const headers = body ? { "content-type": "application/json" } : {};
    if (key()) headers.authorization = `Bearer ${key()}`;
    const response = await fetch(new URL(path, base), {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    });
    if (response.ok) return response;
    const document = await response.json().catch(() => ({}));
    const error = new ApiError(response, document.error ?? {});
    if (response.status !== 401 || !(await askForKey(error.message))) throw error;
  }
}

export const getJson = async (path) => (await send(path)).json();

// The events of a stream: { event, data, raw, at }, with `at` in milliseconds since `started`.
export async function* events(response, started) {
  let text = "";
  for await (const piece of pieces(response)) {
    text += piece;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const raw = text.slice(0, end);
      text = text.slice(end + 2);
      const lines = raw.split("\n").filter((line) => !line.startsWith(":"));
      const value = (name) => lines
        .filter((line) => line.startsWith(`${name}:`))
        .map((line) => line.slice(name.length + 1).replace(/^ /, ""))
        .join("\n");
      const data = value("data");
      yield { event: value("event"), data, raw, at: performance.now() - started };
      if (data === "[DONE]") return;
      if (!data) continue;
      const { error } = JSON.parse(data);
      if (error) throw new ApiError({ status: response.status, headers: response.headers }, error);
    }
  }
}

// Not every browser can iterate over a stream.
async function* pieces(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
