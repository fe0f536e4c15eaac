// The form of a chat's parameters. An empty field leaves the parameter to the server.

import { h } from "./dom.js";

// Names; attributes of a number or a text (with rows), or values to choose from; labels.
const FIELDS = [
  ["system", { rows: 3 }, "System message"],
  ["temperature", { min: 0, max: 2 }],
  ["top_p", { min: 0, max: 1 }],
  ["max_completion_tokens", { min: 1, step: 1 }, "Max tokens"],
  ["seed", { step: 1 }],
  ["stop", { rows: 2 }, "Stop sequences, one per line"],
  ["presence_penalty", { min: -2, max: 2 }],
  ["frequency_penalty", { min: -2, max: 2 }],
  ["top_k", { min: -1, step: 1 }],
  ["min_p", { min: 0, max: 1 }],
  ["repetition_penalty", { min: 0 }],
  ["reasoning_effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"]],
  ["response_format", ["json_object", "json_schema"]],
  ["schema", { rows: 4, class: "mono" }, "JSON schema of the response"],
  ["tools", { rows: 4, class: "mono" }, "Tools, a JSON array"],
  ["tool_choice", ["auto", "required", "none"]],
];

export class Parameters {
  constructor(form, onchange) {
    this.form = form;
    this.fields = form.elements;
    for (const [name, kind, label = name.replaceAll("_", " ")] of FIELDS) {
      form.append(h("label", label, Array.isArray(kind)
        ? h("select", { name }, h("option", { value: "" }, "default"), kind.map((value) => h("option", value)))
        : h(kind.rows ? "textarea" : "input", { name, type: "number", step: "any", spellcheck: "false", ...kind })));
    }
    form.onchange = onchange;
    form.onsubmit = (event) => event.preventDefault();
  }

  // Shows the defaults in the edge's own description of its parameters.
  describe(openapi) {
    const described = openapi.components.schemas.ChatRequest.properties;
    for (const field of this.fields) {
      field.title = described[field.name]?.description ?? "";
      if (field.type === "number") field.placeholder = field.title.match(/Default: (.+)\.$/)?.[1] ?? "default";
    }
  }

  // The texts of the fields that are not empty.
  get values() {
    return Object.fromEntries([...this.fields].filter(({ value }) => value).map(({ name, value }) => [name, value]));
  }

  set values(values) {
    for (const field of this.fields) field.value = values[field.name] ?? "";
  }

  // The members of a request's body; null if a field cannot be read, which the form then says.
  body() {
    const { system, response_format: format, schema: _, ...body } = this.values;
    for (const field of this.fields) field.setCustomValidity("");
    for (const name in body) if (this.fields[name].type === "number") body[name] = Number(body[name]);
    if (body.stop) body.stop = body.stop.split("\n").filter(Boolean);
    if (body.tools) body.tools = this.json("tools", Array.isArray, "Not a JSON array.");
    else delete body.tool_choice;
    if (format) body.response_format = { type: format };
    if (format === "json_schema") {
      const schema = this.json("schema", (value) => value?.constructor === Object, "Not a JSON object.");
      body.response_format.json_schema = { name: "response", schema };
    }
    return this.form.checkValidity() ? body : null;
  }

  json(name, accepts, fault) {
    let value;
    try {
      value = JSON.parse(this.fields[name].value);
    } catch {
      // Refused below.
    }
    if (!accepts(value)) this.fields[name].setCustomValidity(fault);
    return value;
  }
}
