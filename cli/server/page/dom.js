// SPDX-License-Identifier: MIT
// Making elements. Text goes in as text nodes, always: no function here, or anywhere in the page, parses HTML.

// el('a.name', {href: '...', onclick: f, 'aria-label': '...'}, 'text', another, ...)
export function el(what, attributes = {}, ...children) {
    const [tag, ...classes] = what.split('.');
    const node = document.createElement(tag || 'div');
    if (classes.length) node.className = classes.join(' ');
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
        else if (value === true) node.setAttribute(name, '');
        else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.filter((c) => c != null));
    return node;
}

const SVG = 'http://www.w3.org/2000/svg';
const ICONS = {
    plus: 'M12 5v14M5 12h14',
    send: 'M12 19V5M6 11l6-6 6 6',
    stop: 'M7 7h10v10H7z',
    copy: 'M9 9h11v11H9zM5 15H4V4h11v1',
    check: 'M5 13l4 4L19 7',
    edit: 'M4 20h4L19 9l-4-4L4 16zM13 7l4 4',
    again: 'M20 11a8 8 0 1 0-2 6M20 4v7h-7',
    trash: 'M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13',
    menu: 'M4 7h16M4 12h16M4 17h16',
    close: 'M6 6l12 12M18 6L6 18',
    sliders: 'M4 7h9M19 7h1M4 17h1M11 17h9M16 4a3 3 0 1 0 0 6 3 3 0 0 0 0-6M8 14a3 3 0 1 0 0 6 3 3 0 0 0 0-6',
    nodes: 'M12 8v4M12 12l-5 4M12 12l5 4M12 4a2 2 0 1 0 0 4 2 2 0 0 0 0-4M6 15a2 2 0 1 0 0 4 2 2 0 0 0 0-4M18 15a2 2 0 1 0 0 4 2 2 0 0 0 0-4',
    theme: 'M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16',
    down: 'M12 5v14M6 13l6 6 6-6',
};

export function icon(name) {
    const svg = document.createElementNS(SVG, 'svg');
    svg.setAttribute('viewBox', '0 0 24 24');
    svg.setAttribute('aria-hidden', 'true');
    svg.setAttribute('class', 'icon');
    const path = document.createElementNS(SVG, 'path');
    path.setAttribute('d', ICONS[name]);
    svg.append(path);
    return svg;
}

export function iconButton(name, label, onclick, more = '') {
    return el('button.icon-button' + more, { type: 'button', 'aria-label': label, title: label, onclick }, icon(name));
}

export async function copyText(text) {
    try {
        await navigator.clipboard.writeText(text);
        return true;
    } catch {
        // Not offered to pages over plain http from another machine: the old way.
        const area = el('textarea.off-screen', { 'aria-hidden': 'true' });
        area.value = text;
        document.body.append(area);
        area.select();
        const done = document.execCommand('copy');
        area.remove();
        return done;
    }
}

export function copyButton(text, label = 'Copy') {
    const button = iconButton('copy', label, async () => {
        if (!(await copyText(text()))) return;
        button.replaceChildren(icon('check'));
        setTimeout(() => button.replaceChildren(icon('copy')), 1200);
    });
    return button;
}

// A line at the bottom that goes away.
let toastTimer;
export function toast(text) {
    const box = document.getElementById('toast');
    box.textContent = text;
    box.hidden = false;
    clearTimeout(toastTimer);
    toastTimer = setTimeout(() => (box.hidden = true), 5000);
}
