// SPDX-License-Identifier: MIT
// What the page asks its server. The API key, where one is wanted, is asked for once and kept until the tab is closed.
const KEY = 'dllama.key';
let key = '';
try {
    key = sessionStorage.getItem(KEY) ?? '';
} catch {
    // no storage: it is asked for each time
}
let asking = null;
let declined = false; // then only what the user asks for asks again

function askKey(wrong) {
    asking ??= new Promise((done) => {
        const dialog = document.getElementById('key');
        const input = dialog.querySelector('input');
        dialog.querySelector('.wrong').hidden = !wrong;
        dialog.addEventListener(
            'close',
            () => {
                asking = null;
                declined = true;
                if (dialog.returnValue !== 'ok' || !input.value.trim()) return done(false);
                declined = false;
                key = input.value.trim();
                input.value = '';
                try {
                    sessionStorage.setItem(KEY, key);
                } catch {
                    // see above
                }
                done(true);
            },
            { once: true },
        );
        dialog.returnValue = '';
        dialog.showModal();
    });
    return asking;
}

// A fetch with the key. ask: 'never'; 'once', but not again when that was declined; 'always'.
export async function request(path, options, ask) {
    for (;;) {
        const used = key;
        const headers = { ...options.headers };
        if (used) headers.Authorization = 'Bearer ' + used;
        const response = await fetch(path, { ...options, headers, cache: 'no-store' });
        if (response.status !== 401 || ask === 'never' || (declined && ask === 'once')) return response;
        if (key === used && !(await askKey(used !== ''))) return response;
    }
}

async function problem(response) {
    try {
        const v = await response.json();
        if (typeof v.error?.message === 'string') return v.error.message;
    } catch {
        // not from our server
    }
    return 'the server answered ' + response.status;
}

// The answer to a chat, piece by piece. Calls onText(piece), and returns {finish, usage}.
export async function streamChat(body, signal, onText) {
    const asked = JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
    const options = { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: asked, signal };
    const response = await request('/v1/chat/completions', options, 'always');
    if (!response.ok) throw new Error(await problem(response));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const out = { finish: '', usage: null };
    let rest = '';
    for (;;) {
        const { value, done } = await reader.read();
        if (done) throw new Error('the connection was lost before the answer was complete');
        const lines = (rest + value).split('\n');
        rest = lines.pop();
        for (const line of lines) {
            if (!line.startsWith('data:')) continue;
            const data = line.slice(5).trim();
            if (data === '[DONE]') return out;
            const v = JSON.parse(data);
            if (v.error) throw new Error(v.error.message ?? 'the server failed');
            const choice = v.choices?.find((c) => c.index === 0);
            if (typeof choice?.delta?.content === 'string' && choice.delta.content) onText(choice.delta.content);
            out.finish = choice?.finish_reason ?? out.finish;
            out.usage = v.usage ?? out.usage;
        }
    }
}
