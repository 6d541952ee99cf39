/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_dot_q.c: tiles of Q40 or Q80 weights times tokens:
 *   y[r] = sum over blocks b of (sum_i w_code[r][b][i] * x_code[b][i]) * (d_w[r][b] * d_x[b])
 * The inner sum is exact in integers, the scale product is exact in f32 (two 11-bit mantissas), the outer sum is one
 * f32 fma per block in block order. How the integers are found, and who shares the work, cannot change the bits.
 *
 * The weights are packed (pack.h), eight rows to a vector, two vectors to a tile. They come from memory once, in the order
 * in which they lie there, and are decoded in registers; three tokens meet a tile at once, the next three find it in a cache.
 */
#include "avx2.h"

_Static_assert(CPU_TILE == 16, "two vectors");

enum {
    CODES = 2,      /* where the codes start in a Q80 block */
    AT_ONCE = 3,    /* tokens: more do not fit into the registers */
    FACTORS = 4096, /* blocks of tokens whose factors are held at once */
    SCALE_BYTES = 2 * CPU_TILE
};
#define CODE_BYTES(type) (CPU_TILE * ((type) == DL_Q40 ? DL_BLOCK / 2 : DL_BLOCK)) /* of a block of a tile */

/* What a block of Q80 activations needs beside its codes. `eights`: what the 8 on every Q40 code adds to the integer sum,
 * taken off: two 16-bit parts. */
struct factor {
    float d;
    int32_t eights;
};

/* A stretch of blocks of all tokens: the first block of token t is at x[t], its factors at f + t * blocks. */
struct inputs {
    const uint8_t *x[CPU_AVX2_TOKENS];
    uint32_t blocks;
    struct factor f[FACTORS];
};

AVX2_INLINE void find_factors(const enum dl_type type, const uint8_t *x, uint32_t blocks, struct factor *f)
{
    for (uint32_t b = 0; b < blocks; b++, x += sizeof(struct dl_q80)) {
        f[b].d = _mm256_cvtss_f32(avx2_scale(x));
        if (type != DL_Q40)
            continue;
        const __m128i eight = _mm_set1_epi8(8);
        __m128i s = _mm_add_epi16(_mm_maddubs_epi16(eight, avx2_load128(x + CODES)),
                                  _mm_maddubs_epi16(eight, avx2_load128(x + CODES + 16)));
        s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0xb1));
        f[b].eights = _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), s));
    }
}

/* The integer sum starts here... */
AVX2_INLINE __m256i begin(const enum dl_type type, const struct factor *f)
{
    return type == DL_Q40 ? _mm256_set1_epi32(f->eights) : _mm256_setzero_si256();
}

/* ... gets four columns: w the codes of eight rows (Q40: plus 8, `size` unused; Q80: size = |w|), x those of a token. Eight Q40
 * products of 4 x 8 bits fit 16 bits, together with the eights; two of Q80 do, as x is never -128 ... */
AVX2_INLINE __m256i add(const enum dl_type type, __m256i s, __m256i w, __m256i size, const uint8_t *x)
{
    __m256i q = _mm256_set1_epi32(avx2_i32(x));
    if (type == DL_Q40) {
        s = _mm256_add_epi16(s, _mm256_maddubs_epi16(w, q));
    } else {
        __m256i p = _mm256_maddubs_epi16(size, _mm256_sign_epi8(q, w));
        s = _mm256_add_epi32(s, _mm256_madd_epi16(p, _mm256_set1_epi16(1)));
    }
    AVX2_KEEP(s);
    return s;
}

/* ... and is scaled and added to the rest. */
AVX2_INLINE __m256 scale(const enum dl_type type, __m256i s, __m256 d, const struct factor *f, __m256 acc)
{
    if (type == DL_Q40)
        s = _mm256_madd_epi16(s, _mm256_set1_epi16(1));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), _mm256_mul_ps(d, _mm256_set1_ps(f->d)), acc);
}

/* A block of a tile for T tokens. */
AVX2_INLINE void block(const enum dl_type type, const uint8_t *scales, const uint8_t *codes,
                       const struct factor *const f[AT_ONCE], const uint8_t *const x[AT_ONCE], __m256 acc[AT_ONCE][2],
                       const uint32_t T)
{
    const __m256i low = _mm256_set1_epi8(15);
    __m256i s[AT_ONCE][2];
    for (uint32_t i = 0; i < T; i++)
        s[i][0] = s[i][1] = begin(type, f[i]);
    for (uint32_t j = 0; j < (type == DL_Q40 ? 4 : 8); j++) {
        __m256i q[2], a[2], b[2]; /* of Q40: low and high nibbles */
        for (int h = 0; h < 2; h++) {
            q[h] = avx2_load256(codes + 64 * j + 32 * h);
            a[h] = type == DL_Q40 ? _mm256_and_si256(q[h], low) : _mm256_abs_epi8(q[h]);
            b[h] = _mm256_and_si256(_mm256_srli_epi16(q[h], 4), low);
        }
        for (uint32_t i = 0; i < T; i++)
            for (int h = 0; h < 2; h++)
                s[i][h] = add(type, s[i][h], type == DL_Q40 ? a[h] : q[h], a[h], x[i] + 4 * j);
        for (uint32_t i = 0; type == DL_Q40 && i < T; i++)
            for (int h = 0; h < 2; h++)
                s[i][h] = add(type, s[i][h], b[h], b[h], x[i] + DL_BLOCK / 2 + 4 * j);
    }
    for (int h = 0; h < 2; h++) {
        __m256 d = _mm256_cvtph_ps(avx2_load128(scales + 16 * h));
        for (uint32_t i = 0; i < T; i++)
            acc[i][h] = scale(type, s[i][h], d, f[i], acc[i][h]);
    }
}

/* n <= CPU_PACK_GROUP blocks that lie together at p. */
AVX2_INLINE void group(const enum dl_type type, const uint8_t *p, const struct factor *f[AT_ONCE],
                       const uint8_t *x[AT_ONCE], __m256 acc[AT_ONCE][2], const uint32_t n, const uint32_t T)
{
    for (uint32_t k = 0; k < n; k++) {
        block(type, p + k * SCALE_BYTES, p + n * SCALE_BYTES + k * CODE_BYTES(type), f, x, acc, T);
        for (uint32_t i = 0; i < T; i++) {
            x[i] += sizeof(struct dl_q80);
            f[i]++;
        }
    }
}

/* Results so far, for another stretch of blocks. */
AVX2_INLINE void get(const struct cpu_avx2_rows *rows, const float *y, __m256 acc[2])
{
    float v[CPU_TILE] = {0};
    memcpy(v + rows->lane, y + rows->col, rows->n * sizeof *v);
    acc[0] = _mm256_loadu_ps(v);
    acc[1] = _mm256_loadu_ps(v + 8);
}

AVX2_INLINE void put(const struct cpu_avx2_rows *rows, float *y, const __m256 acc[2], bool last)
{
    const float *bias = last && rows->bias ? rows->bias + rows->col : NULL;
    y += rows->col;
    if (rows->n == CPU_TILE) {
        _mm256_storeu_ps(y, bias ? _mm256_add_ps(acc[0], _mm256_loadu_ps(bias)) : acc[0]);
        _mm256_storeu_ps(y + 8, bias ? _mm256_add_ps(acc[1], _mm256_loadu_ps(bias + 8)) : acc[1]);
        return;
    }
    float v[CPU_TILE];
    _mm256_storeu_ps(v, acc[0]);
    _mm256_storeu_ps(v + 8, acc[1]);
    for (uint32_t i = 0; i < rows->n; i++)
        y[i] = bias ? v[rows->lane + i] + avx2_f32(bias + i) : v[rows->lane + i];
}

/* Blocks b0 .. of a tile, as many as `in` has, for tokens t .. t + T - 1. b0 begins a group. */
AVX2_INLINE void tile(const enum dl_type type, const struct cpu_avx2_rows *rows, const struct cpu_avx2_tokens *tok,
                      const struct inputs *in, uint32_t t, uint32_t b0, const uint32_t T)
{
    const uint32_t block_bytes = SCALE_BYTES + CODE_BYTES(type);
    const uint8_t *p = rows->tile + (uint64_t)b0 * block_bytes;
    const uint8_t *x[AT_ONCE];
    const struct factor *f[AT_ONCE];
    __m256 acc[AT_ONCE][2];
    for (uint32_t i = 0; i < T; i++) {
        x[i] = in->x[t + i] + CODES;
        f[i] = in->f + (t + i) * in->blocks;
        if (b0)
            get(rows, tok->y[t + i], acc[i]);
        else
            acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    }
    uint32_t b = 0, n = in->blocks;
    for (; n - b >= CPU_PACK_GROUP; b += CPU_PACK_GROUP, p += CPU_PACK_GROUP * block_bytes)
        group(type, p, f, x, acc, CPU_PACK_GROUP, T);
    if (b < n)
        group(type, p, f, x, acc, n - b, T);
    for (uint32_t i = 0; i < T; i++)
        put(rows, tok->y[t + i], acc[i], b0 + n == tok->blocks);
}

AVX2_INLINE void dot(const enum dl_type type, const struct cpu_avx2_rows *rows, uint32_t n_rows,
                     const struct cpu_avx2_tokens *tok)
{
    struct inputs in;
    uint32_t most = FACTORS / tok->n / CPU_PACK_GROUP * CPU_PACK_GROUP;
    for (uint32_t b0 = 0; b0 < tok->blocks; b0 += in.blocks) {
        in.blocks = DL_MIN(tok->blocks - b0, most);
        for (uint32_t t = 0; t < tok->n; t++) {
            in.x[t] = tok->x[t] + (uint64_t)b0 * sizeof(struct dl_q80);
            find_factors(type, in.x[t], in.blocks, in.f + t * in.blocks);
        }
        for (uint32_t i = 0; i < n_rows; i++) {
            uint32_t t = 0;
            for (; tok->n - t > 4 || tok->n - t == 3; t += 3)
                tile(type, &rows[i], tok, &in, t, b0, 3);
            for (; tok->n - t >= 2; t += 2)
                tile(type, &rows[i], tok, &in, t, b0, 2);
            if (t < tok->n)
                tile(type, &rows[i], tok, &in, t, b0, 1);
        }
    }
}

void cpu_avx2_dot_q40(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    dot(DL_Q40, rows, n_rows, tok);
}
void cpu_avx2_dot_q80(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    dot(DL_Q80, rows, n_rows, tok);
}
