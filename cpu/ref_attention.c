/* SPDX-License-Identifier: MIT
 *
 * cpu/ref_attention.c: reference kernels of ROPE, KV_STORE and ATTENTION.
 */
#include "ref.h"

#include <math.h>

void cpu_ref_rope(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    uint32_t head_dim = op->u.rope.head_dim, pairs = op->u.rope.n_rot / 2;
    bool halves = op->u.rope.layout == DL_ROPE_HALVES;
    for (uint32_t u = unit0; u < unit1; u++) {
        const uint8_t *angles = cpu_row(k->src[1], &op->src[1], u);
        for (uint32_t h = 0; h < op->dst.cols / head_dim; h++) {
            uint64_t at = cpu_bytes(DL_F32, (uint64_t)h * head_dim);
            const uint8_t *in = cpu_row(k->src[0], &op->src[0], u) + at;
            uint8_t *out = cpu_row_out(k->dst, &op->dst, u) + at;
            for (uint32_t i = 0; i < pairs; i++) {
                uint32_t ia = halves ? i : 2 * i, ib = halves ? i + pairs : 2 * i + 1;
                double a = (double)cpu_load_f32(in, ia), b = (double)cpu_load_f32(in, ib);
                double c = (double)cpu_load_f32(angles, 2 * i), s = (double)cpu_load_f32(angles, 2 * i + 1);
                cpu_store_f32(out, ia, (float)(a * c - b * s));
                cpu_store_f32(out, ib, (float)(a * s + b * c));
            }
            if (out != in)
                memcpy(out + cpu_bytes(DL_F32, 2 * pairs), in + cpu_bytes(DL_F32, 2 * pairs),
                       cpu_bytes(DL_F32, head_dim - 2 * pairs));
        }
    }
}

void cpu_ref_kv_store(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    uint32_t n_kv = op->u.kv.n_kv_heads, head_dim = op->u.kv.head_dim;
    for (uint32_t u = unit0; u < unit1; u++) {
        for (uint32_t h = 0; h < n_kv; h++) {
            const uint8_t *in = cpu_row(k->src[0], &op->src[0], u) + cpu_bytes(DL_F32, (uint64_t)h * head_dim);
            uint8_t *out = k->dst + cpu_kv_row(k, u, n_kv, h, k->rows[u].pos) * op->dst.row_bytes;
            for (uint32_t i = 0; i < head_dim; i += DL_BLOCK) {
                float v[DL_BLOCK];
                uint32_t n = DL_MIN(head_dim - i, (uint32_t)DL_BLOCK);
                memcpy(v, in + cpu_bytes(DL_F32, i), n * sizeof *v);
                dl_row_from_f32(op->dst.type, v, out + cpu_bytes(op->dst.type, i), n);
            }
        }
    }
}

/* One query head over one sequence. */
struct head {
    const struct cpu_task *k;
    const uint8_t *q;
    uint32_t token, kv_head;
};

static const uint8_t *cache_row(const struct head *h, uint32_t src, uint32_t pos)
{
    const struct dl_op *op = h->k->op;
    return h->k->src[src] + cpu_kv_row(h->k, h->token, op->u.attn.n_kv_heads, h->kv_head, pos) * op->src[src].row_bytes;
}

static double score(const struct head *h, uint32_t pos)
{
    const struct dl_op *op = h->k->op;
    const uint8_t *key = cache_row(h, 1, pos);
    uint32_t head_dim = op->u.attn.head_dim;
    double sum = 0;
    for (uint32_t i = 0; i < head_dim; i += DL_BLOCK) {
        float v[DL_BLOCK];
        uint32_t n = DL_MIN(head_dim - i, (uint32_t)DL_BLOCK);
        dl_row_to_f32(op->src[1].type, key + cpu_bytes(op->src[1].type, i), v, n);
        for (uint32_t j = 0; j < n; j++)
            sum += (double)cpu_load_f32(h->q, i + j) * (double)v[j];
    }
    return sum * (double)op->u.attn.scale;
}

/* Columns of the accumulator; wider heads take another pass, so that no memory depends on head_dim. */
#define ACC 256

static void attend(const struct head *h, uint8_t *out)
{
    const struct dl_op *op = h->k->op;
    uint32_t end = h->k->rows[h->token].pos + 1;
    double max = score(h, 0);
    for (uint32_t p = 1; p < end; p++)
        max = fmax(max, score(h, p));
    for (uint32_t first = 0; first < op->u.attn.head_dim; first += ACC) {
        uint32_t cols = DL_MIN(op->u.attn.head_dim - first, (uint32_t)ACC);
        double acc[ACC] = {0}, sum = 0;
        for (uint32_t p = 0; p < end; p++) {
            double weight = exp(score(h, p) - max);
            const uint8_t *value = cache_row(h, 2, p);
            sum += weight;
            for (uint32_t i = 0; i < cols; i += DL_BLOCK) {
                float v[DL_BLOCK];
                uint32_t n = DL_MIN(cols - i, (uint32_t)DL_BLOCK);
                dl_row_to_f32(op->src[2].type, value + cpu_bytes(op->src[2].type, first + i), v, n);
                for (uint32_t j = 0; j < n; j++)
                    acc[i + j] += weight * (double)v[j];
            }
        }
        for (uint32_t i = 0; i < cols; i++)
            cpu_store_f32(out, first + i, (float)(acc[i] / sum));
    }
}

void cpu_ref_attention(const struct cpu_task *k, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = k->op;
    for (uint32_t u = unit0; u < unit1; u++) {
        uint32_t t = u % k->n, kv = u / k->n;
        struct cpu_heads heads = cpu_heads(op, kv);
        for (uint32_t i = heads.first; i < heads.end; i++) {
            uint64_t at = cpu_bytes(DL_F32, (uint64_t)i * op->u.attn.head_dim);
            struct head h = {.k = k, .q = cpu_row(k->src[0], &op->src[0], t) + at, .token = t, .kv_head = kv};
            attend(&h, cpu_row_out(k->dst, &op->dst, t) + at);
        }
    }
}
