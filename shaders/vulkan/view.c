/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/view.c: bindings of what is not a plain view: rows of a weight that may be larger than a descriptor or a slab, and
 * scratch memory. For lowerings; lower.h has the rest.
 */
#include "vk.h"

static int full(struct vk_lower *l, const struct vk_dispatch *d, const char *what)
{
    if (d->n_binds < VK_BINDS)
        return DL_OK;
    return dl_fail(DL_EUNSUP, "%s: %s: %s would be binding %u, there are %u", l->ctx->label, d->shader, what,
                   d->n_binds, VK_BINDS);
}

int vk_bind_rows(struct vk_lower *l, struct vk_dispatch *d, const struct vk_buf *b, uint32_t plane, uint32_t row,
                 uint32_t rows, uint32_t *skip)
{
    int err = full(l, d, b->name);
    if (err)
        return err;
    uint64_t at = row * b->plane_row[plane], end = at + rows * b->plane_row[plane];
    uint64_t first = at / l->ctx->caps.offset_align * l->ctx->caps.offset_align;
    uint64_t range = dl_round_up(end - first, 16);
    bool one_part = row / b->part_rows == (row + rows - 1) / b->part_rows;
    if (!one_part || range > l->ctx->caps.storage_range)
        return dl_fail(DL_EUNSUP, "%s: %s: rows %u + %u of %s are more than one binding holds (%llu bytes)",
                       l->ctx->label, d->shader, row, rows, b->name, (unsigned long long)l->ctx->caps.storage_range);
    d->binds[d->n_binds++] = (struct vk_bind){b, plane, first, range};
    *skip = (uint32_t)(at - first);
    return DL_OK;
}

uint32_t vk_cache_rows(const struct vk_lower *l, const struct dl_view *v)
{
    const struct vk_buf *b = l->bufs[v->buf];
    bool from_start =
        v->offset == 0; /* plans have no other views of caches; a part of one that is cut up will not bind */
    return b && from_start && b->chunk_rows < v->rows ? b->chunk_rows : v->rows;
}

uint32_t vk_view_row(const struct vk_lower *l, const struct dl_view *v)
{
    const struct dl_buf_desc *d = &l->bufs[v->buf]->base.desc;
    return (uint32_t)(v->offset / (d->bytes / d->rows));
}

int vk_bind_scratch(struct vk_lower *l, struct vk_dispatch *d, uint64_t at, uint64_t bytes)
{
    int err = full(l, d, "scratch");
    if (err)
        return err;
    bytes = dl_round_up(bytes, 16);
    l->scratch_bytes = DL_MAX(l->scratch_bytes, at + bytes);
    d->binds[d->n_binds++] = (struct vk_bind){NULL, 0, at, bytes};
    return DL_OK;
}
