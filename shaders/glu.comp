#version 450
// SPDX-License-Identifier: MIT
//
// GLU: dst[t][i] = act(src0[t][i]) * src1[t][i].
// Workgroup: LANES * 4 neighbouring values of one row. Lane: 4 of them. Defines: COUNT, LANES, ACT (act.glsl), OUT.
#include "batch.glsl"
#include "act.glsl"
#define OUT_AT 3
#include "out.glsl"

layout(std430, set = 0, binding = 1) readonly buffer Gate { float gate[]; };
layout(std430, set = 0, binding = 2) readonly buffer Up { float up[]; };
layout(push_constant) uniform Push { uint mult, cols, gate_at, gate_stride, up_at, up_stride; OUT_PUSH; } push;
layout(local_size_x = LANES) in;

void main()
{
    uint per_row = (push.cols + LANES * 4u - 1u) / (LANES * 4u), g = group_number();
    uint row = g / per_row, i = (g % per_row * LANES + gl_LocalInvocationID.x) * 4u;
    bool live = row < batch_count() * push.mult && i < push.cols;
    uint n = live ? min(4u, push.cols - i) : 0u;
    uint a = push.gate_at + row * push.gate_stride + i, b = push.up_at + row * push.up_stride + i;
    vec4 v = vec4(0.0);
    for (uint k = 0u; k < n; k++)
        v[k] = act(gate[a + k]) * up[b + k];
    OUT_PUT(row, i, v, n);
}
