// SPDX-License-Identifier: MIT
//
// mm_float.glsl: float weights, 16 bytes at a time.

#if WTYPE == 32
#define MM_VALUES 4
#else
#define MM_VALUES 8
#endif
#define MM_VEC4 (MM_VALUES / 4)

// Values 4j .. 4j+3 of a uvec4 of weights.
vec4 mm_floats(uvec4 bits, uint j)
{
#if WTYPE == 32
    return uintBitsToFloat(bits);
#else
    uvec2 h = j == 0 ? bits.xy : bits.zw;
#if WTYPE == 17
    return uintBitsToFloat(uvec4(h.x << 16, h.x & 0xffff0000u, h.y << 16, h.y & 0xffff0000u));
#else
    return vec4(mm_half(h.x), mm_half(h.x >> 16), mm_half(h.y), mm_half(h.y >> 16));
#endif
#endif
}
