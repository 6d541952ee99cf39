/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/slab.c: device allocations and the ranges of them that buffers get. Drivers allow a few thousand allocations and
 * round each up, so small buffers share slabs; large ones have their own. Knows nothing of what lies in a buffer.
 */
#include "memory.h"

#include <stdlib.h>
#include <string.h>

#define POOL_FIRST ((uint64_t)4 << 20)     /* slabs that buffers share start small and double, */
#define POOL_LARGEST ((uint64_t)256 << 20) /* so that little is left over in the last */
#define RESERVE ((uint64_t)64 << 20)       /* for the driver's own needs, on heaps that have it to spare */

#define LOCAL VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
#define VISIBLE VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT
#define COHERENT VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
#define CACHED VK_MEMORY_PROPERTY_HOST_CACHED_BIT

static VkMemoryPropertyFlags flags_of(const struct vk_ctx *c, uint32_t type)
{
    return c->mem.memoryTypes[type].propertyFlags;
}

/* How well a memory type suits; 0: not at all. Types that no code of ours knows (protected, device-coherent) do not. */
static uint32_t suits(const struct vk_ctx *c, uint32_t type, enum vk_where where)
{
    VkMemoryPropertyFlags f = flags_of(c, type);
    bool local = f & LOCAL, visible = f & VISIBLE, coherent = f & COHERENT, cached = f & CACHED;
    if (f & ~(VkMemoryPropertyFlags)(LOCAL | VISIBLE | COHERENT | CACHED))
        return 0;
    switch (where) {
    case VK_WHERE_DEVICE:
        if (c->caps.uma) /* written in place; either heap is the same memory */
            return visible && coherent ? (local ? 3 : 2) : 0;
        /* With a small window for the host, memory behind it is scarce: leave it to INPUT. */
        return local ? (visible ? 2 : 3) : 0;
    case VK_WHERE_UPLOAD: /* the host only writes: through the window where there is one */
        return visible && coherent ? (local ? 4 : cached ? 2 : 3) : 0;
    case VK_WHERE_READBACK: /* reading uncached memory is a hundred times slower than anything here */
        return !visible ? 0 : cached && coherent ? 4 : cached ? 3 : coherent ? 2 : 0;
    case VK_WHERE_SHARED: /* both write: without coherence one would have to know whose lines are newer */
        return !(visible && coherent) ? 0 : cached ? 4 : 3;
    }
    return 0;
}

static uint64_t reserve(uint64_t heap_bytes)
{
    return DL_MIN(RESERVE, heap_bytes / 32);
}

static uint64_t heap_free(struct vk_ctx *c, uint32_t heap)
{
    uint64_t size = c->mem.memoryHeaps[heap].size, most = size, used = c->memory->heap_used[heap];
    if (c->caps.budget) {
        VkPhysicalDeviceMemoryBudgetPropertiesEXT b = {
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
        VkPhysicalDeviceMemoryProperties2 m = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                               .pNext = &b};
        vkGetPhysicalDeviceMemoryProperties2(c->phys, &m);
        /* Some drivers report more budget than there is memory, and usage that lags behind. */
        most = DL_MIN(size, b.heapBudget[heap]);
        used = DL_MAX(used, b.heapUsage[heap]);
    }
    used += reserve(size);
    return most > used ? most - used : 0;
}

static uint32_t heap_of(const struct vk_ctx *c, uint32_t type)
{
    return c->mem.memoryTypes[type].heapIndex;
}

uint64_t vk_memory_free(struct vk_ctx *c)
{
    /* The heaps that may take weights: all device-local ones, and on unified memory all others too. */
    uint64_t bytes = 0;
    uint32_t seen = 0;
    for (uint32_t t = 0; t < c->mem.memoryTypeCount; t++) {
        uint32_t heap = heap_of(c, t);
        if (suits(c, t, VK_WHERE_DEVICE) >= 2 && !(seen >> heap & 1)) {
            seen |= 1u << heap;
            bytes += heap_free(c, heap);
        }
    }
    return bytes;
}

/* Types that may hold it, best first: by how they suit, then by the size of their heap, then in the driver's order. */
static uint32_t candidates(const struct vk_ctx *c, uint32_t mask, enum vk_where where,
                           uint32_t out[VK_MAX_MEMORY_TYPES])
{
    uint32_t n = 0;
    for (uint32_t t = 0; t < c->mem.memoryTypeCount; t++) {
        if (!(mask >> t & 1) || !suits(c, t, where))
            continue;
        uint32_t at = n++;
        for (; at; at--) {
            uint32_t o = out[at - 1], better = suits(c, t, where), than = suits(c, o, where);
            if (better < than ||
                (better == than && c->mem.memoryHeaps[heap_of(c, t)].size <= c->mem.memoryHeaps[heap_of(c, o)].size))
                break;
            out[at] = o;
        }
        out[at] = t;
    }
    return n;
}

/* ---------------------------------------------------------------------------------------------------- ranges */

static bool take(struct vk_slab *s, uint64_t bytes, uint64_t align, uint64_t *out)
{
    for (size_t i = 0; i < s->n_unused; i++) {
        struct vk_range *r = &s->unused[i];
        uint64_t at = dl_round_up(r->at, align), before = at - r->at;
        if (before > r->bytes || r->bytes - before < bytes)
            continue;
        uint64_t behind = r->bytes - before - bytes;
        /* The room for one more entry was made when the slab's last buffer came; see vk_slab_give_back. */
        if (before && behind) {
            memmove(r + 2, r + 1, (s->n_unused - i - 1) * sizeof *r);
            s->n_unused++;
            r[1] = (struct vk_range){at + bytes, behind};
            r->bytes = before;
        } else if (before) {
            r->bytes = before;
        } else if (behind) {
            *r = (struct vk_range){at + bytes, behind};
        } else {
            memmove(r, r + 1, (s->n_unused - i - 1) * sizeof *r);
            s->n_unused--;
        }
        *out = at;
        return true;
    }
    return false;
}

static void slab_free(struct vk_ctx *c, struct vk_slab *s)
{
    c->memory->heap_used[heap_of(c, s->type)] -= s->bytes;
    c->vk.vkFreeMemory(c->device, s->memory, NULL); /* unmaps too */
    free(s->unused);
    *s = (struct vk_slab){0};
}

void vk_slab_give_back(struct vk_ctx *c, uint32_t slab, uint64_t at, uint64_t bytes)
{
    struct vk_slab *s = &c->memory->slabs[slab];
    size_t i = 0;
    while (i < s->n_unused && s->unused[i].at < at)
        i++;
    bool before = i && s->unused[i - 1].at + s->unused[i - 1].bytes == at;
    bool behind = i < s->n_unused && at + bytes == s->unused[i].at;
    if (before && behind) {
        s->unused[i - 1].bytes += bytes + s->unused[i].bytes;
        memmove(&s->unused[i], &s->unused[i + 1], (s->n_unused - i - 1) * sizeof *s->unused);
        s->n_unused--;
    } else if (before) {
        s->unused[i - 1].bytes += bytes;
    } else if (behind) {
        s->unused[i] = (struct vk_range){at, bytes + s->unused[i].bytes};
    } else {
        /* Never more ranges than buffers + 1, for which there is room: giving back cannot fail. */
        memmove(&s->unused[i + 1], &s->unused[i], (s->n_unused - i) * sizeof *s->unused);
        s->unused[i] = (struct vk_range){at, bytes};
        s->n_unused++;
    }
    if (s->n_unused == 1 && s->unused[0].bytes == s->bytes)
        slab_free(c, s);
}

void vk_slabs_close(struct vk_ctx *c)
{
    struct vk_memory *m = c->memory;
    for (size_t i = 0; i < m->n; i++)
        if (m->slabs[i].memory)
            slab_free(c, &m->slabs[i]);
    free(m->slabs);
    m->slabs = NULL;
    m->n = m->cap = 0;
}

bool vk_slab_coherent(const struct vk_ctx *c, uint32_t slab)
{
    return flags_of(c, c->memory->slabs[slab].type) & COHERENT;
}

/* ---------------------------------------------------------------------------------------------------- placing */

/* The entry of a new, empty slab. VK_ERROR_OUT_OF_*: does not fit. */
static VkResult slab_new(struct vk_ctx *c, uint32_t type, uint64_t bytes, uint32_t *out)
{
    struct vk_memory *m = c->memory;
    uint32_t at = 0;
    while (at < m->n && m->slabs[at].memory)
        at++;
    if (at == m->n) {
        if (dl_grow((void **)&m->slabs, &m->cap, m->n + 1, sizeof *m->slabs))
            return VK_ERROR_OUT_OF_HOST_MEMORY;
        m->slabs[m->n++] = (struct vk_slab){0};
    }
    struct vk_slab *s = &m->slabs[at];
    struct vk_slab new = {.bytes = bytes, .type = type};
    if (dl_grow((void **)&new.unused, &new.cap_unused, 8, sizeof *new.unused))
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    new.unused[new.n_unused++] = (struct vk_range){0, bytes};
    VkMemoryAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = bytes, .memoryTypeIndex = type};
    VkResult r = c->vk.vkAllocateMemory(c->device, &info, NULL, &new.memory);
    if (!r && flags_of(c, type) & VISIBLE) {
        r = c->vk.vkMapMemory(c->device, new.memory, 0, VK_WHOLE_SIZE, 0, &new.mapped);
        if (r)
            c->vk.vkFreeMemory(c->device, new.memory, NULL);
    }
    if (r) {
        free(new.unused);
        return r;
    }
    *s = new;
    m->heap_used[heap_of(c, type)] += bytes;
    *out = at;
    return VK_SUCCESS;
}

/* Room for one range more than there are, so that taking and giving back never allocate. */
static bool make_room(struct vk_slab *s)
{
    return !dl_grow((void **)&s->unused, &s->cap_unused, s->n_unused + 2, sizeof *s->unused);
}

static bool place_in_pool(struct vk_ctx *c, uint32_t type, uint64_t bytes, uint64_t align, uint32_t *slab, uint64_t *at,
                          uint64_t *pooled)
{
    struct vk_memory *m = c->memory;
    *pooled = 0;
    for (size_t i = 0; i < m->n; i++) {
        struct vk_slab *s = &m->slabs[i];
        if (!s->memory || s->type != type)
            continue;
        *pooled += s->bytes;
        if (make_room(s) && take(s, bytes, align, at)) {
            *slab = (uint32_t)i;
            return true;
        }
    }
    return false;
}

static VkResult place(struct vk_ctx *c, uint32_t type, uint64_t bytes, uint64_t align, uint32_t *slab, uint64_t *at,
                      uint64_t *available)
{
    uint64_t pooled;
    if (place_in_pool(c, type, bytes, align, slab, at, &pooled))
        return VK_SUCCESS;
    *available = heap_free(c, heap_of(c, type));
    if (bytes > *available)
        return VK_INCOMPLETE; /* over budget: not even tried */
    uint64_t size = DL_MIN(DL_MAX(pooled, POOL_FIRST), POOL_LARGEST);
    if (size < bytes || size > *available || size > c->caps.max_alloc)
        size = bytes;
    VkResult r = slab_new(c, type, size, slab);
    if ((r == VK_ERROR_OUT_OF_DEVICE_MEMORY || r == VK_ERROR_OUT_OF_HOST_MEMORY) && size > bytes)
        r = slab_new(c, type, bytes, slab);
    if (r)
        return r;
    struct vk_slab *s = &c->memory->slabs[*slab];
    return take(s, bytes, align, at) ? VK_SUCCESS : VK_ERROR_UNKNOWN;
}

int vk_slab_place(struct vk_ctx *c, VkBuffer handle, enum vk_where where, const char *name, uint32_t *slab,
                  uint64_t *at, uint64_t *bytes)
{
    VkMemoryRequirements need;
    c->vk.vkGetBufferMemoryRequirements(c->device, handle, &need);
    /* Whole atoms, so that flushing one buffer never touches its neighbour. */
    uint64_t align = DL_MAX(need.alignment, (uint64_t)c->caps.atom), available = 0, most = 0;
    *bytes = dl_round_up(need.size, align);
    uint32_t types[VK_MAX_MEMORY_TYPES], n = candidates(c, need.memoryTypeBits, where, types);
    VkResult r = VK_ERROR_FEATURE_NOT_PRESENT, last = VK_INCOMPLETE;
    for (uint32_t i = 0; i < n; i++) {
        r = place(c, types[i], *bytes, align, slab, at, &available);
        if (!r)
            break;
        most = DL_MAX(most, available);
        last = r != VK_INCOMPLETE ? r : last;
    }
    if (!n)
        return dl_fail(DL_EUNSUP, "%s: buffer %s: the driver has no memory of a kind that it needs", c->label, name);
    if (r && last == VK_INCOMPLETE)
        return dl_fail(DL_ELIMIT,
                       "%s: buffer %s needs %.1f MiB, %.1f MiB are free; use a smaller --ctx or model, or --device cpu",
                       c->label, name, (double)*bytes / 0x1p20, (double)most / 0x1p20);
    if (r && (last == VK_ERROR_OUT_OF_DEVICE_MEMORY || last == VK_ERROR_OUT_OF_HOST_MEMORY))
        return dl_fail(
            DL_ENOMEM,
            "%s: buffer %s: the driver has no room for %.1f MiB; use a smaller --ctx or model, or --device cpu",
            c->label, name, (double)*bytes / 0x1p20);
    if (r)
        return vk_fail(c, last, name);
    r = c->vk.vkBindBufferMemory(c->device, handle, c->memory->slabs[*slab].memory, *at);
    if (r) {
        vk_slab_give_back(c, *slab, *at, *bytes);
        return vk_fail(c, r, name);
    }
    return DL_OK;
}
