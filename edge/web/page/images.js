// Images: one request at a time, with its previews while it runs.

import { events, send } from "./api.js";
import { shownError } from "./answers.js";
import { $, button, download, h, say } from "./dom.js";

const PATH = "v1/images/generations";
const NUMBERS = ["n", "steps", "guidance_scale", "seed"];

export class Images {
  constructor(page) {
    this.page = page;
    this.running = null;
    $("#image-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.generate();
    });
    $("#image-stop").addEventListener("click", () => this.stop());
  }

  stop() {
    this.running?.abort();
  }

  body() {
    const value = (name) => $(`#image-${name}`).value.trim();
    const body = { model: $("#image-model").value, prompt: value("prompt") };
    if (value("negative_prompt")) body.negative_prompt = value("negative_prompt");
    if (value("size")) body.size = value("size");
    for (const name of NUMBERS) if (value(name)) body[name] = Number(value(name));
    // With a seed of the page's own the image can be made again.
    body.seed ??= Math.floor(Math.random() * 2 ** 31);
    return { ...body, stream: true, partial_images: 3 };
  }

  async generate() {
    const form = $("#image-form");
    if (this.running || !form.reportValidity()) return;
    const body = this.body();
    const count = body.n ?? 1;
    const running = (this.running = new AbortController());
    const started = performance.now();
    const raw = [];
    const fault = h("div", { class: "error", role: "alert" });
    const progress = h("progress", { max: 4 * count, "aria-label": "Progress" });
    const time = h("p", { class: "figures" });
    const frames = Array.from({ length: count }, (_, i) => h("figure", {}, h("div", { class: "empty" }), h("figcaption", {}, `seed ${body.seed + i}`)));
    const actions = h("div", { class: "actions" }, button("Code", () => this.page.showCode(PATH, body)), button("Events", () => this.page.showEvents(raw)));
    const clock = setInterval(() => { time.textContent = `${((performance.now() - started) / 1000).toFixed(1)} s`; }, 100);
    $("#gallery").prepend(h("article", {}, h("p", {}, body.prompt), progress, h("div", { class: "frames" }, frames), fault, time, actions));
    document.body.classList.add("busy");
    let done = 0;
    try {
      const response = await send(PATH, body, running.signal);
      for await (const event of events(response, started)) {
        raw.push(`${event.at.toFixed(0).padStart(6)} ms  ${event.raw.replace(/("b64_json":"[^"]{40})[^"]*/, "$1…")}`);
        const data = event.data && JSON.parse(event.data);
        if (!data.b64_json) continue;
        const complete = event.event === "image_generation.completed";
        const index = complete ? done : (data.image_index ?? done);
        this.fill(frames[index], data, body, index, complete);
        if (complete) done += 1;
        progress.value = complete ? 4 * done : 4 * index + 1 + data.partial_image_index;
      }
      say(`${done} of ${count} images complete.`);
    } catch (error) {
      if (running.signal.aborted) say("Stopped.");
      else fault.replaceChildren(...shownError({ ...error, message: error.message }));
    } finally {
      clearInterval(clock);
      this.running = null;
      document.body.classList.remove("busy");
      progress.hidden = true;
      time.textContent = `${((performance.now() - started) / 1000).toFixed(1)} s`;
    }
  }

  fill(frame, data, body, index, complete) {
    const url = `data:image/${data.output_format ?? "png"};base64,${data.b64_json}`;
    const seed = body.seed + index;
    frame.firstChild.replaceWith(h("img", { src: url, alt: complete ? body.prompt : `Preview of ${body.prompt}`, class: complete ? null : "preview" }));
    if (complete) frame.lastChild.replaceChildren(`seed ${seed} `, button("Reuse seed", () => { $("#image-seed").value = seed; }), button("Download", () => download(`${seed}.${data.output_format ?? "png"}`, url)));
  }
}
