/* SPDX-License-Identifier: MIT
 *
 * tests/ops_oracle.h: what each op should give, from the formulas of dl/op.h alone: whole matrices of doubles, no units, no
 * kernels. Slow on purpose, and written without looking at cpu/ref*.c, which it checks too.
 */
#ifndef TESTS_OPS_ORACLE_H
#define TESTS_OPS_ORACLE_H

#include "ops_case.h"

/* Element (r, i) of source s, whose values are at v[s]. */
#define SRC(s, r, i) v[s][(size_t)(r)*c->op.src[s].cols + (size_t)(i)]
#define WANT(r, i) c->want[(size_t)(r)*c->op.dst.cols + (size_t)(i)]

static void oracle_matmul(struct ops_case *c, double *const *v, uint32_t dst_row, uint32_t src_row, uint32_t weight_row)
{
    bool biased = c->op.code == DL_OP_MATMUL && c->op.src[2].buf != DL_NO_BUF;
    for (uint32_t o = 0; o < c->op.dst.cols; o++) {
        double sum = biased ? SRC(2, 0, o) : 0;
        for (uint32_t i = 0; i < c->op.src[0].cols; i++)
            sum += SRC(0, src_row, i) * SRC(1, weight_row + o, i);
        WANT(dst_row, o) = sum;
    }
}

static void oracle_rms_norm(struct ops_case *c, double *const *v, uint32_t r)
{
    uint32_t group = c->op.u.norm.group;
    for (uint32_t first = 0; first < c->op.dst.cols; first += group) {
        double sum = 0;
        for (uint32_t i = 0; i < group; i++)
            sum += SRC(0, r, first + i) * SRC(0, r, first + i);
        for (uint32_t i = 0; i < group; i++)
            WANT(r, first + i) = SRC(0, r, first + i) * SRC(1, 0, i) / sqrt(sum / group + (double)c->op.u.norm.eps);
    }
}

static void oracle_rope(struct ops_case *c, double *const *v, uint32_t r)
{
    uint32_t n_rot = c->op.u.rope.n_rot, head_dim = c->op.u.rope.head_dim;
    for (uint32_t i = 0; i < c->op.dst.cols; i++) {
        uint32_t head = i / head_dim * head_dim, j = i % head_dim;
        WANT(r, i) = SRC(0, r, i);
        if (j >= n_rot)
            continue;
        bool halves = c->op.u.rope.layout == DL_ROPE_HALVES, second = halves ? j >= n_rot / 2 : j % 2;
        uint32_t pair = halves ? j % (n_rot / 2) : j / 2, step = halves ? n_rot / 2 : 1;
        double other = SRC(0, r, head + (second ? j - step : j + step));
        double cosine = SRC(1, r, 2 * pair), sine = SRC(1, r, 2 * pair + 1);
        WANT(r, i) = SRC(0, r, i) * cosine + (second ? other * sine : -other * sine);
    }
}

static void oracle_attention(struct ops_case *c, double *const *v, uint32_t t)
{
    uint32_t hd = c->op.u.attn.head_dim, n_kv = c->op.u.attn.n_kv_heads, n = ops_batch_rows(c)[t].pos + 1;
    double *weight = dl_xcalloc(n, sizeof *weight);
    for (uint32_t h = 0; h < c->op.u.attn.n_heads; h++) {
        uint32_t kv = (c->op.u.attn.first_head + h) / c->op.u.attn.group;
        double top = -INFINITY, sum = 0;
        for (uint32_t p = 0; p < n; p++) {
            for (uint32_t i = 0; i < hd; i++)
                weight[p] += SRC(0, t, h * hd + i) * SRC(1, ops_kv_row(c, t, n_kv, kv, p), i);
            weight[p] *= (double)c->op.u.attn.scale;
            top = fmax(top, weight[p]);
        }
        for (uint32_t p = 0; p < n; p++)
            sum += weight[p] = exp(weight[p] - top);
        for (uint32_t i = 0; i < hd; i++)
            WANT(t, h * hd + i) = 0;
        for (uint32_t p = 0; p < n; p++)
            for (uint32_t i = 0; i < hd; i++)
                WANT(t, h * hd + i) += weight[p] / sum * SRC(2, ops_kv_row(c, t, n_kv, kv, p), i);
        memset(weight, 0, n * sizeof *weight);
    }
    free(weight);
}

static void oracle_glu(struct ops_case *c, double *const *v, uint32_t r)
{
    for (uint32_t i = 0; i < c->op.dst.cols; i++) {
        double x = SRC(0, r, i);
        double act = c->op.u.glu.act == DL_ACT_SILU
                         ? x / (1 + exp(-x))
                         : x / 2 * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * pow(x, 3))));
        WANT(r, i) = act * SRC(1, r, i);
    }
}

/* In float: the order and the rounding of each addition are part of the definition. */
static void oracle_merge(struct ops_case *c, double *const *v, uint32_t r)
{
    const struct dl_view *wire = &c->op.src[1];
    float *slice = dl_xcalloc(wire->cols, sizeof *slice), *sum = dl_xcalloc(wire->cols, sizeof *sum);
    for (uint32_t s = 0; s < c->op.u.merge.n_slices; s++) {
        dl_row_to_f32(wire->type, ops_row(c, wire, r) + s * c->op.u.merge.slice_bytes, slice, wire->cols);
        for (uint32_t i = 0; i < wire->cols; i++) {
            volatile float next = s ? sum[i] + slice[i] : slice[i];
            sum[i] = next;
        }
    }
    for (uint32_t i = 0; i < wire->cols; i++) {
        volatile float all = (float)SRC(0, r, i) + sum[i];
        WANT(r, i) = (double)all;
    }
    free(slice);
    free(sum);
}

static void oracle_moe_route(struct ops_case *c, double *const *v, uint32_t r)
{
    uint32_t n = c->op.u.moe.n_experts, k = c->op.u.moe.k;
    double all = 0, chosen = 0;
    for (uint32_t e = 0; e < n; e++)
        all += exp(SRC(0, r, e));
    for (uint32_t e = 0; e < n; e++) {
        uint32_t rank = 0; /* how many come before e */
        for (uint32_t o = 0; o < n; o++)
            rank += SRC(0, r, o) > SRC(0, r, e) || (SRC(0, r, o) == SRC(0, r, e) && o < e);
        if (rank >= k)
            continue;
        WANT(r, rank) = e;
        WANT(r, k + rank) = exp(SRC(0, r, e)) / all;
        chosen += exp(SRC(0, r, e)) / all;
    }
    for (uint32_t s = 0; c->op.u.moe.renorm && s < k; s++)
        WANT(r, k + s) /= chosen;
}

static void oracle_kv_store(struct ops_case *c, double *const *v, uint32_t t)
{
    uint32_t n_kv = c->op.u.kv.n_kv_heads, hd = c->op.u.kv.head_dim;
    for (uint32_t h = 0; h < n_kv; h++)
        for (uint32_t i = 0; i < hd; i++)
            WANT(ops_kv_row(c, t, n_kv, h, ops_batch_rows(c)[t].pos), i) = SRC(0, t, h * hd + i);
}

static void oracle_row(struct ops_case *c, double *const *v, uint32_t r)
{
    uint32_t k = c->op.code == DL_OP_MOE_SUM ? c->op.src[1].cols / 2 : c->op.u.moe.k;
    switch (c->op.code) {
    case DL_OP_MATMUL:
        oracle_matmul(c, v, r, r, 0);
        break;
    case DL_OP_MOE_MATMUL:
        oracle_matmul(c, v, r, c->op.u.moe.shared_src ? r / k : r, (uint32_t)SRC(2, r / k, r % k) * c->op.dst.cols);
        break;
    case DL_OP_RMS_NORM:
        oracle_rms_norm(c, v, r);
        break;
    case DL_OP_ROPE:
        oracle_rope(c, v, r);
        break;
    case DL_OP_KV_STORE:
        oracle_kv_store(c, v, r);
        break;
    case DL_OP_ATTENTION:
        oracle_attention(c, v, r);
        break;
    case DL_OP_GLU:
        oracle_glu(c, v, r);
        break;
    case DL_OP_MERGE:
        oracle_merge(c, v, r);
        break;
    case DL_OP_MOE_ROUTE:
        oracle_moe_route(c, v, r);
        break;
    case DL_OP_MOE_SUM:
        for (uint32_t i = 0; i < c->op.dst.cols; i++)
            for (uint32_t s = 0; s < k; s++)
                WANT(r, i) += SRC(1, r, k + s) * SRC(0, r * k + s, i);
        break;
    case DL_OP_CONVERT:
        for (uint32_t i = 0; i < c->op.dst.cols; i++) {
            volatile float sum = (float)SRC(0, r, i);
            if (dl_op_carries(&c->op) && !c->op.u.convert.first)
                sum += (float)SRC(1, r, i);
            WANT(r, i) = (double)sum;
        }
        break;
    case DL_OP_ADD:
        for (uint32_t i = 0; i < c->op.dst.cols; i++)
            WANT(r, i) = (double)((float)SRC(0, r, i) + (float)SRC(1, r, i));
        break;
    case DL_OP_GATHER_ROWS:
        for (uint32_t i = 0; i < c->op.dst.cols; i++)
            WANT(r, i) = SRC(0, ops_out_rows(c)[r], i);
        break;
    case DL_OP_COUNT:
        break;
    }
}

static void ops_oracle(struct ops_case *c)
{
    double *v[3] = {0};
    for (uint32_t s = 0; s < 3; s++)
        if (c->op.src[s].buf != DL_NO_BUF)
            v[s] = ops_values(c, &c->op.src[s]);
    for (uint32_t r = 0; r < ops_n(c); r++)
        oracle_row(c, v, r);
    for (uint32_t s = 0; s < 3; s++)
        free(v[s]);
    const struct dl_view *d = &c->op.dst;
    double least = INFINITY, most = -INFINITY;
    for (uint32_t r = 0; r < d->rows; r++)
        for (uint32_t i = 0; c->used[r] && i < d->cols; i++) {
            least = fmin(least, c->want[(size_t)r * d->cols + i]);
            most = fmax(most, c->want[(size_t)r * d->cols + i]);
        }
    if (c->varies && !(least < most)) { /* a test of equal numbers would pass for the wrong reasons */
        fprintf(stderr, "test data does not vary: %s\n", c->label);
        fail();
    }
}

#endif
