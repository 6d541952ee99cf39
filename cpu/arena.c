/* SPDX-License-Identifier: MIT
 *
 * cpu/arena.c: see arena.h. A slab only grows; it goes when the last of its buffers does. Fresh pages cost nothing until
 * they are touched, so one that is not full wastes at most a huge page.
 */
#include "arena.h"

#include <stdint.h>
#include <stdlib.h>

#include "dl/base.h"

#define LINE ((size_t)64)
#define SLAB ((size_t)64 << 20)

struct cpu_slab {
    struct cpu_slab *next;
    uint8_t *base;
    size_t size, used, live; /* bytes, bytes, buffers */
};

static struct cpu_slab *grow(struct cpu_arena *a, size_t bytes)
{
    struct cpu_slab *s = dl_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->size = DL_MAX(bytes, SLAB);
    s->base = dl_alloc_huge(s->size);
    if (!s->base) {
        free(s);
        return NULL;
    }
    s->next = a->slabs;
    a->slabs = s;
    return s;
}

void *cpu_arena_alloc(struct cpu_arena *a, size_t bytes)
{
    struct cpu_slab *s = a->slabs;
    bytes = (size_t)dl_round_up(bytes, LINE);
    if (!s || s->size - s->used < bytes)
        s = grow(a, bytes);
    if (!s)
        return NULL;
    void *p = s->base + s->used;
    s->used += bytes;
    s->live++;
    return p;
}

void cpu_arena_free(struct cpu_arena *a, void *p)
{
    const uint8_t *at = p;
    struct cpu_slab **s = &a->slabs;
    while (at < (*s)->base || at >= (*s)->base + (*s)->used)
        s = &(*s)->next;
    if (--(*s)->live)
        return;
    struct cpu_slab *gone = *s;
    *s = gone->next;
    dl_free_aligned(gone->base);
    free(gone);
}
