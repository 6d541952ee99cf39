// SPDX-License-Identifier: MIT
// Markdown to elements: headings, lists, tables, quotes, code, emphasis, links. What a model says is not trusted: all of it becomes
// text nodes, links lead to http, https and mailto only, pictures are shown as links.
import { copyButton, el } from './dom.js';

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 12; // lists in lists in quotes

const blank = (line) => !line.trim();
const startsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
const startsTable = (lines, i) => lines[i].includes('|') && i + 1 < lines.length && lines[i + 1].includes('-') && TABLE_RULE.test(lines[i + 1]);

// Where the block that begins at line i ends.
function blockEnd(lines, i) {
    const fence = lines[i].match(FENCE);
    if (fence) {
        const close = new RegExp('^ {0,3}' + fence[1][0] + '{' + fence[1].length + ',}\\s*$');
        for (let k = i + 1; k < lines.length; k++) if (close.test(lines[k])) return k + 1;
        return lines.length;
    }
    if (HEADING.test(lines[i]) || RULE.test(lines[i])) return i + 1;
    let k = i + 1;
    if (QUOTE.test(lines[i])) {
        while (k < lines.length && !blank(lines[k]) && (QUOTE.test(lines[k]) || !startsBlock(lines[k]))) k++;
    } else if (ITEM.test(lines[i])) {
        let open = null; // a fence within an item
        for (; k < lines.length; k++) {
            const inner = lines[k].trim().match(/^(`{3,}|~{3,})/);
            if (open) {
                if (inner && inner[1].startsWith(open)) open = null;
                continue;
            }
            if (inner && /^\s/.test(lines[k])) open = inner[1];
            else if (blank(lines[k])) {
                const next = lines.slice(k).find((l) => !blank(l));
                if (next === undefined || !(/^\s{2,}/.test(next) || ITEM.test(next))) break;
            } else if (!/^\s/.test(lines[k]) && !ITEM.test(lines[k]) && (startsBlock(lines[k]) || blank(lines[k - 1]))) break;
            else if (RULE.test(lines[k])) break;
        }
    } else if (startsTable(lines, i)) {
        while (k < lines.length && !blank(lines[k]) && lines[k].includes('|')) k++;
    } else {
        while (k < lines.length && !blank(lines[k]) && !startsBlock(lines[k]) && !startsTable(lines, k)) k++;
    }
    return k;
}

function blocks(text) {
    const lines = text.replace(/\r\n?/g, '\n').replace(/\t/g, '    ').split('\n');
    const out = [];
    for (let i = 0; i < lines.length; ) {
        if (blank(lines[i])) {
            i++;
            continue;
        }
        const end = blockEnd(lines, i);
        out.push(lines.slice(i, end).join('\n'));
        i = end;
    }
    return out;
}

function codeBlock(lines) {
    const [, mark, language] = lines[0].match(FENCE);
    const closed = lines.length > 1 && lines.at(-1).trim().startsWith(mark);
    const code = lines.slice(1, closed ? -1 : undefined).join('\n');
    return el('figure.code', {}, el('figcaption', {}, el('span', {}, language || 'text'), copyButton(() => code, 'Copy code')), el('pre', { tabindex: 0 }, el('code', {}, code)));
}

function list(lines, depth) {
    const [, indent, mark] = lines[0].match(ITEM);
    const ordered = /\d/.test(mark);
    const node = el(ordered ? 'ol' : 'ul', ordered && parseInt(mark, 10) !== 1 ? { start: parseInt(mark, 10) } : {});
    let item = null;
    const finish = () => {
        if (!item) return;
        const li = el('li');
        const task = item[0].match(/^\[([ xX])\]\s+/);
        if (task) {
            item[0] = item[0].slice(task[0].length);
            li.className = 'task';
            li.append(el('input', { type: 'checkbox', disabled: true, checked: task[1] !== ' ', 'aria-label': task[1] === ' ' ? 'open' : 'done' }));
        }
        const loose = item.some((l, i) => i && blank(l) && i < item.length - 1);
        const inner = blocks(item.join('\n')).map((b) => block(b, depth + 1));
        if (!loose && inner[0]?.tagName === 'P') inner.splice(0, 1, ...inner[0].childNodes);
        li.append(...inner);
        node.append(li);
    };
    let width = 0;
    for (const line of lines) {
        const m = line.match(ITEM);
        if (m && m[1].length < indent.length + 2 && (!item || m[1].length < width)) {
            finish();
            width = m[0].length > m[1].length + m[2].length + 4 ? m[1].length + m[2].length + 1 : m[0].length;
            item = [line.slice(m[0].length)];
        } else item.push(line.slice(Math.min(width, line.length - line.trimStart().length)));
    }
    finish();
    return node;
}

function cells(line) {
    const out = [''];
    const text = line.trim().replace(/^\|/, '');
    for (let i = 0, code = false; i < text.length; i++) {
        if (text[i] === '\\' && text[i + 1] === '|') out[out.length - 1] += text[++i];
        else if (text[i] === '|' && !code) out.push('');
        else {
            if (text[i] === '`') code = !code;
            out[out.length - 1] += text[i];
        }
    }
    if (/\|$/.test(text) && out.length > 1) out.pop();
    return out.map((c) => c.trim());
}

function table(lines) {
    const head = cells(lines[0]);
    const align = cells(lines[1]).map((c) => (/^:.*:$/.test(c) ? 'centre' : /:$/.test(c) ? 'right' : 'left'));
    const row = (line, tag) => el('tr', {}, ...head.map((_, i) => el(tag + '.' + (align[i] ?? 'left'), {}, ...inline(cells(line)[i] ?? ''))));
    return el('.table', { tabindex: 0 }, el('table', {}, el('thead', {}, row(lines[0], 'th')), el('tbody', {}, ...lines.slice(2).map((l) => row(l, 'td')))));
}

function block(text, depth) {
    const lines = text.split('\n');
    if (depth > DEEPEST) return el('p', {}, text);
    if (FENCE.test(lines[0])) return codeBlock(lines);
    const heading = lines[0].match(HEADING);
    if (heading) return el('h' + Math.min(6, heading[1].length + 1), {}, ...inline(heading[2]));
    if (RULE.test(lines[0])) return el('hr');
    if (QUOTE.test(lines[0])) return el('blockquote', {}, ...blocks(lines.map((l) => l.replace(QUOTE, '')).join('\n')).map((b) => block(b, depth + 1)));
    if (ITEM.test(lines[0])) return list(lines, depth);
    if (startsTable(lines, 0)) return table(lines);
    return el('p', {}, ...inline(lines.map((l) => l.trim()).join('\n')));
}

// ------------------------------------------------------------------------------------------------- within a line

function link(label, target) {
    if (!/^(https?:\/\/|mailto:)/i.test(target)) return null;
    return el('a', { href: target, target: '_blank', rel: 'noopener noreferrer' }, ...label);
}

// Each: a sticky pattern, and what becomes of a match; null: it is text after all.
const RULES = [
    [/\\([\\`*_{}[\]()#+\-.!|<>~])/y, (m) => m[1]],
    [/(`+)(?!`)([^]{0,4000}?[^`])\1(?!`)/y, (m) => el('code', {}, m[2].replace(/^ ([^]*) $/, '$1'))],
    [/!?\[([^\]\n]{0,500})\]\(\s*<?((?:[^\s()<>]|\([^\s()]*\)){1,2000})>?(?:\s+"[^"\n]*")?\s*\)/y, (m, d) => link(inline(m[1] || m[2], d, true), m[2])],
    [/<(https?:\/\/[^\s<>]+)>/y, (m) => link([m[1]], m[1])],
    [/https?:\/\/[^\s<>"'`)\]]*[^\s<>"'`)\].,;:!?*_]/y, (m) => link([m[0]], m[0])],
    [/(\*\*|__)(?=\S)([^]{0,4000}?\S)\1(?!\w)/y, (m, d) => el('strong', {}, ...inline(m[2], d))],
    [/\*(?=[^\s*])([^]{0,4000}?[^\s*])\*(?!\*)/y, (m, d) => el('em', {}, ...inline(m[1], d))],
    [/_(?=[^\s_])([^]{0,4000}?[^\s_])_(?!\w)/y, (m, d) => el('em', {}, ...inline(m[1], d))],
    [/~~(?=\S)([^]{0,4000}?\S)~~/y, (m, d) => el('del', {}, ...inline(m[1], d))],
    [/\n/y, () => el('br')],
];

// In a link's own text there are no links.
function inline(text, depth = 0, linked = false) {
    if (depth > DEEPEST) return [text];
    const out = [];
    let plain = '';
    next: for (let i = 0; i < text.length; ) {
        if ('\\`![<h*_~\n'.includes(text[i]) && !('_h'.includes(text[i]) && /\w/.test(text[i - 1] ?? '')))
            for (const [pattern, make] of RULES) {
                pattern.lastIndex = i;
                const m = pattern.exec(text);
                const made = m && make(m, depth + 1);
                if (!made || (linked && made.tagName === 'A')) continue;
                if (plain) out.push(plain);
                plain = '';
                out.push(made);
                i += m[0].length;
                continue next;
            }
        plain += text[i++];
    }
    if (plain) out.push(plain);
    return out;
}

// Shows the text in `into`, touching only blocks that are not as they were: the earlier ones of an answer that grows stay.
export function render(text, into) {
    const now = blocks(text);
    const before = into.sources ?? [];
    let same = 0;
    while (same < now.length && same < before.length && now[same] === before[same]) same++;
    while (into.childNodes.length > same) into.lastChild.remove();
    for (const source of now.slice(same)) into.append(block(source, 0));
    into.sources = now;
}
