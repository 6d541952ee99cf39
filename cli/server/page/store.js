// SPDX-License-Identifier: MIT
// Conversations, in the browser's own storage and nowhere else. One entry each, and an index, so that a long one is not written with
// every word of another. What is read may have been written by anyone: it is looked at before it is believed.
import { toast } from './dom.js';

const INDEX = 'dllama.index';
const entry = (id) => 'dllama.chat.' + id;

export const DEFAULTS = { system: '', temperature: '', top_p: '', top_k: '', min_p: '', repeat_penalty: '', max_tokens: '', seed: '', stop: '' };

function read(key, fallback) {
    try {
        return JSON.parse(localStorage.getItem(key)) ?? fallback;
    } catch {
        return fallback;
    }
}

function write(key, value) {
    try {
        localStorage.setItem(key, JSON.stringify(value));
    } catch {
        toast('The browser keeps nothing more: delete some conversations, or let this page store them.');
    }
}

const text = (v) => (typeof v === 'string' ? v : '');

function settingsOf(v) {
    const out = { ...DEFAULTS };
    for (const name of Object.keys(out)) out[name] = text(v?.[name]);
    return out;
}

function messagesOf(list) {
    if (!Array.isArray(list)) return [];
    return list
        .filter((m) => (m?.role === 'user' || m?.role === 'assistant') && typeof m.content === 'string')
        .map((m) => ({ role: m.role, content: m.content, note: text(m.note), error: text(m.error) }));
}

// Newest first: [{id, title, updated}]
export function list() {
    const v = read(INDEX, []);
    return (Array.isArray(v) ? v : []).filter((c) => typeof c?.id === 'string').map((c) => ({ id: c.id, title: text(c.title), updated: Number(c.updated) || 0 })).sort((a, b) => b.updated - a.updated);
}

export function create() {
    const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
    return { id, title: '', named: false, messages: [], settings: settingsOf(read('dllama.settings', {})) };
}

export function load(id) {
    const v = read(entry(id), null);
    if (!v || typeof v !== 'object') return null;
    return { id, title: text(v.title), named: v.named === true, messages: messagesOf(v.messages), settings: settingsOf(v.settings) };
}

export function save(chat) {
    const others = list().filter((c) => c.id !== chat.id);
    write(entry(chat.id), chat);
    write(INDEX, [{ id: chat.id, title: chat.title, updated: Date.now() }, ...others]);
}

export function remove(id) {
    localStorage.removeItem(entry(id));
    write(INDEX, list().filter((c) => c.id !== id));
}

// Small things about the page itself, as texts.
export const preference = (name) => text(read('dllama.' + name, ''));
export const prefer = (name, value) => write('dllama.' + name, value);

// What the next conversation begins with.
export const keepSettings = (settings) => write('dllama.settings', settings);
