#version 450
// SPDX-License-Identifier: MIT
//
// matmul_f.comp: y[c][o] = sum_i w[o][i] x[c][i] + bias[o] with float weights and F32 activations, in f32, for many
// activation rows. Tiles as in matmul_q.comp; BK values of both sides at a time go through shared memory as f32, each sums on
// its own before it joins the whole (long sums lose less).
//
// Defines: WTYPE 32 (F32) | 16 (F16) | 17 (BF16), BM, BN, TM, TN, BK (a multiple of 8), BIAS, HALF_HW, PARTS, EPI, [OUT, ACT].
#extension GL_GOOGLE_include_directive : require

#define MOE 0
#define COLS BN
#define WG (BM / TM * (BN / TN))
#define MM_AFTER (4 + BIAS + (PARTS - 1) * (1 + BIAS))
#include "mm_epilogue.glsl"
#include "mm_common.glsl"
#include "mm_float.glsl"

const uint ROW_LANES = BM / TM, COL_LANES = BN / TN;
const uint LOADS = BK / MM_VALUES; // uvec4s per weight row and step

layout(local_size_x = WG) in;

#include "mm_buffers_f.glsl"
#include "mm_tile.glsl"
#include "mm_emit.glsl"

// One more per line: a column of a tile is written without bank conflicts.
shared float tile_w[BK * (BM + 1)];
shared float tile_x[BK * (BN + 1)];

void main()
{
    uint id = gl_LocalInvocationID.x, row_lane = id % ROW_LANES, col_lane = id / ROW_LANES;
    mm_begin();
    float acc[TM * TN];
    for (uint i = 0; i < TM * TN; i++)
        acc[i] = 0;

    uint n_in = mm_n > 0 ? p.n_in : 0; // the same for the whole workgroup
    for (uint k0 = 0; k0 < n_in; k0 += BK) {
        barrier();
        for (uint i = id; i < LOADS * BM; i += WG) {
            uint row = i / LOADS, load = i % LOADS, at = k0 / MM_VALUES + load;
            uvec4 bits = uvec4(0); // past the end; a row's padding is 0
            if (at < p.w_row) {
                MM_FROM(bits, w, row, mm_tile_row(row) * p.w_row + at);
            }
            for (uint j = 0; j < MM_VEC4; j++) {
                vec4 v = mm_floats(bits, j);
                for (uint k = 0; k < 4; k++)
                    tile_w[(load * MM_VALUES + j * 4 + k) * (BM + 1) + row] = v[k];
            }
        }
        for (uint i = id; i < BK * BN; i += WG) {
            uint col = i / BK, k = i % BK;
            float v = 0;
            if (k0 + k < n_in)
                v = x[p.x_at + mm_act_row(col) * p.x_row + k0 + k];
            tile_x[k * (BN + 1) + col] = v;
        }
        barrier();
        float part[TM * TN];
        for (uint i = 0; i < TM * TN; i++)
            part[i] = 0;
        for (uint k = 0; k < BK; k++) {
            float a[TM];
            for (uint i = 0; i < TM; i++)
                a[i] = tile_w[k * (BM + 1) + row_lane + i * ROW_LANES];
            for (uint j = 0; j < TN; j++) {
                float b = tile_x[k * (BN + 1) + col_lane + j * COL_LANES];
                for (uint i = 0; i < TM; i++)
                    part[i * TN + j] += a[i] * b;
            }
        }
        for (uint i = 0; i < TM * TN; i++)
            acc[i] += part[i];
    }
    for (uint i = 0; i < TM; i++)
        for (uint j = 0; j < TN; j++)
            mm_put(row_lane + i * ROW_LANES, col_lane + j * COL_LANES, acc[i * TN + j]);
#if EPI
    mm_emit();
#endif
}
