// The official Node SDK against the default models; ISTHMUS_URL is the edge's URL.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.ISTHMUS_URL}/v1`,
  apiKey: "none",
  maxRetries: 0,
  timeout: 100_000,
});

const CHAT = {
  model: "gpt-4",
  messages: [{ role: "user", content: "What is the capital of France?" }],
  temperature: 0,
  max_tokens: 12,
};

const ARGUMENTS = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};

const WEATHER = {
  type: "function",
  function: { name: "get_weather", description: "The forecast.", parameters: ARGUMENTS, strict: true },
};

const FORCED = {
  model: "gpt-4",
  messages: [{ role: "user", content: "What will the weather be in Rome?" }],
  temperature: 0,
  max_tokens: 200,
  tool_choice: { type: "function", function: { name: "get_weather" } },
};

const PET = {
  type: "json_schema",
  json_schema: {
    name: "pet",
    strict: true,
    schema: {
      type: "object",
      properties: { kind: { enum: ["cat", "dog"] }, tame: { type: "boolean" } },
      required: ["kind", "tame"],
      additionalProperties: false,
    },
  },
};

const DESCRIBE = {
  model: "gpt-4",
  messages: [{ role: "user", content: "Describe a pet as JSON." }],
  temperature: 0,
  max_tokens: 100,
  response_format: PET,
};

function assertArguments(value) {
  assert.deepEqual(Object.keys(value).sort(), ["city", "days"]);
  assert.ok(["Paris", "Rome"].includes(value.city));
  assert.ok(Number.isInteger(value.days) && value.days >= 1 && value.days <= 9);
}

function assertPet(value) {
  assert.deepEqual(Object.keys(value).sort(), ["kind", "tame"]);
  assert.ok(["cat", "dog"].includes(value.kind));
  assert.equal(typeof value.tame, "boolean");
}

test("a chat completion has text, usage and a request id", async () => {
  const answer = await client.chat.completions.create(CHAT);
  assert.match(answer._request_id, /./);
  assert.equal(answer.model, "gpt-4");
  assert.equal(answer.object, "chat.completion");
  assert.match(answer.choices[0].message.content, /Paris/);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("a stream has the text and usage of the plain response", async () => {
  const plain = await client.chat.completions.create(CHAT);
  const { data: stream, response } = await client.chat.completions
    .create({ ...CHAT, stream: true, stream_options: { include_usage: true } })
    .withResponse();
  assert.match(response.headers.get("content-type"), /^text\/event-stream/);
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, plain.choices[0].message.content);
  assert.equal(usage.completion_tokens, plain.usage.completion_tokens);
});

test("the stream helper emits the content and the final completion", async () => {
  const stream = client.chat.completions.stream(CHAT);
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  assert.match(text, /Paris/);
  assert.equal(text, await stream.finalContent());
  assert.equal(text, final.choices[0].message.content);
});

test("the stream helper separates choices", async () => {
  const final = await client.chat.completions.stream({ ...CHAT, n: 2 }).finalChatCompletion();
  assert.deepEqual(final.choices.map((choice) => choice.index), [0, 1]);
  for (const choice of final.choices) {
    assert.equal(choice.message.role, "assistant");
    assert.match(choice.message.content, /Paris/);
  }
});

test("the stream helper assembles a tool call", async () => {
  const stream = client.chat.completions.stream({ ...FORCED, tools: [WEATHER] });
  let pieces = "";
  let done;
  stream.on("tool_calls.function.arguments.delta", (event) => (pieces += event.arguments_delta));
  stream.on("tool_calls.function.arguments.done", (event) => (done = event));
  const [call] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
  assert.equal(call.type, "function");
  assert.match(call.id, /./);
  assert.equal(call.function.name, "get_weather");
  assert.equal(call.function.arguments, pieces);
  assert.equal(done.name, "get_weather");
  assertArguments(call.function.parsed_arguments);
});

for (const stream of [false, true]) {
  test(`runTools calls the function, ${stream ? "streamed" : "plain"}`, async () => {
    const seen = [];
    const runner = client.chat.completions.runTools({
      ...FORCED,
      stream,
      tools: [
        {
          type: "function",
          function: {
            name: "get_weather",
            description: "The forecast.",
            parameters: ARGUMENTS,
            parse: JSON.parse,
            function: (given) => {
              seen.push(given);
              return { sky: "sunny" };
            },
          },
        },
      ],
    });
    assert.equal(await runner.finalFunctionToolCallResult(), '{"sky":"sunny"}');
    assert.equal(seen.length, 1);
    assertArguments(seen[0]);
  });
}

test("a required tool is called", async () => {
  const answer = await client.chat.completions.create({
    ...FORCED,
    tools: [WEATHER],
    tool_choice: "required",
    parallel_tool_calls: false,
  });
  const [call] = answer.choices[0].message.tool_calls;
  assertArguments(JSON.parse(call.function.arguments));
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
});

test("parse returns an object of the strict schema", async () => {
  const answer = await client.chat.completions.parse(DESCRIBE);
  assertPet(answer.choices[0].message.parsed);
});

test("a streamed response follows the strict schema", async () => {
  const final = await client.chat.completions.stream(DESCRIBE).finalChatCompletion();
  assertPet(final.choices[0].message.parsed);
});

test("every token has log probabilities", async () => {
  const answer = await client.chat.completions.create({ ...CHAT, logprobs: true, top_logprobs: 2 });
  const entries = answer.choices[0].logprobs.content;
  assert.equal(entries.map((entry) => entry.token).join(""), answer.choices[0].message.content);
  for (const entry of entries) {
    assert.ok(entry.logprob <= 0);
    assert.equal(entry.top_logprobs.length, 2);
  }
});

test("embeddings are equal as base64 and as floats", async () => {
  const request = { model: "text-embedding-ada-002", input: ["a cat", "an unpaid invoice"] };
  const byDefault = await client.embeddings.create(request);
  const asFloats = await client.embeddings.create({ ...request, encoding_format: "float" });
  assert.deepEqual(byDefault.data.map((row) => row.index), [0, 1]);
  for (const [index, row] of byDefault.data.entries()) {
    const other = asFloats.data[index].embedding;
    assert.equal(row.embedding.length, 384);
    assert.ok(row.embedding.every((value, at) => Math.abs(value - other[at]) < 1e-6));
  }
});

test("streamed and plain completions have the same text", async () => {
  const request = {
    model: "text-davinci-003",
    prompt: ["The capital of France is", "One, two, three, four,"],
    temperature: 0,
    max_tokens: 5,
    logprobs: 1,
  };
  const plain = await client.completions.create(request);
  assert.match(plain.choices[0].text, /Paris/);
  assert.match(plain.choices[1].text, /five/);
  assert.equal(plain.choices[0].logprobs.tokens.join(""), plain.choices[0].text);
  const texts = ["", ""];
  for await (const chunk of await client.completions.create({ ...request, stream: true })) {
    for (const choice of chunk.choices) texts[choice.index] += choice.text;
  }
  assert.deepEqual(texts, plain.choices.map((choice) => choice.text));
});

test("models are listed, and retrieved by plain and percent-encoded names", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes("gpt-4") && names.includes("text-embedding-ada-002"));
  for (const name of names) assert.equal((await client.models.retrieve(name)).id, name);
  assert.equal((await client.get("/models/gpt%2D4")).id, "gpt-4");
  // The SDK sends org%2Fnone; the error message has the decoded name.
  await assert.rejects(client.models.retrieve("org/none"), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.match(error.message, /'org\/none'/);
    return true;
  });
});

for (const stream of [false, true]) {
  test(`errors raise the SDK's error classes, ${stream ? "streamed" : "plain"}`, async () => {
    await assert.rejects(client.chat.completions.create({ ...CHAT, model: "nope", stream }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      assert.equal(error.type, "invalid_request_error");
      assert.match(error.requestID, /./);
      return true;
    });
    await assert.rejects(client.chat.completions.create({ ...CHAT, temperature: 3, stream }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "temperature");
      return true;
    });
  });
}

test("an aborted stream ends and the next request succeeds", async () => {
  const stream = await client.chat.completions.create({ ...CHAT, max_tokens: 4000, stream: true });
  let chunks = 0;
  for await (const _ of stream) {
    chunks += 1;
    if (chunks === 3) stream.controller.abort();
  }
  assert.ok(chunks < 4000);
  const helper = client.chat.completions.stream({ ...CHAT, max_tokens: 4000 });
  helper.on("content", () => helper.abort());
  await assert.rejects(helper.finalChatCompletion(), OpenAI.APIUserAbortError);
  const answer = await client.chat.completions.create(CHAT);
  assert.match(answer.choices[0].message.content, /Paris/);
});
