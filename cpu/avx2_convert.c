/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_convert.c: CONVERT and KV_STORE from F32 to F16 and Q80, bit for bit what dl_row_from_f32 writes. The other
 * types stay with the reference: they are copies, or nothing in a plan needs them fast.
 */
#include "avx2.h"

static void to_f16(const float *in, uint8_t *out, uint32_t n)
{
    uint32_t i = 0;
    for (; n - i >= 8; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(out + 2 * (uint64_t)i), avx2_to_f16(_mm256_loadu_ps(in + i)));
    if (i < n) {
        uint16_t part[8];
        _mm_storeu_si128((__m128i *)(void *)part, avx2_to_f16(avx2_load_part(in + i, n - i)));
        memcpy(out + 2 * (uint64_t)i, part, (n - i) * sizeof *part);
    }
}

static void to_q80(const float *in, uint8_t *out, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += DL_BLOCK, out += sizeof(struct dl_q80)) {
        __m256 v[4];
        for (uint32_t j = 0; j < 4; j++)
            v[j] = _mm256_loadu_ps(in + i + 8 * j);
        avx2_q80_put(v, out);
    }
}

/* What the Q80 form loses stays in `carry`, for the next time. */
static void to_q80_carrying(const float *in, float *carry, bool first, uint8_t *out, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += DL_BLOCK, out += sizeof(struct dl_q80)) {
        __m256 v[4];
        for (uint32_t j = 0; j < 4; j++) {
            v[j] = _mm256_loadu_ps(in + i + 8 * j);
            if (!first)
                v[j] = _mm256_add_ps(v[j], _mm256_loadu_ps(carry + i + 8 * j));
        }
        avx2_q80_put(v, out);
        for (uint32_t j = 0; j < 4; j++)
            _mm256_storeu_ps(carry + i + 8 * j, _mm256_sub_ps(v[j], avx2_q80_at(out, 8 * j)));
    }
}

/* Bytes before value `col` of a row. */
static uint64_t at(enum dl_type type, uint32_t col)
{
    return type == DL_F16 ? (uint64_t)col * 2 : (uint64_t)(col / DL_BLOCK) * sizeof(struct dl_q80);
}

static void convert(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    uint32_t chunks = cpu_chunks(op->dst.cols);
    for (uint32_t u = unit0; u < unit1; u++) {
        uint32_t t = u / chunks, c = u % chunks * CPU_CHUNK, n = DL_MIN(op->dst.cols - c, CPU_CHUNK);
        const float *in = (const float *)(const void *)cpu_row(task->src[0], &op->src[0], t) + c;
        uint8_t *out = cpu_row_out(task->dst, &op->dst, t) + at(op->dst.type, c);
        if (op->dst.type == DL_F16)
            to_f16(in, out, n);
        else if (dl_op_carries(op))
            to_q80_carrying(in, (float *)(void *)cpu_row_carried(task, t) + c, op->u.convert.first, out, n);
        else
            to_q80(in, out, n);
    }
}

static void kv_store(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    uint32_t n_kv = op->u.kv.n_kv_heads, dim = op->u.kv.head_dim;
    for (uint32_t t = unit0; t < unit1; t++) {
        const float *in = (const float *)(const void *)cpu_row(task->src[0], &op->src[0], t);
        for (uint32_t h = 0; h < n_kv; h++) {
            uint64_t row = cpu_kv_row(task, t, n_kv, h, task->rows[t].pos);
            uint8_t *out = task->dst + row * op->dst.row_bytes;
            if (op->dst.type == DL_F16)
                to_f16(in + (uint64_t)h * dim, out, dim);
            else
                to_q80(in + (uint64_t)h * dim, out, dim);
        }
    }
}

cpu_kernel *cpu_avx2_pick_convert(const struct dl_op *op)
{
    if (op->src[0].type != DL_F32 || (op->dst.type != DL_F16 && op->dst.type != DL_Q80))
        return NULL;
    return op->code == DL_OP_CONVERT ? convert : kv_store;
}
