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

/* Lanes beyond a row's blocks would have nothing to do. */
static void vec(struct list *l, uint32_t subgroup, uint32_t lanes, uint32_t rows, uint32_t threads, enum vk_mm_dot dot,
                bool half_hw)
{
    struct vk_mm_variant v = {.dot = dot, .half_hw = half_hw, .subgroup = subgroup, .rows = rows, .threads = threads};
    v.lanes = DL_MIN(lanes, pow2_up(l->steps));
    snprintf(v.name, sizeof v.name, "SG=%u,LPR=%u,ROWS=%u,WG=%u", v.subgroup, v.lanes, v.rows, v.threads);
    name_dot(&v, l->type);
    add(l, v);
}

static void tile(struct list *l, uint32_t bm, uint32_t bn, uint32_t tm, uint32_t tn, enum vk_mm_dot dot, bool half_hw)
{
    struct vk_mm_variant v = {.tile = true, .dot = dot, .half_hw = half_hw, .bm = bm, .bn = bn, .tm = tm, .tn = tn};
    v.step = dl_type_quantised(l->type) ? 2 : 16;
    uint32_t bytes = dl_type_quantised(l->type) ? v.step * (bm * (l->type == DL_Q40 ? 20 : 36) + bn * 40)
                                                : v.step * (bm + bn + 2) * 4;
    if (bytes > DL_MAX(l->caps->shared_bytes, TILE_BYTES) || bm / tm * (bn / tn) > l->caps->max_invocations)
        return;
    snprintf(v.name, sizeof v.name, "BM=%u,BN=%u,TM=%u,TN=%u,K=%u", bm, bn, tm, tn, v.step);
    name_dot(&v, l->type);
    add(l, v);
}

static struct list start(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, struct vk_mm_variant *out)
{
    uint32_t values = dl_type_quantised(type) ? DL_BLOCK : type == DL_F32 ? 4 : 8;
    return (struct list){.caps = caps, .type = type, .steps = n_in / values + 1, .out = out};
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

uint32_t vk_mm_vec_variants(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, uint32_t n_tokens,
                            struct vk_mm_variant *out)
{
    struct list l = start(caps, type, n_in, out);
    uint32_t sg = caps->subgroup_shuffle ? caps->subgroup : 1, threads = DL_MAX(VEC_THREADS, sg);
    if (caps->software) {
        software_vec(&l, n_tokens);
    } else {
        uint32_t lanes = sg > 1 ? sg : 32, rows = n_tokens > 2 ? 2 : 4;
        enum vk_mm_dot dot = caps->int_dot && caps->int_dot_fast ? VK_MM_INSTRUCTION : VK_MM_FLOAT;
        vec(&l, sg, lanes, rows, threads, dot, false);
        vec(&l, sg, lanes, rows / 2, threads, dot, false);
        vec(&l, sg, lanes, rows * 2, threads, dot, false);
        vec(&l, sg, lanes / 2, rows, threads, dot, false);
        if (type == DL_F16)
            vec(&l, sg, lanes, rows, threads, dot, true);
        if (dot != VK_MM_FLOAT)
            vec(&l, sg, lanes, rows, threads, VK_MM_FLOAT, false);
    }
    vec(&l, 1, 8, 4, 32, VK_MM_INT, false);
    return l.n;
}

uint32_t vk_mm_many_variants(const struct vk_caps *caps, enum dl_type type, uint32_t n_in, uint32_t n_tokens,
                             struct vk_mm_variant *out)
{
    struct list l = start(caps, type, n_in, out);
    if (caps->software) {
        software_vec(&l, 8);
    } else {
        enum vk_mm_dot dot = caps->int_dot && caps->int_dot_fast ? VK_MM_INSTRUCTION : VK_MM_FLOAT;
        if (n_tokens <= 16)
            tile(&l, 64, 16, 4, 2, dot, false);
        if (n_tokens > 32)
            tile(&l, 64, 64, 8, 4, dot, false);
        tile(&l, 64, 32, 4, 4, dot, false);
        tile(&l, 32, 32, 4, 2, dot, false);
        if (type == DL_F16)
            tile(&l, 64, 32, 4, 4, dot, true);
        if (dot != VK_MM_FLOAT)
            tile(&l, 64, 32, 4, 4, VK_MM_FLOAT, false);
    }
    tile(&l, 64, 32, 4, 4, VK_MM_INT, false);
    return l.n;
}
