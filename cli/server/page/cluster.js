// SPDX-License-Identifier: MIT
// The live picture of the cluster: what /health and /v1/cluster say, asked for while somebody looks.
import { request } from './api.js';
import { el } from './dom.js';

const OPEN_MS = 1000; // between two looks while the panel is open
const CLOSED_MS = 5000; // and while only the state is shown
const SPARKS = 60;
const STATES = { ok: 'ready', loading: 'loading', healing: 'healing', failed: 'failed', stopping: 'stopping', gone: 'not reachable' };

const $ = (id) => document.getElementById(id);
const percent = (v) => (v > 0 && v < 0.01 ? '< 1' : (v * 100).toFixed(0)) + ' %';

function bytes(n) {
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
    let i = 0;
    while (n >= 1024 && i < units.length - 1) {
        n /= 1024;
        i++;
    }
    return (i && n < 10 ? n.toFixed(1) : Math.round(n)) + ' ' + units[i];
}

// One bar of parts: [{class, value, label}].
function bar(parts, label) {
    const all = parts.reduce((sum, p) => sum + p.value, 0);
    const text = parts.map((p) => p.label + ' ' + (all ? percent(p.value / all) : '0 %')).join(', ');
    const node = el('.bar', { role: 'img', 'aria-label': label + ': ' + text, title: text });
    for (const p of parts) {
        if (p.value <= all / 500) continue; // less than a point of the screen
        const piece = el('span.' + p.class);
        piece.style.flexGrow = p.value / all;
        node.append(piece);
    }
    return node;
}

const legend = (parts) => el('ul.legend', {}, ...parts.map((p) => el('li', {}, el('i.' + p.class), p.label, el('b', {}, p.text))));

function spark(values) {
    const SVG = 'http://www.w3.org/2000/svg';
    const svg = document.createElementNS(SVG, 'svg');
    const most = Math.max(1, ...values);
    const points = values.map((v, i) => [(SPARKS - values.length + i) * (100 / (SPARKS - 1)), 29 - (v / most) * 27]);
    const line = points.map((p) => p[0].toFixed(1) + ',' + p[1].toFixed(1)).join(' L');
    const path = (d, name) => {
        const node = document.createElementNS(SVG, 'path');
        node.setAttribute('d', d);
        node.setAttribute('class', name);
        svg.append(node);
    };
    svg.setAttribute('viewBox', '0 0 100 30');
    svg.setAttribute('preserveAspectRatio', 'none');
    svg.setAttribute('class', 'spark');
    svg.setAttribute('role', 'img');
    svg.setAttribute('aria-label', 'tokens per second in the last minute, at most ' + most.toFixed(0));
    if (points.length > 1) {
        path('M' + line + ' L100,30 L' + points[0][0].toFixed(1) + ',30 Z', 'area');
        path('M' + line, 'line');
    }
    return svg;
}

// What a node did since the last look; in all, where it did nothing.
function work(node, before) {
    const names = ['compute_ms', 'exchange_ms', 'idle_ms'];
    const since = before && names.map((n) => Math.max(0, node[n] - before[n]));
    const [compute, exchange, idle] = since && since.some((v) => v > 0) ? since : names.map((n) => node[n]);
    const all = compute + exchange + idle || 1;
    return [
        { class: 'compute', value: compute, label: 'compute', text: percent(compute / all) },
        { class: 'exchange', value: exchange, label: 'exchange', text: percent(exchange / all) },
        { class: 'idle', value: idle, label: 'idle', text: percent(idle / all) },
    ];
}

function nodeCard(node, index, before, seconds) {
    const parts = work(node, before);
    const rate = (name) => bytes(before && seconds ? Math.max(0, node[name] - before[name]) / seconds : 0) + '/s';
    const networked = node.sent_bytes || node.received_bytes;
    return el(
        'section.node',
        {},
        el('header', {}, el('i.dot.n' + (index % 8)), el('h3', {}, node.name || 'node ' + index), el('b', {}, percent(node.share))),
        el('p.device', {}, node.device),
        bar(parts, 'time'),
        legend(parts),
        networked ? el('p.traffic', {}, '↑ ' + rate('sent_bytes') + '   ↓ ' + rate('received_bytes')) : null,
    );
}

const fact = (name, value) => el('div', {}, el('dt', {}, name), el('dd', {}, value));

function draw(v, state) {
    const now = performance.now();
    const seconds = state.at ? (now - state.at) / 1000 : 0;
    const made = state.last ? Math.max(0, v.generated_tokens - state.last.generated_tokens) : 0;
    const rate = seconds ? made / seconds : 0;
    if (seconds) state.rates = [...state.rates, rate].slice(-SPARKS);
    const memory = [
        { class: 'weights', value: v.memory.weight_bytes, label: 'weights', text: bytes(v.memory.weight_bytes) },
        { class: 'kv', value: v.memory.kv_bytes, label: 'KV cache', text: bytes(v.memory.kv_bytes) },
        { class: 'act', value: v.memory.activation_bytes, label: 'work space', text: bytes(v.memory.activation_bytes) },
    ];
    const missing = v.nodes_in_all - v.nodes.length;
    const before = (i) => (state.last?.nodes[i]?.name === v.nodes[i].name ? state.last.nodes[i] : null);
    $('cluster-body').replaceChildren(
        el('section.speed', {}, el('div', {}, el('b', {}, rate.toFixed(rate > 0 && rate < 10 ? 1 : 0)), ' tokens/s'), spark(state.rates)),
        el('dl.facts', {}, fact('running', v.running), fact('waiting', v.queued), fact('context', v.ctx.toLocaleString('en')), fact('tokens made', v.generated_tokens.toLocaleString('en'))),
        el('h3.group', {}, 'Shares of the model'),
        bar(v.nodes.map((n, i) => ({ class: 'n' + (i % 8), value: n.share, label: n.name })), 'shares'),
        missing > 0 ? el('p.missing', {}, missing + (missing === 1 ? ' node is missing' : ' nodes are missing')) : '',
        ...v.nodes.map((n, i) => nodeCard(n, i, before(i), seconds)),
        el('h3.group', {}, 'Memory of this machine'),
        bar(memory, 'memory'),
        legend(memory),
    );
    state.last = v;
    state.at = now;
}

function showState(state, why, loading) {
    const pill = $('state');
    pill.dataset.state = state;
    pill.querySelector('span').textContent = STATES[state] ?? state;
    pill.title = why || 'What the cluster does';
    pill.setAttribute('aria-label', 'Cluster: ' + pill.textContent.trim());
    const banner = $('banner');
    let text = '';
    if (state === 'loading') text = 'The model is being loaded' + (loading?.phase ? ': ' + loading.phase : '') + (loading?.total > 0 ? ', ' + percent(loading.done / loading.total) : '');
    else if (state === 'gone') text = 'The server does not answer. Trying again …';
    else if (state !== 'ok') text = (STATES[state] ?? state) + (why ? ': ' + why : '');
    if (banner.textContent !== text) banner.textContent = text;
    banner.hidden = !text;
}

// Looks, until the page is hidden. isOpen(): whether the panel is to be seen; onModel(name, ctx): what is served.
export function watch(isOpen, onModel) {
    const state = { last: null, at: 0, rates: [] };
    let timer = 0;
    let busy = false;
    let served = '';

    async function look() {
        const health = await request('/health', {}, 'never').then((r) => r.json());
        showState(health.status, health.why, health.loading);
        if (health.status !== 'ok') served = '';
        if (health.status === 'loading' || health.status === 'stopping') return;
        if (!isOpen() && served) return;
        const response = await request('/v1/cluster', {}, served ? 'never' : 'once');
        if (!response.ok) return;
        const v = await response.json();
        served = v.model;
        onModel(v.model, v.ctx);
        if (isOpen()) draw(v, state);
    }
    async function turn() {
        clearTimeout(timer);
        if (document.hidden || busy) return;
        busy = true;
        await look().catch(() => showState('gone'));
        busy = false;
        clearTimeout(timer);
        if (!document.hidden) timer = setTimeout(turn, isOpen() || !served ? OPEN_MS : CLOSED_MS);
    }
    document.addEventListener('visibilitychange', () => {
        if (document.hidden) {
            clearTimeout(timer);
            state.at = 0; // what happened meanwhile is no rate
            state.last = null;
        } else turn();
    });
    turn();
    return turn;
}
