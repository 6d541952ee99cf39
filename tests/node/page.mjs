// SPDX-License-Identifier: MIT
//
// tests/node/page.mjs: the web page of `serve` in headless Chromium: what people do on it, with the demo model. $DLLAMA_BIN is the program,
// $DLLAMA_NODE_MODULES the folder whose node_modules has playwright-core, $DLLAMA_SHOTS where pictures of it are kept.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { createRequire } from 'node:module';

function skip(why) {
    console.log('SKIPPED PART: ' + why);
    process.exit(0);
}

let playwright;
try {
    playwright = createRequire(process.env.DLLAMA_NODE_MODULES + '/x.js')('playwright-core');
} catch {
    skip('playwright-core is not installed (npm ci with tests/node/package.json in build/node)');
}
const executablePath = [process.env.DLLAMA_CHROMIUM, '/usr/bin/chromium', '/usr/bin/google-chrome', '/snap/bin/chromium'].find((p) => p && existsSync(p));
if (!executablePath) skip('no Chromium (apt-get install chromium)');
const shots = process.env.DLLAMA_SHOTS;
mkdirSync(shots, { recursive: true });

const servers = [];
process.on('exit', () => servers.forEach((s) => s.kill('SIGKILL')));
const pages = [];
process.on('uncaughtException', async (e) => {
    console.error(e, troubles);
    for (const [i, p] of pages.entries()) await p.screenshot({ path: `${shots}/failed-${i}.png` }).catch(() => {});
    process.exit(1);
});
async function serve(...options) {
    const server = spawn(process.env.DLLAMA_BIN, ['serve', '--listen', '127.0.0.1:0', '--device', 'cpu', ...options], { stdio: ['ignore', 'ignore', 'pipe'] });
    servers.push(server);
    return await new Promise((done, fail) => {
        let said = '';
        server.stderr.on('data', (text) => {
            said += text;
            const found = said.match(/is served on (http:\S+),/);
            if (found) done(found[1]);
        });
        server.on('exit', () => fail(new Error(said)));
    });
}

const [url, locked, browser] = await Promise.all([
    serve('--ctx', '100000'), // so that an answer without end takes minutes
    serve('--api-key', 'sesame'),
    playwright.chromium.launch({
        executablePath,
        headless: true,
        args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
    }),
]);

// What the files say of themselves.
const index = await fetch(url + '/');
assert.equal(index.status, 200);
assert.match(index.headers.get('content-type'), /^text\/html/);
assert.match(index.headers.get('content-security-policy'), /^default-src 'none'; script-src 'self'; style-src 'self';/);
assert.equal(index.headers.get('cache-control'), 'no-cache');
const again = await fetch(url + '/', { headers: { 'If-None-Match': index.headers.get('etag') } });
assert.equal(again.status, 304);
assert.equal((await fetch(url + '/', { headers: { 'If-None-Match': '"other"' } })).status, 200);
assert.equal((await fetch(url + '/page/app.js')).headers.get('content-type'), 'text/javascript; charset=utf-8');
assert.equal((await fetch(url + '/page/none.js')).status, 404);
assert.equal((await fetch(url + '/page/../server.c')).status, 404);
assert.equal((await fetch(url + '/', { method: 'POST', body: '' })).status, 405);
assert.equal((await fetch(url + '/health')).headers.get('cache-control'), 'no-store');

const troubles = [];
const newPage = async (base, options) => {
    const context = await browser.newContext({ viewport: { width: 1360, height: 860 }, colorScheme: 'dark', ...options });
    const page = await context.newPage();
    pages.push(page);
    page.setDefaultTimeout(30000);
    page.on('pageerror', (e) => troubles.push(String(e)));
    page.on('console', (m) => m.type() === 'error' && !/status of (401|503)/.test(m.text()) && troubles.push(m.text()));
    page.on('request', (r) => r.url().startsWith(base + '/') || troubles.push('asked for ' + r.url()));
    page.on('dialog', (d) => d.accept());
    await page.goto(base + '/');
    return page;
};
const send = async (page, text) => {
    await page.getByLabel('Message', { exact: true }).fill(text);
    await page.keyboard.press('Enter');
};
const answers = (page) => page.locator('.message.assistant .content');
const idle = (page) => page.locator('#send[aria-label="Send"]').waitFor();

// Type, and read what the model says; Shift+Enter begins a line; the cluster is drawn.
const page = await newPage(url);
assert.equal(await page.evaluate(() => document.activeElement.id), 'input');
await page.keyboard.type('Hello <b>you</b>');
await page.keyboard.press('Shift+Enter');
await page.keyboard.type('and you');
await page.keyboard.press('Enter');
await page.locator('.message.assistant .note', { hasText: /\d+ tokens · [\d.]+ tokens\/s/ }).waitFor();
await idle(page);
assert.match(await answers(page).last().textContent(), /model runs across/);
assert.equal(await page.locator('.message.user .content').textContent(), 'Hello <b>you</b>\nand you');
await page.locator('#cluster .node', { hasText: 'root' }).waitFor();
assert.equal(await page.locator('#cluster .node .bar').count(), 1);
assert.equal(await page.locator('#state').getAttribute('data-state'), 'ok');
assert.match(await page.locator('#cluster .legend').last().textContent(), /weights[\d.]+ [KMG]?i?B/);

// Reload: it is all there.
const first = await answers(page).last().textContent();
await page.reload();
assert.equal(await answers(page).last().textContent(), first);
assert.equal(await page.locator('#title').textContent(), 'Hello <b>you</b>');

// Settings are sent, an empty one is not; regenerate asks for the same again.
let sent;
const chat = '**/v1/chat/completions';
await page.route(chat, (route) => {
    sent = route.request().postDataJSON();
    route.continue();
});
await page.getByRole('button', { name: 'Settings' }).click();
await page.getByLabel('System prompt').fill('Be short.');
await page.getByLabel('Most tokens').fill('3');
await page.getByRole('button', { name: 'Save' }).click();
await page.getByRole('button', { name: 'Regenerate' }).click();
await page.locator('.note', { hasText: /^3 tokens .*cut at the limit/ }).waitFor();
assert.deepEqual(sent.messages, [{ role: 'system', content: 'Be short.' }, { role: 'user', content: 'Hello <b>you</b>\nand you' }]);
assert.equal(sent.max_tokens, 3);
assert.ok(!('temperature' in sent) && !('top_k' in sent));
assert.equal(await answers(page).count(), 1);

// Edit a message: what came after it is made anew.
await page.locator('.message.user').hover();
await page.getByRole('button', { name: 'Edit message' }).click();
await page.getByLabel('Text of the message').fill('Something else');
await page.keyboard.press('Enter');
await page.locator('.note', { hasText: /^3 tokens/ }).waitFor();
await idle(page);
assert.equal(sent.messages[1].content, 'Something else');
assert.equal(await page.locator('.message').count(), 2);
await page.unroute(chat);

// Stop: an answer without end, which the server gives up, too.
await page.getByRole('button', { name: 'New conversation' }).first().click();
await page.getByRole('button', { name: 'Settings' }).click();
await page.getByRole('button', { name: 'Reset' }).click();
await page.getByRole('button', { name: 'Save' }).click();
await page.route(chat, (route) => route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), n: 16, logit_bias: { 2: -100 } }) }));
await send(page, 'Never end');
await page.locator('.streaming .note', { hasText: /\d\d tokens/ }).waitFor();
await page.getByRole('button', { name: 'Stop' }).click();
await page.locator('.note', { hasText: 'stopped' }).waitFor();
const held = await answers(page).last().textContent();
assert.ok(held.length > 20);
for (let i = 0; ; i++) {
    const metrics = await (await fetch(url + '/metrics')).text();
    if (/result="cancelled"} 1\n/.test(metrics) && /running_sequences 0\n/.test(metrics)) break;
    assert.ok(i < 3000, metrics);
    await new Promise((done) => setTimeout(done, 10));
}
assert.equal(await answers(page).last().textContent(), held);
await page.unroute(chat);
await page.getByRole('button', { name: 'New conversation' }).first().click();

// Whatever a model says: HTML stays text, scripts and their links are none, Markdown is shown.
const wild = [
    '# Answer <img src=x onerror="document.title=\'hacked\'">',
    '<script>document.title = "hacked"</script> **bold** *soft* `code <i>` 2 * 3 * 4 snake_case_name',
    '[safe](https://example.org/a_(b)) [bad](javascript:alert(1)) ![pic](https://example.org/p.png) [<b>x</b>](data:text/html,x)',
    '',
    '- one\n- two\n  - inner\n    1. deep\n- [x] done',
    '',
    '| a | b |\n|---|--:|\n| 1 | <u>2</u> |',
    '',
    '> quoted\n> twice',
    '',
    '```html\n<script>document.title = "hacked"</script>\n  indented\n```',
].join('\n');
const events = [...wild.matchAll(/[^]{1,7}/g)].map((m) => ({ choices: [{ index: 0, delta: { content: m[0] } }] }));
await page.route(chat, (route) => route.fulfill({ contentType: 'text/event-stream', body: events.map((e) => `data: ${JSON.stringify(e)}\r\n\r\n`).join('') + 'data: [DONE]\n\n' }));
await send(page, 'Be wild');
await idle(page);
await page.locator('.message:last-child figure').waitFor();
const last = answers(page).last();
assert.equal(await last.locator('img, script, i, u, b, [onerror]').count(), 0);
assert.equal(await last.locator('h2').textContent(), 'Answer <img src=x onerror="document.title=\'hacked\'">');
assert.equal(await last.locator('strong').textContent(), 'bold');
assert.equal(await last.locator('em').textContent(), 'soft');
assert.match(await last.locator('p').first().textContent(), /<script>.*2 \* 3 \* 4 snake_case_name/);
assert.deepEqual(await last.locator('a').evaluateAll((list) => list.map((a) => a.href)), ['https://example.org/a_(b)', 'https://example.org/p.png']);
assert.equal(await last.locator('ul ul ol li').textContent(), 'deep');
assert.equal(await last.locator('td.right').textContent(), '<u>2</u>');
assert.equal(await last.locator('blockquote').textContent(), 'quotedtwice');
assert.equal(await last.locator('pre code').textContent(), '<script>document.title = "hacked"</script>\n  indented');
await page.unroute(chat);
await page.context().grantPermissions(['clipboard-read', 'clipboard-write']);
await last.getByRole('button', { name: 'Copy code' }).click();
assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^<script>.*\n {2}indented$/);
assert.doesNotMatch(await page.title(), /^hacked/);

// Any pieces in any order: only elements that Markdown may be, the same bit by bit as at once, and not for long.
const strange = await page.evaluate(async () => {
    const { render } = await import('/page/markdown.js');
    const bits = ['*', '**', '_', '`', '```', '```js', '\n', '\n\n', '- ', '1. ', '> ', '| a | b |\n', '|--|--|\n', '[x](', 'https://a.b', ')', '(', ']', '[', '<', '>', '<img src=x onerror=1>', '\\', '#', '## ', 'word ', ' ', '    ', '~~', '<script>', '](javascript:1)', '!', '---\n', '[ ] ', '\t', '\r\n'];
    const may = new Set('p h2 h3 h4 h5 h6 ul ol li blockquote figure figcaption span button svg path pre code strong em del a br hr div table thead tbody tr th td input'.split(' '));
    const show = (text, into) => (render(text, into), into);
    const out = [];
    let seed = 1;
    const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
    for (let i = 0; i < 400; i++) {
        const text = Array.from({ length: 1 + random(60) }, () => bits[random(bits.length)]).join('');
        const once = show(text, document.createElement('div'));
        for (const e of once.querySelectorAll('*')) if (!may.has(e.localName)) out.push([e.localName, text]);
        for (const e of once.querySelectorAll('a')) if (!e.getAttribute('href').startsWith('https://')) out.push([e.href, text]);
        const grown = document.createElement('div');
        for (let k = 0; k < text.length; k += 9) render(text.slice(0, k), grown);
        if (show(text, grown).innerHTML !== once.innerHTML) out.push(['differs', text]);
    }
    for (const unit of ['*a', '_a ', '``a', '[a](', '> ', '- a\n', '1. a\n\n', '| a ']) {
        const began = performance.now();
        show(unit.repeat(5000), document.createElement('div'));
        if (performance.now() - began > 5000) out.push(['takes long', unit]);
    }
    return out;
});
assert.deepEqual(strange, []);

// What a model thinks aloud is folded away, and not sent back to it.
await page.route(chat, (route) => route.fulfill({ contentType: 'text/event-stream', body: ['<think>Hm', 'm <b></th', 'ink>\n\nDone.'].map((t) => `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: t } }] })}\n\n`).join('') + 'data: [DONE]\n\n' }));
await send(page, 'Think');
await page.locator('.message:last-child p', { hasText: /^Done\.$/ }).waitFor();
assert.equal(await page.locator('.message:last-child .thought div').textContent(), 'Hmm <b>');
assert.equal(await page.locator('.message:last-child .thought').getAttribute('open'), null);
await page.unroute(chat);

// An error is shown, and the question can be asked again.
await page.route(chat, (route) => {
    sent = route.request().postDataJSON();
    route.fulfill({ status: 503, json: { error: { message: 'no <b>nodes</b>' } } });
});
await send(page, 'Anyone?');
await page.locator('.message:last-child .error', { hasText: 'no <b>nodes</b>' }).waitFor();
assert.equal(sent.messages.at(-2).content, 'Done.');
await page.unroute(chat);
await page.getByRole('button', { name: 'Regenerate' }).click();
await page.locator('.message:last-child .note', { hasText: 'tokens/s' }).waitFor();
await idle(page);
assert.equal(await page.locator('.error:visible').count(), 0);

// Several conversations: renamed, opened, deleted; by keyboard, too.
assert.equal(await page.locator('#chats li').count(), 3);
await page.locator('#chats li').first().hover();
await page.getByRole('button', { name: 'Rename Be wild' }).click();
await page.keyboard.type('Third <i>');
await page.keyboard.press('Enter');
assert.equal(await page.locator('#title').textContent(), 'Third <i>');
await page.screenshot({ path: shots + '/desktop-dark.png' });
await page.getByRole('button', { name: 'Dark or light' }).click();
await page.screenshot({ path: shots + '/desktop-light.png' });
await page.reload();
assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'light');
await page.locator('#chats .open').last().focus();
await page.keyboard.press('Enter');
assert.equal(await page.locator('.message').count(), 2);
await page.locator('#chats li').last().hover();
await page.getByRole('button', { name: /^Delete Hello/ }).click();
assert.equal(await page.locator('#chats li').count(), 2);

// Hidden, it asks for nothing.
await page.evaluate(() => {
    Object.defineProperty(document, 'hidden', { value: true, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
});
await page.waitForTimeout(300);
let asked = 0;
page.on('request', () => asked++);
await page.waitForTimeout(1200);
assert.equal(asked, 0);
await page.evaluate(() => {
    delete document.hidden;
    document.dispatchEvent(new Event('visibilitychange'));
});
await page.waitForResponse('**/v1/cluster');

// A phone: nothing wider than the screen, the conversations in a drawer; and the key, which a wrong one is not.
const phone = await newPage(locked, { viewport: { width: 390, height: 780 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true, colorScheme: 'light' });
for (const key of ['wrong', 'sesame']) {
    await phone.getByLabel('Key', { exact: true }).fill(key);
    await phone.keyboard.press('Enter');
    if (key === 'wrong') await phone.getByText('That was not the key.').waitFor();
}
await phone.locator('#model', { hasText: 'tokens' }).waitFor();
await send(phone, 'Hello from a phone, with aVeryLongWordThatDoesNotFitIntoOneLineOfAPhoneAtAllBecauseItIsTooLong');
await phone.locator('.note', { hasText: 'tokens/s' }).waitFor();
await idle(phone);
assert.ok((await phone.evaluate(() => document.documentElement.scrollWidth)) <= 390);
await phone.screenshot({ path: shots + '/phone.png' });
assert.equal(await phone.locator('#sidebar').isVisible(), false);
await phone.getByRole('button', { name: 'Conversations' }).tap();
await phone.locator('#chats .open').first().waitFor();
await phone.waitForTimeout(250);
await phone.screenshot({ path: shots + '/phone-sidebar.png' });
await phone.keyboard.press('Escape');
assert.equal(await phone.evaluate(() => document.activeElement.getAttribute('aria-label')), 'Conversations');
await phone.locator('#state').tap();
await phone.locator('#cluster .node').waitFor();
await phone.waitForTimeout(250);
await phone.screenshot({ path: shots + '/phone-cluster.png' });
await phone.reload();
await phone.locator('#model', { hasText: 'tokens' }).waitFor(); // without the question: the tab knows it
assert.equal(await phone.evaluate(() => localStorage.getItem('dllama.key')), null);

assert.deepEqual(troubles, []);
await browser.close();
for (const server of servers) {
    server.removeAllListeners('exit');
    server.kill('SIGINT');
    assert.equal(await new Promise((done) => server.on('exit', done)), 0);
}
console.log('ok');
