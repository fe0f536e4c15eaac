// Embeddings: the similarity of each line to each other.

import { send } from "./api.js";
import { shownError } from "./answers.js";
import { $, button, h, say } from "./dom.js";

const PATH = "v1/embeddings";
const MOST_LINES = 40;

export class Embeddings {
  constructor(page) {
    this.page = page;
    $("#embedding-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.embed();
    });
  }

  async embed() {
    const input = $("#lines").value.split("\n").map((line) => line.trim()).filter(Boolean).slice(0, MOST_LINES);
    if (!input.length) return;
    const body = { model: $("#embedding-model").value, input };
    const started = performance.now();
    $("#matrix").setAttribute("aria-busy", "true");
    try {
      const { data, usage } = await (await send(PATH, body)).json();
      const seconds = ((performance.now() - started) / 1000).toFixed(2);
      const vectors = data.map(({ embedding }) => unit(embedding));
      $("#matrix").replaceChildren(
        h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Similarities" }, matrix(input, vectors)),
        h("p", { class: "figures" }, `${vectors.length} vectors of ${vectors[0].length} · ${usage.prompt_tokens} tokens · ${seconds} s`),
        h("div", { class: "actions" }, button("Code", () => this.page.showCode(PATH, body))),
      );
      say(`${vectors.length} vectors.`);
    } catch (error) {
      $("#matrix").replaceChildren(h("div", { class: "error", role: "alert" }, shownError({ ...error, message: error.message })));
    } finally {
      $("#matrix").removeAttribute("aria-busy");
    }
  }
}

function unit(vector) {
  const length = Math.hypot(...vector) || 1;
  return vector.map((value) => value / length);
}

// A table of cosines; the shade of a cell grows with its value.
function matrix(lines, vectors) {
  const cell = (a, b) => {
    const cosine = a.reduce((sum, value, i) => sum + value * b[i], 0);
    const shade = Math.max(0, Math.min(10, Math.round(cosine * 10)));
    return h("td", { class: `shade-${shade}` }, cosine.toFixed(2));
  };
  const heads = lines.map((line, i) => h("th", { scope: "col", title: line }, String(i + 1)));
  const rows = lines.map((line, i) => h("tr", {}, h("th", { scope: "row", title: line }, `${i + 1}. ${line}`), vectors.map((vector) => cell(vectors[i], vector))));
  return h("table", { class: "matrix" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Line"), heads)), h("tbody", {}, rows));
}
