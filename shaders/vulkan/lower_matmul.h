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

#define VK_MM_VARIANTS 12u
#define VK_MM_VEC_COLS 8u /* the most columns of a mat-vec */

/* What a mat-vec takes along, as mm_epilogue.glsl numbers it. */
enum vk_mm_after { VK_MM_NONE, VK_MM_CONVERT, VK_MM_GLU, VK_MM_ADD, VK_MM_CARRY };

#define VK_MM_PARTS 3u

/* Neighbouring ops that one kernel can do, and how it is cut then. */
struct vk_mm_fused {
    const struct dl_op *part[VK_MM_PARTS]; /* matrices with the same activations */
    uint32_t n_parts, n_ops;               /* n_ops: all that is taken */
    enum vk_mm_after kind;
    const struct dl_op *after;           /* NULL: several matrices and nothing behind them */
    const struct dl_view *base;          /* ADD: what the result is added to. CARRY: what is carried */
    uint32_t rows, own, threads, passes; /* ROWS or BM, of which `own` of each matrix, WG, PASSES */
};

/* The matrix ops[0] and what of its neighbours may join it: the result is that of the ops one after the other, also in the buffers
 * between them. n_ops == 1: nothing. Pure. */
struct vk_mm_fused vk_mm_match(const struct dl_op *ops, uint32_t n);

/* Fits a variant's shape to `f`, for mat-vecs of `cols` columns: whole blocks per workgroup. False where the device has too little for it. */
bool vk_mm_fit(const struct vk_caps *caps, const struct vk_mm_variant *v, uint32_t cols, struct vk_mm_fused *f);

/* Shared memory of a tile. */
uint32_t vk_mm_tile_bytes(const struct vk_mm_variant *v, enum dl_type type);

/* Candidates for weights of a type and rows of n_in values, for up to n_tokens activation rows: different ones, best guess first,
 * the last one needs nothing optional. Returns how many. */
uint32_t vk_mm_vec_variants(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, uint32_t n_tokens,
                            struct vk_mm_variant *out);
uint32_t vk_mm_many_variants(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, uint32_t n_tokens,
                             struct vk_mm_variant *out);

#endif
