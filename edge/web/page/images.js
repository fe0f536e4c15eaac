// Images: one request at a time, with its previews while it runs.

import { errorView, stream } from "./api.js";
import { $, Runner, button, download, h, say } from "./dom.js";

const PATH = "v1/images/generations";
// Previews of each image.
const PREVIEWS = 3;

// Makes the form work; returns its Runner.
export function images(page) {
  const form = $("#image-form");
  const runner = new Runner(form, () => runner.run(generate));

  // An empty field is left out. With a seed of the page's own the image can be made again.
  function body() {
    const given = { seed: Math.floor(Math.random() * 2 ** 31) };
    for (const { name, value, type } of form.elements) {
      if (name && value.trim()) given[name] = type === "number" ? Number(value) : value.trim();
    }
    return { ...given, stream: true, partial_images: PREVIEWS };
  }

  async function generate(signal) {
    const sent = body();
    const { prompt, seed, n = 1 } = sent;
    const started = performance.now();
    const log = [];
    const progress = h("progress", { max: (PREVIEWS + 1) * n, value: 0, "aria-label": "Progress" });
    const frames = Array.from({ length: n }, (_, i) => h("figure", h("img", { alt: "" }), h("figcaption", `seed ${seed + i}`)));
    const article = h("article", h("p", prompt), progress, h("div.frames", frames),
      h("div.actions", page.codeButton(PATH, () => sent), button("Events", () => page.showEvents(log))));
    $("#gallery").prepend(article);
    article.scrollIntoView({ block: "nearest" });
    try {
      for await (const { event, data } of stream(PATH, sent, signal, log)) {
        progress.value += 1;
        show(frames[data.index ?? 0], data, prompt, event === "image_generation.completed");
      }
      say(`Complete: ${prompt}.`);
    } catch (error) {
      if (signal.aborted) say("Stopped.");
      else article.append(errorView(error));
    } finally {
      progress.replaceWith(h("p.small", `${((performance.now() - started) / 1000).toFixed(1)} s`));
    }
  }

  function show(frame, { output_format: format, b64_json: data, seed }, prompt, complete) {
    const url = `data:image/${format};base64,${data}`;
    Object.assign(frame.firstChild, { src: url, alt: complete ? prompt : `Preview of ${prompt}` });
    if (!complete) return;
    const reuse = button("Reuse seed", () => { form.elements.seed.value = seed; });
    frame.lastChild.replaceChildren(`seed ${seed} `, reuse, " ", button("Download", () => download(`${seed}.${format}`, url)));
  }

  return runner;
}
