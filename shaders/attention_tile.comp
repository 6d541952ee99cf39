#version 450
// SPDX-License-Identifier: MIT
//
// attention_tile.comp: attention for many tokens of few sequences: ROWS = 8 * TALL query rows at a time against 32 positions.
//   workgroup (x, y) -> KV head and tile of its query heads, tile of tokens; row r -> token r / tile_heads, head r % tile_heads
//   thread (i, k)    -> rows i + 8 j (j < TALL), columns k + 8 j (j < 4) of each 32 wide product
// Both products go through shared memory 32 values at a time: scores = Q K^T, then o += weights * V, with the softmax of
// attention_split.comp per row between them. Rows of a tile may belong to several sequences: each run of tokens of one sequence
// passes over its own positions, with the other rows masked.
#define MERGE 0
#include "attention.glsl"

#define WG 64u
#define ROWS (8u * TALL)
#define SLABS ((HD + 31u) / 32u) // of 32 values

layout(local_size_x = 64) in;

// One more column than used, so that neighbouring rows lie in different banks.
shared float left[ROWS * 33u], right[32u * 33u], weight[ROWS * 33u];
shared float row_m[ROWS], row_l[ROWS], row_fade[ROWS];

void stage_query(uint first_token, uint end, uint first_head, uint n_heads, uint slab)
{
    for (uint i = gl_LocalInvocationIndex; i < ROWS * 4u; i += WG) {
        uint row = i / 4u, piece = slab * 4u + i % 4u, token = first_token + row / push.tile_heads;
        vec4 a = vec4(0.0), b = vec4(0.0);
        if (row < push.tile_heads * push.tile_tokens && token < end && row % push.tile_heads < n_heads && piece < PIECES)
            load_query(token, first_head + row % push.tile_heads, piece, a, b);
        uint at = row * 33u + i % 4u * 8u;
        [[unroll]] for (uint k = 0u; k < 4u; k++) {
            left[at + k] = a[k];
            left[at + 4u + k] = b[k];
        }
    }
}

// Rows [row, row + n) of K or V; zeros behind them.
void stage_cache(bool is_value, uint row, uint n, uint slab)
{
    for (uint i = gl_LocalInvocationIndex; i < 128u; i += WG) {
        uint p = i / 4u, piece = slab * 4u + i % 4u;
        vec4 a = vec4(0.0), b = vec4(0.0);
        if (p < n && piece < PIECES) {
            if (is_value)
                load_value(row + p, piece, a, b);
            else
                load_key(row + p, piece, a, b);
        }
        uint at = p * 33u + i % 4u * 8u;
        [[unroll]] for (uint k = 0u; k < 4u; k++) {
            right[at + k] = a[k];
            right[at + 4u + k] = b[k];
        }
    }
}

void attend(uint kv, uint first_head, uint n_heads, uint first_token, uint end)
{
    uint ti = gl_LocalInvocationIndex / 8u, tk = gl_LocalInvocationIndex % 8u;
    vec4 o[SLABS * TALL];
    [[unroll]] for (uint i = 0u; i < SLABS * TALL; i++)
        o[i] = vec4(0.0);
    for (uint r = gl_LocalInvocationIndex; r < ROWS; r += WG) {
        row_m[r] = LOWEST;
        row_l[r] = 0.0;
    }
    for (uint run = first_token; run < end;) {
        uint sequence = batch_table(run), table = table_at(sequence), after = run, last = 0u;
        for (; after < end && batch_table(after) == sequence; after++)
            last = max(last, batch_pos(after));
        for (uint block = 0u; block <= last / 32u; block++) {
            uint row = (batch[table + block] * push.n_kv + kv) * 32u, n = min(last + 1u - block * 32u, 32u);
            vec4 s[TALL];
            [[unroll]] for (uint j = 0u; j < TALL; j++)
                s[j] = vec4(0.0);
            for (uint slab = 0u; slab < SLABS; slab++) {
                barrier(); // what was staged before is read
                stage_query(first_token, end, first_head, n_heads, slab);
                stage_cache(false, row, n, slab);
                barrier();
                for (uint d = 0u; d < 32u; d++) {
                    vec4 b = vec4(right[tk * 33u + d], right[(tk + 8u) * 33u + d], right[(tk + 16u) * 33u + d],
                                  right[(tk + 24u) * 33u + d]);
                    [[unroll]] for (uint j = 0u; j < TALL; j++)
                        s[j] += left[(ti + 8u * j) * 33u + d] * b;
                }
            }
            [[unroll]] for (uint j = 0u; j < TALL; j++)
                [[unroll]] for (uint k = 0u; k < 4u; k++)
                    weight[(ti + 8u * j) * 33u + tk + 8u * k] = s[j][k];
            barrier();
            for (uint r = gl_LocalInvocationIndex; r < ROWS; r += WG) {
                uint token = first_token + r / push.tile_heads, sees = 0u; // how many of these 32 positions
                if (token >= run && token < after)
                    sees = min(max(batch_pos(token) + 1u, block * 32u) - block * 32u, 32u);
                float top = row_m[r], sum = 0.0;
                for (uint c = 0u; c < 32u; c++)
                    top = c < sees ? max(top, weight[r * 33u + c]) : top;
                for (uint c = 0u; c < 32u; c++) {
                    float w = c < sees ? exp2(weight[r * 33u + c] - top) : 0.0;
                    weight[r * 33u + c] = w;
                    sum += w;
                }
                float fade = exp2(row_m[r] - top);
                row_fade[r] = fade;
                row_m[r] = top;
                row_l[r] = row_l[r] * fade + sum;
            }
            [[unroll]] for (uint slab = 0u; slab < SLABS; slab++) {
                barrier(); // weights and fades are there, what was staged before is read
                stage_cache(true, row, n, slab);
                barrier();
                [[unroll]] for (uint j = 0u; j < TALL; j++)
                    o[slab * TALL + j] *= row_fade[ti + 8u * j];
                for (uint c = 0u; c < 32u; c++) {
                    vec4 b = vec4(right[c * 33u + tk], right[c * 33u + tk + 8u], right[c * 33u + tk + 16u],
                                  right[c * 33u + tk + 24u]);
                    [[unroll]] for (uint j = 0u; j < TALL; j++)
                        o[slab * TALL + j] += weight[(ti + 8u * j) * 33u + c] * b;
                }
            }
        }
        run = after;
    }
    barrier();
    [[unroll]] for (uint j = 0u; j < TALL; j++) {
        uint r = ti + 8u * j, token = first_token + r / push.tile_heads, head = r % push.tile_heads;
        if (r < push.tile_heads * push.tile_tokens && token < end && head < n_heads) {
            uint at = push.result_skip + token * push.result_stride + (first_head + head) * HD;
            [[unroll]] for (uint slab = 0u; slab < SLABS; slab++)
                [[unroll]] for (uint k = 0u; k < 4u; k++) {
                    uint col = slab * 32u + tk + 8u * k;
                    if (col < HD)
                        result[at + col] = o[slab * TALL + j][k] / row_l[r];
                }
        }
    }
}

void main()
{
    uint kv = gl_WorkGroupID.x / push.head_tiles, tile = gl_WorkGroupID.x % push.head_tiles;
    uint token = gl_WorkGroupID.y * push.tile_tokens;
    uvec2 heads = heads_of(kv);
    uint first = heads.x + tile * push.tile_heads;
    // All of these are the same for the whole workgroup.
    if (token < batch_tokens() && first < heads.y && tile_pays(token))
        attend(kv, first, min(heads.y - first, push.tile_heads), token, min(token + push.tile_tokens, batch_tokens()));
}
