/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_convert.c: CONVERT and KV_STORE from F32 to F16 and Q80, CONVERT to Q120, bit for bit what dl_row_from_f32 writes. The other
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

AVX2_INLINE uint64_t block_bytes(enum dl_type type)
{
    return type == DL_Q80 ? sizeof(struct dl_q80) : sizeof(struct dl_q120);
}

AVX2_INLINE void put_block(enum dl_type type, const __m256 v[4], uint8_t *out)
{
    if (type == DL_Q80)
        avx2_q80_put(v, out);
    else
        avx2_q120_put(v, out);
}

/* A row of blocks of 32 values. */
AVX2_INLINE void to_blocks(enum dl_type type, const float *in, uint8_t *out, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += DL_BLOCK, out += block_bytes(type)) {
        __m256 v[4];
        for (uint32_t j = 0; j < 4; j++)
            v[j] = _mm256_loadu_ps(in + i + 8 * j);
        put_block(type, v, out);
    }
}

/* What the blocks lose stays in `carry`, for the next time. */
AVX2_INLINE void to_blocks_carrying(enum dl_type type, const float *in, float *carry, bool first, uint8_t *out,
                                    uint32_t n)
{
    for (uint32_t i = 0; i < n; i += DL_BLOCK, out += block_bytes(type)) {
        __m256 v[4];
        for (uint32_t j = 0; j < 4; j++) {
            v[j] = _mm256_loadu_ps(in + i + 8 * j);
            if (!first)
                v[j] = _mm256_add_ps(v[j], _mm256_loadu_ps(carry + i + 8 * j));
        }
        put_block(type, v, out);
        for (uint32_t j = 0; j < 4; j++) {
            __m256 stored = type == DL_Q80 ? avx2_q80_at(out, 8 * j) : avx2_q120_at(out, 8 * j);
            _mm256_storeu_ps(carry + i + 8 * j, _mm256_sub_ps(v[j], stored));
        }
    }
}

/* Bytes before value `col` of a row. */
static uint64_t at(enum dl_type type, uint32_t col)
{
    return type == DL_F16 ? (uint64_t)col * 2 : col / DL_BLOCK * block_bytes(type);
}

AVX2_INLINE void convert(enum dl_type type, const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    uint32_t chunks = cpu_chunks(op->dst.cols);
    for (uint32_t u = unit0; u < unit1; u++) {
        uint32_t t = u / chunks, c = u % chunks * CPU_CHUNK, n = DL_MIN(op->dst.cols - c, CPU_CHUNK);
        const float *in = (const float *)(const void *)cpu_row(task->src[0], &op->src[0], t) + c;
        uint8_t *out = cpu_row_out(task->dst, &op->dst, t) + at(type, c);
        if (type == DL_F16)
            to_f16(in, out, n);
        else if (dl_op_carries(op))
            to_blocks_carrying(type, in, (float *)(void *)cpu_row_carried(task, t) + c, op->u.convert.first, out, n);
        else
            to_blocks(type, in, out, n);
    }
}

static void convert_f16(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    convert(DL_F16, task, unit0, unit1);
}

static void convert_q80(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    convert(DL_Q80, task, unit0, unit1);
}

static void convert_q120(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    convert(DL_Q120, task, unit0, unit1);
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
                to_blocks(DL_Q80, in + (uint64_t)h * dim, out, dim);
        }
    }
}

cpu_kernel *cpu_avx2_pick_convert(const struct dl_op *op)
{
    const bool store = op->code == DL_OP_KV_STORE;
    if (op->src[0].type != DL_F32)
        return NULL;
    switch (op->dst.type) {
    case DL_F16:
        return store ? kv_store : convert_f16;
    case DL_Q80:
        return store ? kv_store : convert_q80;
    case DL_Q120:
        return store ? NULL : convert_q120;
    default:
        return NULL;
    }
}
