/* SPDX-License-Identifier: MIT
 *
 * engine/text/merge.c: byte pair merging, the core of both kinds of tokenizer: of all adjacent symbols that may merge, the one of
 * best priority (leftmost among equals) merges first, until none is left. A linked list of symbols and a heap of candidates keep
 * it at n log n, also for one word of a megabyte.
 */
#include "vocab.h"

#include <stdlib.h>

enum { HEAP_WAYS = 4 }; /* four children lie in one cache line: faster than two on long words */
enum { SORT_FROM = 512 };

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
    for (size_t up; i && c.key < m->heap[up = (i - 1) / HEAP_WAYS].key; i = up)
        m->heap[i] = m->heap[up];
    m->heap[i] = c;
    return DL_OK;
}

static struct eng_candidate pop(struct eng_merger *m)
{
    struct eng_candidate top = m->heap[0], last = m->heap[--m->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = HEAP_WAYS * i + 1, end = DL_MIN(child + HEAP_WAYS, m->n_heap);
        if (child >= end)
            break;
        for (size_t k = child + 1; k < end; k++)
            if (m->heap[k].key < m->heap[child].key)
                child = k;
        if (last.key <= m->heap[child].key)
            break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = last;
    return top;
}

/* At the end of m->first, unsorted. */
static int append(struct eng_merger *m, struct eng_candidate c)
{
    void *v = m->first;
    int err = dl_grow(&v, &m->cap_first, m->n_first + 1, sizeof *m->first);
    m->first = v;
    if (!err)
        m->first[m->n_first++] = c;
    return err;
}

/* By priority; candidates are in order of position already, and the sort is stable. */
static int sort_first(struct eng_merger *m)
{
    struct eng_candidate *from = m->first, *to = dl_calloc(m->n_first, sizeof *to);
    if (!to)
        return DL_ENOMEM;
    for (int shift = 32; shift < 64; shift += 8) {
        size_t at[257] = {0};
        for (size_t i = 0; i < m->n_first; i++)
            at[(from[i].key >> shift & 0xff) + 1]++;
        for (int i = 0; i < 256; i++)
            at[i + 1] += at[i];
        for (size_t i = 0; i < m->n_first; i++)
            to[at[from[i].key >> shift & 0xff]++] = from[i];
        struct eng_candidate *swap = from;
        from = to;
        to = swap;
    }
    free(to); /* four rounds: m->first is `from` again */
    return DL_OK;
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
    struct eng_candidate c = {(uint64_t)prio << 32 | (uint32_t)left, a->n + b->n, id};
    return m->gather ? append(m, c) : push(m, c);
}

int eng_merger_run(struct eng_merger *m, const dl_tokenizer *t, const char *text)
{
    int err = DL_OK;
    m->n_heap = m->n_first = 0;
    /* On a long word the heap would outgrow the caches: the candidates of the start are sorted aside, only later ones
     * go through the heap. */
    m->gather = m->n_symbols >= SORT_FROM;
    for (size_t i = 1; i < m->n_symbols && !err; i++)
        err = consider(m, t, text, (int32_t)i - 1, (int32_t)i);
    if (m->gather && m->n_first && !err)
        err = sort_first(m);
    m->gather = false;
    for (size_t next = 0; (m->n_heap || next < m->n_first) && !err;) {
        bool aside = next < m->n_first && (!m->n_heap || m->first[next].key < m->heap[0].key);
        struct eng_candidate c = aside ? m->first[next++] : pop(m);
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
    free(m->first);
    *m = (struct eng_merger){0};
}
