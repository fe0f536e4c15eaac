// Embeddings: the similarity of each line to each other.

import { errorView, send } from "./api.js";
import { $, Runner, h, region, say } from "./dom.js";

const PATH = "v1/embeddings";

// Makes the form work; returns its Runner.
export function embeddings(page) {
  const form = $("#embedding-form");
  const runner = new Runner(form, () => runner.run(embed));

  async function embed(signal) {
    const { model, lines } = form.elements;
    const input = lines.value.split("\n").filter((line) => line.trim()).slice(0, 40);
    const body = { model: model.value, input };
    try {
      const { data, usage } = await (await send(PATH, body, signal)).json();
      const vectors = data.map(({ embedding }) => embedding);
      $("#matrix").replaceChildren(
        region("div.wide", "Similarities", matrix(input, vectors)),
        h("p.small", `${vectors.length} vectors of ${vectors[0].length} · ${usage.prompt_tokens} tokens`),
        h("div.actions", page.codeButton(PATH, () => body)));
      say(`${vectors.length} vectors.`);
    } catch (error) {
      if (!signal.aborted) $("#matrix").replaceChildren(errorView(error));
    }
  }

  return runner;
}

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

// A table of cosines; the shade of a cell grows with its value.
function matrix(lines, vectors) {
  const cell = (a, b) => {
    const cosine = dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1);
    const node = h("td", cosine.toFixed(2));
    node.style.setProperty("--shade", `${Math.max(0, cosine) * 40}%`);
    return node;
  };
  const heads = lines.map((line, i) => h("th", { title: line }, String(i + 1)));
  const rows = vectors.map((a, i) => h("tr", h("th", { scope: "row", title: lines[i] }, `${i + 1}. ${lines[i]}`), vectors.map((b) => cell(a, b))));
  return h("table.matrix", h("thead", h("tr", h("th", "Text"), heads)), h("tbody", rows));
}
