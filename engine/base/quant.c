/* SPDX-License-Identifier: MIT
 *
 * engine/base/quant.c: the scalar definition of the number formats. Compiled without contraction: every compiler rounds the same.
 */
#include "dl/quant.h"

#include <math.h>
#include <string.h>

static const struct dl_type_info types[DL_TYPE_COUNT] = {
    [DL_F32] = {"f32", 1, 4},
    [DL_F16] = {"f16", 1, 2},
    [DL_BF16] = {"bf16", 1, 2},
    [DL_Q40] = {"q40", DL_BLOCK, sizeof(struct dl_q40)},
    [DL_Q80] = {"q80", DL_BLOCK, sizeof(struct dl_q80)},
    [DL_Q120] = {"q120", DL_BLOCK, sizeof(struct dl_q120)},
};

const struct dl_type_info *dl_type_info(enum dl_type type)
{
    return (unsigned)type < DL_TYPE_COUNT ? &types[type] : NULL;
}

bool dl_row_bytes(enum dl_type type, uint64_t cols, uint64_t *out)
{
    const struct dl_type_info *info = dl_type_info(type);
    return info && cols % info->block_values == 0 && dl_mul_u64(cols / info->block_values, info->block_bytes, out);
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float dl_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = h >> 10 & 31u, man = h & 0x3ffu;
    if (exp == 31)
        return float_of(sign | 0x7f800000u | man << 13);
    if (exp)
        return float_of(sign | (exp + 112) << 23 | man << 13);
    float f = (float)man * 0x1p-24f; /* subnormal or zero: exact in f32 */
    return sign ? -f : f;
}

uint16_t dl_f32_to_f16(float f)
{
    uint32_t u = bits_of(f), sign = u >> 16 & 0x8000u, abs = u & 0x7fffffffu;
    if (abs > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (abs >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (abs < 0x38800000u) { /* below 2^-14: the sum aligns the mantissa to steps of 2^-24 and rounds it */
        uint32_t r = bits_of(float_of(abs) + 0.5f) - 0x3f000000u;
        return (uint16_t)(sign | r);
    }
    uint32_t odd = abs >> 13 & 1u;
    return (uint16_t)(sign | (abs - 0x38000000u + 0xfffu + odd) >> 13);
}

float dl_bf16_to_f32(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

uint16_t dl_f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static uint16_t load16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void store16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* f16 scale of a block; saturates, so that finite input never gives an infinite scale. */
static uint16_t scale16(float d)
{
    if (d > 65504.0f)
        d = 65504.0f;
    if (d < -65504.0f)
        d = -65504.0f;
    return dl_f32_to_f16(d);
}

static void q80_write(const float *in, uint8_t *p)
{
    float amax = 0;
    for (int i = 0; i < DL_BLOCK; i++)
        amax = fmaxf(amax, fabsf(in[i]));
    store16(p, scale16(amax / 127.0f));
    float inv = amax > 0 ? 127.0f / amax : 0.0f;
    for (int i = 0; i < DL_BLOCK; i++) {
        /* 127 / amax is infinite for subnormal amax, whose scale is 0 anyway */
        float q = isfinite(inv) ? nearbyintf(in[i] * inv) : 0.0f;
        p[2 + i] = (uint8_t)(int8_t)fminf(fmaxf(q, -127.0f), 127.0f);
    }
}

static void q120_write(const float *in, uint8_t *p)
{
    float amax = 0;
    for (int i = 0; i < DL_BLOCK; i++)
        amax = fmaxf(amax, fabsf(in[i]));
    memset(p, 0, sizeof(struct dl_q120));
    if (amax < 0x1p-100f)
        return;
    uint32_t d = bits_of(amax * (1.0f / 2047.0f)) + 0xffffu; /* up: no code is beyond 2047 */
    store16(p, (uint16_t)(d >> 16));
    float inv = 1.0f / float_of(d & 0xffff0000u);
    for (int i = 0; i < DL_BLOCK; i++) {
        int code = (int)fminf(fmaxf(nearbyintf(in[i] * inv), -2047.0f), 2047.0f);
        unsigned low = (unsigned)code & 15u;
        p[2 + i] = (uint8_t)((code - (int)low) / 16);
        p[2 + DL_BLOCK + i % 16] |= (uint8_t)(low << i / 16 * 4);
    }
}

static void q40_write(const float *in, uint8_t *p)
{
    float amax = 0, m = 0;
    for (int i = 0; i < DL_BLOCK; i++)
        if (fabsf(in[i]) > amax) {
            amax = fabsf(in[i]);
            m = in[i];
        }
    float d = m / -8.0f, inv = d != 0 ? 1.0f / d : 0.0f;
    store16(p, scale16(d));
    if (!isfinite(inv))
        inv = 0;
    for (int j = 0; j < DL_BLOCK / 2; j++) {
        float lo = fminf(fmaxf(floorf(in[j] * inv + 8.5f), 0.0f), 15.0f);
        float hi = fminf(fmaxf(floorf(in[j + 16] * inv + 8.5f), 0.0f), 15.0f);
        p[2 + j] = (uint8_t)((unsigned)lo | (unsigned)hi << 4);
    }
}

void dl_row_to_f32(enum dl_type type, const void *row, float *out, size_t n)
{
    const uint8_t *p = row;
    switch (type) {
    case DL_F32:
        memcpy(out, p, n * sizeof *out);
        break;
    case DL_F16:
        for (size_t i = 0; i < n; i++)
            out[i] = dl_f16_to_f32(load16(p + 2 * i));
        break;
    case DL_BF16:
        for (size_t i = 0; i < n; i++)
            out[i] = dl_bf16_to_f32(load16(p + 2 * i));
        break;
    case DL_Q40:
        for (size_t b = 0; b < n / DL_BLOCK; b++, p += sizeof(struct dl_q40), out += DL_BLOCK) {
            float d = dl_f16_to_f32(load16(p));
            for (int j = 0; j < DL_BLOCK / 2; j++) {
                out[j] = (float)((p[2 + j] & 15) - 8) * d;
                out[j + 16] = (float)((p[2 + j] >> 4) - 8) * d;
            }
        }
        break;
    case DL_Q80:
        for (size_t b = 0; b < n / DL_BLOCK; b++, p += sizeof(struct dl_q80), out += DL_BLOCK) {
            float d = dl_f16_to_f32(load16(p));
            for (int j = 0; j < DL_BLOCK; j++)
                out[j] = (float)(int8_t)p[2 + j] * d;
        }
        break;
    case DL_Q120:
        for (size_t b = 0; b < n / DL_BLOCK; b++, p += sizeof(struct dl_q120), out += DL_BLOCK) {
            float d = dl_bf16_to_f32(load16(p));
            for (int j = 0; j < DL_BLOCK; j++)
                out[j] = (float)((int8_t)p[2 + j] * 16 + (p[2 + DL_BLOCK + j % 16] >> j / 16 * 4 & 15)) * d;
        }
        break;
    case DL_TYPE_COUNT:
        break;
    }
}

void dl_row_from_f32(enum dl_type type, const float *in, void *row, size_t n)
{
    uint8_t *p = row;
    switch (type) {
    case DL_F32:
        memcpy(p, in, n * sizeof *in);
        break;
    case DL_F16:
        for (size_t i = 0; i < n; i++)
            store16(p + 2 * i, dl_f32_to_f16(in[i]));
        break;
    case DL_BF16:
        for (size_t i = 0; i < n; i++)
            store16(p + 2 * i, dl_f32_to_bf16(in[i]));
        break;
    case DL_Q40:
        for (size_t b = 0; b < n / DL_BLOCK; b++)
            q40_write(in + b * DL_BLOCK, p + b * sizeof(struct dl_q40));
        break;
    case DL_Q80:
        for (size_t b = 0; b < n / DL_BLOCK; b++)
            q80_write(in + b * DL_BLOCK, p + b * sizeof(struct dl_q80));
        break;
    case DL_Q120:
        for (size_t b = 0; b < n / DL_BLOCK; b++)
            q120_write(in + b * DL_BLOCK, p + b * sizeof(struct dl_q120));
        break;
    case DL_TYPE_COUNT:
        break;
    }
}
