/* SPDX-License-Identifier: MIT
 *
 * engine/text/merge.c: byte pair merging, the core of both kinds of tokenizer: of all adjacent symbols that may merge, the one of
 * best priority (leftmost among equals) merges first, until none is left. A linked list of symbols and a heap of candidates keep
 * it at n log n, also for one word of a megabyte.
 */
#include "vocab.h"

#include <stdlib.h>

int eng_merger_add(struct eng_merger *m, uint32_t at, uint32_t n, int32_t id)
{
    void *v = m->symbols;
    int err = dl_grow(&v, &m->cap_symbols, m->n_symbols + 1, sizeof *m->symbols);
    m->symbols = v;
    if (err)
        return err;
    int32_t i = (int32_t)m->n_symbols++;
    m->symbols[i] = (struct eng_symbol){.at = at, .n = n, .prev = i - 1, .next = -1, .id = id};
    if (i)
        m->symbols[i - 1].next = i;
    return DL_OK;
}

static int push(struct eng_merger *m, struct eng_candidate c)
{
    void *v = m->heap;
    int err = dl_grow(&v, &m->cap_heap, m->n_heap + 1, sizeof *m->heap);
    m->heap = v;
    if (err)
        return err;
    size_t i = m->n_heap++;
    for (; i && c.key < m->heap[(i - 1) / 2].key; i = (i - 1) / 2)
        m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = c;
    return DL_OK;
}

static struct eng_candidate pop(struct eng_merger *m)
{
    struct eng_candidate top = m->heap[0], last = m->heap[--m->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= m->n_heap)
            break;
        if (child + 1 < m->n_heap && m->heap[child + 1].key < m->heap[child].key)
            child++;
        if (last.key <= m->heap[child].key)
            break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = last;
    return top;
}

static int consider(struct eng_merger *m, const dl_tokenizer *t, const char *text, int32_t left, int32_t right)
{
    if (left < 0 || right < 0)
        return DL_OK;
    const struct eng_symbol *a = &m->symbols[left], *b = &m->symbols[right];
    uint32_t prio;
    int32_t id;
    if (t->by_pairs) {
        const struct eng_pair *p = a->id < 0 || b->id < 0 ? NULL : eng_vocab_find_pair(t, a->id, b->id);
        if (!p)
            return DL_OK;
        prio = p->rank;
        id = p->id;
    } else {
        id = eng_vocab_find(t, text + a->at, (size_t)a->n + b->n);
        if (id < 0)
            return DL_OK;
        prio = t->tokens[id].prio;
    }
    return push(m, (struct eng_candidate){(uint64_t)prio << 32 | (uint32_t)left, a->n + b->n, id});
}

int eng_merger_run(struct eng_merger *m, const dl_tokenizer *t, const char *text)
{
    int err = DL_OK;
    m->n_heap = 0;
    for (size_t i = 1; i < m->n_symbols && !err; i++)
        err = consider(m, t, text, (int32_t)i - 1, (int32_t)i);
    while (m->n_heap && !err) {
        struct eng_candidate c = pop(m);
        int32_t left = (int32_t)(uint32_t)c.key;
        struct eng_symbol *a = &m->symbols[left];
        if (!a->n || a->next < 0 || a->n + m->symbols[a->next].n != c.n)
            continue; /* one of the two has merged with another since */
        struct eng_symbol *b = &m->symbols[a->next];
        a->n = c.n;
        a->id = c.id;
        a->next = b->next;
        b->n = 0;
        if (a->next >= 0)
            m->symbols[a->next].prev = left;
        err = consider(m, t, text, a->prev, left);
        if (!err)
            err = consider(m, t, text, left, a->next);
    }
    return err;
}

void eng_merger_finish(struct eng_merger *m)
{
    free(m->symbols);
    free(m->heap);
    *m = (struct eng_merger){0};
}
