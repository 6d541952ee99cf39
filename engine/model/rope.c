/* SPDX-License-Identifier: MIT
 *
 * engine/model/rope.c: rotary position angles, in double on the host, so that every device and every node turns by the same bits.
 * (Vulkan promises sin and cos only to 2^-11.)
 */
#include "dl/model.h"

#include <math.h>

#define PI 3.14159265358979323846

static double llama31(const struct dl_model_header *h, double freq)
{
    double wave = 2 * PI / freq, orig = h->rope_orig_ctx;
    double longest = orig / (double)h->rope_low_freq, shortest = orig / (double)h->rope_high_freq;
    if (wave < shortest)
        return freq;
    if (wave > longest)
        return freq / (double)h->rope_factor;
    double span = (double)h->rope_high_freq - (double)h->rope_low_freq;
    double keep = span > 0 ? (orig / wave - (double)h->rope_low_freq) / span : 1;
    return (1 - keep) * freq / (double)h->rope_factor + keep * freq;
}

void dl_rope_angles(const struct dl_model_header *h, const float *factors, uint32_t pos, float *out)
{
    for (uint32_t i = 0; i < h->n_rot / 2; i++) {
        double freq = pow(h->rope_theta, -2.0 * (double)i / (double)h->n_rot);
        switch (h->rope_scaling) {
        case DL_ROPE_SCALE_NONE:
            break;
        case DL_ROPE_SCALE_LINEAR:
            freq /= (double)h->rope_factor;
            break;
        case DL_ROPE_SCALE_LLAMA31:
            freq = llama31(h, freq);
            break;
        case DL_ROPE_SCALE_TABLE:
            freq /= factors ? (double)factors[i] : 1.0;
            break;
        }
        out[2 * i] = (float)cos((double)pos * freq);
        out[2 * i + 1] = (float)sin((double)pos * freq);
    }
}
