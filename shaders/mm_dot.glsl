// SPDX-License-Identifier: MIT
//
// mm_dot.glsl: exact integer dot products of one block: 32 weights times 32 int8 activations.
//   DOT=0  plain integer arithmetic, two products per 32-bit multiplication:
//          (a0 + a1 2^16)(x1 + x0 2^16) = a0 x1 + (a0 x0 + a1 x1) 2^16 mod 2^32, where the low part fits 16 bits with its sign
//   DOT=1  float multiply-add: products and sums stay below 2^24
//   DOT=2  the dot product instruction (OpSDot)
//
// mm_act is a block of activations made ready; it is used for many rows.

#if DOT == 2
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018], id = 4450)
int mm_sdot(uint a, uint b, spirv_literal int packed);

#define mm_act uvec4[2]
#define MM_ACT(a, lo, hi) a[0] = lo, a[1] = hi
#elif DOT == 1
#define mm_act vec4[8]
#define MM_ACT(a, lo, hi)                                  \
    for (int mm_j = 0; mm_j < 4; mm_j++) {                 \
        a[mm_j] = mm_bytes(lo[mm_j]);                      \
        a[mm_j + 4] = mm_bytes(hi[mm_j]);                  \
    }

vec4 mm_bytes(uint v)
{
    int i = int(v);
    return vec4(ivec4(i << 24, i << 16, i << 8, i) >> 24);
}
#elif WTYPE == 40
#define mm_act ivec4[4]
#define MM_ACT(a, lo, hi)          \
    a[0] = mm_pairs(lo, 0u);       \
    a[1] = mm_pairs(lo, 8u);       \
    a[2] = mm_pairs(hi, 0u);       \
    a[3] = mm_pairs(hi, 8u)

// Bytes 2 and 0 (shift 8: 3 and 1) of each word as x1 + x0 2^16.
ivec4 mm_pairs(uvec4 v, uint shift)
{
    uvec4 u = ((v ^ 0x80808080u) >> shift) & 0x00ff00ffu;
    return ivec4(((u << 16) | (u >> 16)) - 0x00800080u);
}
#else
#define mm_act ivec4[8]
#define MM_ACT(a, lo, hi)                                  \
    for (int mm_j = 0; mm_j < 4; mm_j++) {                 \
        a[mm_j] = mm_bytes(lo[mm_j]);                      \
        a[mm_j + 4] = mm_bytes(hi[mm_j]);                  \
    }

ivec4 mm_bytes(uint v)
{
    int i = int(v);
    return ivec4(i << 24, i << 16, i << 8, i) >> 24;
}
#endif

#if WTYPE == 40
// Sum of nibble * code. Word j of w holds values 4j .. 4j+3 in its low, 16+4j .. 16+4j+3 in its high nibbles.
float mm_dot(uvec4 w, mm_act x)
{
#if DOT == 2
    int s = 0;
    for (int j = 0; j < 4; j++)
        s += mm_sdot(w[j] & 0x0f0f0f0fu, x[0][j], 0) + mm_sdot((w[j] >> 4) & 0x0f0f0f0fu, x[1][j], 0);
    return float(s);
#elif DOT == 1
    vec4 s = vec4(0);
    for (int j = 0; j < 4; j++) {
        s += vec4(uvec4(w[j], w[j] >> 8, w[j] >> 16, w[j] >> 24) & 15u) * x[j];
        s += vec4(uvec4(w[j] >> 4, w[j] >> 12, w[j] >> 20, w[j] >> 28) & 15u) * x[j + 4];
    }
    return (s.x + s.y) + (s.z + s.w);
#else
    // Eight products per sum: |low part| <= 8 * 15 * 128 < 2^15, |high part| <= 2 * that < 2^15.
    ivec4 a = ivec4(w & 0x000f000fu) * x[0] + ivec4((w >> 8) & 0x000f000fu) * x[1];
    ivec4 b = ivec4((w >> 4) & 0x000f000fu) * x[2] + ivec4((w >> 12) & 0x000f000fu) * x[3];
    ivec2 s = ivec2((a.x + a.y) + (a.z + a.w), (b.x + b.y) + (b.z + b.w));
    s = (s + 0x8000) >> 16;
    return float(s.x + s.y);
#endif
}
#else
float mm_dot(uvec4 w0, uvec4 w1, mm_act x)
{
#if DOT == 2
    int s = 0;
    for (int j = 0; j < 4; j++)
        s += mm_sdot(w0[j], x[0][j], 0) + mm_sdot(w1[j], x[1][j], 0);
    return float(s);
#elif DOT == 1
    vec4 s = vec4(0);
    for (int j = 0; j < 4; j++)
        s += mm_bytes(w0[j]) * x[j] + mm_bytes(w1[j]) * x[j + 4];
    return (s.x + s.y) + (s.z + s.w);
#else
    ivec4 s = ivec4(0);
    for (int j = 0; j < 4; j++)
        s += mm_bytes(w0[j]) * x[j] + mm_bytes(w1[j]) * x[j + 4];
    return float((s.x + s.y) + (s.z + s.w));
#endif
}
#endif
