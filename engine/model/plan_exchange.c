/* SPDX-License-Identifier: MIT
 *
 * engine/model/plan_exchange.c: how the partial sums of all nodes become one, the same bits everywhere.
 *
 * At once: every node sends its quantised partial to all, and each adds them up in node order. In two stages, with fewer bytes and one
 * more round: the columns are cut into a chunk per node; each node gets everyone's quantised chunk, adds them up in
 * node order, and sends the sum, quantised again, to all, who add that: its owner, too.
 *
 * At once, but in halves: the first columns of the sum travel while the others are computed. They are whole blocks, so the bits are the
 * same. Experts' outputs are there all at the same time: their sums go whole.
 *
 * A q80 wire rounds: to Q80, or to Q120 where a router might notice (dl_wire_type). All sums of a batch end in the same residual stream,
 * so what one has lost of a node's part is added to its next part before that is rounded in turn: in the end only the last sum's loss
 * remains, instead of all of them. Whoever adds up a chunk does the same with what rounding the sum loses. A batch begins with nothing
 * carried: its results do not depend on the one before.
 */
#include "plan_build.h"

bool dl_plan_in_two(const struct dl_model_header *h, uint32_t n_nodes)
{
    return n_nodes > 1 && h->dim % DL_BLOCK == 0 && h->dim / DL_BLOCK >= n_nodes;
}

/* First column of node i's chunk; that of node n_nodes is dim. */
static uint32_t chunk_at(const struct eng_builder *b, uint32_t i)
{
    return (uint32_t)((uint64_t)(b->h->dim / DL_BLOCK) * i / b->plan->n_slices) * DL_BLOCK;
}

void eng_plan_wire(struct eng_builder *b)
{
    const struct dl_plan *p = b->plan;
    const uint64_t rows = p->lane_tokens, n = p->n_slices;
    if (n == 1)
        return;
    if (b->in_two) {
        b->chunk = (uint32_t)dl_div_up(b->h->dim / DL_BLOCK, n) * DL_BLOCK;
        const uint32_t mine = chunk_at(b, p->slice + 1) - chunk_at(b, p->slice);
        b->sum = add_buf(b, "sum", DL_BUF_ACT, DL_F32, rows, mine);
        b->zeros = add_buf(b, "zeros", DL_BUF_INPUT, DL_F32, rows, mine); /* as it was created */
    }
    for (uint32_t l = 0; l < p->n_lanes; l++) {
        const bool rounds = b->wire == DL_Q80 || b->wire == DL_Q120; /* f16 does, too, but loses next to nothing */
        b->carry[l] = rounds ? add_buf(b, "carry", DL_BUF_ACT, DL_F32, rows, b->h->dim) : DL_NO_BUF;
        b->carry_sum[l] = rounds && b->in_two
                              ? add_buf(b, "carry_sum", DL_BUF_ACT, DL_F32, rows, b->plan->bufs[b->sum].cols)
                              : DL_NO_BUF;
        for (unsigned which = 0; which < ENG_SUM_COUNT; which++) {
            const char *name = which ? "wire_ffn" : "wire_attn";
            const uint32_t half = eng_plan_half(b, which);
            b->gather[l][which] = add_buf(b, name, DL_BUF_WIRE, b->wire, rows * n,
                                          b->in_two ? b->chunk
                                          : half    ? half
                                                    : b->h->dim);
            if (half)
                b->second[l][which] = add_buf(b, which ? "wire_ffn_second" : "wire_attn_second", DL_BUF_WIRE, b->wire,
                                              rows * n, b->h->dim - half);
            if (b->in_two)
                b->scatter[l][which] = add_buf(b, which ? "wire_ffn_parts" : "wire_attn_parts", DL_BUF_WIRE, b->wire,
                                               2 * rows * n, b->chunk);
        }
    }
}

/* Columns [col0, col0 + src.cols) of a sum in the wire's type. `carry`: what is carried of the whole row, or DL_NO_BUF. */
static void to_wire(struct eng_builder *b, const char *what, struct dl_view dst, struct dl_view src, uint32_t carry,
                    uint32_t col0, bool first)
{
    struct dl_op *op = add_op(b, DL_OP_CONVERT, what, dst, src);
    if (carry == DL_NO_BUF)
        return;
    op->src[1] = columns(whole(b, carry), col0, src.cols);
    op->u.convert.first = first;
}

/* Slice i of a wire buffer of the lane. */
static struct dl_view slice_of(const struct eng_builder *b, uint32_t buf, uint64_t i)
{
    struct dl_view v = whole(b, buf);
    v.rows = b->plan->lane_tokens;
    v.offset = v.row_bytes * v.rows * i;
    return v;
}

/* The same, with node j's columns of a chunk's. */
static struct dl_view chunk_of(const struct eng_builder *b, uint32_t buf, uint64_t i, uint32_t j)
{
    struct dl_view v = slice_of(b, buf, i);
    v.cols = chunk_at(b, j + 1) - chunk_at(b, j);
    return v;
}

static struct dl_view cols_of(const struct eng_builder *b, struct dl_view v, uint32_t j)
{
    return columns(v, chunk_at(b, j), chunk_at(b, j + 1) - chunk_at(b, j));
}

static void exchange(struct eng_builder *b, enum dl_coll_kind kind, uint32_t buf)
{
    struct dl_step *s = &b->plan->steps[b->plan->n_steps++];
    *s = (struct dl_step){.kind = DL_STEP_EXCHANGE, .lane = b->lane, .wait = b->device, .signal = ++b->host};
    s->coll = kind;
    s->view = slice_of(b, buf, 0);
    s->slice_bytes = s->view.row_bytes * s->view.rows;
    s->count = DL_COUNT_TOKENS;
    b->lanes[b->lane].host = s->signal;
}

static void merge(struct eng_builder *b, const char *what, struct dl_view dst, struct dl_view src, struct dl_view wire,
                  uint32_t n)
{
    struct dl_op *op = add_op(b, DL_OP_MERGE, what, dst, src);
    op->src[1] = wire;
    op->u.merge.n_slices = n;
    op->u.merge.slice_bytes = wire.row_bytes * wire.rows;
}

void eng_plan_take(struct eng_builder *b)
{
    const struct dl_view x = lane_rows(b, b->x);
    if (!b->lanes[b->lane].due)
        return;
    b->lanes[b->lane].due = false;
    const unsigned which = b->lanes[b->lane].which;
    const uint32_t buf = b->gather[b->lane][which], n = b->plan->n_slices;
    const char *name = which ? "ffn_merge" : "attn_merge";
    const uint32_t half = eng_plan_half(b, which);
    if (half) {
        const struct dl_view first = columns(x, 0, half), second = columns(x, half, b->h->dim - half);
        merge(b, name, first, first, slice_of(b, buf, 0), n);
        merge(b, name, second, second, slice_of(b, b->second[b->lane][which], 0), n);
        return;
    }
    if (!b->in_two) {
        merge(b, name, x, x, slice_of(b, buf, 0), n);
        return;
    }
    for (uint32_t j = 0; j < n; j++)
        merge(b, name, cols_of(b, x, j), cols_of(b, x, j), chunk_of(b, buf, j, j), 1);
}

uint32_t eng_plan_half(const struct eng_builder *b, unsigned which)
{
    return which == ENG_SUM_FFN && b->h->n_experts ? 0 : b->half;
}

/* The lane's next segment does not wait for this: the second half is computed meanwhile. */
static void exchange_half(struct eng_builder *b, unsigned which)
{
    const uint64_t host = b->lanes[b->lane].host;
    exchange(b, DL_COLL_ALL_GATHER, b->gather[b->lane][which]);
    b->lanes[b->lane].host = host;
}

void eng_plan_give_half(struct eng_builder *b, unsigned which)
{
    to_wire(b, which ? "ffn_wire" : "attn_wire", slice_of(b, b->gather[b->lane][which], b->plan->slice),
            columns(whole(b, b->part), 0, b->half), b->carry[b->lane], 0, !b->lanes[b->lane].carries);
    end_run(b);
    exchange_half(b, which);
}

/* A node that has no share leaves its slices of the wire zero, as they were created. */
void eng_plan_give(struct eng_builder *b, unsigned which, bool any)
{
    const uint32_t n = b->plan->n_slices, half = eng_plan_half(b, which);
    struct dl_view part = whole(b, b->part);
    if (n == 1) {
        struct dl_view x = whole(b, b->x);
        add_op(b, DL_OP_ADD, which ? "ffn_residual" : "attn_residual", x, x)->src[1] = part;
        return;
    }
    const uint32_t to = (b->in_two ? b->scatter : half ? b->second : b->gather)[b->lane][which];
    if (half)
        part = columns(part, half, b->h->dim - half);
    const char *name = which ? "ffn_wire" : "attn_wire";
    const uint32_t carry = b->carry[b->lane];
    const bool first = !b->lanes[b->lane].carries;
    if (any && !b->in_two)
        to_wire(b, name, slice_of(b, to, b->plan->slice), part, carry, half, first);
    for (uint32_t j = 0; any && b->in_two && j < n; j++)
        to_wire(b, name, chunk_of(b, to, n + j, j), cols_of(b, part, j), carry, chunk_at(b, j), first);
    b->lanes[b->lane].carries = b->lanes[b->lane].carries || any;
    end_run(b);
    if (half && !any)
        exchange_half(b, which);
    exchange(b, b->in_two ? DL_COLL_ALL_TO_ALL : DL_COLL_ALL_GATHER, to);
    b->lanes[b->lane].due = true;
    b->lanes[b->lane].which = which;
}

void eng_plan_reduce(struct eng_builder *b, unsigned which)
{
    const uint32_t me = b->plan->slice;
    for (b->lane = 0; b->in_two && b->lane < b->plan->n_lanes; b->lane++) {
        const uint32_t from = b->scatter[b->lane][which], to = b->gather[b->lane][which];
        const struct dl_view sum = whole(b, b->sum);
        merge(b, which ? "ffn_reduce" : "attn_reduce", sum, whole(b, b->zeros), chunk_of(b, from, 0, me),
              b->plan->n_slices);
        to_wire(b, which ? "ffn_sum_wire" : "attn_sum_wire", chunk_of(b, to, me, me), sum, b->carry_sum[b->lane], 0,
                !b->lanes[b->lane].carries_sum);
        b->lanes[b->lane].carries_sum = true;
        end_run(b);
        exchange(b, DL_COLL_ALL_GATHER, to);
    }
    b->lane = 0;
}
