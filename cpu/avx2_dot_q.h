/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_dot_q.h: tiles of Q40 or Q80 weights times tokens:
 *   y[r] = sum over blocks b of (sum_i w_code[r][b][i] * x_code[b][i]) * (d_w[r][b] * d_x[b])
 * The inner sum is exact in integers, the scale product is exact in f32 (two 11-bit mantissas), the outer sum is one
 * f32 fma per block in block order. How the integers are found, how wide a vector is, and who shares the work, cannot
 * change the bits: all instruction sets that are made of this give the same ones.
 *
 * The weights are packed (pack.h), a row to a lane. They come from memory once, in the order in which they lie there, and
 * are decoded in registers; AT_ONCE tokens meet a tile at once, the next ones find it in a cache.
 *
 * Each includer compiles this for its own instruction set and says so:
 *   CPU_DOT_ZMM   AVX-512 with VNNI: a tile is one vector, and there are registers for more tokens
 *   CPU_DOT_YMM   AVX-VNNI: two vectors; the products of four columns are summed by one instruction
 * and neither: AVX2. VNNI takes one factor unsigned: Q40 codes plus 8, Q80 codes plus 128, which the sum starts without.
 */
#ifndef CPU_AVX2_DOT_Q_H
#define CPU_AVX2_DOT_Q_H

#include "avx2_inputs.h"

_Static_assert(CPU_TILE == 16, "one or two vectors");

#if defined(CPU_DOT_ZMM)
typedef __m512i veci;
typedef __m512 vecf;
#define V(op) _mm512_##op
#define V_BITS(op) _mm512_##op##_si512
#define V_DPBUSD _mm512_dpbusd_epi32
#define AT_ONCE 8
enum { HALVES = 1 };
#else
typedef __m256i veci;
typedef __m256 vecf;
#define V(op) _mm256_##op
#define V_BITS(op) _mm256_##op##_si256
#ifdef CPU_DOT_EVEX /* the same instruction as AVX-512 encodes it, for tests on CPUs that lack the other */
#define V_DPBUSD _mm256_dpbusd_epi32
#else
#define V_DPBUSD _mm256_dpbusd_avx_epi32
#endif
#define AT_ONCE 3 /* more do not fit into the registers */
enum { HALVES = 2 };
#endif
#if defined(CPU_DOT_ZMM) || defined(CPU_DOT_YMM)
#define VNNI 1
#else
#define VNNI 0
#endif

enum {
    LANES = CPU_TILE / HALVES,
    FETCH_FROM = 4, /* tokens: with fewer a core does little but wait for memory, and its own guesses are better */
    AHEAD = 9216    /* bytes */
};
AVX2_INLINE int32_t find_start(const enum dl_type type, __m256i code)
{
#if VNNI
    const __m256i one = _mm256_set1_epi8(1);
    __m256i s8 = _mm256_madd_epi16(_mm256_maddubs_epi16(one, code), _mm256_set1_epi16(1));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return -(type == DL_Q40 ? 8 : 128) * _mm_cvtsi128_si32(s);
#else
    if (type != DL_Q40)
        return 0;
    const __m256i eight = _mm256_set1_epi8(8);
    __m256i s16 = _mm256_maddubs_epi16(eight, code);
    __m128i s = _mm_add_epi16(_mm256_castsi256_si128(s16), _mm256_extracti128_si256(s16, 1));
    s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), s));
#endif
}

AVX2_INLINE void take_input(const enum dl_type type, const uint8_t *x, struct input *to)
{
    __m256i code = avx2_load256(x + CODES);
    _mm256_storeu_si256((__m256i *)(void *)to->code, code);
    to->d = _mm256_cvtss_f32(avx2_scale(x));
    to->start = find_start(type, code);
}

/* Four columns of a vector of weights, as add() takes them: Q80 as they are, Q40 in two steps, low and high nibbles. */
AVX2_INLINE veci codes_at(const enum dl_type type, const uint8_t *p)
{
    veci q = V_BITS(loadu)((const void *)p);
#if VNNI
    if (type == DL_Q80)
        q = V_BITS(xor)(q, V(set1_epi8)(-128));
#else
    (void)type;
#endif
    return q;
}

/* Adds them, times those of a token. AVX2: eight Q40 products of 4 x 8 bits fit 16 bits, together with the start; two
 * of Q80 do, as x is never -128. size = |w|, for Q80. */
AVX2_INLINE veci add(const enum dl_type type, veci s, veci w, veci size, const int8_t *x)
{
    veci q = V(set1_epi32)(avx2_i32(x));
#if VNNI
    (void)type;
    (void)size;
    return V_DPBUSD(s, w, q);
#else
    if (type == DL_Q40) {
        s = _mm256_add_epi16(s, _mm256_maddubs_epi16(w, q));
    } else {
        __m256i p = _mm256_maddubs_epi16(size, _mm256_sign_epi8(q, w));
        s = _mm256_add_epi32(s, _mm256_madd_epi16(p, _mm256_set1_epi16(1)));
    }
    AVX2_KEEP(s);
    return s;
#endif
}

/* Scales the integer sum and adds it to the rest. */
AVX2_INLINE vecf scale(const enum dl_type type, veci s, vecf d, const struct input *in, vecf acc)
{
#if VNNI
    (void)type;
#else
    if (type == DL_Q40)
        s = _mm256_madd_epi16(s, _mm256_set1_epi16(1));
#endif
    return V(fmadd_ps)(V(cvtepi32_ps)(s), V(mul_ps)(d, V(set1_ps)(in->d)), acc);
}

AVX2_INLINE vecf scales_at(const uint8_t *p)
{
#if defined(CPU_DOT_ZMM)
    return _mm512_cvtph_ps(avx2_load256(p));
#else
    return _mm256_cvtph_ps(avx2_load128(p));
#endif
}

/* A block of a tile for T tokens. */
AVX2_INLINE void block(const enum dl_type type, const uint8_t *scales, const uint8_t *codes, const struct input *in,
                       vecf acc[AT_ONCE][HALVES], const uint32_t T)
{
    const veci low = V(set1_epi8)(15);
    veci s[AT_ONCE][HALVES];
    for (uint32_t i = 0; i < T; i++)
        for (int h = 0; h < HALVES; h++)
            s[i][h] = V(set1_epi32)(in[i].start);
    for (uint32_t j = 0; j < (type == DL_Q40 ? 4 : 8); j++) {
        veci q[HALVES], a[HALVES], b[HALVES]; /* of Q40: low and high nibbles */
        for (int h = 0; h < HALVES; h++) {
            q[h] = codes_at(type, codes + 4 * CPU_TILE * j + 4 * LANES * h);
            a[h] = type == DL_Q40 ? V_BITS(and)(q[h], low) : V(abs_epi8)(q[h]);
            b[h] = V_BITS(and)(V(srli_epi16)(q[h], 4), low);
        }
        for (uint32_t i = 0; i < T; i++)
            for (int h = 0; h < HALVES; h++)
                s[i][h] = add(type, s[i][h], type == DL_Q40 ? a[h] : q[h], a[h], in[i].code + 4 * j);
        for (uint32_t i = 0; type == DL_Q40 && i < T; i++)
            for (int h = 0; h < HALVES; h++)
                s[i][h] = add(type, s[i][h], b[h], b[h], in[i].code + DL_BLOCK / 2 + 4 * j);
    }
    for (int h = 0; h < HALVES; h++) {
        vecf d = scales_at(scales + 2 * LANES * h);
        for (uint32_t i = 0; i < T; i++)
            acc[i][h] = scale(type, s[i][h], d, &in[i], acc[i][h]);
    }
}

/* n <= CPU_PACK_GROUP blocks that lie together at p. */
AVX2_INLINE void group(const enum dl_type type, const uint8_t *p, const struct input *in, vecf acc[AT_ONCE][HALVES],
                       uint32_t n, const uint32_t T)
{
    const uint8_t *codes = p + n * SCALE_BYTES;
    for (uint32_t k = 0; k < n; k++, p += SCALE_BYTES, codes += CODE_BYTES(type), in += T)
        block(type, p, codes, in, acc, T);
}

/* Results so far, for another stretch of blocks. */
AVX2_INLINE void get(const struct cpu_avx2_rows *rows, const float *y, vecf acc[HALVES])
{
    float v[CPU_TILE] = {0};
    memcpy(v + rows->lane, y + rows->col, rows->n * sizeof *v);
    for (int h = 0; h < HALVES; h++)
        acc[h] = V(loadu_ps)(v + LANES * h);
}

AVX2_INLINE void put(const struct cpu_avx2_rows *rows, float *y, const vecf acc[HALVES], bool last)
{
    const float *bias = last && rows->bias ? rows->bias + rows->col : NULL;
    y += rows->col;
    if (rows->n == CPU_TILE) {
        for (int h = 0; h < HALVES; h++)
            V(storeu_ps)(y + LANES * h, bias ? V(add_ps)(acc[h], V(loadu_ps)(bias + LANES * h)) : acc[h]);
        return;
    }
    float v[CPU_TILE];
    for (int h = 0; h < HALVES; h++)
        V(storeu_ps)(v + LANES * h, acc[h]);
    for (uint32_t i = 0; i < rows->n; i++)
        y[i] = bias ? v[rows->lane + i] + avx2_f32(bias + i) : v[rows->lane + i];
}

/* Blocks b0 .. of a tile, as many as `in` has, for tokens t .. t + T - 1. b0 begins a group. */
AVX2_INLINE void tile(const enum dl_type type, const struct cpu_avx2_rows *rows, const struct cpu_avx2_tokens *tok,
                      const struct inputs *in, uint32_t t, uint32_t b0, const uint32_t T)
{
    const uint32_t group_bytes = CPU_PACK_GROUP * (SCALE_BYTES + CODE_BYTES(type));
    const uint8_t *p = rows->tile + (uint64_t)b0 / CPU_PACK_GROUP * group_bytes;
    const struct input *x = in->at + t * in->blocks;
    const bool fetching = tok->n >= FETCH_FROM && !t; /* later tokens find it in a cache */
    vecf acc[AT_ONCE][HALVES];
    for (uint32_t i = 0; i < T; i++) {
        if (b0)
            get(rows, tok->y[t + i], acc[i]);
        else
            for (int h = 0; h < HALVES; h++)
                acc[i][h] = V(set1_ps)(0);
    }
    for (uint32_t left = in->blocks, n; left; left -= n) {
        n = DL_MIN(left, CPU_PACK_GROUP);
        if (fetching)
            for (uint32_t i = 0; i < group_bytes; i += 64)
                _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T1);
        group(type, p, x, acc, n, T);
        p += group_bytes;
        x += n * T;
    }
    for (uint32_t i = 0; i < T; i++)
        put(rows, tok->y[t + i], acc[i], b0 + in->blocks == tok->blocks);
}

#define CPU_DOT_ALL
#include "avx2_inputs.h"

#endif
