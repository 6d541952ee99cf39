// SPDX-License-Identifier: MIT
//
// q80.glsl: a block of 32 values to Q80, as engine/base/quant.c defines it, by eight neighbouring lanes of four values each.
// Needs f16.glsl and Q80_LANES (or LANES), the lanes of a workgroup, a multiple of 8. To be called by all of them.

#ifndef Q80_LANES
#define Q80_LANES LANES
#endif
shared float q80_max[Q80_LANES];
shared uint q80_codes[Q80_LANES];

// amax / 127, rounded to nearest even as on the host, whatever the device's division does: mantissas in integers.
float q80_scale(float amax)
{
    uint u = floatBitsToUint(amax), e = u >> 23;
    if (e < 32u) // below 2^-95: 0 as f16
        return 0.0;
    if (e == 255u)
        return amax;
    uint m = ((u & 0x7fffffu) | 0x800000u) << 7, q = m / 127u, rest = m - q * 127u;
    uint down = 7u; // the quotient is q * 2^-7 steps of the mantissa
    if (q >= 0x1000000u) {
        uint low = q & 1u;
        q >>= 1;
        q += uint(low != 0u && (rest != 0u || (q & 1u) != 0u));
        down = 6u;
    } else {
        q += uint(2u * rest > 127u); // 127 is odd: no ties
    }
    if (q == 0x1000000u) {
        q >>= 1;
        down -= 1u;
    }
    return uintBitsToFloat(((e - down) << 23) | (q & 0x7fffffu));
}

// Four codes as one word, lowest byte first. d: the block's scale as f16 bits.
uint q80_quantise(vec4 v, out uint d)
{
    uint lane = gl_LocalInvocationID.x, first = lane & ~7u;
    vec4 a = abs(v);
    q80_max[lane] = max(max(a.x, a.y), max(a.z, a.w));
    barrier();
    float amax = 0.0;
    for (uint i = 0u; i < 8u; i++)
        amax = max(amax, q80_max[first + i]);
    d = f32_to_f16(min(q80_scale(amax), 65504.0));
    // Where 127 / amax would be infinite the scale is 0 anyway.
    float inv = amax > 4e-37 ? 127.0 / amax : 0.0;
    ivec4 q = ivec4(clamp(roundEven(v * inv), vec4(-127.0), vec4(127.0)));
    uvec4 b = uvec4(q & 255);
    uint codes = b.x | (b.y << 8) | (b.z << 16) | (b.w << 24);
    q80_codes[lane] = codes;
    barrier();
    return codes;
}

// What four codes stand for, exactly. d: the block's scale as f16 bits.
vec4 q80_values(uint codes, uint d)
{
    int w = int(codes);
    return f16_to_f32(d) * vec4(bitfieldExtract(w, 0, 8), bitfieldExtract(w, 8, 8), bitfieldExtract(w, 16, 8), w >> 24);
}

// Sum of the codes of this lane's block; after q80_quantise.
int q80_sum()
{
    uint first = gl_LocalInvocationID.x & ~7u;
    int sum = 0;
    for (uint i = 0u; i < 8u; i++) {
        int w = int(q80_codes[first + i]);
        sum += bitfieldExtract(w, 0, 8) + bitfieldExtract(w, 8, 8) + bitfieldExtract(w, 16, 8) + (w >> 24);
    }
    return sum;
}
