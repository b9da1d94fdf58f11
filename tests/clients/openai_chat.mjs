// The OpenAI client for JavaScript, unchanged: chat, streams, parse, tools that run, Responses, vectors.
// Usage: node openai_chat.mjs URL MODEL
import assert from "node:assert/strict";
import { OpenAI } from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const chat = { model, temperature: 0 };
const Colour = z.object({ name: z.enum(["red", "green", "blue"]), warm: z.boolean() });
const City = z.object({ city: z.enum(["Rome", "Oslo"]) });
const cities = ["Rome", "Oslo"];

async function plain() {
  const answer = await client.chat.completions.create({ ...chat, messages: user("Name a colour."), max_tokens: 8 });
  assert(answer.choices[0].message.content && answer.usage.completion_tokens <= 8);
  const stream = client.chat.completions.stream({ ...chat, messages: user("Name a colour."), max_tokens: 8 });
  assert.equal((await stream.finalMessage()).content, answer.choices[0].message.content);
}

async function structured() {
  const response_format = zodResponseFormat(Colour, "colour");
  const answer = await client.chat.completions.parse({ ...chat, messages: user("Name a colour."), response_format, max_tokens: 48 });
  assert(["red", "green", "blue"].includes(answer.choices[0].message.parsed.name));
}

async function tools() {
  const called = [];
  const weather = zodFunction({
    name: "weather",
    description: "The weather of a city now.",
    parameters: City,
    function: ({ city }) => {
      called.push(city);
      return `It is sunny in ${city}.`;
    },
  });
  const choice = { type: "function", function: { name: "weather" } };
  const messages = user("What is the weather in Rome?");
  for (const stream of [false, true]) {
    const runner = client.chat.completions.runTools({ ...chat, messages, tools: [weather], tool_choice: choice, max_tokens: 64, stream });
    const result = await runner.finalFunctionToolCallResult();
    assert.equal(result, `It is sunny in ${called.at(-1)}.`);
    assert(cities.includes(called.at(-1)));
  }
  assert.equal(called.length, 2);
  // With what came of the call, the model answers, and the runner ends.
  const call = { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":"Rome"}' } };
  messages.push({ role: "assistant", tool_calls: [call] }, { role: "tool", tool_call_id: "call_1", content: "Sunny." });
  const runner = client.chat.completions.runTools({ ...chat, messages, tools: [weather], tool_choice: "none", max_tokens: 16 });
  assert(await runner.finalContent());
  assert.equal(called.length, 2);
}

async function responses() {
  const asked = { ...chat, input: "Name a colour.", max_output_tokens: 8 };
  const answer = await client.responses.create(asked);
  assert(answer.output_text && answer.usage.output_tokens <= 8);
  const events = [];
  for await (const event of client.responses.stream(asked)) events.push(event.type);
  assert.equal(events[0], "response.created");
  assert(["response.completed", "response.incomplete"].includes(events.at(-1)));
  const format = zodTextFormat(Colour, "colour");
  const parsed = await client.responses.parse({ ...chat, input: "Name a colour.", text: { format }, max_output_tokens: 48 });
  assert(["red", "green", "blue"].includes(parsed.output_parsed.name));
}

async function vectors() {
  // The client asks for base64 by itself, which has the same numbers.
  const asked = { model, input: ["The sky is blue.", "Cats sleep."] };
  const one = await client.embeddings.create(asked);
  const other = await client.embeddings.create({ ...asked, encoding_format: "float" });
  assert(one.data.length === 2 && one.data[1].embedding.length > 100);
  one.data[1].embedding.forEach((value, at) => assert(Math.abs(value - other.data[1].embedding[at]) < 1e-6));
}

for (const step of [plain, structured, tools, responses, vectors]) {
  await step();
  console.log(`${step.name} ok`);
}
