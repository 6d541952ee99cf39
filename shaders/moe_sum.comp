#version 450
// SPDX-License-Identifier: MIT
//
// MOE_SUM: dst[t][i] = sum_s weight[t][s] * src0[t*k+s][i], in slot order; weight[t][s] = route[t][k+s].
// Workgroup: LANES * 4 neighbouring values of one row. Defines: COUNT, LANES, OUT (F32).
#include "batch.glsl"
#define OUT_AT 3
#include "out.glsl"

layout(std430, set = 0, binding = 1) readonly buffer Src { float src[]; };
layout(std430, set = 0, binding = 2) readonly buffer Route { float route[]; };
layout(push_constant) uniform Push { uint mult, cols, k, src_at, src_stride, route_at, route_stride; OUT_PUSH; } push;
layout(local_size_x = LANES) in;

void main()
{
    uint per_row = (push.cols + LANES * 4u - 1u) / (LANES * 4u), g = group_number();
    uint row = g / per_row, i = (g % per_row * LANES + gl_LocalInvocationID.x) * 4u;
    bool live = row < batch_count() * push.mult && i < push.cols;
    uint n = live ? min(4u, push.cols - i) : 0u;
    vec4 v = vec4(0.0);
    for (uint s = 0u; live && s < push.k; s++) {
        float weight = route[push.route_at + row * push.route_stride + push.k + s];
        uint at = push.src_at + (row * push.k + s) * push.src_stride + i;
        for (uint j = 0u; j < n; j++)
            v[j] += weight * src[at + j];
    }
    OUT_PUT(row, i, v, n);
}
