/* SPDX-License-Identifier: MIT
 *
 * cpu/ref_matmul.c: reference kernels of MATMUL and of the mixture-of-experts ops. Products of quantised blocks are exact
 * (integers, times two halves), sums are double in ascending order of i.
 */
#include "ref.h"

#include <math.h>

static int32_t dot_q40_q80(const uint8_t *w, const uint8_t *x)
{
    int32_t sum = 0;
    for (uint32_t j = 0; j < DL_BLOCK / 2; j++)
        sum += ((w[j] & 15) - 8) * (int8_t)x[j] + ((w[j] >> 4) - 8) * (int8_t)x[j + DL_BLOCK / 2];
    return sum;
}

static int32_t dot_q80_q80(const uint8_t *w, const uint8_t *x)
{
    int32_t sum = 0;
    for (uint32_t j = 0; j < DL_BLOCK; j++)
        sum += (int8_t)w[j] * (int8_t)x[j];
    return sum;
}

static double dot_quant(enum dl_type type, const uint8_t *w, const uint8_t *x, uint32_t n)
{
    size_t step = type == DL_Q40 ? sizeof(struct dl_q40) : sizeof(struct dl_q80);
    double sum = 0;
    for (uint32_t b = 0; b < n / DL_BLOCK; b++, w += step, x += sizeof(struct dl_q80)) {
        double scale = (double)dl_f16_to_f32(cpu_load_u16(w)) * (double)dl_f16_to_f32(cpu_load_u16(x));
        sum += scale * (type == DL_Q40 ? dot_q40_q80(w + 2, x + 2) : dot_q80_q80(w + 2, x + 2));
    }
    return sum;
}

static double dot_float(enum dl_type type, const uint8_t *w, const uint8_t *x, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        float f = type == DL_F32   ? cpu_load_f32(w, i)
                  : type == DL_F16 ? dl_f16_to_f32(cpu_load_u16(w + 2 * (size_t)i))
                                   : dl_bf16_to_f32(cpu_load_u16(w + 2 * (size_t)i));
        sum += (double)f * (double)cpu_load_f32(x, i);
    }
    return sum;
}

static double dot(enum dl_type type, const uint8_t *w, const uint8_t *x, uint32_t n)
{
    return dl_type_quantised(type) ? dot_quant(type, w, x, n) : dot_float(type, w, x, n);
}

void cpu_ref_matmul(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    while (unit0 < unit1) {
        struct cpu_rect r = cpu_rect_next(&unit0, unit1, k->n);
        for (uint32_t o = r.tile0 * CPU_TILE; o < DL_MIN(r.tile1 * CPU_TILE, op->dst.cols); o++) {
            const uint8_t *w = cpu_row(k->src[1], &op->src[1], o);
            double bias = k->src[2] ? (double)cpu_load_f32(k->src[2], o) : 0.0;
            for (uint32_t t = r.t0; t < r.t1; t++) {
                double sum = dot(op->src[1].type, w, cpu_row(k->src[0], &op->src[0], t), op->src[0].cols);
                cpu_store_f32(cpu_row_out(k->dst, &op->dst, t), o, (float)(sum + bias));
            }
        }
    }
}

static uint32_t expert_of(const struct cpu_task *k, uint32_t row)
{
    uint32_t slots = k->op->u.moe.k;
    return (uint32_t)cpu_load_f32(cpu_row(k->src[2], &k->op->src[2], row / slots), row % slots);
}

/* Weight rows [first, first + CPU_TILE) of an expert, as far as it has them, for one row of dst. */
static void moe_rows(const struct cpu_task *k, uint32_t row, uint32_t expert, uint32_t first)
{
    const struct dl_op *op = k->op;
    const uint8_t *x = cpu_row(k->src[0], &op->src[0], op->u.moe.shared_src ? row / op->u.moe.k : row);
    uint8_t *out = cpu_row_out(k->dst, &op->dst, row);
    for (uint32_t o = first; o < DL_MIN(first + CPU_TILE, op->dst.cols); o++) {
        const uint8_t *w = cpu_row(k->src[1], &op->src[1], expert * op->dst.cols + o);
        cpu_store_f32(out, o, (float)dot(op->src[1].type, w, x, op->src[0].cols));
    }
}

void cpu_ref_moe_matmul(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    uint32_t tiles = cpu_tiles(k->op->dst.cols);
    for (uint32_t u = unit0; u < unit1; u++) {
        uint32_t first = u % tiles * CPU_TILE;
        if (!cpu_by_expert(k->op, k->n)) {
            moe_rows(k, u / tiles, expert_of(k, u / tiles), first);
            continue;
        }
        for (uint32_t row = 0; row < k->n; row++)
            if (expert_of(k, row) == u / tiles)
                moe_rows(k, row, u / tiles, first);
    }
}

static bool chosen_before(const uint8_t *route, uint32_t n, uint32_t expert)
{
    for (uint32_t s = 0; s < n; s++)
        if ((uint32_t)cpu_load_f32(route, s) == expert)
            return true;
    return false;
}

/* k times the largest that is left. Logits that are not a number lose against any that is; whatever they hold, the route
 * names k different experts, so that nothing after it reads outside the weights. */
static void route_token(const struct dl_op *op, const uint8_t *logits, uint8_t *route)
{
    uint32_t n = op->u.moe.n_experts, k = op->u.moe.k;
    for (uint32_t s = 0; s < k; s++) {
        uint32_t best = n;
        for (uint32_t e = 0; e < n; e++) {
            if (chosen_before(route, s, e))
                continue;
            float v = cpu_load_f32(logits, e), top = best < n ? cpu_load_f32(logits, best) : 0;
            if (best == n || v > top || (isnan(top) && !isnan(v)))
                best = e;
        }
        cpu_store_f32(route, s, (float)best);
    }
    double max = (double)cpu_load_f32(logits, (uint32_t)cpu_load_f32(route, 0)), sum = 0;
    for (uint32_t i = 0; i < (op->u.moe.renorm ? k : n); i++) {
        uint32_t e = op->u.moe.renorm ? (uint32_t)cpu_load_f32(route, i) : i;
        sum += exp((double)cpu_load_f32(logits, e) - max);
    }
    for (uint32_t s = 0; s < k; s++) {
        double v = (double)cpu_load_f32(logits, (uint32_t)cpu_load_f32(route, s));
        cpu_store_f32(route, k + s, (float)(exp(v - max) / sum));
    }
}

void cpu_ref_moe_route(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    for (uint32_t u = unit0; u < unit1; u++)
        route_token(k->op, cpu_row(k->src[0], &k->op->src[0], u), cpu_row_out(k->dst, &k->op->dst, u));
}

void cpu_ref_moe_sum(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    uint32_t slots = op->src[1].cols / 2;
    for (uint32_t u = unit0; u < unit1; u++) {
        struct cpu_span s = cpu_span_of(op, u);
        const uint8_t *route = cpu_row(k->src[1], &op->src[1], s.row);
        for (uint32_t i = s.first; i < s.end; i++) {
            double sum = 0;
            for (uint32_t slot = 0; slot < slots; slot++)
                sum += (double)cpu_load_f32(route, slots + slot) *
                       (double)cpu_load_f32(cpu_row(k->src[0], &op->src[0], s.row * slots + slot), i);
            cpu_store_f32(cpu_row_out(k->dst, &op->dst, s.row), i, (float)sum);
        }
    }
}
