// SPDX-License-Identifier: MIT
//
// act.glsl: the activation of GLU; ACT 0: silu(x) = x / (1 + exp(-x)), 1: gelu in its tanh form, written with
// x/2 (1 + tanh y) = x / (1 + exp(-2 y)), which loses nothing for negative x.
#include "math.glsl"

float act(float x)
{
#if ACT == 0
    return x / (1.0 + exp_f32(-x));
#else
    return x / (1.0 + exp_f32(-1.5957691216057308 * (x + 0.044715 * x * x * x)));
#endif
}
