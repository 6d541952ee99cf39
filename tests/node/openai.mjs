// SPDX-License-Identifier: MIT
//
// tests/node/openai.mjs [cpu | vulkan | cluster]: OpenAI's own client (npm openai) against `serve` with the demo model: what its users do with
// it, whatever it computes on. $DLLAMA_BIN is the program, $DLLAMA_NODE_MODULES the folder whose node_modules has the client.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';

let OpenAI;
try {
    OpenAI = createRequire(process.env.DLLAMA_NODE_MODULES + '/x.js')('openai');
} catch {
    console.log("SKIPPED PART: OpenAI's client is not installed (npm ci with tests/node/package.json in build/node)");
    process.exit(0);
}

const bin = process.env.DLLAMA_BIN, target = process.argv[2] ?? 'cpu';
const running = [], dir = mkdtempSync(tmpdir() + '/dllama-openai-');
process.on('exit', () => {
    running.forEach((p) => p.kill('SIGKILL'));
    rmSync(dir, { recursive: true });
});
// What is found in stderr, once it is there.
function start(pattern, args, env = {}) {
    const p = spawn(bin, args, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...env } });
    running.push(p);
    return new Promise((done, fail) => {
        let said = '';
        p.stderr.on('data', (text) => {
            said += text;
            const found = said.match(pattern);
            if (found) done(found[1]);
        });
        p.on('exit', () => fail(new Error(said)));
    });
}

let options = ['--device', 'cpu'];
if (target === 'vulkan') {
    if (!/^\s*vulkan:0/m.test(execFileSync(bin, ['devices'], { stdio: ['ignore', 'pipe', 'ignore'] }).toString())) {
        console.log('SKIPPED PART: no Vulkan device here');
        process.exit(0);
    }
    options = ['--device', 'vulkan:0'];
} else if (target === 'cluster') {
    const key = dir + '/key';
    execFileSync(bin, ['keygen', key], { stdio: 'ignore' });
    const worker = (i) => start(/listening on (\S+) /, ['worker', '--listen', '127.0.0.1:0', '--device', 'cpu', '--threads', '1', '--key', key], { DLLAMA_CACHE_DIR: dir + '/' + i });
    options.push('--threads', '1', '--key', key, '--workers', (await Promise.all([1, 2].map(worker))).join(','));
}
const url = await start(/is served on (http:\S+),/, ['serve', '--listen', '127.0.0.1:0', ...options]), server = running.at(-1);
const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'any', maxRetries: 0 });
const messages = [{ role: 'user', content: 'Hello' }];
const base = { model: 'demo', messages };

const whole = await client.chat.completions.create({ ...base, max_tokens: 12 });
assert.equal(whole.choices[0].finish_reason, 'length');
assert.equal(whole.usage.completion_tokens, 12);
assert.match(whole.choices[0].message.content, /model runs across/);

let text = '', usage;
for await (const e of await client.chat.completions.create({ ...base, max_tokens: 12, stream: true, stream_options: { include_usage: true } })) {
    text += e.choices[0]?.delta?.content ?? '';
    usage = e.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, 12);
const helper = await client.beta.chat.completions.stream({ ...base, max_tokens: 12 }).finalChatCompletion();
assert.equal(helper.choices[0].message.content, text);

const many = await client.chat.completions.create({ ...base, n: 3, temperature: 50, seed: 3, max_tokens: 5, logprobs: true, top_logprobs: 2 });
assert.equal(new Set(many.choices.map((c) => c.message.content)).size, 3);
assert.equal(many.choices[2].logprobs.content.length, 5);
assert.equal(many.choices[2].logprobs.content[0].top_logprobs.length, 2);

const schema = { type: 'object', properties: { ok: { type: 'boolean' }, n: { type: 'integer' } }, required: ['ok', 'n'], additionalProperties: false };
const formed = await client.chat.completions.create({ ...base, max_tokens: 900, response_format: { type: 'json_schema', json_schema: { name: 'a', strict: true, schema } } });
const object = JSON.parse(formed.choices[0].message.content);
assert.equal(typeof object.ok, 'boolean');
assert.ok(Number.isInteger(object.n));

const aborted = await client.chat.completions.create({ ...base, stream: true, n: 16, logit_bias: { 2: -100 } });
let events = 0;
for await (const _ of aborted) if (++events === 20) break; // which aborts it
for (let i = 0; ; i++) {
    const metrics = await (await fetch(url + '/metrics')).text();
    if (/result="cancelled"} 1\n/.test(metrics) && /running_sequences 0\n/.test(metrics)) break;
    assert.ok(i < 1000, metrics);
    await new Promise((done) => setTimeout(done, 10));
}

await assert.rejects(client.chat.completions.create({ model: 'x', messages: 5 }), (e) => e instanceof OpenAI.BadRequestError && e.param === 'messages');
await assert.rejects(client.embeddings.create({ model: 'x', input: 'a' }), OpenAI.NotFoundError);
assert.deepEqual((await client.models.list()).data.map((m) => m.id), ['dllama-vk demo']);
assert.equal((await client.models.retrieve('dllama-vk demo')).object, 'model');
const completion = await client.completions.create({ model: 'x', prompt: ['One', 'your'], max_tokens: 4, echo: true, logprobs: 1 });
assert.equal(completion.choices.length, 2);
assert.equal(completion.choices[1].logprobs.text_offset[0], 'your'.length);

server.removeAllListeners('exit');
server.kill('SIGINT');
assert.equal(await new Promise((done) => server.on('exit', done)), 0);
console.log('ok');
process.exit(0); // workers run on until then
