// SPDX-License-Identifier: MIT
//
// attention.glsl: what the attention kernels share: the batch, and rows of K and V as vec4 pairs.
//
// KV = 0: F32, 1: F16, 2: Q80 (codes and scales in planes of their own). HD: values per row, a multiple of 8 (Q80: of 32).
// OUT: results are also converted to this form, for the matrix that they go to: whoever makes them final does it.
// MERGE: neither is needed. A "piece" is 8 neighbouring values of a row. HALF_BITS: halves are decoded by integer operations, for devices that flush
// the small ones in unpackHalf2x16.
#extension GL_EXT_control_flow_attributes : require

#define PIECES (HD / 8u)
#define LOG2_E 1.44269504088896341
#define LOWEST -1.7014117e38 // -FLT_MAX / 2: differences of two of these are still numbers

layout(std430, set = 0, binding = 0) readonly buffer Batch { uint batch[]; };
layout(std430, set = 0, binding = 1) readonly buffer Query { float query[]; };
layout(std430, set = 0, binding = 2) buffer Result { float result[]; };
#if !MERGE
#if KV == 2
layout(std430, set = 0, binding = 3) readonly buffer Keys { uvec2 keys[]; };
layout(std430, set = 0, binding = 5) readonly buffer Values { uvec2 values[]; };
layout(std430, set = 0, binding = 4) readonly buffer KeyScales { float key_scales[]; };
layout(std430, set = 0, binding = 6) readonly buffer ValueScales { float value_scales[]; };
#else
layout(std430, set = 0, binding = 3) readonly buffer Keys { uvec4 keys[]; };
layout(std430, set = 0, binding = 4) readonly buffer Values { uvec4 values[]; };
#endif
#endif

#ifdef OUT
#define Q80_LANES WG
#if MERGE
#define OUT_AT 3
#else
#define OUT_AT (KV == 2 ? 7 : 5)
#endif
#include "out.glsl"
#endif

layout(push_constant) uniform Push {
    uint n_heads, n_kv, group, first_head;
    float scale;
    uint query_skip, query_stride; // in floats, as are the next two
    uint result_skip, result_stride;
    uint tile_heads, tile_tokens; // how attention_tile.comp cuts the batch; tile_tokens == 0: it has no part in this
    uint head_tiles;              // workgroups per KV head and token
    uint splits, least_blocks;    // most splits of a sequence; fewest KV blocks of a split
    uint parts, first_part;       // results per token and head that are merged, and the first of this dispatch: splits times
                                  // the chunks of a cache that no descriptor holds
    uint state_at;                // where in the scratch (m, l) begin, in floats
    uint key_skip, value_skip, key_scale_skip, value_scale_skip; // in pieces; in scales
#if CHUNKED
    uint chunk_first, chunk_rows; // rows of the cache that are bound: the others are left to other dispatches
#endif
#ifdef OUT
    OUT_PUSH;
#endif
} push;

uint batch_tokens() { return batch[0]; }
uint batch_pos(uint t) { return batch[8u + 2u * t]; }
uint batch_table(uint t) { return batch[9u + 2u * t]; }

// Where the block numbers of a token's sequence begin.
uint table_at(uint table) { return 8u + 2u * batch[2] + batch[3] + table * batch[5]; }

// Query heads [x, y) of this slice read KV head `kv`.
uvec2 heads_of(uint kv)
{
    uint from = kv * push.group, to = from + push.group;
    return uvec2(max(from, push.first_head) - push.first_head,
                 min(max(to, push.first_head) - push.first_head, push.n_heads));
}

// Splits of a sequence of n positions: x blocks of 32 each, y of them.
uvec2 splits_of(uint n)
{
    uint blocks = (n + 31u) / 32u;
    uint each = max(push.least_blocks, (blocks + push.splits - 1u) / push.splits);
    return uvec2(each, (blocks + each - 1u) / each);
}

// Tokens of one tile that share sequences make it worth its while; single tokens are left to attention_split.comp.
bool tile_pays(uint t)
{
    if (push.tile_tokens == 0u)
        return false;
    uint from = t / push.tile_tokens * push.tile_tokens, to = min(from + push.tile_tokens, batch_tokens()), runs = 1u;
    for (uint i = from + 1u; i < to; i++)
        runs += batch_table(i) != batch_table(i - 1u) ? 1u : 0u;
    return 2u * runs <= to - from;
}

#if !MERGE
#if KV == 1
vec2 halves(uint word)
{
#if HALF_BITS
    uvec2 h = uvec2(word & 0xffffu, word >> 16), size = h & 0x7fffu;
    vec2 small = vec2(h & 0x3ffu) * 5.9604644775390625e-8; // 2^-24
    vec2 normal = uintBitsToFloat((size << 13) + 0x38000000u);
    vec2 v = mix(normal, small, lessThan(size, uvec2(0x400u)));
    return mix(v, -v, notEqual(h & 0x8000u, uvec2(0)));
#else
    return unpackHalf2x16(word);
#endif
}
void decode(uvec4 w, out vec4 a, out vec4 b)
{
    a = vec4(halves(w.x), halves(w.y));
    b = vec4(halves(w.z), halves(w.w));
}
void load_key(uint row, uint piece, out vec4 a, out vec4 b) { decode(keys[push.key_skip + row * PIECES + piece], a, b); }
void load_value(uint row, uint piece, out vec4 a, out vec4 b) { decode(values[push.value_skip + row * PIECES + piece], a, b); }
#elif KV == 2
vec4 codes(uint w)
{
    int i = int(w);
    return vec4(i << 24 >> 24, i << 16 >> 24, i << 8 >> 24, i >> 24);
}
void load_key(uint row, uint piece, out vec4 a, out vec4 b)
{
    uvec2 w = keys[push.key_skip + row * PIECES + piece];
    float d = key_scales[push.key_scale_skip + row * (HD / 32u) + piece / 4u];
    a = d * codes(w.x);
    b = d * codes(w.y);
}
void load_value(uint row, uint piece, out vec4 a, out vec4 b)
{
    uvec2 w = values[push.value_skip + row * PIECES + piece];
    float d = value_scales[push.value_scale_skip + row * (HD / 32u) + piece / 4u];
    a = d * codes(w.x);
    b = d * codes(w.y);
}
#else
void load_key(uint row, uint piece, out vec4 a, out vec4 b)
{
    uint at = 2u * (push.key_skip + row * PIECES + piece);
    a = uintBitsToFloat(keys[at]);
    b = uintBitsToFloat(keys[at + 1u]);
}
void load_value(uint row, uint piece, out vec4 a, out vec4 b)
{
    uint at = 2u * (push.value_skip + row * PIECES + piece);
    a = uintBitsToFloat(values[at]);
    b = uintBitsToFloat(values[at + 1u]);
}
#endif

// 8 values of a query row, scaled so that exp2 of a product is what the softmax wants.
void load_query(uint token, uint head, uint piece, out vec4 a, out vec4 b)
{
    uint at = push.query_skip + token * push.query_stride + head * HD + 8u * piece;
    float s = push.scale * LOG2_E;
    a = s * vec4(query[at], query[at + 1u], query[at + 2u], query[at + 3u]);
    b = s * vec4(query[at + 4u], query[at + 5u], query[at + 6u], query[at + 7u]);
}
#endif
