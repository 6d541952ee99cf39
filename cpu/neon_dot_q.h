/* SPDX-License-Identifier: MIT
 *
 * cpu/neon_dot_q.h: tiles of Q40 or Q80 weights times tokens, on ARM:
 *   y[r] = sum over blocks b of (sum_i w_code[r][b][i] * x_code[b][i]) * (d_w[r][b] * d_x[b])
 * The inner sum is exact in integers, the scale product is exact in f32 (two 11-bit mantissas), the outer sum is one f32 fma
 * per block in block order. So the bits are those of x86-64, and of every other way to find the integers.
 *
 * The weights are packed (pack.h): a vector holds four columns of four rows, a tile is four vectors. Q40 codes are used as they
 * are stored, plus 8; the integer sum starts with what makes up for that.
 *
 * Each includer compiles this for its own instruction set, says what that has, and gets dot():
 *   CPU_DOT_SDOT   the instructions that sum the products of four columns
 * and neither: plain NEON, where products are summed in 16 bits as long as they fit.
 */
#ifndef CPU_NEON_DOT_Q_H
#define CPU_NEON_DOT_Q_H

#include "avx2_inputs.h"

_Static_assert(CPU_TILE == 16, "four vectors");

enum { QUADS = CPU_TILE / 4 };
#ifdef CPU_DOT_SDOT
#define AT_ONCE 4 /* more do not fit into the registers */
#else
#define AT_ONCE 2
#endif

NEON_INLINE void take_input(const enum dl_type type, const uint8_t *x, struct input *to)
{
    memcpy(to->code, x + CODES, DL_BLOCK);
    to->d = _mm256_cvtss_f32(avx2_scale(x));
    to->start = 0;
    if (type == DL_Q40)
        to->start = -8 * (vaddlvq_s8(vld1q_s8(to->code)) + vaddlvq_s8(vld1q_s8(to->code + 16)));
}

NEON_INLINE uint8x16_t low_nibbles(uint8x16_t q)
{
    return vandq_u8(q, vdupq_n_u8(15));
}

/* Scales the integer sum of four rows and adds it to the rest. */
NEON_INLINE float32x4_t scale(int32x4_t s, const uint8_t *scales, const struct input *in, float32x4_t acc)
{
    float32x4_t d = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(scales)));
    return vfmaq_f32(acc, vcvtq_f32_s32(s), vmulq_n_f32(d, in->d));
}

#ifdef CPU_DOT_SDOT

/* Columns 4 j .. 4 j + 3 of a block, of Q40 also those 16 on, of four rows. Lane j is an immediate: hence no loop over j. */
#define COLUMNS(j)                                                              \
    do {                                                                        \
        uint8x16_t q = vld1q_u8(codes + 4 * CPU_TILE * (j));                    \
        int8x16_t a = vreinterpretq_s8_u8(type == DL_Q40 ? low_nibbles(q) : q); \
        int8x16_t b = vreinterpretq_s8_u8(vshrq_n_u8(q, 4));                    \
        for (uint32_t i = 0; i < T; i++) {                                      \
            s[i] = vdotq_laneq_s32(s[i], a, x[i][(j) / 4], (j) % 4);            \
            if (type == DL_Q40)                                                 \
                s[i] = vdotq_laneq_s32(s[i], b, x[i][1], (j) % 4);              \
        }                                                                       \
    } while (0)

/* A block of a tile for T tokens: four rows after the other, all columns of them. */
NEON_INLINE void block(const enum dl_type type, const uint8_t *scales, const uint8_t *codes, const struct input *in,
                       float32x4_t acc[AT_ONCE][QUADS], const uint32_t T)
{
    int8x16_t x[AT_ONCE][2];
    for (uint32_t i = 0; i < T; i++) {
        x[i][0] = vld1q_s8(in[i].code);
        x[i][1] = vld1q_s8(in[i].code + 16);
    }
    for (int h = 0; h < QUADS; h++, codes += 16, scales += 8) {
        int32x4_t s[AT_ONCE];
        for (uint32_t i = 0; i < T; i++)
            s[i] = vdupq_n_s32(in[i].start);
        COLUMNS(0);
        COLUMNS(1);
        COLUMNS(2);
        COLUMNS(3);
        if (type != DL_Q40) {
            COLUMNS(4);
            COLUMNS(5);
            COLUMNS(6);
            COLUMNS(7);
        }
        for (uint32_t i = 0; i < T; i++)
            acc[i][h] = scale(s[i], scales, &in[i], acc[i][h]);
    }
}
#undef COLUMNS

#else

/* The same four codes four times. */
NEON_INLINE int8x16_t four(const int8_t *x)
{
    return vreinterpretq_s8_s32(vdupq_n_s32(avx2_i32(x)));
}

/* s[0]: rows 0 and 1, s[1]: rows 2 and 3, four columns of each in a lane of its own. */
NEON_INLINE void multiply_add(int16x8_t s[2], int8x16_t w, int8x16_t x)
{
    s[0] = vmlal_s8(s[0], vget_low_s8(w), vget_low_s8(x));
    s[1] = vmlal_high_s8(s[1], w, x);
}

/* Eight products of 4 x 8 bits fit 16 bits. */
NEON_INLINE void block_q40(const uint8_t *codes, const struct input *in, int32x4_t sum[AT_ONCE][QUADS],
                           const uint32_t T)
{
    int16x8_t s[AT_ONCE][QUADS][2];
    for (uint32_t i = 0; i < T; i++)
        for (int h = 0; h < QUADS; h++)
            s[i][h][0] = s[i][h][1] = vdupq_n_s16(0);
    for (uint32_t j = 0; j < 4; j++)
        for (int h = 0; h < QUADS; h++, codes += 16) {
            uint8x16_t q = vld1q_u8(codes);
            for (uint32_t i = 0; i < T; i++) {
                multiply_add(s[i][h], vreinterpretq_s8_u8(low_nibbles(q)), four(in[i].code + 4 * j));
                multiply_add(s[i][h], vreinterpretq_s8_u8(vshrq_n_u8(q, 4)), four(in[i].code + 16 + 4 * j));
            }
        }
    for (uint32_t i = 0; i < T; i++)
        for (int h = 0; h < QUADS; h++)
            sum[i][h] =
                vaddq_s32(vdupq_n_s32(in[i].start), vpaddq_s32(vpaddlq_s16(s[i][h][0]), vpaddlq_s16(s[i][h][1])));
}

/* Two products do, of Q80, as x is never -128. */
NEON_INLINE void block_q80(const uint8_t *codes, const struct input *in, int32x4_t sum[AT_ONCE][QUADS],
                           const uint32_t T)
{
    int32x4_t s[AT_ONCE][QUADS][2];
    for (uint32_t i = 0; i < T; i++)
        for (int h = 0; h < QUADS; h++)
            s[i][h][0] = s[i][h][1] = vdupq_n_s32(0);
    for (uint32_t j = 0; j < 8; j += 2, codes += 8 * CPU_TILE)
        for (int h = 0; h < QUADS; h++) {
            int8x16_t a = vreinterpretq_s8_u8(vld1q_u8(codes + 16 * h));
            int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(codes + 4 * CPU_TILE + 16 * h));
            for (uint32_t i = 0; i < T; i++) {
                int8x16_t x = four(in[i].code + 4 * j);
                int16x8_t p[2] = {vmull_s8(vget_low_s8(a), vget_low_s8(x)), vmull_high_s8(a, x)};
                multiply_add(p, b, four(in[i].code + 4 * j + 4));
                s[i][h][0] = vpadalq_s16(s[i][h][0], p[0]);
                s[i][h][1] = vpadalq_s16(s[i][h][1], p[1]);
            }
        }
    for (uint32_t i = 0; i < T; i++)
        for (int h = 0; h < QUADS; h++)
            sum[i][h] = vpaddq_s32(s[i][h][0], s[i][h][1]);
}

/* A block of a tile for T tokens: four columns after the other, all rows of them. */
NEON_INLINE void block(const enum dl_type type, const uint8_t *scales, const uint8_t *codes, const struct input *in,
                       float32x4_t acc[AT_ONCE][QUADS], const uint32_t T)
{
    int32x4_t s[AT_ONCE][QUADS];
    if (type == DL_Q40)
        block_q40(codes, in, s, T);
    else
        block_q80(codes, in, s, T);
    for (uint32_t i = 0; i < T; i++)
        for (int h = 0; h < QUADS; h++)
            acc[i][h] = scale(s[i][h], scales + 8 * h, &in[i], acc[i][h]);
}

#endif

/* n <= CPU_PACK_GROUP blocks that lie together at p. */
NEON_INLINE void group(const enum dl_type type, const uint8_t *p, const struct input *in,
                       float32x4_t acc[AT_ONCE][QUADS], const uint32_t n, const uint32_t T)
{
    for (uint32_t k = 0; k < n; k++)
        block(type, p + k * SCALE_BYTES, p + n * SCALE_BYTES + k * CODE_BYTES(type), in + k * T, acc, T);
}

/* Results so far, for another stretch of blocks. */
NEON_INLINE void get(const struct cpu_avx2_rows *rows, const float *y, float32x4_t acc[QUADS])
{
    float v[CPU_TILE] = {0};
    memcpy(v + rows->lane, y + rows->col, rows->n * sizeof *v);
    for (int h = 0; h < QUADS; h++)
        acc[h] = vld1q_f32(v + 4 * h);
}

NEON_INLINE void put(const struct cpu_avx2_rows *rows, float *y, const float32x4_t acc[QUADS], bool last)
{
    const float *bias = last && rows->bias ? rows->bias + rows->col : NULL;
    y += rows->col;
    if (rows->n == CPU_TILE) {
        for (int h = 0; h < QUADS; h++)
            vst1q_f32(y + 4 * h, bias ? vaddq_f32(acc[h], vld1q_f32(bias + 4 * h)) : acc[h]);
        return;
    }
    float v[CPU_TILE];
    for (int h = 0; h < QUADS; h++)
        vst1q_f32(v + 4 * h, acc[h]);
    for (uint32_t i = 0; i < rows->n; i++)
        y[i] = bias ? v[rows->lane + i] + avx2_f32(bias + i) : v[rows->lane + i];
}

/* Blocks b0 .. of a tile, as many as `in` has, for tokens t .. t + T - 1. b0 begins a group. */
NEON_INLINE void tile(const enum dl_type type, const struct cpu_avx2_rows *rows, const struct cpu_avx2_tokens *tok,
                      const struct inputs *in, uint32_t t, uint32_t b0, const uint32_t T)
{
    const uint32_t block_bytes = SCALE_BYTES + CODE_BYTES(type);
    const uint8_t *p = rows->tile + (uint64_t)b0 * block_bytes;
    const struct input *x = in->at + t * in->blocks;
    float32x4_t acc[AT_ONCE][QUADS];
    for (uint32_t i = 0; i < T; i++) {
        if (b0)
            get(rows, tok->y[t + i], acc[i]);
        else
            for (int h = 0; h < QUADS; h++)
                acc[i][h] = vdupq_n_f32(0);
    }
    uint32_t left = in->blocks;
    for (; left >= CPU_PACK_GROUP; left -= CPU_PACK_GROUP) {
        group(type, p, x, acc, CPU_PACK_GROUP, T);
        p += CPU_PACK_GROUP * block_bytes;
        x += CPU_PACK_GROUP * T;
    }
    if (left)
        group(type, p, x, acc, left, T);
    for (uint32_t i = 0; i < T; i++)
        put(rows, tok->y[t + i], acc[i], b0 + in->blocks == tok->blocks);
}

#define CPU_DOT_ALL
#include "avx2_inputs.h"

#endif
