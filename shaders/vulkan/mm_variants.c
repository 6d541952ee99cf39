/* SPDX-License-Identifier: MIT
 *
 * mm_variants.c: which matrix kernels a device could use, best guess first. Guesses by kind of device; vk_tune_pick measures.
 */
#include "lower_matmul.h"

#include <stdio.h>
#include <string.h>

#define VEC_THREADS 64u
#define TILE_BYTES (16u << 10) /* shared memory that every device has */

static uint32_t pow2_up(uint32_t n)
{
    uint32_t p = 1;
    while (p < n)
        p *= 2;
    return p;
}

struct list {
    const struct vk_caps *caps;
    enum dl_type type;
    uint32_t steps; /* 16-byte or 32-byte loads that a row of weights takes */
    uint32_t cols;  /* of a mat-vec */
    struct vk_mm_variant *out;
    uint32_t n;
};

static void add(struct list *l, struct vk_mm_variant v)
{
    for (uint32_t i = 0; i < l->n; i++)
        if (!strcmp(l->out[i].name, v.name))
            return;
    if (l->n < VK_MM_VARIANTS)
        l->out[l->n++] = v;
}

static void name_dot(struct vk_mm_variant *v, enum dl_type type)
{
    size_t at = strlen(v->name);
    if (dl_type_quantised(type))
        snprintf(v->name + at, sizeof v->name - at, ",DOT=%d", (int)v->dot);
    else if (v->half_hw)
        snprintf(v->name + at, sizeof v->name - at, ",HALF=1");
}

/* Lanes beyond a row's blocks would have nothing to do. Without subgroups they add up in shared memory. */
static void vec(struct list *l, uint32_t subgroup, uint32_t lanes, uint32_t rows, uint32_t threads, enum vk_mm_dot dot,
                bool half_hw)
{
    struct vk_mm_variant v = {.dot = dot, .half_hw = half_hw, .subgroup = subgroup, .rows = rows, .threads = threads};
    v.lanes = DL_MIN(lanes, pow2_up(l->steps));
    if (rows == 0 || threads > DL_MIN(l->caps->max_invocations, l->caps->max_local[0]) ||
        (subgroup <= 1 && v.lanes > 1 && rows * l->cols * threads * 4 > DL_MAX(l->caps->shared_bytes, TILE_BYTES)))
        return;
    snprintf(v.name, sizeof v.name, "SG=%u,LPR=%u,ROWS=%u,WG=%u", v.subgroup, v.lanes, v.rows, v.threads);
    name_dot(&v, l->type);
    add(l, v);
}

uint32_t vk_mm_tile_bytes(const struct vk_mm_variant *v, enum dl_type type)
{
    return dl_type_quantised(type) ? v->step * (v->bm * (type == DL_Q40 ? 20 : 36) + v->bn * 40)
                                   : v->step * (v->bm + v->bn + 2) * 4;
}

/* `blocks`: of quantised weights between two barriers. */
static void tile(struct list *l, uint32_t bm, uint32_t bn, uint32_t tm, uint32_t tn, uint32_t blocks,
                 enum vk_mm_dot dot, bool half_hw)
{
    struct vk_mm_variant v = {.tile = true, .dot = dot, .half_hw = half_hw, .bm = bm, .bn = bn, .tm = tm, .tn = tn};
    v.step = dl_type_quantised(l->type) ? blocks : 8 * blocks;
    if (vk_mm_tile_bytes(&v, l->type) > DL_MAX(l->caps->shared_bytes, TILE_BYTES) ||
        bm / tm * (bn / tn) > l->caps->max_invocations)
        return;
    snprintf(v.name, sizeof v.name, "BM=%u,BN=%u,TM=%u,TN=%u,K=%u", bm, bn, tm, tn, v.step);
    name_dot(&v, l->type);
    add(l, v);
}

static struct list start(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, uint32_t n_tokens,
                         struct vk_mm_variant *out)
{
    uint32_t values = dl_type_quantised(type) ? DL_BLOCK : type == DL_F32 ? 4 : 8;
    return (struct list){.caps = caps,
                         .type = type,
                         .steps = n_in / values + 1,
                         .cols = DL_MIN(pow2_up(n_tokens), VK_MM_VEC_COLS),
                         .out = out};
}

/* A software device has no lanes to keep busy: what counts is how much of the activations' loads and unpacking rows share. */
static void software_vec(struct list *l, uint32_t n_tokens)
{
    uint32_t sg = l->caps->subgroup, rows = n_tokens > 2 ? 8 : 4;
    vec(l, 1, 1, rows, 32, VK_MM_INT, false);
    vec(l, 1, 1, rows, 8, VK_MM_INT, false); /* for few rows and many cores */
    if (sg > 1 && l->caps->subgroup_shuffle)
        vec(l, sg, sg, 8, sg, VK_MM_INT, false);
}

/* What a card computes fastest with is a matter of its compiler as much as of its lanes: around the guess, one or two things changed at a
 * time. Few lanes per row are for short rows (slices of many nodes), several subgroups per workgroup for matrices of few rows. */
static void card_vec(struct list *l, uint32_t n_tokens)
{
    const struct vk_caps *caps = l->caps;
    const uint32_t sg = caps->subgroup_shuffle ? caps->subgroup : 1, lanes = sg > 1 ? sg : 32;
    const uint32_t threads = DL_MAX(VEC_THREADS, sg), rows = n_tokens > 2 ? 2 : 4;
    const bool fast = caps->int_dot && caps->int_dot_fast;
    const enum vk_mm_dot dot = fast ? VK_MM_INSTRUCTION : VK_MM_FLOAT, other = fast ? VK_MM_FLOAT : VK_MM_INT;
    vec(l, sg, lanes, rows, threads, dot, false);
    vec(l, sg, lanes, rows / 2, threads, dot, false);
    vec(l, sg, lanes, rows * 2, threads, dot, false);
    vec(l, sg, lanes / 2, rows, threads, dot, false);
    vec(l, sg, lanes, rows, 4 * threads, dot, false);
    if (l->type == DL_F16)
        vec(l, sg, lanes, rows, threads, dot, true);
    vec(l, sg, lanes, rows, threads, other, false);
    vec(l, sg, lanes / 4, rows, threads, dot, false);
    vec(l, sg, lanes, rows / 2, 4 * threads, dot, false);
    if (sg > 1)
        vec(l, sg, lanes, rows, sg, dot, false);
}

uint32_t vk_mm_vec_variants(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, uint32_t n_tokens,
                            struct vk_mm_variant *out)
{
    struct list l = start(caps, type, n_in, n_tokens, out);
    if (caps->software)
        software_vec(&l, n_tokens);
    else
        card_vec(&l, n_tokens);
    vec(&l, 1, 8, 4, 32, VK_MM_INT, false);
    return l.n;
}

/* The tile that is as wide as the batch reads weights once, narrower ones keep more workgroups busy; so do those of fewer rows. Up
 * to 32 columns mat-vecs side by side may be as good: they find each other's weights in a cache. */
static void card_tiles(struct list *l, uint32_t n_tokens)
{
    const struct vk_caps *caps = l->caps;
    const bool fast = caps->int_dot && caps->int_dot_fast;
    const enum vk_mm_dot dot = fast ? VK_MM_INSTRUCTION : VK_MM_FLOAT;
    const uint32_t sg = caps->subgroup_shuffle ? caps->subgroup : 1;
    if (n_tokens <= 16) {
        tile(l, 64, 16, 4, 2, 2, dot, false);
        tile(l, 32, 16, 2, 2, 2, dot, false);
        tile(l, 64, 16, 4, 2, 4, dot, false);
    } else if (n_tokens <= 32) {
        tile(l, 64, 32, 4, 4, 2, dot, false);
        tile(l, 64, 16, 4, 2, 2, dot, false);
        tile(l, 64, 32, 4, 4, 4, dot, false);
        tile(l, 32, 32, 4, 2, 2, dot, false);
    } else {
        tile(l, 64, 64, 8, 4, 2, dot, false);
        if (n_tokens > 64)
            tile(l, 128, 64, 8, 8, 2, dot, false);
        tile(l, 64, 64, 8, 4, 4, dot, false);
        tile(l, 64, 32, 4, 4, 2, dot, false);
        tile(l, 32, 32, 4, 2, 2, dot, false);
    }
    if (n_tokens <= 32)
        vec(l, sg, sg > 1 ? sg : 32, 2, DL_MAX(VEC_THREADS, sg), dot, false);
    if (l->type == DL_F16)
        tile(l, 64, 32, 4, 4, 2, dot, true);
    if (fast)
        tile(l, 64, 32, 4, 4, 2, VK_MM_FLOAT, false);
}

uint32_t vk_mm_many_variants(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, uint32_t n_tokens,
                             struct vk_mm_variant *out)
{
    struct list l = start(caps, type, n_in, n_tokens, out);
    if (caps->software)
        software_vec(&l, VK_MM_VEC_COLS);
    else
        card_tiles(&l, n_tokens);
    tile(&l, 64, 32, 4, 4, 2, VK_MM_INT, false);
    return l.n;
}
