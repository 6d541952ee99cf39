// SPDX-License-Identifier: MIT
//
// f16.glsl: number formats by bits. unpackHalf2x16 may flush subnormals, and Q80 scales are subnormal for every block below 0.0078;
// packHalf2x16 may round in any direction. These do as engine/base/quant.c.

// Forms of values in memory, as enum vk_form.
#define F32 0
#define F16 1
#define BF16 2
#define Q80 4
#define PLANES 5
#define Q120 6

float f16_to_f32(uint h)
{
    uint s = (h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
    if (e == 31u)
        return uintBitsToFloat(s | 0x7f800000u | (m << 13));
    if (e != 0u)
        return uintBitsToFloat(s | ((e + 112u) << 23) | (m << 13));
    float f = float(m) * 5.9604644775390625e-8; // 2^-24
    return s != 0u ? -f : f;
}

// To nearest even; beyond the range to infinity; NaN stays NaN.
uint f32_to_f16(float f)
{
    uint u = floatBitsToUint(f), s = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return s | 0x7e00u;
    if (a >= 0x477ff000u)
        return s | 0x7c00u;
    if (a < 0x38800000u) { // below 2^-14: steps of 2^-24, rounded by hand since additions may flush
        uint e = a >> 23, m = (a & 0x7fffffu) | 0x800000u, n = 126u - e;
        if (n > 24u) // below 2^-25: half of the smallest step
            return s;
        uint low = m & ((1u << n) - 1u), half_step = 1u << (n - 1u);
        m >>= n;
        m += uint(low > half_step || (low == half_step && (m & 1u) != 0u));
        return s | m;
    }
    uint odd = (a >> 13) & 1u;
    return s | ((a - 0x38000000u + 0xfffu + odd) >> 13);
}

uint f32_to_bf16(float f)
{
    uint u = floatBitsToUint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (u >> 16) | 0x40u;
    return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
