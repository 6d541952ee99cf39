#version 450
// SPDX-License-Identifier: MIT
//
// matvec_q.comp: y[c][o] = sum_b dw[o][b] (dx[c][b] dot(w[o][b], x[c][b]) - 8 s[c][b]) + bias[o], the -8 for Q40 only.
// For 1 .. COLS activation rows; weights are read once for all of them. Workgroup x owns WG / LPR * ROWS weight rows; the
// lanes of a group take blocks lane, lane + LPR, ... of its rows.
// MOE=1: workgroup y is one (token, slot), whose expert the route names; COLS is 1.
//
// Defines: WTYPE 40|80, COLS, ROWS, WG, LPR, SG, DOT, BIAS, MOE, HALF_HW.
#extension GL_GOOGLE_include_directive : require
#if SG > 1
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
#if DOT == 2
#extension GL_EXT_spirv_intrinsics : require
#endif

#include "mm_common.glsl"
#include "mm_dot.glsl"
#include "mm_reduce.glsl"

layout(local_size_x = WG) in;

layout(std430, binding = 1) readonly buffer mm_w
{
    uvec4 w[];
};
layout(std430, binding = 2) readonly buffer mm_ws
{
    uint ws[];
};
layout(std430, binding = 3) readonly buffer mm_x
{
    uvec4 x[];
};
layout(std430, binding = 4) readonly buffer mm_xd
{
    float xd[];
};
layout(std430, binding = 5) readonly buffer mm_xs
{
    float xs[];
};
layout(std430, binding = 6) buffer mm_y
{
    float y[];
};
#if BIAS || MOE
layout(std430, binding = 7) readonly buffer mm_extra
{
    float extra[]; // bias, or the route
};
#endif

#include "mm_matvec.glsl"

void main()
{
    uint id = mm_lane_id();
    uint row0 = mm_begin(id);
    float acc[ROWS * COLS];
    for (uint i = 0; i < ROWS * COLS; i++)
        acc[i] = 0;

    uint w_at[ROWS], ws_at[ROWS];
    for (uint r = 0; r < ROWS; r++) {
        uint row = mm_weight_row(row0 + r);
        w_at[r] = p.w_at + row * p.w_row;
        ws_at[r] = p.ws_at + row * p.ws_row;
    }
    uint n_blocks = mm_n > 0 ? p.n_in : 0;
    for (uint b = id % LPR; b < n_blocks; b += LPR) {
        float d[ROWS];
#if WTYPE == 40
        uvec4 code[ROWS];
#else
        uvec4 code[ROWS * 2];
#endif
        for (uint r = 0; r < ROWS; r++) {
#if WTYPE == 40
            code[r] = w[w_at[r] + b];
#else
            code[2 * r] = w[w_at[r] + 2 * b];
            code[2 * r + 1] = w[w_at[r] + 2 * b + 1];
#endif
            d[r] = mm_half(ws[ws_at[r] + b / 2] >> (b % 2 * 16));
        }
        for (uint c = 0; c < COLS; c++) {
            uint col = mm_act_row(c), at = p.x_at + col * p.x_row + 2 * b, scale = col * p.xs_row + b;
            uvec4 lo = x[at], hi = x[at + 1];
            mm_act a;
            MM_ACT(a, lo, hi);
            float dx = xd[p.xd_at + scale];
#if WTYPE == 40
            float s8 = 8 * xs[p.xs_at + scale];
            for (uint r = 0; r < ROWS; r++)
                acc[r * COLS + c] += d[r] * (dx * mm_dot(code[r], a) - s8);
#else
            for (uint r = 0; r < ROWS; r++)
                acc[r * COLS + c] += d[r] * (dx * mm_dot(code[2 * r], code[2 * r + 1], a));
#endif
        }
    }
    mm_finish(id, row0, acc);
}
