#version 450
// SPDX-License-Identifier: MIT
//
// CONVERT: dst[t][i] = src0[t][i] in form OUT; src0 in form SRC (F32 or F16). With CARRY, OUT is Q80, Q120 or PLANES, and what was carried is
// added first, unless this is the first time; what is lost is carried on.
// Workgroup: LANES * 4 neighbouring values of one row. Lane: 4 of them.
// Batch: COUNT. Defines: COUNT, LANES, SRC, OUT, CARRY.
#include "batch.glsl"
#define OUT_AT (2 + CARRY)
#include "out.glsl"

#if SRC == F32
layout(std430, set = 0, binding = 1) readonly buffer Src { float src[]; };
#else
layout(std430, set = 0, binding = 1) readonly buffer Src { uint src[]; };
#endif

#if CARRY
layout(std430, set = 0, binding = 2) buffer Carry { float carry[]; };
#define CARRY_PUSH uint carry_at, carry_stride, carry_on;
#else
#define CARRY_PUSH
#endif

layout(push_constant) uniform Push { uint mult, cols, src_at, src_stride; CARRY_PUSH OUT_PUSH; } push;
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
#if CARRY
    uint carried = push.carry_at + row * push.carry_stride + i;
    for (uint k = 0u; k < n && push.carry_on != 0u; k++)
        v[k] += carry[carried + k];
#endif
    OUT_PUT(row, i, v, n);
#if CARRY
    v -= out_stored;
    for (uint k = 0u; k < n; k++)
        carry[carried + k] = v[k];
#endif
}
