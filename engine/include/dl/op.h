/* SPDX-License-Identifier: MIT
 *
 * dl/op.h: what a device computes. A plan is data: buffers, ops over views of them, and steps that run ops or exchange
 * bytes between nodes. Each opcode below is documented once, here: formula, shapes, types, bound. cpu/ref.c is its
 * executable definition; every other kernel is tested against that.
 *
 * A device may run neighbouring ops as one kernel, or at the same time, as long as the result is that of running them
 * one after the other (dl_op_conflict tells which may not trade places).
 */
#ifndef DL_OP_H
#define DL_OP_H

#include "dl/quant.h"

/* ------------------------------------------------------------------------------------------------ buffers */

enum dl_buf_use {
    DL_BUF_WEIGHT, /* written while loading, read-only afterwards; whole rows of `type` and `cols`: a device may repack */
    DL_BUF_ACT,    /* device memory that ops write and read; content does not outlive a batch */
    DL_BUF_KV,     /* device memory that outlives batches; starts zeroed */
    DL_BUF_INPUT,  /* the host writes it through dl_buf_map before a submit; ops only read it */
    DL_BUF_OUTPUT, /* ops write it; the host reads it through dl_buf_map after the wait */
    DL_BUF_WIRE,   /* host-visible both ways: ops write this node's slice, the transport fills in the others' */
    DL_BUF_USE_COUNT
};

/* rows x cols values of one type, stored row after row without gaps; bytes = rows * row bytes. */
struct dl_buf_desc {
    const char *name; /* static, or owned by the plan; for messages */
    enum dl_buf_use use;
    enum dl_type type;
    uint32_t rows, cols;
    uint64_t bytes;
};

#define DL_NO_BUF UINT32_MAX

/* A row-major matrix inside plan buffer `buf`. rows, cols count values; offset and row_bytes (distance between rows) are
 * bytes. A view of a quantised type starts and ends on block borders. buf == DL_NO_BUF: no view. */
struct dl_view {
    uint32_t buf, rows, cols;
    enum dl_type type;
    uint64_t offset, row_bytes;
};

/* ---------------------------------------------------------------------------------------------------- ops */

/* How many rows an op really has in a batch: its views are declared for the largest batch, and rows beyond
 * count * mult are neither read nor written. */
enum dl_count {
    DL_COUNT_TOKENS, /* one row per token of the batch (dl_run_args.n_tokens) */
    DL_COUNT_OUT     /* one row per token whose logits are wanted (dl_run_args.n_out) */
};

enum dl_rope_layout { DL_ROPE_PAIRS /* (2i, 2i+1): Llama */, DL_ROPE_HALVES /* (i, i + n/2): NeoX, Qwen */ };
enum dl_act_fn { DL_ACT_SILU, DL_ACT_GELU /* tanh form */ };

/* The opcodes. n = rows in this batch; [t] counts them. "F32|Q80" lists the types a view may have. Unless said otherwise
 * dst aliases no source. Bounds are NMSE = sum((y - ref)^2) / sum(ref^2) against cpu/ref.c on the same inputs.
 *
 * CONVERT       dst[t][i] = src0[t][i] in another type (dl_row_from_f32 is the definition).
 *               src0: F32|F16 (n, cols); dst: F32|F16|BF16|Q80|Q120 (n, cols), Q120 of F32 and on a wire. Bound: exact, codes of blocks
 *               within 1 at ties.
 *               With src1, F32 (n, cols), what rounding loses is carried to the next CONVERT with that src1: v = src0 + src1, or
 *               v = src0 where u.convert.first, which does not read src1; dst = v rounded; src1 = v - dst. It is the only
 *               source that an op writes, and overlaps neither src0, which is F32, nor dst, which is Q80 or Q120. Bound: exact.
 *
 * RMS_NORM      dst[t][g*G+i] = src0[t][g*G+i] * w[i] / sqrt(mean_j(src0[t][g*G+j]^2) + eps), G = u.norm.group, w = src1.
 *               src0: F32 (n, cols); src1: F32 (1, G); dst: F32|Q80 (n, cols). cols % G == 0. dst may be src0 (F32).
 *               Bound 1e-11 (F32); Q80: the codes of the F32 result within 1.
 *
 * MATMUL        dst[t][o] = sum_i src0[t][i] * src1[o][i] + bias[o].
 *               src0: Q80 (n, in) where src1 is Q40|Q80, F32 (n, in) where it is F32|F16|BF16; src1: (out, in);
 *               src2: F32 (1, out) or none; dst: F32 (n, out). Bound 1e-10. A row's result does not depend on the other
 *               rows of the batch; on the CPU, nor on how many they are (a GPU has other kernels, which add up in another
 *               order, for other sizes of batches).
 *
 * ROPE          Rotates each head's first n_rot values: (a, b) -> (a cos - b sin, a sin + b cos), pair i by layout.
 *               src0: F32 (n, heads * head_dim); src1: F32 (n, n_rot): cos_i, sin_i at [2i], [2i+1], made by the host in
 *               double; dst: F32 as src0, and may be src0. Bound 1e-12.
 *
 * KV_STORE      cache row ((block * n_kv + h) * 32 + pos % 32) = src0[t][h*head_dim ...], block = table[pos / 32] of t's
 *               sequence, for each head h. src0: F32 (n, n_kv * head_dim); dst: KV view F16|F32|Q80
 *               (n_blocks * n_kv * 32, head_dim). The batch holds no (sequence, position) twice. Bound: as CONVERT.
 *
 * ATTENTION     dst[t] head h = softmax_p(scale * q_h . K_p) V_p over positions p = 0 .. pos of t's own sequence, with KV head
 *               (u.attn.first_head + h) / u.attn.group. src0: F32 (n, n_heads * head_dim); src1, src2: K and V as stored by
 *               KV_STORE, of one type; dst: F32 as src0. Cache rows past pos may hold anything, NaN too. Bound 1e-9. On the
 *               CPU a token's result depends on its own sequence up to its position alone, bit for bit.
 *
 * GLU           dst[t][i] = act(src0[t][i]) * src1[t][i]. All (n, cols); sources F32, dst F32|Q80; dst may be src0 (F32).
 *               silu(x) = x / (1 + exp(-x)); gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Bound 1e-11 (F32);
 *               Q80: within 1 of the codes of the F32 result.
 *
 * ADD           dst[t][i] = src0[t][i] + src1[t][i]. All F32 (n, cols); dst may be src0 or src1. Bound: exact.
 *
 * MERGE         dst[t][i] = src0[t][i] + (((w_0 + w_1) + w_2) + ...)[t][i] over the n_slices slices of the wire view, each
 *               added in f32 in slice order, so that every node gets the same bits. src0: F32 (n, cols), src1: F32|F16|Q80|Q120
 *               (n, cols) = slice 0; slice s starts u.merge.slice_bytes * s further; dst: F32, may be src0. Bound: exact.
 *
 * GATHER_ROWS   dst[r] = src0[out_row[r]], out_row from the batch. src0: F32 (tokens, cols); dst: F32 (n, cols);
 *               count is OUT. Bound: exact.
 *
 * MOE_ROUTE     For each token the k experts of largest router logit (lower index first among equals), weighted by
 *               softmax over all experts, renormalised over the chosen when u.moe.renorm. src0: F32 (n, n_experts);
 *               dst: F32 (n, 2k): expert numbers at [0, k), weights at [k, 2k), by descending weight. Bound: same experts, weights 1e-12.
 *
 * MOE_MATMUL    For token t and slot s, e = route[t][s]: dst[t*k+s][o] = sum_i src0[t'][i] * src1[e*out+o][i], t' = t where
 *               src0 has a row per token (u.moe.shared_src), else t*k+s. src0: as MATMUL; src1: (n_experts * out, in);
 *               src2: route; dst: F32 (n*k, out). Row counts of dst (and src0) are n*k. Bound 1e-10.
 *
 * MOE_SUM       dst[t][i] = sum_s weight[t][s] * src0[t*k+s][i], in slot order. src0: F32 (n*k, cols); src1: route (n, 2k);
 *               dst: F32 (n, cols). Bound 1e-12.
 */
#define DL_OP_MAP(X)                                                                               \
    X(CONVERT, "convert", 1)                                                                       \
    X(RMS_NORM, "rms_norm", 2)                                                                     \
    X(MATMUL, "matmul", 2)                                                                         \
    X(ROPE, "rope", 2)                                                                             \
    X(KV_STORE, "kv_store", 1)                                                                     \
    X(ATTENTION, "attention", 3)                                                                   \
    X(GLU, "glu", 2)                                                                               \
    X(ADD, "add", 2)                                                                               \
    X(MERGE, "merge", 2)                                                                           \
    X(GATHER_ROWS, "gather_rows", 1)                                                               \
    X(MOE_ROUTE, "moe_route", 1)                                                                   \
    X(MOE_MATMUL, "moe_matmul", 3)                                                                 \
    X(MOE_SUM, "moe_sum", 2)

#define X(name, text, n_src) DL_OP_##name,
enum dl_opcode { DL_OP_MAP(X) DL_OP_COUNT };
#undef X

struct dl_op {
    enum dl_opcode code;
    const char *name; /* "blk.3.attn_q", for messages; owned by the plan, or static */
    enum dl_count count;
    uint32_t mult; /* rows of dst = count * mult; 1 but for MoE ops */
    struct dl_view dst, src[3];
    union {
        struct {
            bool first; /* nothing is carried yet */
        } convert;
        struct {
            float eps;
            uint32_t group;
        } norm;
        struct {
            uint32_t head_dim, n_rot;
            enum dl_rope_layout layout;
        } rope;
        struct {
            uint32_t n_kv_heads, head_dim;
        } kv;
        struct {
            uint32_t n_heads, n_kv_heads, head_dim;
            uint32_t group, first_head; /* query heads per KV head of the whole model; first_head < group */
            float scale;
        } attn;
        struct {
            enum dl_act_fn act;
        } glu;
        struct {
            uint32_t n_slices;
            uint64_t slice_bytes;
        } merge;
        struct {
            uint32_t n_experts, k;
            bool renorm, shared_src;
        } moe;
    } u;
};

const char *dl_op_name(enum dl_opcode code);       /* "matmul"; "?" outside the enum */
uint32_t dl_op_n_src(enum dl_opcode code);         /* sources that must be there (MATMUL may have one more) */

/* ------------------------------------------------------------------------------------------------ the plan */

/* Two counters that only grow. RUN starts when host >= wait and, when finished, sets device = signal. EXCHANGE starts when
 * device >= wait and, when finished, sets host = signal. Signals ascend within each kind. Values are relative: whoever runs
 * the plan adds a base per batch. A RUN is submitted before its data is there; nothing else is needed to overlap. */
enum dl_coll_kind {
    DL_COLL_ALL_GATHER,  /* afterwards every node has all slices */
    DL_COLL_BROADCAST,   /* afterwards every node has node 0's slice */
    DL_COLL_GATHER_ROOT, /* afterwards node 0 has all slices */
    DL_COLL_ALL_TO_ALL,  /* 2 * n_slices slices: slice n_slices + j of node i becomes slice i of node j */
    DL_COLL_COUNT
};

enum dl_step_kind { DL_STEP_RUN, DL_STEP_EXCHANGE };

/* Lanes are parts of a batch that overlap: while one is exchanged, the other is computed. Lane l has the rows from l * lane_tokens on.
 * Who runs the plan says how many tokens are in which; a batch may have lane 0 only, and the steps of others are left out then: so
 * steps of lane 0 wait for such of lane 0 only. */
#define DL_PLAN_LANES 2u

struct dl_step {
    enum dl_step_kind kind;
    uint32_t lane;
    uint64_t wait, signal;
    uint32_t first_op, n_ops; /* RUN: a segment */
    enum dl_coll_kind coll;   /* EXCHANGE */
    struct dl_view view;      /* EXCHANGE: slice 0 of a WIRE buffer, (rows, cols) for the largest lane; node i owns slice i */
    uint64_t slice_bytes;     /* EXCHANGE: distance between slices */
    enum dl_count count;      /* EXCHANGE: rows that travel = this count */
};

struct dl_plan {
    struct dl_buf_desc *bufs;
    struct dl_op *ops;
    struct dl_step *steps;
    uint32_t n_bufs, n_ops, n_steps;
    uint32_t max_tokens, max_out; /* the largest batch */
    uint32_t n_lanes, lane_tokens; /* lane_tokens * n_lanes >= max_tokens: what the views of ops that count tokens are declared for */
    uint32_t n_slices, slice;     /* nodes that exchange, and which one this plan is for */
};

/* Of a batch, the tokens that lane `lane` has where as many as can be are in the first one. */
static inline uint32_t dl_plan_lane_tokens(const struct dl_plan *p, uint32_t lane, uint32_t n_tokens)
{
    uint64_t before = (uint64_t)p->lane_tokens * lane;
    return lane < p->n_lanes && n_tokens > before ? (uint32_t)DL_MIN(n_tokens - before, p->lane_tokens) : 0;
}

/* Proves the plan well-formed: views inside their buffers, shapes and types as documented above, buffers used as their kind
 * allows, no forbidden aliasing, every op in exactly one RUN and in order, counters that ascend, every RUN that
 * touches a WIRE buffer waiting for the exchange that last used it. DL_EINVAL (logged, naming the op or step) otherwise.
 * Pure; any thread. */
int dl_plan_check(const struct dl_plan *plan);

/* The same for one op, against the buffers it names. For devices' supports() and for tests. */
int dl_op_check(const struct dl_op *op, const struct dl_buf_desc *bufs, uint32_t n_bufs, uint32_t max_tokens,
                uint32_t max_out);

/* Must `later` wait until `earlier` is finished? True where they touch the same bytes and at least one writes them.
 * KV buffers count as touched whole, by KV_STORE and ATTENTION. */
bool dl_op_conflict(const struct dl_op *earlier, const struct dl_op *later);

/* Does a CONVERT carry what it loses? */
static inline bool dl_op_carries(const struct dl_op *op)
{
    return op->code == DL_OP_CONVERT && op->src[1].buf != DL_NO_BUF;
}

/* ----------------------------------------------------------------------------------------------- the batch */

#define DL_KV_BLOCK 32 /* positions per KV block */

/* What varies from batch to batch and is never recorded into a program. One INPUT buffer of dl_batch_bytes bytes:
 *   struct dl_batch_head
 *   struct dl_batch_row   row[max_tokens]
 *   uint32_t              out_row[max_out]             token index of each wanted logits row, ascending
 *   uint32_t              table[max_tables][table_cols] KV block of positions [32 i, 32 i + 32) of one sequence each
 * All little-endian uint32_t without padding, so that a shader indexes it as one array of words. */
struct dl_batch_head {
    uint32_t n_tokens, n_out;
    uint32_t max_tokens, max_out, max_tables, table_cols;
    uint32_t reserved[2];
};
struct dl_batch_row {
    uint32_t pos;   /* position of the token in its sequence */
    uint32_t table; /* row of `table` */
};

/* Fixed by the engine when it is created. */
struct dl_batch_shape {
    uint32_t max_tokens, max_out, max_tables, table_cols;
};

static inline uint64_t dl_batch_rows_at(void) { return sizeof(struct dl_batch_head); }
static inline uint64_t dl_batch_out_at(const struct dl_batch_shape *s)
{
    return dl_batch_rows_at() + (uint64_t)s->max_tokens * sizeof(struct dl_batch_row);
}
static inline uint64_t dl_batch_tables_at(const struct dl_batch_shape *s)
{
    return dl_batch_out_at(s) + (uint64_t)s->max_out * sizeof(uint32_t);
}
static inline uint64_t dl_batch_bytes(const struct dl_batch_shape *s)
{
    return dl_batch_tables_at(s) + (uint64_t)s->max_tables * s->table_cols * sizeof(uint32_t);
}

#endif
