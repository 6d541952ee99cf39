#version 450
// SPDX-License-Identifier: MIT
//
// attention_split.comp: attention for a few tokens. out_h = sum_p w_p V_p / sum_p w_p, w_p = exp(scale * q_h . K_p), over the
// positions p of one split of a token's sequence.
//   workgroup (x, y, z) -> KV head and tile of HEADS of its query heads, split, token
//   LANES threads       -> one row of K and V, each 8 * PER_LANE of its values, for all HEADS at once
//   WG / LANES groups   -> STEP neighbouring positions each
// Every group runs its own softmax: m the largest score so far, l the sum of the weights, o the weighted values; scores are in
// units of log 2. Groups meet once, at the end. SG > 1: LANES of a subgroup reduce by shuffles; else through shared memory.
// With one part in all, o / l goes to dst, and on to OUT; else m, l and o go to the scratch, for attention_merge.comp.
#if SG > 1
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
#define MERGE 0
#include "attention.glsl"

layout(local_size_x = WG) in;

#define GROUPS (WG / LANES)
#define PER_LANE ((PIECES + LANES - 1u) / LANES)
#define SCORES (HEADS * STEP)
#define EDGES (2u * HEADS * GROUPS)

#if SG > 1
shared float pool[WG * 8u];
#else
shared float pool[WG * (SCORES > 8u ? SCORES : 8u)];
#endif
shared float edges[EDGES];
#ifdef OUT
shared float head[HD]; // a result, to be converted
#endif

void sum_lanes(inout float s[SCORES])
{
#if SG > 1
    [[unroll]] for (uint i = 0u; i < SCORES; i++)
        [[unroll]] for (uint k = 1u; k < LANES; k *= 2u)
            s[i] += subgroupShuffleXor(s[i], k);
#else
    uint lane = gl_LocalInvocationIndex % LANES, first = gl_LocalInvocationIndex - lane;
    barrier(); // the last round's sums are read
    [[unroll]] for (uint i = 0u; i < SCORES; i++)
        pool[i * WG + gl_LocalInvocationIndex] = s[i];
    barrier();
    for (uint i = lane; i < SCORES; i += LANES) {
        float sum = 0.0;
        [[unroll]] for (uint k = 0u; k < LANES; k++)
            sum += pool[i * WG + first + k];
        pool[i * WG + first] = sum; // only this thread reads or writes these LANES numbers
    }
    barrier();
    [[unroll]] for (uint i = 0u; i < SCORES; i++)
        s[i] = pool[i * WG + first];
#endif
}

void attend(uint kv, uint first_head, uint n_heads, uint token, uint from, uint to, uint split)
{
    uint lane = gl_LocalInvocationIndex % LANES, group = gl_LocalInvocationIndex / LANES;
    uint table = table_at(batch_table(token));
    vec4 q[HEADS * PER_LANE * 2u], o[HEADS * PER_LANE * 2u];
    float m[HEADS], l[HEADS];
    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        m[h] = LOWEST;
        l[h] = 0.0;
        [[unroll]] for (uint i = 0u; i < PER_LANE; i++) {
            uint piece = lane + i * LANES, at = 2u * (h * PER_LANE + i);
            q[at] = q[at + 1u] = o[at] = o[at + 1u] = vec4(0.0);
            if (h < n_heads && piece < PIECES)
                load_query(token, first_head + h, piece, q[at], q[at + 1u]);
        }
    }

    for (uint base = from; base < to; base += GROUPS * STEP) {
        uint p = base + group * STEP, n = min(max(to, p) - p, STEP); // STEP divides 32: one block
        uint row = n > 0u ? (batch[table + p / 32u] * push.n_kv + kv) * 32u + p % 32u : 0u;
#if CHUNKED
        row -= push.chunk_first;
        n = row < push.chunk_rows ? n : 0u; // chunks end where blocks of 32 rows do
#endif
        float s[SCORES];
        [[unroll]] for (uint j = 0u; j < STEP; j++) {
            [[unroll]] for (uint h = 0u; h < HEADS; h++)
                s[h * STEP + j] = 0.0;
            [[unroll]] for (uint i = 0u; i < PER_LANE; i++) {
                uint piece = lane + i * LANES;
                vec4 a = vec4(0.0), b = vec4(0.0);
                if (j < n && piece < PIECES)
                    load_key(row + j, piece, a, b);
                [[unroll]] for (uint h = 0u; h < HEADS; h++) {
                    uint at = 2u * (h * PER_LANE + i);
                    s[h * STEP + j] += dot(q[at], a) + dot(q[at + 1u], b);
                }
            }
        }
        sum_lanes(s);
        [[unroll]] for (uint h = 0u; h < HEADS; h++) {
            float top = m[h], sum = 0.0;
            [[unroll]] for (uint j = 0u; j < STEP; j++)
                top = j < n ? max(top, s[h * STEP + j]) : top;
            float fade = exp2(m[h] - top);
            [[unroll]] for (uint j = 0u; j < STEP; j++) {
                float w = j < n ? exp2(s[h * STEP + j] - top) : 0.0;
                s[h * STEP + j] = w;
                sum += w;
            }
            m[h] = top;
            l[h] = l[h] * fade + sum;
            [[unroll]] for (uint i = 0u; i < 2u * PER_LANE; i++)
                o[h * PER_LANE * 2u + i] *= fade;
        }
        [[unroll]] for (uint j = 0u; j < STEP; j++)
            [[unroll]] for (uint i = 0u; i < PER_LANE; i++) {
                uint piece = lane + i * LANES;
                vec4 a = vec4(0.0), b = vec4(0.0); // rows past the last position are never read: 0 * NaN is NaN
                if (j < n && piece < PIECES)
                    load_value(row + j, piece, a, b);
                [[unroll]] for (uint h = 0u; h < HEADS; h++) {
                    uint at = 2u * (h * PER_LANE + i);
                    o[at] += s[h * STEP + j] * a;
                    o[at + 1u] += s[h * STEP + j] * b;
                }
            }
    }

    if (lane == 0u)
        [[unroll]] for (uint h = 0u; h < HEADS; h++) {
            edges[h * GROUPS + group] = m[h];
            edges[(HEADS + h) * GROUPS + group] = l[h];
        }
    barrier();
    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        float top = LOWEST, sum = 0.0;
        for (uint g = 0u; g < GROUPS; g++)
            top = max(top, edges[h * GROUPS + g]);
        for (uint g = 0u; g < GROUPS; g++)
            sum += edges[(HEADS + h) * GROUPS + g] * exp2(edges[h * GROUPS + g] - top);
        float fade = exp2(m[h] - top);
        uint part = (token * push.n_heads + first_head + h) * push.parts + push.first_part + split;
        uint at = part * HD;
        if (push.parts == 1u) {
            at = push.result_skip + token * push.result_stride + (first_head + h) * HD;
            fade /= sum;
        } else if (h < n_heads && gl_LocalInvocationIndex == 0u) {
            result[push.state_at + 2u * part] = top;
            result[push.state_at + 2u * part + 1u] = sum;
        }
        [[unroll]] for (uint i = 0u; i < PER_LANE; i++) {
            uint mine = 2u * (h * PER_LANE + i);
            barrier(); // the pool's last content is read
            [[unroll]] for (uint k = 0u; k < 4u; k++) {
                pool[gl_LocalInvocationIndex * 8u + k] = o[mine][k] * fade;
                pool[gl_LocalInvocationIndex * 8u + 4u + k] = o[mine + 1u][k] * fade;
            }
            barrier();
            for (uint k = gl_LocalInvocationIndex; k < LANES * 8u; k += WG) {
                float all = 0.0;
                for (uint g = 0u; g < GROUPS; g++)
                    all += pool[g * LANES * 8u + k];
                uint col = i * LANES * 8u + k;
                if (h < n_heads && col < HD) {
                    result[at + col] = all;
#ifdef OUT
                    head[col] = all;
#endif
                }
            }
        }
#ifdef OUT
        barrier();
        for (uint first = 0u; first < HD / 4u; first += WG) {
            uint col = 4u * (first + gl_LocalInvocationIndex), n = h < n_heads && col < HD ? 4u : 0u;
            vec4 v = vec4(0.0);
            for (uint k = 0u; k < n; k++)
                v[k] = head[col + k];
            OUT_PUT(token, (first_head + h) * HD + col, v, n);
        }
#endif
    }
}

void main()
{
    uint kv = gl_WorkGroupID.x / push.head_tiles, tile = gl_WorkGroupID.x % push.head_tiles;
    uint split = gl_WorkGroupID.y, token = gl_WorkGroupID.z;
    uvec2 heads = heads_of(kv);
    uint first = heads.x + tile * HEADS;
    // All of these are the same for the whole workgroup.
    if (token < batch_tokens() && first < heads.y && !tile_pays(token)) {
        uint n = batch_pos(token) + 1u;
        uvec2 cut = splits_of(n);
        if (split < cut.y)
            attend(kv, first, min(heads.y - first, HEADS), token, split * cut.x * 32u, min(n, (split + 1u) * cut.x * 32u),
                   split);
    }
}
