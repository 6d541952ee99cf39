/* SPDX-License-Identifier: MIT
 *
 * memory.h: what memory.c, slab.c and planes.c share. slab.c owns device allocations and where buffers lie in them; planes.c is pure: sizes
 * of planes and the conversion of host bytes; memory.c owns buffers and moves bytes.
 */
#ifndef VK_MEMORY_H
#define VK_MEMORY_H

#include "vk.h"

/* ---------------------------------------------------------------------------------------------------- slabs */

/* One device allocation, with its unused ranges in ascending order, none next to another. */
struct vk_range {
    uint64_t at, bytes;
};
struct vk_slab {
    VkDeviceMemory memory; /* null: the entry is free */
    uint64_t bytes;
    uint32_t type;
    void *mapped; /* host-visible types: all of it, for ever */
    struct vk_range *unused;
    size_t n_unused, cap_unused;
};

struct vk_memory {
    struct vk_slab *slabs;
    size_t n, cap;
    uint64_t heap_used[VK_MAX_MEMORY_HEAPS]; /* by our slabs */

    /* Two halves that take turns: one is filled while the other is copied from. */
    struct vk_half {
        VkBuffer handle;
        uint32_t slab;
        uint64_t slab_at;
        uint8_t *mapped;
        VkCommandBuffer cmd;
        VkFence fence;
        bool busy;
    } half[2];
    uint32_t next_half;
    uint64_t last_serial;
};

#define VK_HALF_BYTES ((uint64_t)8 << 20)

/* What memory is for; decides which types may hold it. */
enum vk_where { VK_WHERE_DEVICE, VK_WHERE_UPLOAD, VK_WHERE_READBACK, VK_WHERE_SHARED };

/* Finds room for a buffer of these requirements and binds it. DL_ELIMIT (logged with needed and free) where the budget is short,
 * DL_ENOMEM where the driver says so. `name` is for messages. */
int vk_slab_place(struct vk_ctx *c, VkBuffer handle, enum vk_where where, const char *name, uint32_t *slab,
                  uint64_t *at, uint64_t *bytes);
void vk_slab_give_back(struct vk_ctx *c, uint32_t slab, uint64_t at, uint64_t bytes);
/* Frees what is left. */
void vk_slabs_close(struct vk_ctx *c);

/* Whether the host sees a slab's writes without being told. */
bool vk_slab_coherent(const struct vk_ctx *c, uint32_t slab);

/* --------------------------------------------------------------------------------------------------- planes */

/* Fills in layout, planes, chunk_rows, part_rows and n_parts for b->base.desc. DL_ELIMIT (logged) where it cannot be bound. */
int vk_planes_lay_out(const struct vk_ctx *c, struct vk_buf *b);

uint32_t vk_part_rows(const struct vk_buf *b, uint32_t part);
/* Bytes of part `part`'s VkBuffer; fills in its plane_at. */
uint64_t vk_part_lay_out(struct vk_buf *b, uint32_t part);

/* Bytes are moved in units: a row of a weight, a block of a SOA_A buffer, a byte of all others. */
struct vk_units {
    uint64_t host;             /* bytes of a unit on the host */
    uint64_t plane[VK_PLANES]; /* and in each plane; 0: none */
};
struct vk_units vk_units_of(const struct vk_buf *b);

/* n units, from host bytes to planes and back. Any alignment. */
void vk_units_in(const struct vk_buf *b, const uint8_t *host, uint8_t *const planes[VK_PLANES], uint64_t n);
void vk_units_out(const struct vk_buf *b, const uint8_t *const planes[VK_PLANES], uint8_t *host, uint64_t n);

#endif
