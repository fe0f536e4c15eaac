// A request as a command or program that sends the same request: curl, Python, JavaScript, grpcurl.

import { base, key } from "./api.js";

// Paths of the endpoints, with their functions in OpenAI's SDKs and the RPC behind them.
const ENDPOINTS = {
  "v1/chat/completions": { sdk: "chat.completions.create", rpc: "Generate", message: chatMessage },
  "v1/images/generations": { sdk: "images.generate", rpc: "GenerateImage", message: imageMessage },
  "v1/embeddings": { sdk: "embeddings.create", rpc: "Embed", message: ({ model, input }) => ({ model, inputs: input.map((text) => ({ text })) }) },
};
// Parameters that OpenAI's Python SDK does not know.
const EXTRA = ["top_k", "min_p", "repetition_penalty", "negative_prompt", "steps", "guidance_scale"];

export const LANGUAGES = ["curl", "Python", "JavaScript", "grpcurl"];

export function snippet(language, path, body, grpcAddress) {
  const { sdk, rpc, message } = ENDPOINTS[path];
  const url = JSON.stringify(new URL("v1", base));
  const auth = key() && ` -H "authorization: Bearer $ISTHMUS_API_KEY"`;
  if (language === "curl") return `curl -sN ${new URL(path, base)} -H 'content-type: application/json'${auth} -d ${shell(body)}`;
  if (language === "grpcurl") {
    // Images are larger than the 4 MiB that grpcurl takes by default.
    return `grpcurl -plaintext -max-msg-sz 16777216${auth} -d ${shell(message(body))} ${grpcAddress} isthmus.v1.InferenceService/${rpc}`;
  }
  if (language === "Python") {
    const extra = rpc === "GenerateImage" ? [...EXTRA, "seed"] : EXTRA;
    const { true: others, false: known } = Object.groupBy(Object.entries(body), ([name]) => extra.includes(name));
    if (others) known.push(["extra_body", Object.fromEntries(others)]);
    return `${key() && "import os\n\n"}from openai import OpenAI

client = OpenAI(base_url=${url}, api_key=${key() ? 'os.environ["ISTHMUS_API_KEY"]' : '"none"'})
response = client.${sdk}(
${known.map(([name, value]) => `    ${name}=${literal(value)},\n`).join("")})
${body.stream ? "for event in response:\n    print(event.to_json(indent=None))" : "print(response.to_json(indent=None))"}`;
  }
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: ${url}, apiKey: ${key() ? "process.env.ISTHMUS_API_KEY" : '"none"'} });
const response = await client.${sdk}(${JSON.stringify(body, null, 2)});
${body.stream ? "for await (const event of response) console.log(JSON.stringify(event));" : "console.log(JSON.stringify(response));"}`;
}

const shell = (value) => `'${JSON.stringify(value, null, 2).replaceAll("'", `'\\''`)}'`;

// JSON as a Python literal, one level deep. A JSON string is one, too.
const literal = (value) => JSON.stringify(value, null, 4)
  .replace(/("(?:[^"\\]|\\.)*")|true|false|null/g, (word, text) => text ?? { true: "True", false: "False", null: "None" }[word])
  .replaceAll("\n", "\n    ");

// The requests that the edge sends to the inference service; JSON leaves undefined members out.

function chatMessage({ model, messages, tools, tool_choice: choice, reasoning_effort, ...rest }) {
  const { response_format: format, max_completion_tokens: max_tokens, stop: strings, stream, stream_options, ...sampling } = rest;
  return {
    model,
    chat: {
      messages: messages.map(chatTurn),
      tools: tools?.map(({ function: { parameters, ...tool } }) => ({ ...tool, parameters_json: parameters && JSON.stringify(parameters) })),
      tool_choice: choice && { mode: `MODE_${choice.toUpperCase()}` },
      reasoning_effort,
    },
    sampling: filled(sampling),
    stopping: filled({ max_tokens, strings }),
    constraint: format && (format.json_schema ? { json_schema: JSON.stringify(format.json_schema.schema) } : { json_object: true }),
  };
}

const filled = (message) => (Object.values(message).some((value) => value !== undefined) ? message : undefined);

function chatTurn({ role, content, reasoning, tool_calls: calls, tool_call_id }) {
  const parts = typeof content === "string" ? [{ type: "text", text: content }] : content;
  return {
    role: `ROLE_${role.toUpperCase()}`,
    parts: parts?.map(({ text, image_url: image }) => (image ? { image: picture(image.url) } : { text })),
    tool_calls: calls?.map(({ id, function: call }) => ({ id, ...call })),
    tool_call_id,
    reasoning,
  };
}

function picture(url) {
  const [, mime_type, data] = url.match(/^data:([^;]+);base64,(.*)$/);
  return { data, mime_type };
}

function imageMessage({ size, stream: _, ...rest }) {
  const [width, height] = size?.split("x").map(Number) ?? [];
  return { ...rest, width, height };
}
