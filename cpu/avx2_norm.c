/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_norm.c: RMS_NORM: y[i] = x[i] / sqrt(mean(x^2) + eps) * w[i] over groups of values, to F32 or straight to Q80.
 * The squares are summed in double: they overflow f32 from 1.8e19 on, and the factor multiplies the whole row.
 */
#include <math.h>

#include "avx2.h"

static float factor(const float *x, uint32_t n, float eps)
{
    __m256d lo = _mm256_setzero_pd(), hi = lo;
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 v = n - i >= 8 ? _mm256_loadu_ps(x + i) : avx2_load_part(x + i, n - i);
        __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(v)), b = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
        lo = _mm256_fmadd_pd(a, a, lo);
        hi = _mm256_fmadd_pd(b, b, hi);
    }
    double s[4];
    _mm256_storeu_pd(s, _mm256_add_pd(lo, hi));
    return (float)(1.0 / sqrt(((s[0] + s[1]) + (s[2] + s[3])) / n + (double)eps));
}

static void norm_f32(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    uint32_t group = op->u.norm.group, groups = op->dst.cols / group;
    const float *w = (const float *)(const void *)task->src[1];
    for (uint32_t u = unit0; u < unit1; u++) {
        uint32_t t = u / groups, first = u % groups * group, i = 0;
        const float *x = (const float *)(const void *)cpu_row(task->src[0], &op->src[0], t) + first;
        float *y = (float *)(void *)cpu_row_out(task->dst, &op->dst, t) + first;
        __m256 k = _mm256_set1_ps(factor(x, group, op->u.norm.eps));
        for (; group - i >= 8; i += 8)
            _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), k), _mm256_loadu_ps(w + i)));
        if (i < group) {
            uint32_t n = group - i;
            __m256 v = _mm256_mul_ps(_mm256_mul_ps(avx2_load_part(x + i, n), k), avx2_load_part(w + i, n));
            avx2_store_part(y + i, v, n);
        }
    }
}

static void norm_q80(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    uint32_t group = op->u.norm.group, cols = op->dst.cols;
    const float *w = (const float *)(const void *)task->src[1];
    for (uint32_t t = unit0; t < unit1; t++) {
        const float *x = (const float *)(const void *)cpu_row(task->src[0], &op->src[0], t);
        uint8_t *y = cpu_row_out(task->dst, &op->dst, t);
        for (uint32_t first = 0; first < cols; first += group) {
            __m256 k = _mm256_set1_ps(factor(x + first, group, op->u.norm.eps));
            for (uint32_t i = 0; i < group; i += DL_BLOCK, y += sizeof(struct dl_q80)) {
                __m256 v[4];
                for (uint32_t j = 0; j < 4; j++)
                    v[j] = _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + first + i + 8 * j), k),
                                         _mm256_loadu_ps(w + i + 8 * j));
                avx2_q80_put(v, y);
            }
        }
    }
}

cpu_kernel *cpu_avx2_pick_norm(const struct dl_op *op)
{
    if (op->dst.type == DL_F32)
        return norm_f32;
    /* a block that spans groups is left to the reference: no model norms to Q80 in such groups */
    return op->dst.type == DL_Q80 && op->u.norm.group % DL_BLOCK == 0 ? norm_q80 : NULL;
}
