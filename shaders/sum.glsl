// SPDX-License-Identifier: MIT
//
// sum.glsl: the sums of ADD and MERGE. Binding 1: src0 (F32), 2: src1 in form WIRE, slice s of n_slices `slice` further each, in
// values for F32 and 16-bit words for F16, Q80 and Q120. ADD is a MERGE of one F32 slice. Exact: additions in slice order; a code times
// its scale needs 20 bits, so that fusing them changes nothing.
#include "f16.glsl"

#define SUM_PUSH uint a_at, a_stride, b_at, b_stride, n_slices, slice
layout(std430, set = 0, binding = 1) readonly buffer SumA { float sum_a[]; };
#if WIRE == F32
layout(std430, set = 0, binding = 2) readonly buffer SumB { float sum_b[]; };
#else
layout(std430, set = 0, binding = 2) readonly buffer SumB { uint sum_b[]; };
uint sum_half(uint at) { return (sum_b[at >> 1] >> ((at & 1u) * 16u)) & 0xffffu; }
uint sum_word(uint at) { return sum_half(at) | (sum_half(at + 1u) << 16); }
#endif

// Values i .. i + n of the row of one slice that starts at `at`.
vec4 sum_slice(uint at, uint i, uint n)
{
    vec4 v = vec4(0.0);
#if WIRE == Q80
    if (n == 0u)
        return v;
    uint block = at + (i >> 5) * 17u, codes = block + 1u + ((i & 31u) >> 1);
    int low = int(sum_half(codes)), high = int(sum_half(codes + 1u));
    v = vec4(bitfieldExtract(low, 0, 8), bitfieldExtract(low, 8, 8), bitfieldExtract(high, 0, 8),
             bitfieldExtract(high, 8, 8)) * f16_to_f32(sum_half(block));
#elif WIRE == Q120
    if (n == 0u)
        return v;
    uint block = at + (i >> 5) * 25u, lane = (i & 31u) >> 2;
    int high = int(sum_word(block + 1u + 2u * lane));
    uint low = sum_word(block + 17u + 2u * (lane & 3u)) >> (lane & 4u);
    ivec4 codes = ivec4(bitfieldExtract(high, 0, 8), bitfieldExtract(high, 8, 8), bitfieldExtract(high, 16, 8), high >> 24);
    uvec4 nibbles = uvec4(low, low >> 8, low >> 16, low >> 24) & 15u;
    v = vec4(codes * 16 + ivec4(nibbles)) * uintBitsToFloat(sum_half(block) << 16);
#else
    for (uint k = 0u; k < n; k++)
#if WIRE == F32
        v[k] = sum_b[at + i + k];
#else
        v[k] = f16_to_f32(sum_half(at + i + k));
#endif
#endif
    return v;
}

#define SUM(row, i, n) sum_of((row) * push.a_stride + push.a_at, (row) * push.b_stride + push.b_at, i, n, push.n_slices, push.slice)
vec4 sum_of(uint a, uint b, uint i, uint n, uint n_slices, uint slice)
{
    precise vec4 sum = sum_slice(b, i, n);
    for (uint s = 1u; s < n_slices; s++)
        sum = sum + sum_slice(b + s * slice, i, n);
    vec4 base = vec4(0.0);
    for (uint k = 0u; k < n; k++)
        base[k] = sum_a[a + i + k];
    sum = base + sum;
    return sum;
}
