#version 450
// SPDX-License-Identifier: MIT
//
// RMS_NORM: dst[t][g*G+i] = x[t][g*G+i] * w[i] / sqrt(mean_j(x[t][g*G+j]^2) + eps), G = group.
// With WIRE, x is the sum of an ADD or MERGE (sum.glsl), is written too, and may go through two norms that differ in form only.
//
// Workgroup: one span of a row: one group, or, where quantised blocks would cross groups, the fewest whole groups that are whole blocks
// (at most 32, since blocks have 32 values). Lane: four neighbouring values, every LANES * 4 of them.
// Bindings: 0 batch, 1 x or src0 of the sum, [2 src1 of the sum, 3 x out,] w, [dst F32,] [dst in form OUT].
// Defines: COUNT, LANES, [WIRE,] [NORM_F32=1,] OUT (F32: no other form than that of NORM_F32).
// x that this workgroup writes is read back by the lane that wrote it only.
#include "batch.glsl"
#include "f16.glsl"

#ifdef WIRE
#include "sum.glsl"
layout(std430, set = 0, binding = 3) buffer X { float x[]; };
#define AFTER_X 4
#else
layout(std430, set = 0, binding = 1) readonly buffer X { float x[]; };
#define AFTER_X 2
#endif
layout(std430, set = 0, binding = AFTER_X) readonly buffer W { float w[]; };
#if NORM_F32
layout(std430, set = 0, binding = AFTER_X + 1) buffer Plain { float plain[]; };
#define OUT_AT (AFTER_X + 2)
#else
#define OUT_AT (AFTER_X + 1)
#endif
#if OUT != F32
#include "out.glsl"
#endif

layout(push_constant) uniform Push {
    uint mult, cols, group, span;
    float eps;
    uint x_at, x_stride, w_at;
#ifdef WIRE
    SUM_PUSH;
#endif
#if NORM_F32
    uint plain_at, plain_stride;
#endif
#if OUT != F32
    OUT_PUSH;
#endif
} push;
layout(local_size_x = LANES) in;

shared float part[LANES];
shared float factor[32];

void main()
{
    uint lane = gl_LocalInvocationID.x, spans = push.cols / push.span, g = group_number();
    uint row = g / spans, first = g % spans * push.span, row_at = push.x_at + row * push.x_stride + first;
    bool live = row < batch_count() * push.mult;

    for (uint at = 0u, k = 0u; at < push.span; at += push.group, k++) {
        float sum = 0.0;
        for (uint i = lane * 4u; live && i < push.group; i += LANES * 4u) {
            uint n = min(4u, push.group - i);
#ifdef WIRE
            vec4 v = SUM(row, first + at + i, n);
            for (uint j = 0u; j < n; j++)
                x[row_at + at + i + j] = v[j];
#else
            vec4 v = vec4(0.0);
            for (uint j = 0u; j < n; j++)
                v[j] = x[row_at + at + i + j];
#endif
            sum += dot(v, v);
        }
        part[lane] = sum;
        barrier();
        for (uint s = LANES / 2u; s > 0u; s >>= 1) {
            if (lane < s)
                part[lane] += part[lane + s];
            barrier();
        }
        if (lane == 0u)
            factor[k] = 1.0 / sqrt(part[0] / float(push.group) + push.eps);
        barrier();
    }

    // As many rounds for every lane: writing blocks takes all of them.
    for (uint start = 0u; start < push.span; start += LANES * 4u) {
        uint i = start + lane * 4u, n = live && i < push.span ? min(4u, push.span - i) : 0u;
        vec4 v = vec4(0.0);
        for (uint j = 0u; j < n; j++)
            v[j] = x[row_at + i + j] * w[push.w_at + (i + j) % push.group] * factor[(i + j) / push.group];
#if NORM_F32
        for (uint j = 0u; j < n; j++)
            plain[push.plain_at + row * push.plain_stride + first + i + j] = v[j];
#endif
#if OUT != F32
        OUT_PUT(row, first + i, v, n);
#endif
    }
}
