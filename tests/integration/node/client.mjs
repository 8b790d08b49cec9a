// What tests/integration/test_node.py runs: one check by name, with OpenAI's own package against a running server.
//
//   node client.mjs FOLDER URL KEY MODEL CHECK    FOLDER: where the package is installed
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [folder, url, apiKey, model, name] = process.argv.slice(2);
const OpenAI = createRequire(join(folder, 'package.json'))('openai');
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const messages = [
  { role: 'system', content: 'Answer in one short sentence.' },
  { role: 'user', content: 'What is the capital of France?' },
];
const chat = (more) => client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 24, ...more });
const weather = {
  type: 'function',
  function: {
    name: 'weather',
    description: 'The weather of a city',
    parameters: { type: 'object', properties: { city: { enum: ['Paris', 'Rome'] } }, required: ['city'], additionalProperties: false },
  },
};

const checks = {
  async models() {
    const ids = [];
    for await (const m of client.models.list()) ids.push(m.id);
    assert.deepEqual(ids, [model]);
    assert.equal((await client.models.retrieve(model)).id, model);
  },

  async chat() {
    const { data, response } = await chat().withResponse();
    assert.match(data.choices[0].message.content, /Paris/);
    assert.equal(data.choices[0].finish_reason, 'stop');
    assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
    assert.equal(response.headers.get('x-request-id'), data._request_id);
  },

  async stream() {
    const whole = await chat();
    let text = '', usage = null, pieces = 0;
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta?.content ?? '';
      usage = chunk.usage ?? usage;
      pieces++;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.ok(pieces >= 4); // role, text, why it ended, usage
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
    const gathered = await client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 24 }).finalChatCompletion();
    assert.equal(gathered.choices[0].message.content, text);
  },

  async abort() {
    const stream = await chat({ stream: true, max_tokens: 4000, ignore_eos: true });
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      stream.controller.abort();
    }
  },

  async tools() {
    const forced = await chat({ max_tokens: 100, tools: [weather], tool_choice: { type: 'function', function: { name: 'weather' } } });
    assert.equal(forced.choices[0].finish_reason, 'tool_calls');
    const [call] = forced.choices[0].message.tool_calls;
    assert.equal(call.function.name, 'weather');
    assert.ok(['Paris', 'Rome'].includes(JSON.parse(call.function.arguments).city));
    const streamed = await client.chat.completions
      .stream({ model, messages, temperature: 0, max_tokens: 100, tools: [weather], tool_choice: 'required' })
      .finalChatCompletion();
    assert.deepEqual(streamed.choices[0].message.tool_calls[0].function.name, 'weather');
    const after = await chat({
      messages: [...messages, forced.choices[0].message, { role: 'tool', tool_call_id: call.id, content: 'It rains.' }],
      tools: [weather],
    });
    assert.ok(after.usage.prompt_tokens > forced.usage.prompt_tokens);
  },

  async json() {
    const schema = { type: 'object', properties: { city: { type: 'string', maxLength: 20 }, big: { type: 'boolean' } }, required: ['city', 'big'], additionalProperties: false };
    const answer = await chat({ max_tokens: 100, response_format: { type: 'json_schema', json_schema: { name: 'city', strict: true, schema } } });
    const value = JSON.parse(answer.choices[0].message.content);
    assert.deepEqual(Object.keys(value).sort(), ['big', 'city']);
    assert.equal(typeof value.big, 'boolean');
  },

  async embeddings() {
    const input = ['A cat sleeps.', 'Rates rose.'];
    const packed = await client.embeddings.create({ model, input }); // the package asks for base64 by itself
    const plain = await client.embeddings.create({ model, input, encoding_format: 'float' });
    assert.equal(packed.data.length, 2);
    for (const i of [0, 1])
      packed.data[i].embedding.forEach((x, k) => assert.ok(Math.abs(x - plain.data[i].embedding[k]) < 1e-6));
  },

  async completions() {
    const answer = await client.completions.create({ model, prompt: 'The capital of France is', temperature: 0, max_tokens: 4 });
    assert.match(answer.choices[0].text, /Paris/);
  },

  async errors() {
    await assert.rejects(chat({ model: 'other' }), (e) => e instanceof OpenAI.NotFoundError && e.code === 'model_not_found' && e.param === 'model');
    await assert.rejects(chat({ temperature: 'hot' }), (e) => e instanceof OpenAI.BadRequestError && e.param === 'temperature' && e.type === 'invalid_request_error');
    await assert.rejects(chat({ temprature: 1 }), (e) => e instanceof OpenAI.BadRequestError && e.code === 'unknown_parameter');
    const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'rk_wrong', maxRetries: 0 });
    await assert.rejects(stranger.models.list(), (e) => e instanceof OpenAI.AuthenticationError && e.status === 401);
  },

  // The tenant may run one request at once. While a stream holds that place others are refused with 429; the package
  // tries again by itself until the place is free.
  async retries() {
    const held = await chat({ stream: true, max_tokens: 4000, ignore_eos: true });
    await assert.rejects(chat(), (e) => e instanceof OpenAI.RateLimitError && e.status === 429);
    const patient = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 20 });
    let tries = 0;
    patient.fetch = (...a) => (tries++, fetch(...a));
    const waiting = patient.chat.completions.create({ model, messages, temperature: 0, max_tokens: 4 });
    while (tries < 2) await new Promise((r) => setTimeout(r, 20));
    held.controller.abort();
    assert.equal((await waiting).usage.completion_tokens, 4);
    assert.ok(tries >= 2);
  },
};

await checks[name]();
