#version 450
// SPDX-License-Identifier: MIT
//
// CONVERT: dst[t][i] = src0[t][i] in form OUT; src0 in form SRC (F32 or F16).
// Workgroup: LANES * 4 neighbouring values of one row. Lane: 4 of them.
// Batch: COUNT. Defines: COUNT, LANES, SRC, OUT.
#include "batch.glsl"
#define OUT_AT 2
#include "out.glsl"

#if SRC == F32
layout(std430, set = 0, binding = 1) readonly buffer Src { float src[]; };
#else
layout(std430, set = 0, binding = 1) readonly buffer Src { uint src[]; };
#endif

layout(push_constant) uniform Push { uint mult, cols, src_at, src_stride; OUT_PUSH; } push;
layout(local_size_x = LANES) in;

void main()
{
    uint per_row = (push.cols + LANES * 4u - 1u) / (LANES * 4u), g = group_number();
    uint row = g / per_row, i = (g % per_row * LANES + gl_LocalInvocationID.x) * 4u;
    bool live = row < batch_count() * push.mult && i < push.cols;
    uint n = live ? min(4u, push.cols - i) : 0u, at = push.src_at + row * push.src_stride + i;
    vec4 v = vec4(0.0);
    for (uint k = 0u; k < n; k++)
#if SRC == F32
        v[k] = src[at + k];
#else
        v[k] = f16_to_f32((src[(at + k) >> 1] >> (((at + k) & 1u) * 16u)) & 0xffffu);
#endif
    OUT_PUT(row, i, v, n);
}
