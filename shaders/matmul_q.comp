#version 450
// SPDX-License-Identifier: MIT
//
// matmul_q.comp: y[c][o] = sum_b dw[o][b] (dx[c][b] dot(w[o][b], x[c][b]) - 8 s[c][b]) + bias[o], the -8 for Q40 only; for
// many activation rows. Workgroup (i, j) makes results of rows i * BM .. of the weights and columns j * BN .. of the batch;
// KB blocks of both at a time go through shared memory, weights as packed as they come. An invocation makes TM x TN results,
// BM / TM rows and BN / TN columns apart: neighbours read neighbours.
// PARTS matrices with the same activations, EPI what follows (mm_epilogue.glsl).
//
// Defines: WTYPE 40|80, BM, BN, TM, TN, KB, DOT, BIAS, HALF_HW, PARTS, EPI, [OUT, ACT].
#extension GL_GOOGLE_include_directive : require
#if DOT == 2
#extension GL_EXT_spirv_intrinsics : require
#endif

#define MOE 0
#define COLS BN
#define WG (BM / TM * (BN / TN))
#define MM_AFTER (7 + BIAS + (PARTS - 1) * (2 + BIAS))
#include "mm_epilogue.glsl"
#include "mm_common.glsl"
#include "mm_dot.glsl"

const uint ROW_LANES = BM / TM, COL_LANES = BN / TN;
const uint CODES = WTYPE == 40 ? 1 : 2; // uvec4s per block of weights

layout(local_size_x = WG) in;

#include "mm_buffers_q.glsl"
#include "mm_tile.glsl"
#include "mm_emit.glsl"

shared uvec4 tile_w[KB * CODES * BM];
shared float tile_d[KB * BM];
shared uvec4 tile_x[KB * 2 * BN];
shared vec2 tile_s[KB * BN]; // d, 8 * d * sum

void main()
{
    uint id = gl_LocalInvocationID.x, row_lane = id % ROW_LANES, col_lane = id / ROW_LANES;
    mm_begin();
    float acc[TM * TN];
    for (uint i = 0; i < TM * TN; i++)
        acc[i] = 0;

    uint n_blocks = mm_n > 0 ? p.n_in : 0; // the same for the whole workgroup
    for (uint b0 = 0; b0 < n_blocks; b0 += KB) {
        barrier();
        for (uint i = id; i < KB * CODES * BM; i += WG) {
            uint row = i / (KB * CODES), j = i % (KB * CODES), at = min(b0 * CODES + j, p.w_row - 1);
            uvec4 codes;
            MM_FROM(codes, w, row, mm_tile_row(row) * p.w_row + at);
            tile_w[j * BM + row] = codes;
        }
        for (uint i = id; i < KB * BM; i += WG) {
            uint row = i / KB, k = i % KB, b = b0 + k;
            float d = 0; // blocks past the end count nothing
            if (b < n_blocks) {
                uint two;
                MM_FROM(two, ws, row, mm_tile_row(row) * p.ws_row + b / 2);
                d = mm_half(two >> (b % 2 * 16));
            }
            tile_d[k * BM + row] = d;
        }
        for (uint i = id; i < KB * 2 * BN; i += WG) {
            uint col = i / (KB * 2), j = i % (KB * 2), at = min(b0 * 2 + j, n_blocks * 2 - 1);
            tile_x[j * BN + col] = x[p.x_at + mm_act_row(col) * p.x_row + at];
        }
        for (uint i = id; i < KB * BN; i += WG) {
            uint col = i / KB, k = i % KB, at = mm_act_row(col) * p.xs_row + min(b0 + k, n_blocks - 1);
#if WTYPE == 40
            tile_s[k * BN + col] = vec2(xd[p.xd_at + at], 8 * xs[p.xs_at + at]);
#else
            tile_s[k * BN + col] = vec2(xd[p.xd_at + at], 0);
#endif
        }
        barrier();
        for (uint k = 0; k < KB; k++) {
            uvec4 code[TM * CODES];
            float d[TM];
            for (uint i = 0; i < TM; i++) {
                uint row = row_lane + i * ROW_LANES;
                for (uint j = 0; j < CODES; j++)
                    code[i * CODES + j] = tile_w[(k * CODES + j) * BM + row];
                d[i] = tile_d[k * BM + row];
            }
            for (uint j = 0; j < TN; j++) {
                uint col = col_lane + j * COL_LANES;
                uvec4 lo = tile_x[2 * k * BN + col], hi = tile_x[(2 * k + 1) * BN + col];
                mm_act a;
                MM_ACT(a, lo, hi);
                vec2 s = tile_s[k * BN + col];
                for (uint i = 0; i < TM; i++) {
#if WTYPE == 40
                    acc[i * TN + j] += d[i] * (s.x * mm_dot(code[i], a) - s.y);
#else
                    acc[i * TN + j] += d[i] * (s.x * mm_dot(code[2 * i], code[2 * i + 1], a));
#endif
                }
            }
        }
    }
    for (uint i = 0; i < TM; i++)
        for (uint j = 0; j < TN; j++)
            mm_put(row_lane + i * ROW_LANES, col_lane + j * COL_LANES, acc[i * TN + j]);
#if EPI
    mm_emit();
#endif
}
