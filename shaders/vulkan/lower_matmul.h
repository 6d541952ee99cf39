/* SPDX-License-Identifier: MIT
 *
 * lower_matmul.h: the kernels that a matrix can be multiplied with, as candidates for vk_tune_pick. Names say all that differs
 * ("SG=32,LPR=32,ROWS=4,WG=64,DOT=1"), and are what DLLAMA_VK_VARIANT takes.
 */
#ifndef VK_LOWER_MATMUL_H
#define VK_LOWER_MATMUL_H

#include "vk.h"

/* mm_dot.glsl's DOT. */
enum vk_mm_dot { VK_MM_INT, VK_MM_FLOAT, VK_MM_INSTRUCTION };

struct vk_mm_variant {
    char name[64];
    bool tile;                               /* matmul_*.comp, else matvec_*.comp */
    bool half_hw;                            /* unpackHalf2x16 */
    enum vk_mm_dot dot;                      /* quantised weights */
    uint32_t subgroup, lanes, rows, threads; /* mat-vec: SG, LPR, ROWS, WG */
    uint32_t bm, bn, tm, tn, step;           /* tile: step is KB or BK */
};

#define VK_MM_VARIANTS 8u

/* Candidates for weights of a type and rows of n_in values, for up to n_tokens activation rows: different ones, best guess first,
 * the last one needs nothing optional. Returns how many. */
uint32_t vk_mm_vec_variants(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, uint32_t n_tokens,
                            struct vk_mm_variant *out);
uint32_t vk_mm_many_variants(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, uint32_t n_tokens,
                             struct vk_mm_variant *out);

#endif
