// SPDX-License-Identifier: MIT
//
// out.glsl: writes results in form OUT (f16.glsl) to binding OUT_AT and, for PLANES, the two after it. Each lane has up to four
// neighbouring values of a row, the first at a multiple of 4; for quantised forms eight lanes have a block.
// Places are in values for F32, in 16-bit words for F16, BF16, Q80 (17 per block) and Q120 (25), in blocks for PLANES.
// Bytes outside the result stay as they are: a word that is only half ours is changed by atomics, since whoever owns the other
// half may be changing it now.
// With CARRY, for Q80, Q120 and PLANES, out_stored is what the values are after rounding.
#include "f16.glsl"
#if OUT == Q120
#include "q120.glsl"
#else
#include "q80.glsl"
#endif

#if OUT == PLANES
#define OUT_PUSH uint out_at, out_at1, out_at2, out_stride
layout(std430, set = 0, binding = OUT_AT) buffer OutCodes { uint out_codes[]; };
layout(std430, set = 0, binding = OUT_AT + 1) buffer OutScales { float out_scales[]; };
layout(std430, set = 0, binding = OUT_AT + 2) buffer OutSums { float out_sums[]; };
#else
#define OUT_PUSH uint out_at, out_stride
#if OUT == F32
layout(std430, set = 0, binding = OUT_AT) buffer Out { float out_values[]; };
#else
layout(std430, set = 0, binding = OUT_AT) buffer Out { uint out_words[]; };

void out_half(uint at, uint bits)
{
    uint shift = (at & 1u) * 16u;
    atomicAnd(out_words[at >> 1], 0xffff0000u >> shift);
    atomicOr(out_words[at >> 1], bits << shift);
}

// n 16-bit values from `at` on.
void out_halves(uint at, uvec4 bits, uint n)
{
    for (uint k = 0u; k < n; k++) {
        if (((at + k) & 1u) == 0u && k + 1u < n) {
            out_words[(at + k) >> 1] = bits[k] | (bits[k + 1u] << 16);
            k++;
        } else {
            out_half(at + k, bits[k]);
        }
    }
}
#endif
#endif

#ifndef CARRY
#define CARRY 0
#endif
#if CARRY
vec4 out_stored;
#if OUT == Q120
#define OUT_STORED(codes, d) out_stored = vec4(codes) * uintBitsToFloat((d) << 16)
#else
#define OUT_STORED(codes, d) out_stored = q80_values(codes, d)
#endif
#else
#define OUT_STORED(codes, d)
#endif

// Writes n <= 4 values of a row from column i on, where n > 0. All lanes of the workgroup call it; lanes without values with n = 0.
#if OUT == F32
#define OUT_PUT(row, i, v, n) out_put((row) * push.out_stride + push.out_at, i, v, n)
void out_put(uint row_at, uint i, vec4 v, uint n)
{
    for (uint k = 0u; k < n; k++)
        out_values[row_at + i + k] = v[k];
}
#elif OUT == F16 || OUT == BF16
#define OUT_PUT(row, i, v, n) out_put((row) * push.out_stride + push.out_at, i, v, n)
void out_put(uint row_at, uint i, vec4 v, uint n)
{
    uvec4 bits = uvec4(0u);
    for (uint k = 0u; k < n; k++)
#if OUT == F16
        bits[k] = f32_to_f16(v[k]);
#else
        bits[k] = f32_to_bf16(v[k]);
#endif
    out_halves(row_at + i, bits, n);
}
#elif OUT == Q80
#define OUT_PUT(row, i, v, n) out_put((row) * push.out_stride + push.out_at, i, v, n)
void out_put(uint row_at, uint i, vec4 v, uint n)
{
    uint d, codes = q80_quantise(v, d), lane = gl_LocalInvocationID.x & 7u;
    OUT_STORED(codes, d);
    if (n == 0u)
        return;
    uint at = row_at + (i >> 5) * 17u;
    if ((at & 1u) != 0u) { // the codes lie in whole words
        out_words[((at + 1u) >> 1) + lane] = codes;
        if (lane == 0u)
            out_half(at, d);
    } else { // each word has the end of the lane before and the begin of this one
        uint before = lane == 0u ? d : q80_codes[gl_LocalInvocationID.x - 1u] >> 16;
        out_words[(at >> 1) + lane] = before | (codes << 16);
        if (lane == 7u)
            out_half(at + 16u, codes >> 16);
    }
}
#elif OUT == Q120
#define OUT_PUT(row, i, v, n) out_put((row) * push.out_stride + push.out_at, i, v, n)
void out_put(uint row_at, uint i, vec4 v, uint n)
{
    uint d, lane = gl_LocalInvocationID.x & 7u;
    ivec4 codes = q120_quantise(v, d);
    OUT_STORED(codes, d);
    if (n == 0u)
        return;
    uint at = row_at + (i >> 5) * 25u, base = (at + 1u) >> 1;
    bool whole = (at & 1u) != 0u; // all but the scale lies in whole words; else each has the end of one and the begin of the next
    for (uint k = lane; k < 12u; k += 8u) {
        uint word = q120_word(k), before = whole || k == 0u ? d : q120_word(k - 1u) >> 16;
        out_words[base + k] = whole ? word : before | (word << 16);
    }
    if (lane == 0u)
        out_half(whole ? at : at + 24u, whole ? d : q120_word(11u) >> 16);
}
#else
#define OUT_PUT(row, i, v, n) out_put(uvec3(push.out_at, push.out_at1, push.out_at2) + (row) * push.out_stride, i, v, n)
void out_put(uvec3 at, uint i, vec4 v, uint n)
{
    uint d, codes = q80_quantise(v, d), lane = gl_LocalInvocationID.x & 7u;
    OUT_STORED(codes, d);
    if (n == 0u)
        return;
    at += i >> 5;
    out_codes[at.x * 8u + lane] = codes;
    if (lane == 0u) {
        float scale = f16_to_f32(d);
        out_scales[at.y] = scale;
        out_sums[at.z] = scale * float(q80_sum());
    }
}
#endif
