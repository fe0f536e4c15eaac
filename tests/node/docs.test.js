// The page at /docs in a simulated browser; ISTHMUS_URL is the edge's URL.

import assert from "node:assert/strict";
import { before, test } from "node:test";

import { Window } from "happy-dom";

const read = async (path) => (await fetch(new URL(path, process.env.ISTHMUS_URL))).text();
const window = new Window({ url: `${process.env.ISTHMUS_URL}/docs` });
const { document } = window;
let description;

before(async () => {
  description = JSON.parse(await read("/openapi.json"));
  document.write(await read("/docs"));
  Object.assign(globalThis, { document, location: window.location, addEventListener: () => {} });
  await import("../../edge/web/docs/docs.js");
});

test("the page shows every operation and every schema", () => {
  const ids = (selector) => [...document.querySelectorAll(selector)].map(({ id }) => id);
  const operations = Object.values(description.paths).flatMap(Object.values);
  assert.ok(operations.length > 5);
  assert.deepEqual(ids("article"), operations.map(({ operationId }) => operationId));
  const schemas = Object.keys(description.components.schemas).map((name) => `schema-${name}`);
  assert.deepEqual(ids("#schemas details").sort(), schemas.sort());
});

test("every link on the page has a target", () => {
  const anchors = [...document.querySelectorAll('a[href^="#"]')];
  const lost = anchors.filter((anchor) => !document.getElementById(anchor.getAttribute("href").slice(1)));
  assert.ok(anchors.length > 20);
  assert.deepEqual(lost.map(String), []);
});

test("the page sends the example request and shows the response", async () => {
  const article = document.getElementById("createChatCompletion");
  const [button, output] = ["button", "pre"].map((name) => article.querySelector(name));
  button.click();
  while (button.disabled) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.match(article.querySelector("button + span").textContent, /^200 · req_/);
  assert.equal(JSON.parse(output.textContent).object, "chat.completion");
});

test("the page sends the parameters of the query", async () => {
  const article = document.getElementById("listInputItems");
  const [id, limit] = ["id", "limit"].map((name) => article.querySelector(`input[name=${name}]`));
  [id.value, limit.value] = ["resp/1", "7"];
  const [button, known] = [article.querySelector("button"), globalThis.fetch];
  const asked = [];
  globalThis.fetch = (url) => {
    asked.push(new URL(url));
    return known(url);
  };
  button.click();
  while (button.disabled) await new Promise((resolve) => setTimeout(resolve, 20));
  globalThis.fetch = known;
  assert.deepEqual(asked.map(({ pathname, search }) => pathname + search), ["/v1/responses/resp%2F1/input_items?limit=7"]);
});
