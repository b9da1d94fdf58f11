// The AI SDK of Vercel, unchanged, by its default way, which is Responses, and by chats: texts, objects, an agent that ends, vectors.
// Usage: node vercel_chat.mjs URL MODEL
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [url, name] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const asked = { temperature: 0, maxRetries: 0 };
const cities = ["Rome", "Oslo"];

async function texts(model) {
  const { text, usage } = await generateText({ ...asked, model, prompt: "Name a colour.", maxOutputTokens: 16 });
  assert(text && usage.outputTokens <= 16);
  const stream = streamText({ ...asked, model, prompt: "Name a colour.", maxOutputTokens: 16 });
  let streamed = "";
  for await (const part of stream.textStream) streamed += part;
  assert.equal(streamed, text);
}

async function objects(model) {
  const schema = z.object({ name: z.enum(["red", "green", "blue"]), warm: z.boolean() });
  const { object } = await generateObject({ ...asked, model, schema, prompt: "Name a colour.", maxOutputTokens: 48 });
  assert(["red", "green", "blue"].includes(object.name));
}

async function agent(model) {
  const called = [];
  const weather = tool({
    description: "The weather of a city now.",
    inputSchema: z.object({ city: z.enum(cities) }),
    execute: ({ city }) => {
      called.push(city);
      return `It is sunny in ${city}.`;
    },
  });
  const { steps, text, finishReason } = await generateText({
    ...asked,
    model,
    prompt: "What is the weather in Rome?",
    tools: { weather },
    maxOutputTokens: 48,
    stopWhen: stepCountIs(4),
    // A small model does not choose well whether to call, so the application does.
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
  });
  assert(steps.length === 2 && steps[0].finishReason === "tool-calls", JSON.stringify(steps));
  assert(called.length === 1 && cities.includes(called[0]));
  assert(text && ["stop", "length"].includes(finishReason));
}

async function vectors() {
  const { embeddings } = await embedMany({ model: openai.embedding(name), values: ["The sky is blue.", "Cats sleep."], maxRetries: 0 });
  assert(embeddings.length === 2 && embeddings[1].length > 100);
}

for (const step of [texts, objects, agent]) {
  for (const model of [openai(name), openai.chat(name)]) {
    await step(model);
    console.log(`${step.name} ok`);
  }
}
await vectors();
console.log("vectors ok");
