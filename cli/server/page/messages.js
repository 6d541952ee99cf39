// SPDX-License-Identifier: MIT
// A conversation as elements: what users wrote as it is, what the model wrote as Markdown.
import { copyButton, el, iconButton } from './dom.js';
import { render } from './markdown.js';

// Models that think aloud do it between these, at the beginning.
export function splitThought(text) {
    const m = text.match(/^\s*<think>([^]*?)(?:<\/think>([^]*)|$)/);
    return m ? { thought: m[1].trim(), answer: (m[2] ?? '').trimStart(), thinking: m[2] === undefined } : { thought: '', answer: text, thinking: false };
}

export function showContent(view, message) {
    if (message.role === 'user') {
        view.body.textContent = message.content;
        return;
    }
    const { thought, answer, thinking } = splitThought(message.content);
    view.thought.hidden = !thought;
    if (thought) {
        view.thought.querySelector('summary').textContent = thinking ? 'Thinking …' : 'Thoughts';
        view.thought.querySelector('div').textContent = thought;
    }
    render(answer, view.body);
}

export function showNote(view, message, streaming) {
    view.note.textContent = message.note;
    view.error.textContent = message.error;
    view.error.hidden = !message.error;
    view.node.classList.toggle('streaming', streaming);
    view.node.setAttribute('aria-busy', streaming ? 'true' : 'false');
}

// do: {edit(view), again()}; again is null where it makes no sense.
export function createView(message, actions) {
    const mine = message.role === 'user';
    const view = { body: el(mine ? '.content.plain' : '.content.markdown') };
    view.thought = el('details.thought', { hidden: true }, el('summary'), el('div'));
    view.error = el('p.error', { role: 'alert', hidden: true });
    view.note = el('span.note');
    view.actions = el(
        '.actions',
        {},
        copyButton(() => message.content, mine ? 'Copy message' : 'Copy answer'),
        iconButton('edit', mine ? 'Edit message' : 'Edit answer', () => actions.edit(view)),
        actions.again ? iconButton('again', mine ? 'Answer' : 'Regenerate', actions.again) : null,
    );
    view.node = el('article.message.' + (mine ? 'user' : 'assistant'), { 'aria-label': mine ? 'You' : 'Model' }, mine ? null : view.thought, view.body, view.error, el('footer', {}, view.note, view.actions));
    showContent(view, message);
    showNote(view, message, false);
    return view;
}

// In place of the message, a field with its text. onDone(text), or null where it was left as it is.
export function editInPlace(view, message, label, onDone) {
    const area = el('textarea.edit', { 'aria-label': 'Text of the message', rows: Math.min(16, message.content.split('\n').length + 1) });
    area.value = message.content;
    const box = el('.editor', {}, area, el('.row', {}, el('button', { type: 'button', onclick: () => onDone(null) }, 'Cancel'), el('button.primary', { type: 'button', onclick: () => onDone(area.value) }, label)));
    area.addEventListener('keydown', (e) => {
        if (e.key === 'Escape') {
            e.stopPropagation();
            onDone(null);
        } else if (e.key === 'Enter' && !e.shiftKey && !e.isComposing && message.role === 'user') {
            e.preventDefault();
            onDone(area.value);
        }
    });
    view.node.replaceChildren(box);
    view.node.classList.add('editing');
    area.focus();
}
