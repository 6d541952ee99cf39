#version 450
// SPDX-License-Identifier: MIT
//
// GATHER_ROWS: dst[r] = src0[out_row[r]]. Workgroup: LANES * 4 neighbouring values of one row. Defines: COUNT, LANES, OUT (F32).
#include "batch.glsl"
#define OUT_AT 2
#include "out.glsl"

layout(std430, set = 0, binding = 1) readonly buffer Src { float src[]; };
layout(push_constant) uniform Push { uint mult, cols, src_at, src_stride; OUT_PUSH; } push;
layout(local_size_x = LANES) in;

void main()
{
    uint per_row = (push.cols + LANES * 4u - 1u) / (LANES * 4u), g = group_number();
    uint row = g / per_row, i = (g % per_row * LANES + gl_LocalInvocationID.x) * 4u;
    bool live = row < batch_count() * push.mult && i < push.cols;
    uint n = live ? min(4u, push.cols - i) : 0u;
    uint at = live ? push.src_at + batch_out_row(row) * push.src_stride + i : 0u;
    vec4 v = vec4(0.0);
    for (uint k = 0u; k < n; k++)
        v[k] = src[at + k];
    OUT_PUT(row, i, v, n);
}
