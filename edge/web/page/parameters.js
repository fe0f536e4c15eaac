// The form of a chat's parameters. An empty field leaves the parameter out, so that the server's
// default applies, which the field shows.

import { h } from "./dom.js";

const NUMBER = { type: "number", step: "any", inputmode: "decimal" };
const COUNT = { type: "number", step: 1, inputmode: "numeric" };
const FIELDS = [
  ["system", "System message", "textarea", { rows: 3 }],
  ["temperature", "Temperature", "input", { ...NUMBER, min: 0, max: 2 }],
  ["top_p", "Top p", "input", { ...NUMBER, min: 0, max: 1 }],
  ["max_completion_tokens", "Most tokens", "input", { ...COUNT, min: 1 }],
  ["seed", "Seed", "input", COUNT],
  ["stop", "Stop sequences, one a line", "textarea", { rows: 2 }],
  ["presence_penalty", "Presence penalty", "input", { ...NUMBER, min: -2, max: 2 }],
  ["frequency_penalty", "Frequency penalty", "input", { ...NUMBER, min: -2, max: 2 }],
  ["top_k", "Top k", "input", { ...COUNT, min: -1 }],
  ["min_p", "Min p", "input", { ...NUMBER, min: 0, max: 1 }],
  ["repetition_penalty", "Repetition penalty", "input", { ...NUMBER, min: 0 }],
  ["reasoning_effort", "Reasoning effort", ["", "none", "minimal", "low", "medium", "high", "xhigh", "max"]],
  ["response_format", "Response format", ["", "json_object", "json_schema"]],
  ["schema", "JSON Schema of the response", "textarea", { rows: 4, class: "mono" }],
  ["tools", "Tools, a JSON array", "textarea", { rows: 4, class: "mono" }],
  ["tool_choice", "Tool choice", ["", "auto", "required", "none"]],
];

export class Parameters {
  constructor(form, onchange) {
    this.fields = {};
    for (const [name, label, kind, attributes] of FIELDS) {
      const id = `parameter-${name}`;
      const field = Array.isArray(kind)
        ? h("select", { id }, kind.map((value) => h("option", { value }, value || "default")))
        : h(kind, { id, spellcheck: "false", ...attributes });
      field.addEventListener("input", onchange);
      this.fields[name] = field;
      form.append(h("label", { for: id }, label), field, h("p", { class: "fault", id: `${id}-fault` }));
    }
  }

  // Shows the defaults in the edge's own description of its parameters.
  describe(openapi) {
    const described = openapi.components?.schemas?.ChatRequest?.properties ?? {};
    for (const [name, field] of Object.entries(this.fields)) {
      const text = described[name]?.description ?? "";
      const [, value] = text.match(/Default: (.+)\.$/) ?? [];
      if (text) field.title = text;
      if (field.tagName === "INPUT") field.placeholder = value ?? "default";
    }
  }

  get values() {
    return Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.value]).filter(([, value]) => value !== ""));
  }

  set values(values) {
    for (const [name, field] of Object.entries(this.fields)) {
      field.value = values[name] ?? "";
      this.fault(name, "");
    }
  }

  fault(name, text) {
    const field = this.fields[name];
    if (text) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
    field.setAttribute("aria-describedby", `${field.id}-fault`);
    document.getElementById(`${field.id}-fault`).textContent = text;
  }

  // The members of a request's body; null if a field cannot be read, which it then says.
  body() {
    const body = {};
    let faults = 0;
    const refuse = (name, text) => {
      faults += 1;
      this.fault(name, text);
      this.fields[name].focus();
    };
    for (const [name, field] of Object.entries(this.fields)) {
      this.fault(name, "");
      if (!field.checkValidity()) refuse(name, field.validationMessage);
      else if (field.value !== "" && !["system", "response_format", "schema"].includes(name)) {
        if (field.type === "number") body[name] = Number(field.value);
        else if (name === "stop") body.stop = field.value.split("\n").filter(Boolean);
        else if (name === "tools") {
          const tools = parsed(field.value);
          if (Array.isArray(tools)) body.tools = tools;
          else refuse(name, "This is no JSON array.");
        } else body[name] = field.value;
      }
    }
    const format = this.fields.response_format.value;
    if (format === "json_object") body.response_format = { type: format };
    if (format === "json_schema") {
      const schema = parsed(this.fields.schema.value);
      if (schema && typeof schema === "object") body.response_format = { type: format, json_schema: { name: "response", schema, strict: false } };
      else refuse("schema", "This is no JSON object.");
    }
    if (!body.tools) delete body.tool_choice;
    return faults ? null : body;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
