#version 450
// SPDX-License-Identifier: MIT
//
// MOE_ROUTE: the k experts of largest logit in descending order, the lower number first among equals, and their softmax weights.
// Workgroup: one token. Lane: experts lane, lane + LANES, ... Round s finds the largest that comes after the one of round s - 1.
// Defines: COUNT, LANES. Push: renorm 1: softmax over the chosen only.
#include "batch.glsl"
#include "math.glsl"

layout(std430, set = 0, binding = 1) readonly buffer Src { float src[]; };
layout(std430, set = 0, binding = 2) buffer Dst { float dst[]; };
layout(push_constant) uniform Push { uint mult, n, k, renorm, src_at, src_stride, dst_at, dst_stride; } push;
layout(local_size_x = LANES) in;

shared uint best_key[LANES];
shared uint best_expert[LANES];
shared float part[LANES];

// Larger for larger logits; 1 and more for numbers, 0 for what is none: the route names k different experts whatever the logits hold.
uint key_of(float x)
{
    uint u = floatBitsToUint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0u;
    if (u == 0x80000000u)
        u = 0u;
    return u < 0x80000000u ? u | 0x80000000u : ~u;
}

bool before(uint key, uint expert, uint other_key, uint other)
{
    return key > other_key || (key == other_key && expert < other);
}

void main()
{
    uint lane = gl_LocalInvocationID.x, token = group_number();
    bool live = token < batch_count() * push.mult;
    uint at = push.src_at + token * push.src_stride, to = push.dst_at + token * push.dst_stride;
    float largest = 0.0, total = 1.0;
    uint last_key = 0u, last = 0u;

    for (uint s = 0u; s < push.k; s++) {
        uint key = 0u, found = 0xffffffffu; // after every expert
        for (uint e = lane; live && e < push.n; e += LANES) {
            uint k = key_of(src[at + e]);
            if ((s == 0u || before(last_key, last, k, e)) && before(k, e, key, found)) {
                key = k;
                found = e;
            }
        }
        best_key[lane] = key;
        best_expert[lane] = found;
        barrier();
        for (uint step = LANES / 2u; step > 0u; step >>= 1) {
            if (lane < step && before(best_key[lane + step], best_expert[lane + step], best_key[lane], best_expert[lane])) {
                best_key[lane] = best_key[lane + step];
                best_expert[lane] = best_expert[lane + step];
            }
            barrier();
        }
        last_key = best_key[0];
        last = live ? best_expert[0] : 0u;
        barrier();
        float logit = live ? src[at + last] : 0.0;
        if (s == 0u) {
            largest = logit;
            if (push.renorm == 0u) {
                float sum = 0.0;
                for (uint e = lane; live && e < push.n; e += LANES)
                    sum += exp_f32(src[at + e] - largest);
                part[lane] = sum;
                barrier();
                for (uint step = LANES / 2u; step > 0u; step >>= 1) {
                    if (lane < step)
                        part[lane] += part[lane + step];
                    barrier();
                }
                total = part[0];
            }
        }
        if (live && lane == 0u) {
            dst[to + s] = float(last);
            dst[to + push.k + s] = exp_f32(logit - largest) / total;
        }
    }
    if (live && lane == 0u && push.renorm != 0u) {
        float sum = 0.0;
        for (uint s = 0u; s < push.k; s++)
            sum += dst[to + push.k + s];
        for (uint s = 0u; s < push.k; s++)
            dst[to + push.k + s] = dst[to + push.k + s] / sum;
    }
}
