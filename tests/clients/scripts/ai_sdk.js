// The AI SDK with its providers; ISTHMUS_URL is the edge's URL.

import assert from "node:assert/strict";
import { test } from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError,
  Output,
  embed,
  embedMany,
  generateImage,
  generateObject,
  generateText,
  stepCountIs,
  streamObject,
  streamText,
  tool,
} from "ai";
import { z } from "zod";

const SETTINGS = { baseURL: `${process.env.ISTHMUS_URL}/v1`, apiKey: "none" };
const openai = createOpenAI(SETTINGS);
const compatible = createOpenAICompatible({
  ...SETTINGS,
  name: "isthmus",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
// Without structured outputs the provider sends json_object and drops the schema, so the prompt has it.
const loose = createOpenAICompatible({ ...SETTINGS, name: "loose" });

const PROVIDERS = {
  openai: {
    chat: openai.chat("gpt-4o-mini"),
    completion: openai.completion("gpt-3.5-turbo-instruct"),
    embedding: openai.embedding("text-embedding-3-small"),
    image: openai.image("dall-e-3"),
  },
  // The default of the provider is /v1/responses.
  responses: {
    chat: openai("gpt-4o-mini"),
    completion: openai.completion("gpt-3.5-turbo-instruct"),
    embedding: openai.embedding("text-embedding-3-small"),
    image: openai.image("dall-e-3"),
    // Otherwise it refers to stored items instead of sending them.
    options: { providerOptions: { openai: { store: false } } },
  },
  compatible: {
    chat: compatible.chatModel("gpt-4o-mini"),
    completion: compatible.completionModel("gpt-3.5-turbo-instruct"),
    embedding: compatible.embeddingModel("text-embedding-3-small"),
    image: compatible.imageModel("dall-e-3"),
  },
};

const QUESTION = "What is the capital of France?";
const ANSWER = "The capital of France is Paris.";
const CITY = z.object({ city: z.string(), inhabitants: z.number().int(), river: z.string().nullable() });
const ROME = { city: "Rome", inhabitants: 42, river: "Tiber" };
const PROMPT = "city = Rome, inhabitants = 42, river = Tiber";
const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";
const TOOLS = {
  get_weather: tool({
    description: "The weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  }),
};

function each(name, body) {
  for (const [provider, models] of Object.entries(PROVIDERS)) {
    test(`${name} [${provider}]`, () => body({ maxRetries: 0, ...models }));
  }
}

function call({ chat, maxRetries, options: own }, options) {
  return { model: chat, maxRetries, ...own, ...options };
}

each("plain answer has text and usage", async (models) => {
  const answer = await generateText(call(models, { instructions: "Be brief.", prompt: QUESTION }));
  assert.equal(answer.text, ANSWER);
  assert.equal(answer.finishReason, "stop");
  assert.equal(answer.usage.outputTokens, 6);
});

each("plain answer with all common settings", async (models) => {
  const settings = {
    maxOutputTokens: 50,
    temperature: 0.5,
    topP: 0.9,
    presencePenalty: 0.1,
    frequencyPenalty: 0.1,
    stopSequences: ["###"],
    seed: 7,
  };
  assert.equal((await generateText(call(models, { prompt: QUESTION, ...settings }))).text, ANSWER);
});

each("plain completion has text", async ({ completion, maxRetries }) => {
  const answer = await generateText({ model: completion, prompt: "France", maxRetries });
  assert.equal(answer.text, ANSWER);
});

each("plain conversation goes on with the answer itself", async (models) => {
  const messages = [{ role: "user", content: QUESTION }];
  const first = await generateText(call(models, { messages }));
  messages.push(...first.response.messages, { role: "user", content: "And again?" });
  assert.equal((await generateText(call(models, { messages }))).text, ANSWER);
});

test("plain prompt with marks for a cache", async () => {
  const providerOptions = { openaiCompatible: { cache_control: { type: "ephemeral" } } };
  const messages = [{ role: "user", content: [{ type: "text", text: QUESTION, providerOptions }], providerOptions }];
  const { chat, maxRetries } = { ...PROVIDERS.compatible, maxRetries: 0 };
  assert.equal((await generateText(call({ chat, maxRetries }, { messages }))).text, ANSWER);
});

each("plain error has the message of the response", async (models) => {
  const refused = generateText(call(models, { prompt: QUESTION, temperature: 9 }));
  await assert.rejects(refused, (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 400);
    assert.match(error.message, /temperature/);
    return true;
  });
});

each("streamed answer is the plain text with usage", async (models) => {
  const answer = streamText(call(models, { prompt: QUESTION }));
  let text = "";
  for await (const piece of answer.textStream) text += piece;
  assert.equal(text, ANSWER);
  assert.equal((await answer.usage).outputTokens, 6);
});

each("streamed completion is the plain text", async ({ completion, maxRetries }) => {
  const answer = streamText({ model: completion, prompt: "France", maxRetries });
  assert.equal(await answer.text, ANSWER);
});

each("tools make a round trip", async (models) => {
  const answer = await generateText(
    call(models, { prompt: "Use get_weather with city = Rome.", tools: TOOLS, stopWhen: stepCountIs(3) }),
  );
  assert.equal(answer.text, "The tools returned: sunny in Rome");
  assert.equal(answer.steps.length, 2);
});

each("tools make a round trip in a stream", async (models) => {
  const answer = streamText(
    call(models, { prompt: "Use get_weather with city = Rome.", tools: TOOLS, stopWhen: stepCountIs(3) }),
  );
  assert.equal(await answer.text, "The tools returned: sunny in Rome");
});

each("tools are called when they are forced", async (models) => {
  for (const toolChoice of ["required", { type: "tool", toolName: "get_weather" }]) {
    const answer = await generateText(call(models, { prompt: "city = Rome", tools: TOOLS, toolChoice }));
    assert.deepEqual(answer.toolCalls.map(({ input }) => input), [{ city: "Rome" }]);
  }
});

test("plain answer has its reasoning", async () => {
  const model = openai("gpt-4o-mini");
  const answer = await generateText({ model, prompt: `${QUESTION} think first`, maxRetries: 0 });
  assert.equal(answer.text, ANSWER);
});

each("structured object of a schema", async (models) => {
  const answer = await generateObject(call(models, { prompt: PROMPT, schema: CITY }));
  assert.deepEqual(answer.object, ROME);
});

each("structured object is streamed", async (models) => {
  const answer = streamObject(call(models, { prompt: PROMPT, schema: CITY }));
  const parts = [];
  for await (const part of answer.partialObjectStream) parts.push(part);
  assert.ok(parts.length > 1);
  assert.deepEqual(await answer.object, ROME);
});

each("structured array and choice", async (models) => {
  const array = await generateObject(call(models, { prompt: PROMPT, schema: CITY, output: "array" }));
  assert.deepEqual(array.object[0], { ...ROME });
  const words = ["sunny", "rainy"];
  const choice = await generateObject(call(models, { prompt: QUESTION, enum: words, output: "enum" }));
  assert.ok(words.includes(choice.object));
});

each("structured output after a tool", async (models) => {
  const answer = await generateText(
    call(models, {
      prompt: `Use get_weather. ${PROMPT}`,
      tools: TOOLS,
      output: Output.object({ schema: CITY }),
      stopWhen: stepCountIs(3),
    }),
  );
  assert.deepEqual(answer.output, ROME);
});

test("structured object with its schema in the prompt", async () => {
  const model = loose.chatModel("gpt-4o-mini");
  const prompt = `${PROMPT}. Answer with JSON of this schema: ${JSON.stringify(z.toJSONSchema(CITY))}`;
  const answer = await generateObject({ model, prompt, schema: CITY, maxRetries: 0 });
  assert.deepEqual(answer.object, ROME);
});

each("embeddings have one vector an input", async ({ embedding, maxRetries }) => {
  const rows = await embedMany({ model: embedding, values: ["a cat", "a dog"], maxRetries });
  assert.deepEqual(rows.embeddings.map((row) => row.length), [8, 8]);
  const row = await embed({ model: embedding, value: "a cat", maxRetries });
  assert.deepEqual(row.embedding, rows.embeddings[0]);
  assert.ok(row.usage.tokens > 0);
});

each("images are PNG", async ({ image, maxRetries }) => {
  const answer = await generateImage({ model: image, prompt: "a cat", size: "1024x1024", maxRetries });
  assert.equal(Buffer.from(answer.image.uint8Array.subarray(1, 4)).toString(), "PNG");
});

each("vision takes a picture", async (models) => {
  const content = [
    { type: "text", text: "What is this?" },
    { type: "image", image: Buffer.from(PIXEL, "base64"), mediaType: "image/png" },
  ];
  const answer = await generateText(call(models, { messages: [{ role: "user", content }] }));
  assert.equal(answer.text, "I see 1 of image/png.");
});
