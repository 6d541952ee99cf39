/* SPDX-License-Identifier: MIT
 *
 * engine/model/plan_build.h: a plan while it is being built, and the few things that its parts are made with. plan.c computes a layer,
 * plan_exchange.c joins what the nodes have computed.
 *
 * With two lanes a large batch runs as two halves in antiphase: one is exchanged while the other is computed. A device runs one segment
 * after the other, so the lanes share weights, the KV cache and scratch memory; what outlives a segment, the residual and
 * what travels, is there for each.
 */
#ifndef ENG_PLAN_BUILD_H
#define ENG_PLAN_BUILD_H

#include <stdarg.h>
#include <stdio.h>

#include "dl/model.h"

/* The two sums over all nodes that a layer has. */
enum { ENG_SUM_ATTN, ENG_SUM_FFN, ENG_SUM_COUNT };

struct eng_builder {
    const struct dl_model_header *h;
    const struct dl_tensor_types *types;
    const struct dl_slice *slice;
    const struct dl_plan_opts *opts;
    struct dl_model_plan *out;
    struct dl_plan *plan;
    uint32_t cap_ops, cap_bufs, cap_steps;
    size_t names_len, names_cap;
    uint32_t seg_first;    /* first op of the segment being built */
    uint64_t device, host; /* last signals */
    uint32_t layer, lane;
    enum dl_type wire;
    bool in_two;   /* sums go through a reduce-scatter and an all-gather */
    uint32_t half; /* columns of a sum that go first, while the others are computed; 0: all go at once */
    uint32_t q_cols, kv_cols;
    struct {
        uint64_t host; /* what the lane's next segment waits for */
        bool due;      /* that segment first takes in the sum `which` */
        unsigned which;
        bool carries, carries_sum; /* rounding has lost something already that the next sum makes up for */
    } lanes[DL_PLAN_LANES];

    /* Activation buffers. h, att, hb exist as F32 and as Q80; the one that the weights want is used. */
    uint32_t x, h32, h80, qkv, att32, att80, part, gate, up, hb32, hb80, route, rlogits, expert_out;
    uint32_t xo, ho32, ho80, kv[2];
    /* All-gathers: a slice per node, in halves the first and the second ones. Reduce-scatters: as many to get and to give, of `chunk` columns; this node's columns of the sum, and
     * zeros to add that to. */
    uint32_t gather[DL_PLAN_LANES][ENG_SUM_COUNT], second[DL_PLAN_LANES][ENG_SUM_COUNT],
        scatter[DL_PLAN_LANES][ENG_SUM_COUNT], chunk, sum, zeros;
    /* What the wire's rounding has lost of this node's parts, and of the columns that it adds up; DL_NO_BUF: nothing is lost. */
    uint32_t carry[DL_PLAN_LANES], carry_sum[DL_PLAN_LANES];
};

/* plan_exchange.c. The buffers, after all others that are activations; at the begin of a segment, what it takes in; at its end, this node's part
 * of the sum (any: it has one) and the step that sends it; for all lanes, the second stage. */
void eng_plan_wire(struct eng_builder *b);
void eng_plan_take(struct eng_builder *b);
void eng_plan_give(struct eng_builder *b, unsigned which, bool any);
/* Columns of the sum `which` that go before the others are computed, or 0; and the step that sends those of this node's part. */
uint32_t eng_plan_half(const struct eng_builder *b, unsigned which);
void eng_plan_give_half(struct eng_builder *b, unsigned which);
void eng_plan_reduce(struct eng_builder *b, unsigned which);

static inline const char *keep_name(struct eng_builder *b, const char *fmt, ...)
{
    char *at = b->out->names + b->names_len;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(at, b->names_cap - b->names_len, fmt, ap);
    va_end(ap);
    b->names_len += DL_MIN((size_t)n, b->names_cap - b->names_len - 1) + 1;
    return at;
}

static inline uint32_t add_buf(struct eng_builder *b, const char *name, enum dl_buf_use use, enum dl_type type,
                               uint64_t rows, uint32_t cols)
{
    uint64_t row = 0, bytes = 0;
    bool ok = b->plan->n_bufs < b->cap_bufs && rows && rows <= UINT32_MAX && dl_row_bytes(type, cols, &row) &&
              dl_mul_u64(row, rows, &bytes);
    if (!ok) /* dl_plan_check finds and names it */
        bytes = 0;
    uint32_t i = b->plan->n_bufs < b->cap_bufs ? b->plan->n_bufs++ : b->cap_bufs - 1;
    b->plan->bufs[i] = (struct dl_buf_desc){name, use, type, (uint32_t)rows, cols, bytes};
    return i;
}

static inline struct dl_view whole(const struct eng_builder *b, uint32_t buf)
{
    const struct dl_buf_desc *d = &b->plan->bufs[buf];
    return (struct dl_view){buf, d->rows, d->cols, d->type, 0, d->rows ? d->bytes / d->rows : 0};
}

/* The lane's rows of a buffer that has a row for every token. */
static inline struct dl_view lane_rows(const struct eng_builder *b, uint32_t buf)
{
    struct dl_view v = whole(b, buf);
    v.rows = b->plan->lane_tokens;
    v.offset = v.row_bytes * v.rows * b->lane;
    return v;
}

/* Columns [col0, col0 + cols) of a view of F32. */
static inline struct dl_view columns(struct dl_view v, uint32_t col0, uint32_t cols)
{
    v.offset += (uint64_t)col0 * sizeof(float);
    v.cols = cols;
    return v;
}

static const struct dl_view no_view = {.buf = DL_NO_BUF};

static inline struct dl_op *add_op(struct eng_builder *b, enum dl_opcode code, const char *what, struct dl_view dst,
                                   struct dl_view src0)
{
    if (b->plan->n_ops == b->cap_ops)
        b->plan->n_ops--; /* cannot happen while the bounds hold; dl_plan_check would refuse the result */
    struct dl_op *op = &b->plan->ops[b->plan->n_ops++];
    *op =
        (struct dl_op){.code = code, .count = DL_COUNT_TOKENS, .mult = 1, .dst = dst, .src = {src0, no_view, no_view}};
    op->name = b->layer < b->h->n_layers ? keep_name(b, "blk.%u.%s", b->layer, what) : what;
    return op;
}

static inline void end_run(struct eng_builder *b)
{
    struct dl_step *s = &b->plan->steps[b->plan->n_steps++];
    *s = (struct dl_step){.kind = DL_STEP_RUN, .lane = b->lane, .wait = b->lanes[b->lane].host, .signal = ++b->device};
    s->first_op = b->seg_first;
    s->n_ops = b->plan->n_ops - b->seg_first;
    b->seg_first = b->plan->n_ops;
}

#endif
