// A request as a command or program that sends the same request: curl, Python, JavaScript, grpcurl.

import { base, key } from "./api.js";

const SERVICE = "isthmus.v1.InferenceService";
// Paths of the endpoints, with their functions in OpenAI's SDKs and the RPC behind them.
const ENDPOINTS = {
  "v1/chat/completions": { sdk: "chat.completions.create", rpc: "Generate", message: chatMessage },
  "v1/images/generations": { sdk: "images.generate", rpc: "GenerateImage", message: imageMessage },
  "v1/embeddings": { sdk: "embeddings.create", rpc: "Embed", message: embedMessage },
};
// Parameters that OpenAI's Python SDK does not know go into `extra_body`.
const EXTRA = ["top_k", "min_p", "repetition_penalty", "negative_prompt", "steps", "guidance_scale"];
const EXTRA_OF_IMAGES = ["seed"];
const ROLES = { system: "SYSTEM", developer: "DEVELOPER", user: "USER", assistant: "ASSISTANT", tool: "TOOL" };
const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed"];

export const LANGUAGES = ["curl", "Python", "JavaScript", "grpcurl"];

export function snippet(language, path, body, grpcAddress) {
  const endpoint = ENDPOINTS[path];
  const url = new URL(path, base).href;
  const v1 = new URL("v1", base).href;
  const stream = Boolean(body.stream);
  if (language === "curl") {
    const auth = key() ? ` -H "authorization: Bearer $ISTHMUS_API_KEY"` : "";
    return `curl -s${stream ? "N" : ""} ${url} -H 'content-type: application/json'${auth} -d ${shell(body)}\n`;
  }
  if (language === "Python") return python(endpoint, v1, path, body, stream);
  if (language === "JavaScript") return javascript(endpoint, v1, body, stream);
  const auth = key() ? ` -H "authorization: Bearer $ISTHMUS_API_KEY"` : "";
  // grpcurl takes messages up to 4 MiB, unless it is told.
  const size = endpoint.rpc === "GenerateImage" ? " -max-msg-sz 16777216" : "";
  return `grpcurl -plaintext${size}${auth} -d ${shell(endpoint.message(body))} ${grpcAddress} ${SERVICE}/${endpoint.rpc}\n`;
}

const shell = (value) => `'${JSON.stringify(value, null, 2).replaceAll("'", `'\\''`)}'`;

function python(endpoint, v1, path, body, stream) {
  const extra = [...EXTRA, ...(path.includes("images") ? EXTRA_OF_IMAGES : [])];
  const known = Object.entries(body).filter(([name]) => !extra.includes(name));
  const others = Object.fromEntries(Object.entries(body).filter(([name]) => extra.includes(name)));
  if (Object.keys(others).length) known.push(["extra_body", others]);
  const lines = known.map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`).join("");
  const apiKey = key() ? 'os.environ["ISTHMUS_API_KEY"]' : '"none"';
  return `${key() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(v1)}, api_key=${apiKey})
response = client.${endpoint.sdk}(
${lines})
${stream ? "for event in response:\n    print(event.to_json(indent=None))" : "print(response.to_json(indent=None))"}
`;
}

// JSON as a Python literal. A JSON string is one, too.
function literal(value, indent) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const entries = Array.isArray(value)
    ? value.map((entry) => literal(entry, inner))
    : Object.entries(value).map(([name, entry]) => `${JSON.stringify(name)}: ${literal(entry, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!entries.length) return open + close;
  return `${open}\n${entries.map((entry) => `${inner}${entry},\n`).join("")}${indent}${close}`;
}

function javascript(endpoint, v1, body, stream) {
  const apiKey = key() ? "process.env.ISTHMUS_API_KEY" : '"none"';
  const show = stream ? "for await (const event of response) console.log(JSON.stringify(event));" : "console.log(JSON.stringify(response));";
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: ${JSON.stringify(v1)}, apiKey: ${apiKey} });
const response = await client.${endpoint.sdk}(${JSON.stringify(body, null, 2)});
${show}
`;
}

// The GenerateRequest that the edge makes of a chat request.
function chatMessage(body) {
  const message = { model: body.model, chat: { messages: body.messages.map(chatTurn) } };
  if (body.tools) message.chat.tools = body.tools.map(({ function: tool }) => given({
    name: tool.name,
    description: tool.description,
    parametersJson: tool.parameters && JSON.stringify(tool.parameters),
    strict: tool.strict,
  }));
  if (body.tools && body.tool_choice) message.chat.toolChoice = { mode: `MODE_${body.tool_choice.toUpperCase()}` };
  if (body.reasoning_effort) message.chat.reasoningEffort = body.reasoning_effort;
  const sampling = given(Object.fromEntries(SAMPLING.map((name) => [name, body[name]])));
  if (Object.keys(sampling).length) message.sampling = sampling;
  const stopping = given({ maxTokens: body.max_completion_tokens, strings: body.stop });
  if (Object.keys(stopping).length) message.stopping = stopping;
  const format = body.response_format;
  if (format?.type === "json_object") message.constraint = { jsonObject: true };
  if (format?.type === "json_schema") message.constraint = { jsonSchema: JSON.stringify(format.json_schema.schema) };
  return message;
}

function chatTurn({ role, content, reasoning, tool_calls: calls, tool_call_id: callId }) {
  const parts = typeof content === "string" ? [{ text: content }] : (content ?? []).map(chatPart);
  return given({
    role: `ROLE_${ROLES[role]}`,
    parts: parts.length ? parts : undefined,
    toolCalls: calls?.map(({ id, function: { name, arguments: text } }) => ({ id, name, arguments: text })),
    toolCallId: callId,
    reasoning,
  });
}

function chatPart(part) {
  if (part.type === "text") return { text: part.text };
  const [, mimeType, data] = part.image_url.url.match(/^data:([^;]+);base64,(.*)$/s);
  return { image: { data, mimeType } };
}

function imageMessage(body) {
  const [width, height] = (body.size ?? "").split("x").map(Number);
  return given({
    model: body.model,
    prompt: body.prompt,
    negativePrompt: body.negative_prompt,
    n: body.n,
    width: width || undefined,
    height: height || undefined,
    steps: body.steps,
    guidanceScale: body.guidance_scale,
    seed: body.seed === undefined ? undefined : String(body.seed),
    partialImages: body.partial_images,
  });
}

function embedMessage(body) {
  return { model: body.model, inputs: body.input.map((text) => ({ text })) };
}

const given = (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined && value !== null));
