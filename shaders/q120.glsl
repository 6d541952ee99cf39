// SPDX-License-Identifier: MIT
//
// q120.glsl: a block of 32 values to Q120, as engine/base/quant.c defines it, by eight neighbouring lanes of four values each.
// Needs Q80_LANES (or LANES), as q80.glsl does. To be called by all lanes of a workgroup.

#ifndef Q80_LANES
#define Q80_LANES LANES
#endif
shared float q120_max[Q80_LANES];
shared uint q120_high[Q80_LANES];
shared uint q120_low[Q80_LANES];

// Leaves what goes into the block's words to q120_word. d: the block's scale as bf16 bits.
ivec4 q120_quantise(vec4 v, out uint d)
{
    uint lane = gl_LocalInvocationID.x, first = lane & ~7u;
    vec4 a = abs(v);
    q120_max[lane] = max(max(a.x, a.y), max(a.z, a.w));
    barrier();
    float amax = 0.0, inv = 0.0;
    for (uint i = 0u; i < 8u; i++)
        amax = max(amax, q120_max[first + i]);
    d = 0u;
    if (floatBitsToUint(amax) >= 0x0d800000u) { // 2^-100
        d = (floatBitsToUint(amax * uintBitsToFloat(0x3a001002u)) + 0xffffu) >> 16; // 1 / 2047
        inv = 1.0 / uintBitsToFloat(d << 16);
    }
    ivec4 q = ivec4(clamp(roundEven(v * inv), vec4(-2047.0), vec4(2047.0)));
    uvec4 high = uvec4((q >> 4) & 255), low = uvec4(q & 15);
    q120_high[lane] = high.x | (high.y << 8) | (high.z << 16) | (high.w << 24);
    q120_low[lane] = low.x | (low.y << 8) | (low.z << 16) | (low.w << 24);
    barrier();
    return q;
}

// Word k < 12 of what comes after the scale of this lane's block: eight of high parts, four of nibbles.
uint q120_word(uint k)
{
    uint first = gl_LocalInvocationID.x & ~7u;
    return k < 8u ? q120_high[first + k] : q120_low[first + k - 8u] | (q120_low[first + k - 4u] << 4);
}
