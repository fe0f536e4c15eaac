// Makes elements. Text becomes text nodes, never HTML.

export const $ = (selector) => document.querySelector(selector);

const isGiven = (value) => value !== undefined && value !== false;

// An element "tag" or "tag.class", with attributes and listeners ("onclick") if an object is first,
// and children. What is undefined or false is left out.
export function h(name, ...children) {
  const [tag, kind] = name.split(".");
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  const attributes = children[0]?.constructor === Object ? children.shift() : {};
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node[key] = value;
    else if (isGiven(value)) node.setAttribute(key, value);
  }
  node.append(...children.flat(9).filter(isGiven));
  return node;
}

export const button = (label, onclick, attributes) => h("button", { type: "button", onclick, ...attributes }, label);

// A region that keys can scroll.
export const region = (name, label, child) => h(name, { tabindex: 0, role: "region", "aria-label": label }, child);

// Shows what has happened, and tells screen readers.
export function say(text) {
  $("#status").textContent = text;
}

// Shows a dialog; the promise is true if its button `ok` closed it.
export function dialog(title, ok, ...children) {
  const close = button(ok ? "Cancel" : "Close", () => node.close());
  const node = h("dialog", { "aria-label": title }, h("form", { method: "dialog" }, h("h2", title), children,
    h("div.actions", ok && h("button.primary", { value: "ok" }, ok), close)));
  document.body.append(node);
  node.showModal();
  return new Promise((resolve) => {
    node.onclose = () => {
      node.remove();
      resolve(node.returnValue === "ok");
    };
  });
}

// One request at a time: the button of the form starts it, and stops it while it runs.
export class Runner {
  constructor(form, start) {
    this.button = form.querySelector(".primary");
    this.label = this.button.textContent;
    form.onsubmit = (event) => {
      event.preventDefault();
      if (!this.running) start();
      else if (event.submitter) this.stop();
    };
  }

  async run(work) {
    const running = (this.running = new AbortController());
    this.button.textContent = "Stop";
    try {
      await work(running.signal);
    } finally {
      if (this.running === running) this.stop();
    }
  }

  stop() {
    this.running?.abort();
    this.running = undefined;
    this.button.textContent = this.label;
  }
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers give pages no clipboard over plain HTTP, except on loopback.
    const area = h("textarea");
    area.value = text;
    ($("dialog") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied.");
}

export const download = (name, url) => h("a", { href: url, download: name }).click();

export const readAsDataUrl = (file) => new Promise((resolve) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.readAsDataURL(file);
});
