// Renders /openapi.json as a page and sends requests. Text from the document becomes text nodes
// and is never parsed as HTML.

const address = new URL("openapi.json", document.baseURI);
const $ = (selector) => document.querySelector(selector);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// An element with the text; parts between backticks become <code>.
function prose(text, name = "p") {
  const pieces = (text ?? "").split("`");
  return element(name, {}, ...pieces.map((piece, i) => (i % 2 ? element("code", {}, piece) : piece)));
}

class Api {
  constructor(description) {
    this.description = description;
    this.base = new URL(`${description.servers[0].url}/`, address);
  }

  get operations() {
    return Object.entries(this.description.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => ({ path, method, ...operation })),
    );
  }

  resolve(node) {
    if (!node?.$ref) return node;
    return node.$ref.slice(2).split("/").reduce((place, key) => place[key], this.description);
  }

  url(path, values) {
    const filled = path.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(values[name] ?? ""));
    const url = new URL(filled.slice(1), this.base);
    for (const [name, value] of Object.entries(values)) {
      if (value && !path.includes(`{${name}}`)) url.searchParams.set(name, value);
    }
    return url;
  }
}

// A schema as text in one line, with links to the schemas that it refers to.
function type(schema) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return [element("a", { href: `#schema-${name}` }, name)];
  }
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  if (schema.items) return ["array of ", ...type(schema.items), limits(schema)];
  if (schema.anyOf) return schema.anyOf.flatMap((part, i) => [i ? " | " : "", ...type(part)]);
  const entries = schema.additionalProperties;
  if (entries && !schema.properties) return ["object of ", ...type(entries), limits(schema)];
  return [[schema.type ?? "any"].flat().join(" | "), limits(schema)];
}

function limits(schema) {
  const { minimum, maximum, exclusiveMinimum, pattern } = schema;
  const least = schema.minItems ?? schema.minLength ?? schema.minProperties;
  const most = schema.maxItems ?? schema.maxLength ?? schema.maxProperties;
  const parts = [];
  if (minimum !== undefined || maximum !== undefined) parts.push(`${minimum ?? ""} … ${maximum ?? ""}`);
  if (exclusiveMinimum !== undefined) parts.push(`> ${exclusiveMinimum}`);
  if (least !== undefined || most !== undefined) parts.push(`length ${least ?? 0} … ${most ?? ""}`);
  if (pattern) parts.push(pattern);
  return parts.length ? ` (${parts.join(", ")})` : "";
}

function properties(schema) {
  const required = new Set(schema.required);
  const rows = Object.entries(schema.properties ?? {}).map(([name, property]) =>
    element(
      "tr",
      {},
      element("td", {}, element("code", { class: required.has(name) ? "required" : "" }, name)),
      element("td", {}, ...type(property)),
      prose(property.description, "td"),
    ),
  );
  return element("table", {}, ...rows);
}

function showSchema(name, schema) {
  return element(
    "details",
    { id: `schema-${name}` },
    element("summary", {}, element("code", {}, name)),
    prose(schema.description),
    properties(schema),
  );
}

function showResponses(api, operation) {
  const rows = Object.entries(operation.responses).map(([status, reference]) => {
    const response = api.resolve(reference);
    const bodies = Object.entries(response.content ?? {}).map(([mediaType, { schema }]) =>
      element("div", {}, `${mediaType}: `, ...type(schema.properties?.data?.anyOf?.[1].contentSchema ?? schema)),
    );
    return element(
      "tr",
      {},
      element("td", {}, element("code", {}, status)),
      prose(response.description, "td"),
      element("td", {}, ...bodies),
    );
  });
  return element("details", {}, element("summary", {}, "Responses"), element("table", {}, ...rows));
}

// Sends the request. Streams are shown as they arrive, JSON once it is complete.
async function send(request, output, status, button) {
  button.disabled = true;
  output.textContent = "";
  status.className = "";
  status.textContent = "waiting …";
  try {
    const response = await fetch(request.url, request);
    status.className = response.ok ? "" : "failed";
    status.textContent = `${response.status} · ${response.headers.get("x-request-id") ?? ""}`;
    const json = response.headers.get("content-type")?.startsWith("application/json");
    let text = "";
    for (const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      text += value;
      if (!json) output.textContent = text;
    }
    if (json) output.textContent = JSON.stringify(JSON.parse(text), null, 2);
  } catch (error) {
    status.className = "failed";
    status.textContent = String(error);
  } finally {
    button.disabled = false;
  }
}

function tryIt(api, operation) {
  const content = operation.requestBody?.content["application/json"];
  const examples = Object.entries(content?.examples ?? {});
  const pretty = (example) => JSON.stringify(example.value, null, 2);
  const body = element("textarea", { "aria-label": "Request body", spellcheck: "false" });
  const choice = element("select", {
    "aria-label": "Example",
    onchange: () => { body.value = pretty(examples[choice.selectedIndex][1]); },
  }, ...examples.map(([name]) => element("option", {}, name)));
  const inputs = (operation.parameters ?? [])
    .map((reference) => api.resolve(reference))
    .filter((parameter) => parameter.in !== "header")
    .map((parameter) => element("input", { name: parameter.name, placeholder: parameter.name, "aria-label": parameter.name }));
  const output = element("pre", { "aria-live": "polite" });
  const status = element("span");
  const button = element("button", {
    type: "button",
    onclick: () => {
      const values = Object.fromEntries(inputs.map((input) => [input.name, input.value]));
      const headers = content ? { "content-type": "application/json" } : {};
      if ($("#key").value) headers.authorization = `Bearer ${$("#key").value}`;
      const method = operation.method.toUpperCase();
      send({ url: api.url(operation.path, values), method, headers, body: content && body.value }, output, status, button);
    },
  }, "Send");
  if (content) body.value = pretty(examples[0][1]);
  return [
    ...(content ? [element("div", { class: "row" }, "Example ", choice), body] : []),
    element("div", { class: "row" }, ...inputs, button, status),
    output,
  ];
}

function showOperation(api, operation) {
  const schema = operation.requestBody?.content["application/json"].schema;
  const request = schema && element("details", {},
    element("summary", {}, "Request body"), element("p", {}, ...type(schema)), properties(api.resolve(schema)));
  return element(
    "article",
    { id: operation.operationId },
    element(
      "h2",
      {},
      element("span", { class: `method ${operation.method}` }, operation.method.toUpperCase()),
      element("span", { class: "path" }, operation.path),
      operation.summary,
    ),
    prose(operation.description),
    ...(request ? [request] : []),
    showResponses(api, operation),
    ...tryIt(api, operation),
  );
}

function showLinks(api) {
  return api.description.tags.flatMap(({ name }) => [
    element("h2", {}, name),
    ...api.operations
      .filter((operation) => operation.tags.includes(name))
      .map((operation) => element("a", { href: `#${operation.operationId}` }, operation.summary)),
  ]);
}

// Opens and scrolls to the schema that the page's address names.
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (target?.tagName === "DETAILS") target.open = true;
  target?.scrollIntoView();
}

const response = await fetch(address);
const api = new Api(await response.json());
const { title, version, description } = api.description.info;
$("h1").textContent = `${title} ${version}`;
$("#about").replaceWith(prose(description), element("a", { href: address.href }, "openapi.json"));
$("nav").append(...showLinks(api), element("h2", {}, "Types"), element("a", { href: "#schemas" }, "Schemas"));
$("#operations").append(...api.operations.map((operation) => showOperation(api, operation)));
const schemas = Object.entries(api.description.components.schemas).sort(([a], [b]) => a.localeCompare(b));
$("#schemas").append(...schemas.map(([name, schema]) => showSchema(name, schema)));
addEventListener("hashchange", openTarget);
openTarget();
