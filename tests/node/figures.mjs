// SPDX-License-Identifier: MIT
//
// tests/node/figures.mjs: how fast a server is for many: eight answers at once beside the prefill rate of `bench`, what a long prompt does to the
// answers of others, and the second turn of a chat beside the first. Not a test: figures mean something on a machine that does nothing else.
//
//     node tests/node/figures.mjs build/release/dllama-vk model.gguf [further options of serve, e.g. --workers ...]
import { spawn, spawnSync } from 'node:child_process';
import http from 'node:http';

const [binary, model, ...options] = process.argv.slice(2);
if (!model) {
    console.error('usage: node tests/node/figures.mjs PROGRAM MODEL [OPTIONS OF SERVE]');
    process.exit(2);
}
const ROUNDS = 3, ANSWERS = 8;
const median = (v) => v.toSorted((a, b) => a - b)[v.length >> 1];
const high = (v) => v.toSorted((a, b) => a - b)[Math.floor(v.length * 0.95)];
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

let salt = Date.now() % 60000; // no prompt is one that the cache knows
const prompt = (n) => Array.from({ length: n }, (_, i) => 1000 + ((i * 7919 + salt * 104729) % 30000));

const server = spawn(binary, ['serve', model, '--listen', '127.0.0.1:0', '--parallel', `${ANSWERS}`, '--ctx', '4096', ...options], { stdio: ['ignore', 'ignore', 'pipe'] });
process.on('exit', () => server.kill('SIGKILL'));
const port = await new Promise((done, fail) => {
    let said = '';
    server.stderr.on('data', (text) => {
        said += text;
        const found = said.match(/is served on http:\S+:(\d+),/);
        if (found) done(Number(found[1]));
    });
    server.on('exit', () => fail(new Error(said)));
});

// The moments at which the text of an answer comes, and when it was asked for.
function stream(body, seen = []) {
    return new Promise((done, fail) => {
        salt++;
        const from = performance.now();
        const q = http.request({ port, host: '127.0.0.1', method: 'POST', path: '/v1/completions' }, (r) => {
            let rest = '';
            r.on('data', (bytes) => {
                const lines = (rest + bytes).split('\n');
                rest = lines.pop();
                for (const line of lines) if (line.includes('"finish_reason":null')) seen.push(performance.now());
                if (r.statusCode !== 200) fail(new Error(`${r.statusCode}: ${bytes}`));
            });
            r.on('end', () => done({ from, seen, to: performance.now() }));
        });
        q.on('error', fail);
        q.end(JSON.stringify({ temperature: 0, stream: true, ...body }));
    });
}

const gaps = (seen, from, to) => seen.flatMap((t, i) => (i && seen[i - 1] >= from && t <= to && t > seen[i - 1] ? [t - seen[i - 1]] : []));

// Both are of one minute, in turn, so that a machine that gets slower or faster does not decide.
function prefill() {
    const r = spawnSync(binary, ['bench', model, '--pp', '256', '--tg', '0', '--reps', '2', '--json', ...options.filter((o) => o !== '--parallel')], { encoding: 'utf8' });
    const row = r.stdout.split('\n').filter(Boolean).map((line) => JSON.parse(line)).find((v) => `${v.test}`.startsWith('pp'));
    if (!row) throw new Error(r.stderr);
    return row.tok_s;
}

// Tokens that were made so far: not each of them is text.
async function made() {
    const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    return { n: Number(text.match(/^dllama_generated_tokens_total (\S+)$/m)[1]), at: performance.now() };
}

async function together() {
    const starts = Array.from({ length: ANSWERS }, () => []);
    const all = starts.map((seen) => stream({ prompt: prompt(16), max_tokens: 96 }, seen));
    while (starts.some((s) => !s.length)) await wait(20);
    const from = await made();
    await Promise.race(all);
    const to = await made();
    await Promise.all(all);
    return ((to.n - from.n) * 1000) / (to.at - from.at);
}

async function beside() {
    const others = Array.from({ length: 4 }, () => []);
    for (const seen of others) stream({ prompt: prompt(16), max_tokens: 2000 }, seen).catch(() => {}); // they end with the server
    while (others.some((s) => s.length < 40)) await wait(20);
    const long = await stream({ prompt: prompt(2000), max_tokens: 1 });
    const before = others.flatMap((s) => gaps(s, s[4], long.from)), during = others.flatMap((s) => gaps(s, long.from, long.to));
    return [median(before), median(during), high(during)];
}

async function turns() {
    const history = prompt(1500);
    const first = await stream({ prompt: history, max_tokens: 16 });
    const second = await stream({ prompt: [...history, ...prompt(20)], max_tokens: 16 });
    return (second.seen[0] - second.from) / (first.seen[0] - first.from);
}

const rates = [], second = [];
for (let i = 0; i < ROUNDS; i++) {
    rates.push((await together()) / prefill());
    second.push(await turns());
}
const [usual, mixed, worst] = await beside();
console.log(`${ANSWERS} answers at once: ${median(rates).toFixed(2)} of the prefill rate (${rates.map((v) => v.toFixed(2)).join(', ')}); at least 0.55 is wanted`);
console.log(`second turn after 1500 tokens: first token after ${median(second).toFixed(3)} of the first turn's; at most 0.1 is wanted`);
console.log(`beside a prompt of 2000 tokens: ${(mixed / usual).toFixed(2)} times the usual gap of ${usual.toFixed(0)} ms, one in twenty above ${(worst / usual).toFixed(2)}; at most 2 is wanted`);
process.exit(0);
