/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/planes.c: how a buffer's values are laid out in device memory (vk.h, enum vk_layout), and the conversion of host bytes
 * to that and back. Pure but for messages: touches no Vulkan object.
 */
#include "memory.h"

#include <string.h>

#define SLAB_BYTES ((uint64_t)1 << 30) /* no allocation is larger */
#define PLANE_ALIGN 256u               /* no device wants more of a descriptor's offset */
#define TAIL 16u                       /* readable bytes behind each plane, so that kernels load whole vectors */

static void set_planes(struct vk_buf *b)
{
    const struct dl_buf_desc *d = &b->base.desc;
    uint64_t row = d->bytes / d->rows, blocks = d->cols / DL_BLOCK;
    if (d->use == DL_BUF_WEIGHT && dl_type_quantised(d->type)) {
        b->layout = VK_SOA_W;
        b->n_planes = 2;
        b->plane_row[0] = blocks * (d->type == DL_Q40 ? DL_BLOCK / 2 : DL_BLOCK);
        b->plane_row[1] = dl_round_up(blocks, 2) * sizeof(uint16_t);
    } else if ((d->use == DL_BUF_ACT || d->use == DL_BUF_KV) && d->type == DL_Q80) {
        b->layout = VK_SOA_A;
        b->n_planes = 3;
        b->plane_row[0] = d->cols;
        b->plane_row[1] = b->plane_row[2] = blocks * sizeof(float);
    } else {
        b->layout = VK_PLAIN;
        b->n_planes = 1;
        b->plane_row[0] = d->use == DL_BUF_WEIGHT ? dl_round_up(row, 16) : row;
    }
    for (uint32_t p = 0; p < b->n_planes; p++)
        b->plane_bytes[p] = b->plane_row[p] * d->rows;
}

int vk_planes_lay_out(const struct vk_ctx *c, struct vk_buf *b)
{
    const struct dl_buf_desc *d = &b->base.desc;
    set_planes(b);
    uint64_t longest = 0, sum = 0;
    for (uint32_t p = 0; p < b->n_planes; p++) {
        longest = DL_MAX(longest, b->plane_row[p]);
        sum += b->plane_row[p];
    }
    /* Room for what rounding puts before and behind: descriptors start and end on multiples of 16 or 256. */
    const uint64_t slack = 2 * PLANE_ALIGN;
    uint64_t range = DL_MIN(c->caps.storage_range, c->caps.max_alloc), slab = DL_MIN(SLAB_BYTES, c->caps.max_alloc);
    uint64_t room = (VK_PLANES + 1) * slack;
    if (range <= slack || slab <= room)
        return dl_fail(DL_ELIMIT, "%s: buffers are limited to %llu bytes, which is of no use", c->label,
                       (unsigned long long)DL_MIN(range, slab));
    uint64_t by_range = (range - slack) / longest, by_slab = (slab - room) / sum;
    b->chunk_rows = d->rows;
    b->part_rows = d->rows;
    b->n_parts = 1;
    if (by_range >= d->rows && by_slab >= d->rows)
        return DL_OK;
    if (d->use != DL_BUF_WEIGHT && d->use != DL_BUF_KV)
        return dl_fail(DL_ELIMIT,
                       "%s: buffer %s needs %llu bytes, one may have %llu here; use a smaller --batch or --device cpu",
                       c->label, d->name, (unsigned long long)d->bytes, (unsigned long long)DL_MIN(range, slab));
    /* Whole multiples of 256 rows start at multiples of 256 bytes in every plane. */
    uint64_t chunk = DL_MIN(DL_MIN(by_range, by_slab), d->rows) / PLANE_ALIGN * PLANE_ALIGN;
    if (!chunk)
        return dl_fail(DL_ELIMIT, "%s: buffer %s has rows of %llu bytes, too long for the %llu that can be bound",
                       c->label, d->name, (unsigned long long)longest, (unsigned long long)range);
    b->chunk_rows = (uint32_t)chunk;
    if (by_slab < d->rows) {
        b->part_rows = (uint32_t)(by_slab / chunk * chunk);
        b->n_parts = (uint32_t)dl_div_up(d->rows, b->part_rows);
    }
    return DL_OK;
}

uint32_t vk_part_rows(const struct vk_buf *b, uint32_t part)
{
    uint64_t first = (uint64_t)part * b->part_rows;
    return (uint32_t)DL_MIN(b->part_rows, b->base.desc.rows - first);
}

uint64_t vk_part_lay_out(struct vk_buf *b, uint32_t part)
{
    uint64_t at = 0;
    for (uint32_t p = 0; p < b->n_planes; p++) {
        b->parts[part].plane_at[p] = at;
        at = dl_round_up(at + b->plane_row[p] * vk_part_rows(b, part) + TAIL, PLANE_ALIGN);
    }
    return at;
}

struct vk_units vk_units_of(const struct vk_buf *b)
{
    const struct dl_buf_desc *d = &b->base.desc;
    if (b->layout == VK_SOA_A)
        return (struct vk_units){sizeof(struct dl_q80), {DL_BLOCK, sizeof(float), sizeof(float)}};
    if (d->use == DL_BUF_WEIGHT)
        return (struct vk_units){d->bytes / d->rows, {b->plane_row[0], b->plane_row[1], b->plane_row[2]}};
    return (struct vk_units){1, {1}};
}

/* By bits, so that what is no number survives the way in and out. */
static uint32_t widen(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = h >> 10 & 31u, man = h & 0x3ffu;
    if (exp == 31)
        return sign | 0x7f800000u | man << 13;
    float f = dl_f16_to_f32(h);
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static uint16_t narrow(uint32_t u)
{
    if ((u & 0x7f800000u) == 0x7f800000u)
        return (uint16_t)((u >> 16 & 0x8000u) | 0x7c00u | (u >> 13 & 0x3ffu));
    float f;
    memcpy(&f, &u, sizeof f);
    return dl_f32_to_f16(f);
}

static void soa_a_in(const uint8_t *host, uint8_t *const planes[VK_PLANES], uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        struct dl_q80 q;
        memcpy(&q, host + i * sizeof q, sizeof q);
        int32_t sum = 0;
        for (int j = 0; j < DL_BLOCK; j++)
            sum += q.qs[j];
        uint32_t d = widen(q.d);
        float scale;
        memcpy(&scale, &d, sizeof scale);
        scale *= (float)sum;
        memcpy(planes[0] + i * DL_BLOCK, q.qs, DL_BLOCK);
        memcpy(planes[1] + i * sizeof d, &d, sizeof d);
        memcpy(planes[2] + i * sizeof scale, &scale, sizeof scale);
    }
}

static void soa_w_in(const struct vk_buf *b, const uint8_t *host, uint8_t *const planes[VK_PLANES], uint64_t n)
{
    const struct dl_buf_desc *d = &b->base.desc;
    const size_t codes = d->type == DL_Q40 ? DL_BLOCK / 2 : DL_BLOCK, block = sizeof(uint16_t) + codes;
    const uint64_t blocks = d->cols / DL_BLOCK, pad = b->plane_row[1] - blocks * sizeof(uint16_t);
    for (uint64_t r = 0; r < n; r++) {
        uint8_t *q = planes[0] + r * b->plane_row[0], *s = planes[1] + r * b->plane_row[1];
        for (uint64_t i = 0; i < blocks; i++, host += block) {
            memcpy(s + i * sizeof(uint16_t), host, sizeof(uint16_t));
            memcpy(q + i * codes, host + sizeof(uint16_t), codes);
        }
        memset(s + blocks * sizeof(uint16_t), 0, pad);
    }
}

void vk_units_in(const struct vk_buf *b, const uint8_t *host, uint8_t *const planes[VK_PLANES], uint64_t n)
{
    struct vk_units u = vk_units_of(b);
    if (b->layout == VK_SOA_A) {
        soa_a_in(host, planes, n);
    } else if (b->layout == VK_SOA_W) {
        soa_w_in(b, host, planes, n);
    } else if (u.host == u.plane[0]) {
        memcpy(planes[0], host, n * u.host);
    } else {
        for (uint64_t r = 0; r < n; r++) {
            memcpy(planes[0] + r * u.plane[0], host + r * u.host, u.host);
            memset(planes[0] + r * u.plane[0] + u.host, 0, u.plane[0] - u.host);
        }
    }
}

/* Weights are never read back (dl/device.h). */
void vk_units_out(const struct vk_buf *b, const uint8_t *const planes[VK_PLANES], uint8_t *host, uint64_t n)
{
    if (b->layout != VK_SOA_A) {
        memcpy(host, planes[0], n);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t d;
        memcpy(&d, planes[1] + i * sizeof d, sizeof d);
        struct dl_q80 q = {.d = narrow(d)};
        memcpy(q.qs, planes[0] + i * DL_BLOCK, DL_BLOCK);
        memcpy(host + i * sizeof q, &q, sizeof q);
    }
}
