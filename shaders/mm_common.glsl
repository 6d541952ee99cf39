// SPDX-License-Identifier: MIT
//
// mm_common.glsl: what every matrix kernel shares: the numbers that the lowering pushes, how many rows the batch has, half
// decoding. The order of `struct mm` is that of `struct mm_push` in vulkan/lower_matmul.c.
//
// Lengths are in units of the array that they index: uvec4s of weights, floats of results and scales.

layout(push_constant) uniform mm
{
    uint n_in;                 // blocks (quantised) or values (float) per row
    uint rows;                 // weight rows of this dispatch; MoE: rows of one expert
    uint w_at, w_row;          // uvec4s
    uint ws_at, ws_row;        // words: two scales each
    uint x_at, x_row;          // uvec4s of codes, or floats
    uint xd_at, xs_at, xs_row; // scales d, and d * sum of codes
    uint y_at, y_row;
    uint extra_at;  // of the bias, or of the route
    uint count;     // word of the batch that counts the tokens
    uint t_first;   // the views start at this token of the batch
    uint route_row; // this and the rest: MoE
    uint w_first, w_rows; // row of the whole matrix that the weights start with, and how many there are
    uint moe_k, moe_shared;
#if PARTS > 1 // mat-vec: matrices that share activations; where the second's rows and results are
    uint w_at1, ws_at1, rows1, y_at1, extra_at1;
#endif
#if PARTS > 2
    uint w_at2, ws_at2, rows2, y_at2, extra_at2;
#endif
#if EPI > 2
    uint base_at, base_row;
#endif
#if EPI == 4
    uint carry_on;
#endif
#if EPI
    OUT_PUSH;
#endif
} p;

layout(std430, binding = 0) readonly buffer mm_batch
{
    uint batch[];
};

// Tokens of this batch from the first of this dispatch on.
uint mm_tokens()
{
    return max(batch[p.count], p.t_first) - p.t_first;
}

// f16 in the low half of h. By bits: unpackHalf2x16 may flush subnormals, which are common among scales.
float mm_half(uint h)
{
#if HALF_HW
    return unpackHalf2x16(h & 0xffffu).x;
#else
    uint m = h & 0x7fffu, sign = (h & 0x8000u) << 16;
    uint wide = (m << 13) + (m >= 0x7c00u ? 0x70000000u : 0x38000000u);
    float small = float(m) * 5.9604644775390625e-8;
    return uintBitsToFloat(sign | (m < 0x400u ? floatBitsToUint(small) : wide));
#endif
}
