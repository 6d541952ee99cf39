// SPDX-License-Identifier: MIT
//
// mm_buffers_f.glsl: what kernels of float matrices bind, in the order of vulkan/lower_matmul.c; mm_emit.glsl's come after these.

layout(std430, binding = 1) readonly buffer mm_w
{
    uvec4 w[];
};
layout(std430, binding = 2) readonly buffer mm_x
{
    float x[];
};
layout(std430, binding = 3) buffer mm_y
{
    float y[];
};
#if BIAS || MOE
layout(std430, binding = 4) readonly buffer mm_extra
{
    float extra[]; // bias, or the route
};
#endif
#if PARTS > 1
layout(std430, binding = 4 + BIAS + MOE) readonly buffer mm_w1
{
    uvec4 w1[];
};
#if BIAS
layout(std430, binding = 6) readonly buffer mm_extra1
{
    float extra1[];
};
#endif
#endif
#if PARTS > 2
layout(std430, binding = 5 + 2 * BIAS) readonly buffer mm_w2
{
    uvec4 w2[];
};
#if BIAS
layout(std430, binding = 8) readonly buffer mm_extra2
{
    float extra2[];
};
#endif
#endif
