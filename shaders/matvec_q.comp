#version 450
// SPDX-License-Identifier: MIT
//
// matvec_q.comp: y[c][o] = sum_b dw[o][b] (dx[c][b] dot(w[o][b], x[c][b]) - 8 s[c][b]) + bias[o], the -8 for Q40 only.
// For 1 .. COLS activation rows; weights are read once for all of them. Workgroup x owns WG / LPR * ROWS weight rows, PASSES
// times; the lanes of a group take blocks lane, lane + LPR, ... of its rows.
// MOE=1: workgroup y is one (token, slot), whose expert the route names; COLS is 1.
// PARTS matrices with the same activations, EPI what follows (mm_epilogue.glsl).
//
// Defines: WTYPE 40|80, COLS, ROWS, WG, LPR, SG, DOT, BIAS, MOE, HALF_HW, PARTS, PASSES, EPI, [OUT, ACT].
#extension GL_GOOGLE_include_directive : require
#if SG > 1
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
#if DOT == 2
#extension GL_EXT_spirv_intrinsics : require
#endif

#define MM_AFTER (7 + BIAS + MOE + (PARTS - 1) * (2 + BIAS))
#include "mm_epilogue.glsl"
#include "mm_common.glsl"
#include "mm_dot.glsl"
#include "mm_reduce.glsl"

layout(local_size_x = WG) in;

#include "mm_buffers_q.glsl"
#include "mm_matvec.glsl"
#include "mm_emit.glsl"

#if WTYPE == 40
#define CODES 1
#define MM_DOT(r, a) mm_dot(code[r], a)
#define MM_CODES(W, r) code[r] = W[w_at[r] + b]
#else
#define CODES 2
#define MM_DOT(r, a) mm_dot(code[2 * (r)], code[2 * (r) + 1], a)
#define MM_CODES(W, r) code[2 * (r)] = W[w_at[r] + 2 * b], code[2 * (r) + 1] = W[w_at[r] + 2 * b + 1]
#endif
#define MM_LOAD(W, WS, from, to)                                    \
    for (uint r = from; r < to; r++) {                              \
        MM_CODES(W, r);                                             \
        d[r] = mm_half(WS[ws_at[r] + b / 2] >> (b % 2 * 16));       \
    }

void multiply(uint id, uint row0)
{
    float acc[ROWS * COLS];
    for (uint i = 0; i < ROWS * COLS; i++)
        acc[i] = 0;

    uint w_at[ROWS], ws_at[ROWS];
    for (uint r = 0; r < ROWS; r++) {
        uint row = mm_weight_row(row0 + r % MM_OWN);
        w_at[r] = MM_PICK(r, w_at) + row * p.w_row;
        ws_at[r] = MM_PICK(r, ws_at) + row * p.ws_row;
    }
    uint n_blocks = mm_n > 0 ? p.n_in : 0;
    for (uint b = id % LPR; b < n_blocks; b += LPR) {
        float d[ROWS];
        uvec4 code[ROWS * CODES];
#if EPI == 2
        MM_LOAD(w, ws, 0, MM_OWN)
        MM_LOAD(w1, ws1, MM_OWN, ROWS)
#else
#if PARTS > 2
        if (mm_part == 2)
            MM_LOAD(w2, ws2, 0, ROWS)
        else
#endif
#if PARTS > 1
        if (mm_part == 1)
            MM_LOAD(w1, ws1, 0, ROWS)
        else
#endif
            MM_LOAD(w, ws, 0, ROWS)
#endif
        for (uint c = 0; c < COLS; c++) {
            uint col = mm_act_row(c), at = p.x_at + col * p.x_row + 2 * b, scale = col * p.xs_row + b;
            uvec4 lo = x[at], hi = x[at + 1];
            mm_act a;
            MM_ACT(a, lo, hi);
            float dx = xd[p.xd_at + scale];
#if WTYPE == 40
            float s8 = 8 * xs[p.xs_at + scale];
            for (uint r = 0; r < ROWS; r++)
                acc[r * COLS + c] += d[r] * (dx * MM_DOT(r, a) - s8);
#else
            for (uint r = 0; r < ROWS; r++)
                acc[r * COLS + c] += d[r] * (dx * MM_DOT(r, a));
#endif
        }
    }
    mm_finish(id, row0, acc);
}

void main()
{
    uint id = mm_lane_id();
    mm_begin();
    for (uint pass = 0; pass < PASSES; pass++)
        multiply(id, mm_pass_row(id, pass));
#if EPI
    mm_emit();
#endif
}
