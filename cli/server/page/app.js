// SPDX-License-Identifier: MIT
// The page: which conversation is open, what runs, and what the buttons do.
import { streamChat } from './api.js';
import { watch } from './cluster.js';
import { el, icon, iconButton, toast } from './dom.js';
import { createView, editInPlace, showContent, showNote, splitThought } from './messages.js';
import * as store from './store.js';

const $ = (id) => document.getElementById(id);
const SAVE_MS = 500; // while an answer grows

let chat = null; // the open one
let views = []; // of its messages
const runs = new Map(); // id of a conversation: the answer that is being made, {chat, message, controller, ...}
let model = '';

// --------------------------------------------------------------------------------------------------- the messages

const atEnd = () => $('scroll').scrollHeight - $('scroll').scrollTop - $('scroll').clientHeight < 60;
let follow = true; // the end, as it grows
function toEnd() {
    $('scroll').scrollTop = $('scroll').scrollHeight;
}

function showMessages() {
    const running = runs.get(chat.id);
    views = chat.messages.map((message, i) => {
        const last = i === chat.messages.length - 1;
        const view = createView(message, { edit: (v) => edit(v, i), again: last ? () => regenerate() : null });
        showNote(view, message, running?.message === message);
        return view;
    });
    $('messages').replaceChildren(...views.map((v) => v.node));
    if (!views.length) $('messages').append(welcome());
    $('title').textContent = chat.title || 'New conversation';
    document.title = (chat.title ? chat.title + ' · ' : '') + 'dllama-vk';
    follow = true;
    toEnd();
    showRunning();
}

const welcome = () => el('.welcome', {}, el('img', { src: '/page/icon.svg', alt: '', width: 56, height: 56 }), el('h2', {}, 'What would you like to know?'), el('p', {}, 'One model, on the machines you own. What you write stays on them, and in this browser.'));

function showRunning() {
    const running = runs.has(chat.id);
    $('send').replaceChildren(icon(running ? 'stop' : 'send'));
    $('send').setAttribute('aria-label', running ? 'Stop' : 'Send');
    $('send').title = running ? 'Stop (Esc)' : 'Send (Enter)';
    $('send').classList.toggle('stop', running);
    $('send').disabled = !running && !$('input').value.trim();
    $('messages').classList.toggle('running', running);
    $('messages').setAttribute('aria-busy', String(running)); // read out when it is whole
}

function edit(view, index) {
    if (runs.has(chat.id)) return;
    const message = chat.messages[index];
    const mine = message.role === 'user';
    editInPlace(view, message, mine ? 'Send' : 'Save', (text) => {
        if (text !== null && text.trim()) {
            message.content = text;
            if (mine) chat.messages.length = index + 1;
            store.save(chat);
        }
        showMessages();
        if (text !== null && text.trim() && mine) answer(chat);
        else $('input').focus();
    });
}

// ------------------------------------------------------------------------------------------------------- answers

// The request for what comes next. Fields that are empty are the server's to choose.
function bodyOf(c) {
    const s = c.settings;
    const messages = c.messages.filter((m) => !m.error || m.content).map((m) => ({ role: m.role, content: m.role === 'assistant' ? splitThought(m.content).answer : m.content }));
    const body = { model: model || 'default', messages: s.system.trim() ? [{ role: 'system', content: s.system }, ...messages] : messages };
    for (const name of ['temperature', 'top_p', 'top_k', 'min_p', 'repeat_penalty', 'max_tokens', 'seed']) if (s[name].trim() && Number.isFinite(Number(s[name]))) body[name] = Number(s[name]);
    if (s.stop) body.stop = s.stop;
    return body;
}

function noteOf(run, out) {
    const tokens = out?.usage?.completion_tokens ?? run.pieces;
    const seconds = (run.lastMs - run.firstMs) / 1000;
    const parts = [tokens + (tokens === 1 ? ' token' : ' tokens')];
    const rate = (tokens - 1) / seconds;
    if (tokens > 1 && seconds > 0) parts.push(rate.toFixed(rate < 100 ? 1 : 0) + ' tokens/s');
    if (run.firstMs) parts.push('first after ' + ((run.firstMs - run.beganMs) / 1000).toFixed(2) + ' s');
    if (out?.finish === 'length') parts.push('cut at the limit');
    if (run.stopped) parts.push('stopped');
    return parts.join(' · ');
}

// Shows what has come, at most once per picture.
function refresh(run) {
    run.frame ||= requestAnimationFrame(() => {
        run.frame = 0;
        if (chat !== run.chat) return;
        const view = views[run.chat.messages.indexOf(run.message)];
        if (!view) return;
        if (run.pieces && runs.get(chat.id) === run) run.message.note = noteOf(run);
        showContent(view, run.message);
        showNote(view, run.message, runs.get(chat.id) === run);
        if (follow) toEnd();
    });
}

async function answer(c) {
    const run = { chat: c, message: { role: 'assistant', content: '', note: '', error: '' }, controller: new AbortController(), pieces: 0, beganMs: performance.now(), firstMs: 0, lastMs: 0, savedMs: 0, frame: 0, stopped: false };
    const body = bodyOf(c);
    c.messages.push(run.message);
    runs.set(c.id, run);
    store.save(c);
    if (chat === c) showMessages();
    if (!matchMedia('(hover: none)').matches) $('input').focus({ preventScroll: true });
    showChats();
    let out = null;
    try {
        out = await streamChat(body, run.controller.signal, (piece) => {
            run.lastMs = performance.now();
            run.firstMs ||= run.lastMs;
            run.pieces++;
            run.message.content += piece;
            if (run.lastMs > run.savedMs + SAVE_MS) {
                run.savedMs = run.lastMs;
                store.save(c);
            }
            refresh(run);
        });
    } catch (e) {
        if (run.controller.signal.aborted) run.stopped = true;
        else run.message.error = e instanceof TypeError ? 'The server cannot be reached.' : e.message;
    }
    if (run.pieces || !run.message.error) run.message.note = noteOf(run, out);
    runs.delete(c.id);
    if (!run.deleted) store.save(c);
    refresh(run);
    if (chat === c) showRunning();
    showChats();
}

const stop = (id) => runs.get(id)?.controller.abort();

function regenerate() {
    if (runs.has(chat.id)) return;
    if (chat.messages.at(-1)?.role === 'assistant') chat.messages.pop();
    if (chat.messages.length) answer(chat);
}

function send() {
    const text = $('input').value.trim();
    if (runs.has(chat.id)) return stop(chat.id);
    if (!text) return;
    if (!chat.title) chat.title = text.split('\n')[0].slice(0, 60);
    chat.messages.push({ role: 'user', content: text, note: '', error: '' });
    $('input').value = '';
    grow();
    store.prefer('open', chat.id);
    answer(chat);
}

// ------------------------------------------------------------------------------------------------- conversations

function showChats() {
    const held = document.activeElement?.closest?.('#chats li')?.dataset.id;
    $('chats').replaceChildren(
        ...store.list().map((c) => {
            const open = el('button.open', { type: 'button', 'aria-current': c.id === chat.id ? 'page' : null, onclick: () => openChat(c.id), ondblclick: () => rename(c.id) }, runs.has(c.id) ? el('i.pulse', { title: 'is being answered' }) : null, el('span', {}, c.title || 'New conversation'));
            return el('li', { 'data-id': c.id }, open, iconButton('edit', 'Rename ' + c.title, () => rename(c.id)), iconButton('trash', 'Delete ' + c.title, () => remove(c.id)));
        }),
    );
    if (held) document.querySelector(`#chats li[data-id="${CSS.escape(held)}"] .open`)?.focus();
}

function openChat(id) {
    const next = runs.get(id)?.chat ?? store.load(id);
    if (!next) return showChats();
    chat = next;
    store.prefer('open', id);
    showMessages();
    showChats();
    setDrawer('sidebar', false);
    $('input').focus({ preventScroll: true });
}

function newChat() {
    chat = store.create();
    store.prefer('open', '');
    showMessages();
    showChats();
    setDrawer('sidebar', false);
    $('input').focus();
}

function rename(id) {
    const li = document.querySelector(`#chats li[data-id="${CSS.escape(id)}"]`);
    const c = id === chat.id ? chat : (runs.get(id)?.chat ?? store.load(id));
    if (!li || !c) return;
    const input = el('input', { type: 'text', 'aria-label': 'Name of the conversation', maxlength: 80 });
    input.value = c.title;
    let over = false;
    const done = (keep) => {
        if (over) return;
        over = true;
        if (keep && input.value.trim()) c.title = input.value.trim();
        store.save(c);
        showChats();
        if (c === chat) $('title').textContent = c.title;
        document.querySelector(`#chats li[data-id="${CSS.escape(id)}"] .open`)?.focus();
    };
    input.addEventListener('keydown', (e) => {
        if (e.key === 'Enter') done(true);
        if (e.key === 'Escape') {
            e.stopPropagation();
            done(false);
        }
    });
    input.addEventListener('blur', () => done(true));
    li.replaceChildren(input);
    input.select();
}

function remove(id) {
    const title = store.list().find((c) => c.id === id)?.title ?? '';
    if (!confirm(`Delete “${title}”? It is kept nowhere else.`)) return;
    if (runs.has(id)) runs.get(id).deleted = true;
    stop(id);
    store.remove(id);
    if (id === chat.id) newChat();
    else showChats();
}

// ------------------------------------------------------------------------------------------- settings and frame

function openSettings() {
    const form = $('settings').querySelector('form');
    for (const name of Object.keys(store.DEFAULTS)) form.elements[name].value = chat.settings[name];
    $('settings').showModal();
}

$('settings').querySelector('form').addEventListener('submit', (e) => {
    for (const name of Object.keys(store.DEFAULTS)) chat.settings[name] = e.target.elements[name].value;
    store.keepSettings(chat.settings);
    if (chat.messages.length) store.save(chat);
});
$('reset').addEventListener('click', () => {
    for (const name of Object.keys(store.DEFAULTS)) $('settings').querySelector('form').elements[name].value = '';
});
$('key').querySelector('.cancel').addEventListener('click', () => $('key').close());
for (const dialog of document.querySelectorAll('dialog'))
    dialog.addEventListener('mousedown', (e) => {
        if (e.target === dialog) dialog.close();
    });

// The sidebar is a drawer on a narrow screen, the cluster on all but wide ones.
const narrow = matchMedia('(max-width: 760px)');
const medium = matchMedia('(max-width: 1100px)');

function setDrawer(id, open) {
    const node = $(id);
    if (id === 'sidebar') {
        node.classList.toggle('shown', open);
        node.inert = narrow.matches && !open;
    } else {
        node.hidden = !open;
        $('state').setAttribute('aria-expanded', String(open));
        if (!medium.matches) store.prefer('cluster', open ? 'open' : 'closed');
    }
    $('shade').hidden = !((narrow.matches && $('sidebar').classList.contains('shown')) || (medium.matches && !$('cluster').hidden));
}

const look = watch(
    () => !$('cluster').hidden,
    (name, ctx) => {
        model = name;
        $('model').textContent = name + ', ' + ctx.toLocaleString('en') + ' tokens';
    },
);

function toggleCluster() {
    setDrawer('cluster', $('cluster').hidden);
    look();
    if (medium.matches && !$('cluster').hidden) $('close-cluster').firstChild.focus();
}

function closeCluster() {
    setDrawer('cluster', false);
    $('state').focus();
}

function openSidebar() {
    setDrawer('sidebar', true);
    $('new').focus();
}

function closeSidebar() {
    setDrawer('sidebar', false);
    $('open-sidebar').firstChild.focus();
}

function nextTheme() {
    const dark = matchMedia('(prefers-color-scheme: dark)').matches;
    const now = document.documentElement.dataset.theme ?? (dark ? 'dark' : 'light');
    const next = now === 'dark' ? 'light' : 'dark';
    document.documentElement.dataset.theme = next;
    store.prefer('theme', next);
}

function grow() {
    const input = $('input');
    input.style.height = 'auto';
    input.style.height = Math.min(input.scrollHeight, innerHeight * 0.4) + 'px';
    if (chat) showRunning();
}

$('input').addEventListener('input', grow);
$('input').addEventListener('keydown', (e) => {
    if (e.key !== 'Enter' || e.shiftKey || e.isComposing) return;
    e.preventDefault();
    if (!runs.has(chat.id)) send();
});
$('composer').addEventListener('submit', (e) => {
    e.preventDefault();
    send();
});
$('scroll').addEventListener('scroll', () => {
    follow = atEnd();
    $('jump').hidden = follow;
});
$('jump').addEventListener('click', toEnd);
$('shade').addEventListener('click', () => {
    if (!$('cluster').hidden && medium.matches) closeCluster();
    if (narrow.matches && $('sidebar').classList.contains('shown')) closeSidebar();
});
$('state').addEventListener('click', toggleCluster);
document.addEventListener('keydown', (e) => {
    if (e.key !== 'Escape' || document.querySelector('dialog[open]')) return;
    if (!$('shade').hidden) $('shade').click();
    else stop(chat.id);
});
addEventListener('pagehide', () => runs.forEach((run) => run.deleted || store.save(run.chat)));
// Another tab wrote: the list is shared, the open conversation stays as it is here.
addEventListener('storage', (e) => e.key === 'dllama.index' && showChats());
for (const query of [narrow, medium])
    query.addEventListener('change', () => {
        setDrawer('sidebar', false);
        setDrawer('cluster', !medium.matches && store.preference('cluster') !== 'closed');
    });
addEventListener('unhandledrejection', (e) => toast('Something went wrong: ' + (e.reason?.message ?? e.reason)));

$('new').append(icon('plus'), 'New conversation');
$('new').addEventListener('click', newChat);
$('jump').append(icon('down'));
$('sidebar-foot').append(el('button', { type: 'button', id: 'theme', onclick: nextTheme }, icon('theme'), 'Dark or light'));
$('open-sidebar').append(iconButton('menu', 'Conversations', openSidebar));
$('close-sidebar').append(iconButton('close', 'Close', closeSidebar));
$('close-cluster').append(iconButton('close', 'Close', closeCluster));
$('open-settings').append(iconButton('sliders', 'Settings', openSettings));

chat = store.load(store.preference('open')) ?? store.create();
setDrawer('sidebar', false);
setDrawer('cluster', !medium.matches && store.preference('cluster') !== 'closed');
look();
showMessages();
showChats();
$('input').focus({ preventScroll: true });
