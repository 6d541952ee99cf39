// SPDX-License-Identifier: MIT
//
// mm_buffers_q.glsl: what kernels of quantised matrices bind, in the order of vulkan/lower_matmul.c; mm_emit.glsl's come after these.

layout(std430, binding = 1) readonly buffer mm_w
{
    uvec4 w[];
};
layout(std430, binding = 2) readonly buffer mm_ws
{
    uint ws[];
};
layout(std430, binding = 3) readonly buffer mm_x
{
    uvec4 x[];
};
layout(std430, binding = 4) readonly buffer mm_xd
{
    float xd[];
};
layout(std430, binding = 5) readonly buffer mm_xs
{
    float xs[];
};
layout(std430, binding = 6) buffer mm_y
{
    float y[];
};
#if BIAS || MOE
layout(std430, binding = 7) readonly buffer mm_extra
{
    float extra[]; // bias, or the route
};
#endif
#if PARTS > 1
layout(std430, binding = 7 + BIAS + MOE) readonly buffer mm_w1
{
    uvec4 w1[];
};
layout(std430, binding = 8 + BIAS + MOE) readonly buffer mm_ws1
{
    uint ws1[];
};
#if BIAS
layout(std430, binding = 10) readonly buffer mm_extra1
{
    float extra1[];
};
#endif
#endif
#if PARTS > 2
layout(std430, binding = 9 + 2 * BIAS) readonly buffer mm_w2
{
    uvec4 w2[];
};
layout(std430, binding = 10 + 2 * BIAS) readonly buffer mm_ws2
{
    uint ws2[];
};
#if BIAS
layout(std430, binding = 13) readonly buffer mm_extra2
{
    float extra2[];
};
#endif
#endif
