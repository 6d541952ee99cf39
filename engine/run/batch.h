/* SPDX-License-Identifier: MIT
 *
 * engine/run/batch.h: one batch as both the root and the workers see it: which sequences, which positions, which blocks, and what is
 * wanted of the logits; and what comes of those, row by row.
 */
#ifndef ENG_BATCH_H
#define ENG_BATCH_H

#include "dl/session.h"

/* One sequence's part of a batch: positions [pos0, pos0 + n), one token each. */
struct eng_seq {
    uint32_t pos0, n;
    enum dl_want want;
    uint32_t k;             /* of DL_WANT_TOP */
    float temperature;      /* of DL_WANT_TOP, above 0 */
    const uint32_t *blocks; /* (n_blocks): those of positions [0, pos0 + n), and no more */
    uint32_t n_blocks;
};

/* What is wanted of one row of logits: all of it (LAST, ALL), or its best k. */
struct eng_want {
    enum dl_want kind;
    uint32_t k;        /* 1 for DL_WANT_BEST, 0 for full rows */
    float temperature; /* of DL_WANT_TOP */
};

struct eng_batch {
    struct eng_seq *seqs;   /* (max_tables) */
    struct eng_want *wants; /* (max_out) */
    uint32_t n_seqs, n_tokens, n_out;
    uint32_t cut; /* so many of the tokens are in the plan's first lane, the others in the second */
};

int eng_batch_init(struct eng_batch *b, const struct dl_batch_shape *shape);
void eng_batch_finish(struct eng_batch *b);

/* Rows of logits that a sequence with n tokens wants. */
uint32_t eng_wanted(enum dl_want want, uint32_t n);

/* From seqs and n_seqs to the rest, all in the first lane. false when they are more tokens or rows than the shape has. */
bool eng_batch_count(struct eng_batch *b, const struct dl_batch_shape *shape);

/* What came of one wanted row. */
struct eng_row {
    float *full;              /* (vocab): where it is wanted */
    struct dl_candidate *top; /* (DL_TOP_MOST) */
    uint32_t n_top;
    double log_sum; /* of the ids that `top` was chosen from; -INFINITY before any */
};

/* Puts a candidate into a list of at most k, by falling logit, lower id first among equals. Not a number: ignored. Returns the new
 * length. */
uint32_t eng_top_add(struct dl_candidate *v, uint32_t n, uint32_t k, struct dl_candidate c);
/* All of row[0 .. n_row), whose ids begin at id0. */
uint32_t eng_top_scan(struct dl_candidate *v, uint32_t n, uint32_t k, const float *row, uint32_t n_row, uint32_t id0);

/* log(sum(exp(row[i] / temperature))), what is not a number left out; -INFINITY for nothing. And of two such sums together. */
double eng_log_sum(const float *row, uint32_t n, float temperature);
double eng_log_add(double a, double b);

#endif
