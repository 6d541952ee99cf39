/* SPDX-License-Identifier: MIT
 *
 * engine/model/split_fill.h: the search behind dl_split_make: how many units of each phase a node gets. Knows costs and limits, not models.
 */
#ifndef ENG_SPLIT_FILL_H
#define ENG_SPLIT_FILL_H

#include "dl/split.h"

/* What a phase is made of: `amount` heads, columns or rows, dealt out in units. Attention needs KV heads, too: one for each
 * `group` heads begun. */
struct eng_fill_phase {
    uint32_t amount, unit, n_units;
    uint32_t group;             /* 0: no KV heads here */
    double read_bytes, read_kv; /* per token: of one of the amount, of a KV head */
    double mem_bytes, mem_kv;   /* in memory: likewise */
    double mem_fixed;           /* of every node that has any */
};

/* One distribution problem. All arrays are (n) or (phase, n). */
struct eng_fill {
    uint32_t n;
    struct eng_fill_phase phase[DL_PHASE_COUNT];
    double *fixed_ns[DL_PHASE_COUNT]; /* of a node that has any of the phase */
    double *bytes_per_s;
    double *memory;                  /* bytes; INFINITY: enough */
    uint32_t *units[DL_PHASE_COUNT]; /* the result */
    bool limited;                    /* by memory */
};

/* Arrays for n nodes. DL_ENOMEM (logged). */
int eng_fill_init(struct eng_fill *f, uint32_t n);
void eng_fill_finish(struct eng_fill *f);

/* Time of `units` units of a phase on a node, 0 for none. */
double eng_fill_ns(const struct eng_fill *f, int phase, uint32_t node, uint32_t units);
/* What all that a node has takes of its memory; a KV head that it may have to share with a neighbour is counted. */
double eng_fill_memory(const struct eng_fill *f, uint32_t node);
/* The sum over the phases of the slowest node's time. */
double eng_fill_total_ns(const struct eng_fill *f);

/* Finds units[]: least sum over phases of the slowest node's time, with nobody over his memory. `thorough`: where memory is what
 * limits, improves what a simple rule gives. false: it cannot be made to fit. Deterministic; of equal nodes the first get
 * more. */
bool eng_fill_solve(struct eng_fill *f, bool thorough);

/* split_scarce.c: units[] near the best where memory limits, perhaps a little over it somewhere. false: all memory together does not
 * suffice. */
bool eng_fill_scarce(struct eng_fill *f);

#endif
