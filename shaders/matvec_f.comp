#version 450
// SPDX-License-Identifier: MIT
//
// matvec_f.comp: y[c][o] = sum_i w[o][i] x[c][i] + bias[o] with float weights and F32 activations, in f32. Mapping as in
// matvec_q.comp; a "block" is one uvec4 of weights. The last block of a row may be partly padding, whose activations are
// not there: they are not read.
//
// Defines: WTYPE 32 (F32) | 16 (F16) | 17 (BF16), COLS, ROWS, WG, LPR, SG, BIAS, MOE, HALF_HW, PARTS, PASSES, EPI, [OUT, ACT].
#extension GL_GOOGLE_include_directive : require
#if SG > 1
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif

#define MM_AFTER (4 + BIAS + MOE + (PARTS - 1) * (1 + BIAS))
#include "mm_epilogue.glsl"
#include "mm_common.glsl"
#include "mm_float.glsl"
#include "mm_reduce.glsl"

layout(local_size_x = WG) in;

#include "mm_buffers_f.glsl"
#include "mm_matvec.glsl"
#include "mm_emit.glsl"

#define MM_LOAD(W, from, to)                                        \
    for (uint r = from; r < to; r++) {                              \
        uvec4 bits = W[w_at[r] + b];                                \
        for (uint j = 0; j < MM_VEC4; j++)                          \
            v[r * MM_VEC4 + j] = mm_floats(bits, j);                \
    }

void multiply(uint id, uint row0)
{
    float acc[ROWS * COLS];
    for (uint i = 0; i < ROWS * COLS; i++)
        acc[i] = 0;

    uint w_at[ROWS];
    for (uint r = 0; r < ROWS; r++)
        w_at[r] = MM_PICK(r, w_at) + mm_weight_row(row0 + r % MM_OWN) * p.w_row;
    uint n_blocks = mm_n > 0 ? (p.n_in + MM_VALUES - 1) / MM_VALUES : 0;
    for (uint b = id % LPR; b < n_blocks; b += LPR) {
        vec4 v[ROWS * MM_VEC4];
#if EPI == 2
        MM_LOAD(w, 0, MM_OWN)
        MM_LOAD(w1, MM_OWN, ROWS)
#else
#if PARTS > 2
        if (mm_part == 2)
            MM_LOAD(w2, 0, ROWS)
        else
#endif
#if PARTS > 1
        if (mm_part == 1)
            MM_LOAD(w1, 0, ROWS)
        else
#endif
            MM_LOAD(w, 0, ROWS)
#endif
        for (uint c = 0; c < COLS; c++) {
            uint at = p.x_at + mm_act_row(c) * p.x_row, i = b * MM_VALUES;
            vec4 a[MM_VEC4];
            if (i + MM_VALUES <= p.n_in) {
                for (uint j = 0; j < MM_VEC4; j++, i += 4)
                    a[j] = vec4(x[at + i], x[at + i + 1], x[at + i + 2], x[at + i + 3]);
            } else {
                for (uint j = 0; j < MM_VEC4; j++, i += 4)
                    for (uint k = 0; k < 4; k++) {
                        a[j][k] = 0;
                        if (i + k < p.n_in)
                            a[j][k] = x[at + i + k];
                    }
            }
            for (uint r = 0; r < ROWS; r++)
                for (uint j = 0; j < MM_VEC4; j++)
                    acc[r * COLS + c] += dot(v[r * MM_VEC4 + j], a[j]);
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
