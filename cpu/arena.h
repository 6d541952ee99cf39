/* SPDX-License-Identifier: MIT
 *
 * cpu/arena.h: memory for packed weights: many buffers share large pieces, so that huge pages, where the system gives them,
 * hold small buffers and the ends of large ones as well. One thread.
 */
#ifndef CPU_ARENA_H
#define CPU_ARENA_H

#include <stddef.h>

/* Zero-initialised is empty, and again when everything was given back. */
struct cpu_arena {
    struct cpu_slab *slabs;
};

/* Zeroed, on a cache line, apart from all else; NULL (logged) when memory is out. */
void *cpu_arena_alloc(struct cpu_arena *a, size_t bytes);
void cpu_arena_free(struct cpu_arena *a, void *p); /* of this arena */

#endif
