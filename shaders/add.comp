#version 450
// SPDX-License-Identifier: MIT
//
// ADD, MERGE: dst[t][i] = src0[t][i] + sum over slices of src1[t][i]. dst is F32 (form OUT) and may be src0.
// Workgroup: LANES * 4 neighbouring values of one row. Lane: 4 of them. Defines: COUNT, LANES, WIRE (form of src1), OUT.
#include "batch.glsl"
#include "sum.glsl"
#define OUT_AT 3
#include "out.glsl"

layout(push_constant) uniform Push { uint mult, cols; SUM_PUSH; OUT_PUSH; } push;
layout(local_size_x = LANES) in;

void main()
{
    uint per_row = (push.cols + LANES * 4u - 1u) / (LANES * 4u), g = group_number();
    uint row = g / per_row, i = (g % per_row * LANES + gl_LocalInvocationID.x) * 4u;
    bool live = row < batch_count() * push.mult && i < push.cols;
    uint n = live ? min(4u, push.cols - i) : 0u;
    vec4 v = SUM(row, i, n);
    OUT_PUT(row, i, v, n);
}
