/* SPDX-License-Identifier: MIT
 *
 * cpu/ref.c: reference kernels of the ops that work value by value or row by row, and the choice of reference kernel for
 * an op. The formulas are in dl/op.h, the cutting into units in kernels.h.
 */
#include "ref.h"

#include <math.h>

/* Converts and stores the values [first, first + n) of a row; n <= DL_BLOCK, both on block borders of dst. */
static void store_values(const struct dl_view *dst, uint8_t *row, uint32_t first, const float *values, uint32_t n)
{
    dl_row_from_f32(dst->type, values, row + cpu_bytes(dst->type, first), n);
}

/* A block of values from column i on. */
static void convert_carrying(const struct cpu_task *k, uint32_t row, uint32_t i, float *v)
{
    const struct dl_view *dst = &k->op->dst;
    uint8_t *carry = cpu_row_carried(k, row) + cpu_bytes(DL_F32, i), *out = cpu_row_out(k->dst, dst, row);
    float stored[DL_BLOCK];
    for (uint32_t j = 0; j < DL_BLOCK && !k->op->u.convert.first; j++)
        v[j] += cpu_load_f32(carry, j);
    store_values(dst, out, i, v, DL_BLOCK);
    dl_row_to_f32(dst->type, out + cpu_bytes(dst->type, i), stored, DL_BLOCK);
    for (uint32_t j = 0; j < DL_BLOCK; j++)
        cpu_store_f32(carry, j, v[j] - stored[j]);
}

void cpu_ref_convert(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_view *src = &k->op->src[0], *dst = &k->op->dst;
    const bool carry = dl_op_carries(k->op);
    for (uint32_t u = unit0; u < unit1; u++) {
        struct cpu_span s = cpu_span_of(k->op, u);
        const uint8_t *in = cpu_row(k->src[0], src, s.row);
        uint8_t *out = cpu_row_out(k->dst, dst, s.row);
        for (uint32_t i = s.first; i < s.end; i += DL_BLOCK) {
            float v[DL_BLOCK];
            uint32_t n = DL_MIN(s.end - i, (uint32_t)DL_BLOCK);
            dl_row_to_f32(src->type, in + cpu_bytes(src->type, i), v, n);
            if (carry)
                convert_carrying(k, s.row, i, v);
            else
                store_values(dst, out, i, v, n);
        }
    }
}

static double inverse_rms(const uint8_t *group, uint32_t n, float eps)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        double x = cpu_load_f32(group, i);
        sum += x * x;
    }
    return 1.0 / sqrt(sum / n + (double)eps);
}

static float normed(const uint8_t *group, const uint8_t *weight, uint32_t i, double inv)
{
    return (float)((double)cpu_load_f32(group, i) * (double)cpu_load_f32(weight, i) * inv);
}

static void rms_norm_q80(const struct cpu_task *k, uint32_t row)
{
    const struct dl_op *op = k->op;
    uint32_t size = op->u.norm.group, at = UINT32_MAX;
    const uint8_t *in = cpu_row(k->src[0], &op->src[0], row), *group = in;
    uint8_t *out = cpu_row_out(k->dst, &op->dst, row);
    double inv = 0;
    for (uint32_t i = 0; i < op->dst.cols; i += DL_BLOCK) {
        float v[DL_BLOCK];
        for (uint32_t j = 0; j < DL_BLOCK; j++) { /* a block may span groups, whatever their size */
            uint32_t g = (i + j) / size;
            if (g != at) {
                at = g;
                group = in + cpu_bytes(DL_F32, (uint64_t)g * size);
                inv = inverse_rms(group, size, op->u.norm.eps);
            }
            v[j] = normed(group, k->src[1], (i + j) % size, inv);
        }
        store_values(&op->dst, out, i, v, DL_BLOCK);
    }
}

void cpu_ref_rms_norm(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    uint32_t size = op->u.norm.group, groups = op->dst.cols / size;
    for (uint32_t u = unit0; u < unit1; u++) {
        if (op->dst.type == DL_Q80) {
            rms_norm_q80(k, u);
            continue;
        }
        uint64_t at = cpu_bytes(DL_F32, (uint64_t)(u % groups) * size);
        const uint8_t *in = cpu_row(k->src[0], &op->src[0], u / groups) + at;
        uint8_t *out = cpu_row_out(k->dst, &op->dst, u / groups) + at;
        double inv = inverse_rms(in, size, op->u.norm.eps);
        for (uint32_t i = 0; i < size; i++)
            cpu_store_f32(out, i, normed(in, k->src[1], i, inv));
    }
}

static double activate(enum dl_act_fn fn, double x)
{
    if (fn == DL_ACT_GELU)
        return 0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    return x / (1.0 + exp(-x));
}

void cpu_ref_glu(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    for (uint32_t u = unit0; u < unit1; u++) {
        struct cpu_span s = cpu_span_of(op, u);
        const uint8_t *gate = cpu_row(k->src[0], &op->src[0], s.row), *up = cpu_row(k->src[1], &op->src[1], s.row);
        uint8_t *out = cpu_row_out(k->dst, &op->dst, s.row);
        for (uint32_t i = s.first; i < s.end; i += DL_BLOCK) {
            float v[DL_BLOCK];
            uint32_t n = DL_MIN(s.end - i, (uint32_t)DL_BLOCK);
            for (uint32_t j = 0; j < n; j++)
                v[j] = (float)(activate(op->u.glu.act, (double)cpu_load_f32(gate, i + j)) *
                               (double)cpu_load_f32(up, i + j));
            store_values(&op->dst, out, i, v, n);
        }
    }
}

void cpu_ref_add(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    for (uint32_t u = unit0; u < unit1; u++) {
        struct cpu_span s = cpu_span_of(op, u);
        const uint8_t *a = cpu_row(k->src[0], &op->src[0], s.row), *b = cpu_row(k->src[1], &op->src[1], s.row);
        uint8_t *out = cpu_row_out(k->dst, &op->dst, s.row);
        for (uint32_t i = s.first; i < s.end; i++)
            cpu_store_f32(out, i, cpu_load_f32(a, i) + cpu_load_f32(b, i));
    }
}

/* f32 throughout and in slice order, not double: every node, whatever its device, has to get the same bits. */
void cpu_ref_merge(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    const struct dl_view *wire = &op->src[1];
    for (uint32_t u = unit0; u < unit1; u++) {
        struct cpu_span s = cpu_span_of(op, u);
        const uint8_t *base = cpu_row(k->src[0], &op->src[0], s.row), *slice0 = cpu_row(k->src[1], wire, s.row);
        uint8_t *out = cpu_row_out(k->dst, &op->dst, s.row);
        for (uint32_t i = s.first; i < s.end; i += DL_BLOCK) {
            float sum[DL_BLOCK], v[DL_BLOCK];
            uint32_t n = DL_MIN(s.end - i, (uint32_t)DL_BLOCK);
            const uint8_t *in = slice0 + cpu_bytes(wire->type, i);
            dl_row_to_f32(wire->type, in, sum, n);
            for (uint32_t slice = 1; slice < op->u.merge.n_slices; slice++) {
                dl_row_to_f32(wire->type, in + slice * op->u.merge.slice_bytes, v, n);
                for (uint32_t j = 0; j < n; j++)
                    sum[j] += v[j];
            }
            for (uint32_t j = 0; j < n; j++)
                cpu_store_f32(out, i + j, cpu_load_f32(base, i + j) + sum[j]);
        }
    }
}

void cpu_ref_gather_rows(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    for (uint32_t u = unit0; u < unit1; u++) {
        struct cpu_span s = cpu_span_of(op, u);
        uint64_t at = cpu_bytes(DL_F32, s.first);
        memcpy(cpu_row_out(k->dst, &op->dst, s.row) + at, cpu_row(k->src[0], &op->src[0], k->out_rows[s.row]) + at,
               cpu_bytes(DL_F32, s.end - s.first));
    }
}

/* ------------------------------------------------------------------------------------------------- choice */

static bool is_float(enum dl_type t)
{
    return t == DL_F32 || t == DL_F16 || t == DL_BF16;
}

static bool f32_or(enum dl_type t, enum dl_type other)
{
    return t == DL_F32 || t == other;
}

static cpu_kernel *pick_matmul(const struct dl_op *op, cpu_kernel *kernel)
{
    enum dl_type x = op->src[0].type, w = op->src[1].type;
    bool fits = x == DL_Q80 ? dl_type_quantised(w) : x == DL_F32 && is_float(w);
    return fits && op->dst.type == DL_F32 ? kernel : NULL;
}

cpu_kernel *cpu_ref_pick(const struct dl_op *op)
{
    const struct dl_view *d = &op->dst, *a = &op->src[0], *b = &op->src[1], *c = &op->src[2];
    bool f32_sources = true;
    for (uint32_t i = 0; i < dl_op_n_src(op->code); i++)
        f32_sources = f32_sources && op->src[i].type == DL_F32;
    bool f32 = f32_sources && d->type == DL_F32;
    switch (op->code) {
    case DL_OP_CONVERT:
        return f32_or(a->type, DL_F16) && d->type != DL_Q40 ? cpu_ref_convert : NULL;
    case DL_OP_RMS_NORM:
        return f32_sources && f32_or(d->type, DL_Q80) ? cpu_ref_rms_norm : NULL;
    case DL_OP_MATMUL:
        return pick_matmul(op, cpu_ref_matmul);
    case DL_OP_ROPE:
        return f32 ? cpu_ref_rope : NULL;
    case DL_OP_KV_STORE:
        return f32_sources && (f32_or(d->type, DL_F16) || d->type == DL_Q80) ? cpu_ref_kv_store : NULL;
    case DL_OP_ATTENTION:
        return a->type == DL_F32 && d->type == DL_F32 && b->type == c->type &&
                       (f32_or(b->type, DL_F16) || b->type == DL_Q80)
                   ? cpu_ref_attention
                   : NULL;
    case DL_OP_GLU:
        return f32_sources && f32_or(d->type, DL_Q80) ? cpu_ref_glu : NULL;
    case DL_OP_ADD:
        return f32 ? cpu_ref_add : NULL;
    case DL_OP_MERGE:
        return a->type == DL_F32 && d->type == DL_F32 && b->type != DL_BF16 && b->type != DL_Q40 ? cpu_ref_merge : NULL;
    case DL_OP_GATHER_ROWS:
        return f32 ? cpu_ref_gather_rows : NULL;
    case DL_OP_MOE_ROUTE:
        return f32 ? cpu_ref_moe_route : NULL;
    case DL_OP_MOE_MATMUL:
        return c->type == DL_F32 ? pick_matmul(op, cpu_ref_moe_matmul) : NULL;
    case DL_OP_MOE_SUM:
        return f32 ? cpu_ref_moe_sum : NULL;
    case DL_OP_COUNT:
        break;
    }
    return NULL;
}
