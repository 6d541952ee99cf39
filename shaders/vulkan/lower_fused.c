/* SPDX-License-Identifier: MIT
 *
 * lower_fused.c: which neighbours a matrix takes into its kernel: q, k and v together; gate and up with their GLU; the conversion of a
 * result for the next matrix or for the wire; the residual where no norm takes it. Decides only: lower_matmul.c makes the dispatch.
 *
 * The F32 values between the ops are written all the same: next to reading the weights that is nothing, and nobody has to know who
 * reads them later.
 */
#include "kernels.h"
#include "lower_matmul.h"

#define MOST_THREADS 256u

static bool same_view(const struct dl_view *a, const struct dl_view *b)
{
    return a->buf == b->buf && a->offset == b->offset && a->row_bytes == b->row_bytes && a->cols == b->cols &&
           a->type == b->type;
}

static bool same_rows(const struct dl_op *a, const struct dl_op *b)
{
    return a->count == b->count && a->mult == b->mult;
}

/* Matrices of one kind with the same activations, none of which reads or writes what another writes. */
static bool alike(const struct dl_op *a, const struct dl_op *b)
{
    const struct dl_view *v = &a->src[1], *w = &b->src[1];
    bool moe = a->code == DL_OP_MOE_MATMUL;
    return a->code == b->code && same_rows(a, b) && same_view(&a->src[0], &b->src[0]) && v->type == w->type &&
           v->cols == w->cols && a->dst.row_bytes == b->dst.row_bytes &&
           (moe ? same_view(&a->src[2], &b->src[2]) && a->u.moe.n_experts == b->u.moe.n_experts &&
                      a->u.moe.shared_src == b->u.moe.shared_src
                : (a->src[2].buf == DL_NO_BUF) == (b->src[2].buf == DL_NO_BUF)) &&
           !dl_op_conflict(a, b);
}

static bool reads(const struct dl_op *op, uint32_t buf)
{
    return op->src[0].buf == buf || op->src[1].buf == buf || op->src[2].buf == buf;
}

static bool glu(const struct dl_op *ops, uint32_t n, struct vk_mm_fused *f)
{
    if (n < 3 || ops[2].code != DL_OP_GLU || !alike(&ops[0], &ops[1]) || !same_rows(&ops[0], &ops[2]) ||
        !same_view(&ops[2].src[0], &ops[0].dst) || !same_view(&ops[2].src[1], &ops[1].dst) ||
        ops[0].dst.buf == ops[1].dst.buf || reads(&ops[2], ops[2].dst.buf) || reads(&ops[0], ops[2].dst.buf) ||
        reads(&ops[1], ops[2].dst.buf) || (ops[0].code == DL_OP_MATMUL && ops[0].src[2].buf != DL_NO_BUF))
        return false;
    *f =
        (struct vk_mm_fused){.part = {&ops[0], &ops[1]}, .n_parts = 2, .n_ops = 3, .kind = VK_MM_GLU, .after = &ops[2]};
    return true;
}

/* Results are columns of one buffer. */
static bool side_by_side(const struct dl_op *ops, uint32_t n, struct vk_mm_fused *f)
{
    uint32_t k = 1;
    for (bool fits = true; fits && k < n && k < VK_MM_PARTS; k += fits) {
        fits = ops[0].code == DL_OP_MATMUL && ops[k].dst.buf == ops[0].dst.buf;
        for (uint32_t i = 0; fits && i < k; i++)
            fits = alike(&ops[i], &ops[k]);
    }
    *f = (struct vk_mm_fused){.n_parts = k, .n_ops = k};
    for (uint32_t i = 0; i < k; i++)
        f->part[i] = &ops[i];
    return k > 1;
}

static bool follower(const struct dl_op *ops, uint32_t n, struct vk_mm_fused *f)
{
    const struct dl_op *op = &ops[0], *next = &ops[1];
    if (n < 2 || op->code != DL_OP_MATMUL || !same_rows(op, next) || next->dst.buf == op->dst.buf ||
        reads(op, next->dst.buf))
        return false;
    *f = (struct vk_mm_fused){.part = {op}, .n_parts = 1, .n_ops = 2, .after = next};
    if (next->code == DL_OP_CONVERT) {
        const bool carries = dl_op_carries(next);
        f->kind = carries ? VK_MM_CARRY : VK_MM_CONVERT;
        f->base = carries ? &next->src[1] : NULL;
        return same_view(&next->src[0], &op->dst) &&
               !(carries && (f->base->buf == op->dst.buf || f->base->buf == next->dst.buf || reads(op, f->base->buf)));
    }
    if (next->code != DL_OP_ADD)
        return false;
    f->kind = VK_MM_ADD;
    bool first = same_view(&next->src[0], &op->dst);
    f->base = &next->src[first ? 1 : 0];
    /* A norm that follows takes the sum along, and reads whole rows anyway. */
    bool norm = n > 2 && ops[2].code == DL_OP_RMS_NORM && same_view(&ops[2].src[0], &next->dst);
    return !norm && (first || same_view(&next->src[1], &op->dst)) && f->base->buf != op->dst.buf &&
           (f->base->buf != next->dst.buf || same_view(f->base, &next->dst));
}

struct vk_mm_fused vk_mm_match(const struct dl_op *ops, uint32_t n)
{
    struct vk_mm_fused f;
    if (glu(ops, n, &f) || side_by_side(ops, n, &f) || follower(ops, n, &f))
        return f;
    return (struct vk_mm_fused){.part = {ops}, .n_parts = 1, .n_ops = 1};
}

/* Whole blocks of rows for a workgroup of up to `most` lanes. */
static bool blocks(const struct vk_mm_variant *v, uint32_t most, struct vk_mm_fused *f)
{
    f->threads = v->threads;
    while ((f->threads % 8 || f->threads / v->lanes * f->own % DL_BLOCK) && 2 * f->threads <= most)
        f->threads *= 2;
    f->passes = 1;
    while (f->threads / v->lanes * f->own * f->passes % DL_BLOCK && f->passes < DL_BLOCK)
        f->passes *= 2;
    return f->threads % 8 == 0 && f->threads / v->lanes * f->own * f->passes % DL_BLOCK == 0;
}

static uint64_t shared_bytes(const struct vk_mm_variant *v, uint32_t cols, const struct vk_mm_fused *f)
{
    const uint64_t span = (uint64_t)f->threads / v->lanes * f->own * f->passes;
    uint64_t floats = span * cols * (f->kind == VK_MM_GLU ? 2 : 1) + 2 * f->threads;
    if (v->subgroup <= 1 && v->lanes > 1) /* they add up there, too */
        floats += (uint64_t)f->rows * cols * f->threads;
    return floats * sizeof(float);
}

/* A tile of two matrices has half of its rows from each. Results meet beside what is multiplied. */
static bool fit_tile(const struct vk_caps *caps, const struct vk_mm_variant *v, struct vk_mm_fused *f)
{
    f->rows = v->bm;
    f->own = f->kind == VK_MM_GLU ? v->bm / 2 : v->bm;
    f->threads = v->bm / v->tm * (v->bn / v->tn);
    if (f->kind == VK_MM_NONE)
        return true;
    const uint32_t bytes = vk_mm_tile_bytes(v, f->part[0]->src[1].type) + (v->bm * v->bn + 2 * f->threads) * 4;
    return f->own % DL_BLOCK == 0 && f->threads % 8 == 0 && bytes <= caps->shared_bytes;
}

bool vk_mm_fit(const struct vk_caps *caps, const struct vk_mm_variant *v, uint32_t cols, struct vk_mm_fused *f)
{
    f->rows = f->own = v->rows;
    f->threads = v->threads;
    f->passes = 1;
    if (v->tile)
        return fit_tile(caps, v, f);
    if (f->kind == VK_MM_GLU) { /* many columns have registers for no more rows than without it */
        f->own = cols > 2 ? DL_MAX(v->rows / 2, 1u) : v->rows;
        f->rows = 2 * f->own;
    }
    if (f->kind == VK_MM_NONE)
        return true;
    /* More lanes rather than more passes, as far as they and their memory go. */
    uint32_t most = DL_MIN(DL_MIN(caps->max_invocations, caps->max_local[0]), MOST_THREADS);
    for (; most >= v->threads; most /= 2)
        if (blocks(v, most, f) && shared_bytes(v, cols, f) <= caps->shared_bytes)
            return true;
    return false;
}
