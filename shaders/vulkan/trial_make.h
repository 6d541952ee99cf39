/* SPDX-License-Identifier: MIT
 *
 * trial_make.h: how the data of trials is made. Private to trial_data.c and trial_rows.c.
 * Rows of weights and caches repeat after PATTERNS different ones: making them must not take longer than running them.
 */
#ifndef VK_TRIAL_MAKE_H
#define VK_TRIAL_MAKE_H

#include "trial_data.h"

#define PATTERNS 61u /* prime: no stride of rows or blocks meets the same ones */

/* What a buffer holds: row r is pattern (r + turn) % PATTERNS. */
struct rows {
    struct dl_view view; /* of the whole buffer */
    uint8_t *bytes;      /* (PATTERNS, row_bytes) */
    float *values;       /* (PATTERNS, cols), as the bytes say */
    uint32_t turn;
};

/* Inputs: of an op by their number; those of the matrices beside it; what is added to. */
enum { IN_X, IN_WEIGHT, IN_EXTRA, IN_BASE = IN_WEIGHT + 2 * VK_MM_PARTS, N_SRC };

struct maker {
    struct vk_trial *t;
    const struct vk_lower *l;
    const struct dl_op *op;    /* the first of n_ops */
    struct vk_mm_fused f;      /* matrices: what is multiplied, and what follows */
    const struct dl_op *after; /* what follows, also an attention; or NULL */
    bool fused, rows;          /* rows: neither matrix nor attention (trial_rows.c) */
    uint32_t n_ops;
    uint64_t rng;
    bool check;
    uint64_t most_bytes;
    uint32_t n; /* rows of the batch */
    struct rows src[N_SRC];
    struct dl_batch_shape shape;
    struct dl_batch_row *at; /* ATTENTION: position and table per token */
    uint32_t *table;
};

/* Buffer `index` of the trial, and a view of all of it. */
int vk_make_buf(struct maker *m, uint32_t index, enum dl_buf_use use, enum dl_type type, uint32_t rows, uint32_t cols,
                struct dl_view *out);

/* A whole buffer for input s, with columns as in `like`. A cache's rows are left to the caller. */
int vk_make_like(struct maker *m, uint32_t s, const struct dl_view *like, uint32_t buf, enum dl_buf_use use,
                 uint32_t rows);

/* The values of a row of an input's buffer. */
const float *vk_make_row(const struct rows *r, uint32_t row);

enum dl_buf_use vk_make_use(const struct maker *m, const struct dl_view *v);

/* Positions and tables. Checked: three sequences, of which the first has most tokens and the others leave gaps in it; of different
 * lengths where the batch is small. Timed: one sequence (a batch that is a chunk of a prompt), or each token its own (they decode). */
int vk_make_sequences(struct maker *m);

/* trial_rows.c: sums with norms, and heads with their stores. Buffers and ops; then which rows of result p are compared where they are not
 * those of the others, and what is wanted in the i-th of them. */
int vk_make_rows(struct maker *m);
void vk_make_want_rows(const struct maker *m, uint32_t p);
void vk_make_want(const struct maker *m, uint32_t p, uint32_t i, double *want);

#endif
