/* SPDX-License-Identifier: MIT
 *
 * engine/model/embed_row.c: embedding rows as bytes.
 */
#include "embed_row.h"

#include <math.h>

#define CODE_BITS 14u
#define CODE_MOST 8191
#define BIAS 126
#define STEPS 241 /* from 2^-BIAS on; CODE_MOST of the last are what a float holds */
#define BLOCK_BYTES (1u + DL_BLOCK * CODE_BITS / 8)
_Static_assert(DL_BLOCK % 4 == 0 && 4 * CODE_BITS == 56, "four codes are seven bytes");

enum eng_embed eng_embed_of(enum dl_type wire, uint32_t dim)
{
    return wire == DL_F32 ? ENG_EMBED_F32 : wire == DL_Q80 && dim % DL_BLOCK == 0 ? ENG_EMBED_BLOCKS : ENG_EMBED_F16;
}

uint64_t eng_embed_bytes(enum eng_embed kind, uint32_t dim)
{
    return kind == ENG_EMBED_BLOCKS ? (uint64_t)dim / DL_BLOCK * BLOCK_BYTES
                                    : (uint64_t)dim * (kind == ENG_EMBED_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* The least step that the largest value is at most CODE_MOST times. From values that are such multiples already, the same one comes out:
 * the largest code is more than half of CODE_MOST. */
static int step_of(const float *v)
{
    float amax = 0;
    int e;
    for (uint32_t i = 0; i < DL_BLOCK; i++)
        amax = fabsf(v[i]) > amax ? fabsf(v[i]) : amax; /* ignores NaN */
    if (!isfinite(amax))
        return STEPS;
    float part = frexpf(amax, &e); /* amax = part * 2^e, part in [0.5, 1) */
    e -= (int)CODE_BITS - 1 - (part > (float)CODE_MOST / (CODE_MOST + 1));
    return amax > 0 ? DL_MIN(DL_MAX(e + BIAS, 0), STEPS) : 0;
}

/* Plain enough for a compiler to do several at once: rows are rounded for every token. */
static int codes_of(const float *v, int32_t *codes)
{
    const float many = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to whole numbers, to even at ties */
    const int e = step_of(v);
    const float inverse = ldexpf(1, BIAS - e), most = (float)CODE_MOST;
    for (uint32_t i = 0; i < DL_BLOCK; i++) {
        float x = v[i] * inverse;
        x = x < most ? x : most; /* NaN, too */
        x = x > -most ? x : -most;
        codes[i] = (int32_t)((x + many) - many);
    }
    return e;
}

static void put_block(const float *v, uint8_t *out)
{
    int32_t codes[DL_BLOCK];
    *out++ = (uint8_t)codes_of(v, codes);
    for (uint32_t i = 0; i < DL_BLOCK; i += 4, out += 7) {
        uint64_t word = 0;
        for (uint32_t j = 0; j < 4; j++)
            word |= ((uint64_t)(uint32_t)codes[i + j] & ((1u << CODE_BITS) - 1)) << j * CODE_BITS;
        for (uint32_t b = 0; b < 7; b++)
            out[b] = (uint8_t)(word >> 8 * b);
    }
}

static void get_block(const uint8_t *in, float *v)
{
    const float step = ldexpf(1, DL_MIN((int)*in, STEPS) - BIAS);
    in++;
    for (uint32_t i = 0; i < DL_BLOCK; i += 4, in += 7) {
        uint64_t word = 0;
        for (uint32_t b = 0; b < 7; b++)
            word |= (uint64_t)in[b] << 8 * b;
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t code = (uint32_t)(word >> j * CODE_BITS) & ((1u << CODE_BITS) - 1);
            int32_t q = (int32_t)code - (code >> (CODE_BITS - 1) ? 1 << CODE_BITS : 0);
            v[i + j] = (float)q * step;
        }
    }
}

void eng_embed_put(enum eng_embed kind, const float *row, uint32_t n, uint8_t *out)
{
    if (kind != ENG_EMBED_BLOCKS) {
        dl_row_from_f32(kind == ENG_EMBED_F32 ? DL_F32 : DL_F16, row, out, n);
        return;
    }
    for (uint32_t i = 0; i < n; i += DL_BLOCK, out += BLOCK_BYTES)
        put_block(row + i, out);
}

void eng_embed_get(enum eng_embed kind, const uint8_t *in, uint32_t n, float *row)
{
    if (kind != ENG_EMBED_BLOCKS) {
        dl_row_to_f32(kind == ENG_EMBED_F32 ? DL_F32 : DL_F16, in, row, n);
        return;
    }
    for (uint32_t i = 0; i < n; i += DL_BLOCK, in += BLOCK_BYTES)
        get_block(in, row + i);
}

void eng_embed_round(enum eng_embed kind, float *row, uint32_t n)
{
    for (uint32_t i = 0; kind == ENG_EMBED_F16 && i < n; i++)
        row[i] = dl_f16_to_f32(dl_f32_to_f16(row[i]));
    for (uint32_t i = 0; kind == ENG_EMBED_BLOCKS && i < n; i += DL_BLOCK) {
        int32_t codes[DL_BLOCK];
        const float step = ldexpf(1, codes_of(row + i, codes) - BIAS);
        for (uint32_t j = 0; j < DL_BLOCK; j++)
            row[i + j] = (float)codes[j] * step;
    }
}
