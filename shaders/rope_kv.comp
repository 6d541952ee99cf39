#version 450
// SPDX-License-Identifier: MIT
//
// ROPE:     (a, b) -> (a cos - b sin, a sin + b cos) for the first n_rot values of each head, pair i by HALVES; angles[t][2i], [2i+1].
// KV_STORE: cache row ((block * n_kv + h) * 32 + pos % 32) = x[t][h], in form KV (F32, F16, PLANES).
// Both:     heads [0, heads) of a row of x are turned in place, heads [k_first, k_first + n_kv) of them also go to K, and the n_kv heads
//           from v_at on go to V.
//
// A slot is a head of a token: [0, heads) those that are turned (or, without ROPE, stored), then those of V.
// Workgroup: per_group = LANES / quads slots, quads = ceil(head_dim / 4) <= LANES: one lane per four values, so that all of a head is
// loaded before any of it is stored. Defines: COUNT, LANES, ROPE, [HALVES,] [KV,] [CHUNKED,] BOTH. Bindings: see below.
#include "batch.glsl"
#include "f16.glsl"

#if BOTH
layout(std430, set = 0, binding = 1) readonly buffer Angles { float angles[]; };
layout(std430, set = 0, binding = 2) buffer X { float x[]; };
#define LOAD(i) x[i]
#define STORE(i, v) x[i] = v
#define K_AT 3
#elif ROPE
layout(std430, set = 0, binding = 1) readonly buffer Angles { float angles[]; };
layout(std430, set = 0, binding = 2) readonly buffer Src { float src[]; };
layout(std430, set = 0, binding = 3) buffer Dst { float dst[]; };
#define LOAD(i) src[i]
#define STORE(i, v) dst[i] = v
#else
layout(std430, set = 0, binding = 1) readonly buffer Src { float src[]; };
#define LOAD(i) src[i]
#define K_AT 2
#endif

#ifdef KV
#if KV == PLANES
layout(std430, set = 0, binding = K_AT) buffer KCodes { uint k_words[]; };
layout(std430, set = 0, binding = K_AT + 1) buffer KScales { float k_scales[]; };
layout(std430, set = 0, binding = K_AT + 2) buffer KSums { float k_sums[]; };
#define V_AT (K_AT + 3)
#else
layout(std430, set = 0, binding = K_AT) buffer K { uint k_words[]; };
#define V_AT (K_AT + 1)
#endif
#if BOTH
layout(std430, set = 0, binding = V_AT) buffer V { uint v_words[]; };
#if KV == PLANES
layout(std430, set = 0, binding = V_AT + 1) buffer VScales { float v_scales[]; };
layout(std430, set = 0, binding = V_AT + 2) buffer VSums { float v_sums[]; };
#endif
#endif
#if KV == PLANES
#include "q80.glsl"
#endif
#endif

layout(push_constant) uniform Push {
    uint mult, heads, head_dim, n_rot;
    uint n_kv, k_first;       // k_first: of `heads`
    uint angles_at, angles_stride;
    uint src_at, src_stride;  // x where BOTH
    uint dst_at, dst_stride;
    uint v_from;              // BOTH: where V's heads begin in a row of x
    uint k_at[3], v_at[3], kv_stride;
#if CHUNKED
    uint chunk_first, chunk_rows; // rows of the cache that are bound: the others are left to other dispatches
#endif
} push;
layout(local_size_x = LANES) in;

#ifdef KV
void kv_word(bool to_v, uint at, uint word)
{
#if BOTH
    if (to_v)
        v_words[at] = word;
    else
#endif
        k_words[at] = word;
}

// A word whose other half belongs to another row.
void kv_half(bool to_v, uint at, uint bits)
{
    uint shift = (at & 1u) * 16u, keep = 0xffff0000u >> shift;
#if BOTH
    if (to_v) {
        atomicAnd(v_words[at >> 1], keep);
        atomicOr(v_words[at >> 1], bits << shift);
        return;
    }
#endif
    atomicAnd(k_words[at >> 1], keep);
    atomicOr(k_words[at >> 1], bits << shift);
}

// Values i .. i + n of a cache row; called by all lanes, with n = 0 where there is nothing to store.
void kv_put(bool to_v, uint row, uint i, vec4 v, uint n)
{
    uint at = row * push.kv_stride + (to_v ? push.v_at[0] : push.k_at[0]);
#if KV == F32
    for (uint k = 0u; k < n; k++)
        kv_word(to_v, at + i + k, floatBitsToUint(v[k]));
#elif KV == F16
    for (uint k = 0u; k < n; k++) {
        if (((at + i + k) & 1u) == 0u && k + 1u < n) {
            kv_word(to_v, (at + i + k) >> 1, f32_to_f16(v[k]) | (f32_to_f16(v[k + 1u]) << 16));
            k++;
        } else {
            kv_half(to_v, at + i + k, f32_to_f16(v[k]));
        }
    }
#else
    uint d, codes = q80_quantise(v, d);
    if (n == 0u)
        return;
    kv_word(to_v, (at + (i >> 5)) * 8u + ((i >> 2) & 7u), codes);
    if ((i & 31u) != 0u)
        return;
    float scale = f16_to_f32(d), sum = scale * float(q80_sum());
    uint block = row * push.kv_stride + (i >> 5);
#if BOTH
    if (to_v) {
        v_scales[push.v_at[1] + block] = scale;
        v_sums[push.v_at[2] + block] = sum;
        return;
    }
#endif
    k_scales[push.k_at[1] + block] = scale;
    k_sums[push.k_at[2] + block] = sum;
#endif
}
#endif

#if ROPE
// The four values from i on of the head at `at`, turned.
vec4 turned(uint at, uint angles_row, uint i, vec4 v, uint n)
{
    vec4 r = v;
    for (uint k = 0u; k < n; k++) {
        uint j = i + k;
        if (j >= push.n_rot)
            break;
#if HALVES
        uint pairs = push.n_rot >> 1, pair = j < pairs ? j : j - pairs;
        bool is_a = j < pairs;
        float other = LOAD(at + (is_a ? j + pairs : j - pairs));
#else
        uint pair = j >> 1;
        bool is_a = (j & 1u) == 0u;
        float other = v[k ^ 1u];
#endif
        float c = angles[angles_row + 2u * pair], s = angles[angles_row + 2u * pair + 1u];
        r[k] = is_a ? v[k] * c - other * s : other * s + v[k] * c;
    }
    return r;
}
#endif

void main()
{
    uint quads = (push.head_dim + 3u) >> 2, per_group = LANES / quads, lane = gl_LocalInvocationID.x;
    uint slots = push.heads + (BOTH != 0 ? push.n_kv : 0u), unit = group_number() * per_group + lane / quads;
    uint token = unit / slots, slot = unit % slots, i = lane % quads * 4u;
    bool live = lane < per_group * quads && token < batch_count() * push.mult, to_v = slot >= push.heads;
    uint n = live ? min(4u, push.head_dim - i) : 0u;
    uint head_at = to_v ? push.v_from + (slot - push.heads) * push.head_dim : slot * push.head_dim;
    uint at = push.src_at + token * push.src_stride + head_at;
    vec4 v = vec4(0.0);
    for (uint k = 0u; k < n; k++)
        v[k] = LOAD(at + i + k);
#if ROPE
    if (!to_v)
        v = turned(at, push.angles_at + token * push.angles_stride, i, v, n);
    memoryBarrierBuffer(); // other lanes of this head have read what is overwritten now
    barrier();
    uint to = BOTH != 0 ? at : push.dst_at + token * push.dst_stride + head_at;
    for (uint k = 0u; k < n && !to_v; k++)
        STORE(to + i + k, v[k]);
#endif
#ifdef KV
    uint h = to_v ? slot - push.heads : slot - push.k_first;
    bool kept = live && h < push.n_kv; // slots before k_first wrap around
    uint row = 0u;
    if (kept) {
        uint pos = batch_pos(token);
        row = (batch_kv_block(batch_table(token), pos) * push.n_kv + h) * 32u + (pos & 31u);
#if CHUNKED
        row -= push.chunk_first;
        kept = row < push.chunk_rows;
#endif
    }
    kv_put(to_v, row, i, v, kept ? n : 0u);
#endif
}
