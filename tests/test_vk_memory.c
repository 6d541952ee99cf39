/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_memory.c: buffers of the Vulkan device: zeroed, written and read back byte by byte, for every use and type, in place and
 * through staging, on coherent and other memory; the planes of weights and activations; splitting at limits; the budget. A card
 * of its own memory is played by giving the one memory type of a software device three faces (see fake_types).
 */
#include "common.h"

#ifdef DL_HAVE_VULKAN

#include "memory.h"
#include "vk_rig.h"

static int clear_log(void **state)
{
    (void)state;
    logged = (struct test_log){0};
    return 0;
}

/* ------------------------------------------------------------------------------------------------- fake types */

/* Type 0 stays what it is but is said to be the card's alone, 1 is what the host writes, 2 what it reads, and not coherent. All are
 * type 0 to the driver. */
static PFN_vkAllocateMemory real_allocate;
static PFN_vkGetBufferMemoryRequirements real_requirements;
static PFN_vkFlushMappedMemoryRanges real_flush;
static PFN_vkInvalidateMappedMemoryRanges real_invalidate;
static unsigned n_flushed, n_invalidated, n_maps;
static PFN_vkMapMemory real_map;

static VKAPI_ATTR VkResult VKAPI_CALL fake_allocate(VkDevice d, const VkMemoryAllocateInfo *info,
                                                    const VkAllocationCallbacks *a, VkDeviceMemory *out)
{
    VkMemoryAllocateInfo i = *info;
    i.memoryTypeIndex = 0;
    return real_allocate(d, &i, a, out);
}
static VKAPI_ATTR void VKAPI_CALL fake_requirements(VkDevice d, VkBuffer b, VkMemoryRequirements *out)
{
    real_requirements(d, b, out);
    assert_true(out->memoryTypeBits & 1);
    out->memoryTypeBits |= 7;
}
static VKAPI_ATTR VkResult VKAPI_CALL fake_flush(VkDevice d, uint32_t n, const VkMappedMemoryRange *r)
{
    n_flushed++;
    return real_flush(d, n, r);
}
static VKAPI_ATTR VkResult VKAPI_CALL fake_invalidate(VkDevice d, uint32_t n, const VkMappedMemoryRange *r)
{
    n_invalidated++;
    return real_invalidate(d, n, r);
}
static VKAPI_ATTR VkResult VKAPI_CALL fake_map(VkDevice d, VkDeviceMemory m, VkDeviceSize at, VkDeviceSize n,
                                               VkMemoryMapFlags f, void **out)
{
    n_maps++;
    return real_map(d, m, at, n, f, out);
}

static bool fake_types(struct vk_ctx *c)
{
    const VkMemoryPropertyFlags visible = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    if (c->mem.memoryTypeCount != 1 || (c->mem.memoryTypes[0].propertyFlags & visible) != visible) {
        fprintf(stderr, "SKIPPED PART: %s has memory types of its own\n", c->label);
        return false;
    }
    c->mem.memoryTypeCount = 3;
    c->mem.memoryTypes[1] = c->mem.memoryTypes[2] = c->mem.memoryTypes[0];
    c->mem.memoryTypes[0].propertyFlags = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
    c->mem.memoryTypes[1].propertyFlags = visible;
    c->mem.memoryTypes[2].propertyFlags = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
    c->caps.uma = false;
    real_allocate = c->vk.vkAllocateMemory;
    real_requirements = c->vk.vkGetBufferMemoryRequirements;
    real_flush = c->vk.vkFlushMappedMemoryRanges;
    real_invalidate = c->vk.vkInvalidateMappedMemoryRanges;
    real_map = c->vk.vkMapMemory;
    c->vk.vkAllocateMemory = fake_allocate;
    c->vk.vkGetBufferMemoryRequirements = fake_requirements;
    c->vk.vkFlushMappedMemoryRanges = fake_flush;
    c->vk.vkInvalidateMappedMemoryRanges = fake_invalidate;
    c->vk.vkMapMemory = fake_map;
    n_flushed = n_invalidated = n_maps = 0;
    return true;
}

enum face { UNIFIED, STAGED, CARD, N_FACES };

/* NULL: cannot be played here. */
static dl_device *open_face(enum face face)
{
    dl_device *dev = NULL;
    struct dl_vulkan_opts opts = vk_test_opts("");
    assert_int_equal(dl_vulkan_open(&opts, &dev), DL_OK);
    if (face == STAGED)
        vk_ctx_of(dev)->caps.uma = false;
    if (face == CARD && !fake_types(vk_ctx_of(dev)))
        vk_test_close(&dev);
    return dev;
}

/* ----------------------------------------------------------------------------------------------------- buffers */

static const struct {
    enum dl_buf_use use;
    enum dl_type type;
    uint32_t rows, cols;
} kinds[] = {
    {DL_BUF_ACT, DL_F32, 5, 37},    {DL_BUF_ACT, DL_F16, 3, 7},      {DL_BUF_ACT, DL_BF16, 9, 64},
    {DL_BUF_ACT, DL_Q80, 7, 96},    {DL_BUF_ACT, DL_Q80, 1, 32},     {DL_BUF_KV, DL_F16, 64, 24},
    {DL_BUF_KV, DL_Q80, 64, 64},    {DL_BUF_KV, DL_F32, 32, 8},      {DL_BUF_INPUT, DL_F32, 11, 13},
    {DL_BUF_OUTPUT, DL_F32, 2, 99}, {DL_BUF_WIRE, DL_Q80, 6, 64},    {DL_BUF_WIRE, DL_F16, 6, 31},
    {DL_BUF_WIRE, DL_F32, 6, 33},   {DL_BUF_ACT, DL_F32, 700, 4096}, {DL_BUF_ACT, DL_Q80, 900, 16384},
};

static dl_buf *make(dl_device *dev, enum dl_buf_use use, enum dl_type type, uint32_t rows, uint32_t cols)
{
    dl_buf *b = NULL;
    uint64_t row = 0;
    assert_true(dl_row_bytes(type, cols, &row));
    struct dl_buf_desc desc = {"tested", use, type, rows, cols, row * rows};
    assert_int_equal(dl_buf_create(dev, &desc, &b), DL_OK);
    return b;
}

/* Any bytes: numbers that are none have to come back too. */
static void read_back(dl_device *dev, size_t kind, uint64_t *rng)
{
    for (int again = 0; again < 2; again++) { /* the second time in memory that was written before */
        dl_buf *b = make(dev, kinds[kind].use, kinds[kind].type, kinds[kind].rows, kinds[kind].cols);
        size_t n = b->desc.bytes;
        uint8_t *want = dl_xcalloc(n, 1), *got = dl_xcalloc(n, 1);
        memset(got, 1, n);
        assert_int_equal(dl_buf_read(dev, b, 0, got, n), DL_OK);
        assert_memory_equal(got, want, n); /* zeros */
        uint8_t *host = dl_buf_map(dev, b);
        assert_int_equal(host != NULL, kinds[kind].use >= DL_BUF_INPUT);
        for (size_t i = 0; i < n; i++)
            want[i] = (uint8_t)test_rand(rng);
        assert_int_equal(dl_buf_write(dev, b, 0, want, n), DL_OK);
        for (int i = 0; i < 20; i++) { /* and pieces of it, anywhere */
            size_t at = (size_t)(test_rand(rng) % n), size = (size_t)(test_rand(rng) % (n - at)) + 1;
            size = i % 2 ? DL_MIN(size, (size_t)70) : size;
            for (size_t j = 0; j < DL_MIN(size, (size_t)5000); j++)
                want[at + j] = (uint8_t)test_rand(rng);
            assert_int_equal(dl_buf_write(dev, b, at, want + at, size), DL_OK);
        }
        memset(got, 0, n);
        assert_int_equal(dl_buf_read(dev, b, 0, got, n), DL_OK);
        assert_memory_equal(got, want, n);
        for (int i = 0; i < 20; i++) {
            size_t at = (size_t)(test_rand(rng) % n), size = (size_t)(test_rand(rng) % (n - at)) + 1;
            memset(got, 0, n);
            assert_int_equal(dl_buf_read(dev, b, at, got, size), DL_OK);
            assert_memory_equal(got, want + at, size);
        }
        if (host)
            assert_memory_equal(host, want, n);
        dl_buf_destroy(dev, &b);
        free(want);
        free(got);
    }
}

static void test_read_back(void **state)
{
    (void)state;
    NEED_VULKAN();
    for (int face = 0; face < N_FACES; face++) {
        uint64_t rng = 5;
        dl_device *dev = open_face((enum face)face);
        for (size_t k = 0; dev && k < DL_COUNT_OF(kinds); k++)
            read_back(dev, k, &rng);
        if (dev && face == CARD)
            assert_true(n_flushed > 100 && n_invalidated > 100 && n_maps > 0);
        vk_test_close(&dev);
    }
}

/* ------------------------------------------------------------------------------------------------ weights */

/* The bytes of a part as the GPU sees them, for as long as *memory is mapped. */
static const uint8_t *part_bytes(struct vk_ctx *c, const struct vk_part *p)
{
    const struct vk_slab *s = &c->memory->slabs[p->slab];
    void *all = s->mapped;
    (void)c->vk.vkDeviceWaitIdle(c->device); /* copies are on their way */
    if (!all) {
        VkResult r = c->vk.vkMapMemory(c->device, s->memory, 0, VK_WHOLE_SIZE, 0, &all);
        assert_int_equal(r, VK_SUCCESS);
        uint8_t *copy = dl_xcalloc((size_t)p->slab_bytes, 1);
        memcpy(copy, (uint8_t *)all + p->slab_offset, (size_t)p->slab_bytes);
        c->vk.vkUnmapMemory(c->device, s->memory);
        return copy;
    }
    uint8_t *copy = dl_xcalloc((size_t)p->slab_bytes, 1);
    memcpy(copy, (uint8_t *)all + p->slab_offset, (size_t)p->slab_bytes);
    return copy;
}

/* Holds a part's planes against the host's rows [row0, row0 + rows), by vk.h's words. */
static void check_weight(const struct vk_buf *b, const struct vk_part *p, const uint8_t *gpu, const uint8_t *host,
                         uint32_t rows)
{
    const struct dl_buf_desc *d = &b->base.desc;
    const size_t host_row = d->bytes / d->rows, blocks = d->cols / DL_BLOCK;
    const size_t codes = d->type == DL_Q40 ? 16 : 32;
    for (uint32_t r = 0; r < rows; r++) {
        const uint8_t *row = host + r * host_row;
        if (b->layout == VK_PLAIN) {
            const uint8_t *plane = gpu + p->plane_at[0] + r * b->plane_row[0];
            assert_memory_equal(plane, row, host_row);
            for (size_t i = host_row; i < b->plane_row[0]; i++)
                assert_int_equal(plane[i], 0);
            continue;
        }
        assert_int_equal(b->layout, VK_SOA_W);
        const uint8_t *q = gpu + p->plane_at[0] + r * blocks * codes;
        const uint8_t *s = gpu + p->plane_at[1] + r * (blocks + blocks % 2) * 2;
        for (size_t i = 0; i < blocks; i++) {
            assert_memory_equal(s + 2 * i, row + i * (codes + 2), 2);
            assert_memory_equal(q + i * codes, row + i * (codes + 2) + 2, codes);
        }
        if (blocks % 2)
            assert_true(!s[2 * blocks] && !s[2 * blocks + 1]);
    }
}

static void check_limits(struct vk_ctx *c, const struct vk_buf *b)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; i < b->n_parts; i++) {
        rows += vk_part_rows(b, i);
        assert_true(b->parts[i].slab_bytes <= DL_MIN(c->caps.max_alloc, (uint64_t)1 << 30));
        assert_true(vk_part_rows(b, i) > 0);
        for (uint32_t p = 0; p < b->n_planes; p++)
            assert_int_equal(b->parts[i].plane_at[p] % 256, 0);
    }
    assert_int_equal(rows, b->base.desc.rows);
    assert_true(b->n_parts == 1 || b->part_rows % b->chunk_rows == 0);
    struct vk_lower l = {.ctx = c};
    for (uint32_t row = 0; row < b->base.desc.rows; row += b->chunk_rows)
        for (uint32_t p = 0; p < b->n_planes; p++) {
            struct vk_dispatch d = {.shader = "none"};
            uint32_t skip = 1, n = DL_MIN(b->chunk_rows, b->base.desc.rows - row);
            assert_int_equal(vk_bind_rows(&l, &d, b, p, row, n, &skip), DL_OK);
            assert_int_equal(skip, 0);
            assert_int_equal(d.binds[0].offset % c->caps.offset_align, 0);
            assert_true(d.binds[0].range <= c->caps.storage_range);
            assert_true(d.binds[0].range >= n * b->plane_row[p]);
        }
}

static void weight(dl_device *dev, enum dl_type type, uint32_t rows, uint32_t cols, uint32_t want_parts, uint64_t *rng)
{
    struct vk_ctx *c = vk_ctx_of(dev);
    uint64_t row = 0;
    assert_true(dl_row_bytes(type, cols, &row));
    struct dl_buf_desc desc = {"weight", DL_BUF_WEIGHT, type, rows, cols, row * rows};
    uint8_t *host = dl_xcalloc(desc.bytes + 1, 1);
    for (size_t i = 0; i <= desc.bytes; i++)
        host[i] = (uint8_t)test_rand(rng);
    for (int imported = 0; imported < 2; imported++) {
        dl_buf *buf = NULL;
        const uint8_t *bytes = host + imported; /* anywhere */
        if (imported) {
            assert_int_equal(dl_buf_import(dev, &desc, bytes, &buf), DL_OK);
        } else {
            assert_int_equal(dl_buf_create(dev, &desc, &buf), DL_OK);
            uint32_t first = rows / 3; /* in any order */
            assert_int_equal(dl_buf_write(dev, buf, first * row, bytes + first * row, (rows - first) * row), DL_OK);
            if (first)
                assert_int_equal(dl_buf_write(dev, buf, 0, bytes, first * row), DL_OK);
        }
        const struct vk_buf *b = vk_buf_of(buf);
        if (want_parts)
            assert_true(b->n_parts >= want_parts && b->chunk_rows < rows);
        else
            assert_true(b->n_parts == 1 && b->chunk_rows == rows);
        check_limits(c, b);
        for (uint32_t i = 0; i < b->n_parts; i++) {
            const uint8_t *gpu = part_bytes(c, &b->parts[i]);
            check_weight(b, &b->parts[i], gpu, bytes + (uint64_t)i * b->part_rows * row, vk_part_rows(b, i));
            free((void *)(uintptr_t)gpu);
        }
        dl_buf_destroy(dev, &buf);
    }
    free(host);
}

/* Caches are cut up too, and read back. */
static void cache(dl_device *dev, enum dl_type type, uint32_t rows, uint32_t cols, uint32_t want_parts, uint64_t *rng)
{
    uint64_t row = 0;
    assert_true(dl_row_bytes(type, cols, &row));
    struct dl_buf_desc desc = {"cache", DL_BUF_KV, type, rows, cols, row * rows};
    uint8_t *host = dl_xcalloc(desc.bytes, 1), *back = dl_xcalloc(desc.bytes, 1);
    for (size_t i = 0; i < desc.bytes; i++)
        host[i] = (uint8_t)test_rand(rng);
    dl_buf *buf = NULL;
    assert_int_equal(dl_buf_create(dev, &desc, &buf), DL_OK);
    const struct vk_buf *b = vk_buf_of(buf);
    assert_true(b->n_parts >= want_parts && b->chunk_rows < rows && b->chunk_rows % DL_KV_BLOCK == 0);
    check_limits(vk_ctx_of(dev), b);
    assert_int_equal(dl_buf_read(dev, buf, 0, back, desc.bytes), DL_OK);
    for (size_t i = 0; i < desc.bytes; i++)
        assert_int_equal(back[i], 0);
    const uint64_t cut = desc.bytes / 3; /* inside of a block */
    assert_int_equal(dl_buf_write(dev, buf, cut, host + cut, desc.bytes - cut), DL_OK);
    assert_int_equal(dl_buf_write(dev, buf, 0, host, cut), DL_OK);
    assert_int_equal(dl_buf_read(dev, buf, cut + 1, back + cut + 1, desc.bytes - cut - 1), DL_OK);
    assert_int_equal(dl_buf_read(dev, buf, 0, back, cut + 1), DL_OK);
    assert_memory_equal(back, host, desc.bytes);
    dl_buf_destroy(dev, &buf);
    free(host);
    free(back);
}

static void test_weights(void **state)
{
    (void)state;
    NEED_VULKAN();
    for (int face = 0; face < N_FACES; face++) {
        uint64_t rng = 11;
        dl_device *dev = open_face((enum face)face);
        if (!dev)
            continue;
        weight(dev, DL_Q40, 10, 96, 0, &rng);
        weight(dev, DL_Q40, 1, 32, 0, &rng);
        weight(dev, DL_Q80, 33, 64, 0, &rng);
        weight(dev, DL_F32, 7, 37, 0, &rng);
        weight(dev, DL_F32, 1, 3, 0, &rng);
        weight(dev, DL_F16, 9, 20, 0, &rng);
        weight(dev, DL_BF16, 9, 21, 0, &rng);
        weight(dev, DL_Q40, 4000, 8192, 0, &rng); /* several staging halves */
        vk_test_close(&dev);
    }
}

/* A device with tiny limits: weights are cut into chunks and parts, other buffers are refused with the numbers. */
static void test_split(void **state)
{
    (void)state;
    NEED_VULKAN();
    for (int face = 0; face < N_FACES; face++) {
        uint64_t rng = 12;
        dl_device *dev = open_face((enum face)face);
        if (!dev)
            continue;
        struct vk_caps *caps = &vk_ctx_of(dev)->caps;
        uint64_t range = caps->storage_range, most = caps->max_alloc;
        caps->storage_range = 100 << 10;
        caps->max_alloc = 300 << 10;
        weight(dev, DL_Q40, 6000, 96, 2, &rng);
        weight(dev, DL_Q80, 3000, 96, 2, &rng);
        weight(dev, DL_F32, 2100, 33, 1, &rng);
        weight(dev, DL_F16, 20000, 6, 2, &rng);
        caps->max_alloc = most;
        weight(dev, DL_Q40, 5000, 96, 1, &rng);
        caps->max_alloc = 300 << 10;
        cache(dev, DL_F16, 4096, 72, 2, &rng);
        cache(dev, DL_Q80, 6000, 64, 2, &rng);
        cache(dev, DL_F32, 1024, 40, 1, &rng);
        caps->max_alloc = most;
        dl_buf *b = NULL;
        clear_log(NULL);
        struct dl_buf_desc act = {"activations", DL_BUF_ACT, DL_F16, 4096, 64, 4096 * 128};
        assert_int_equal(dl_buf_create(dev, &act, &b), DL_ELIMIT);
        assert_null(b);
        assert_int_equal(logged.n, 1);
        assert_non_null(strstr(logged.last, "--batch"));
        struct dl_buf_desc long_row = {"long", DL_BUF_WEIGHT, DL_F32, 600, 1000, 600 * 4000};
        assert_int_equal(dl_buf_create(dev, &long_row, &b), DL_ELIMIT); /* 256 rows are over the range */
        caps->storage_range = range;
        vk_test_close(&dev);
    }
}

/* More than any device promises to bind at once (128 MiB), at its real limits. */
static void test_large(void **state)
{
    (void)state;
    NEED_VULKAN();
    dl_device *dev = open_face(UNIFIED);
    struct vk_ctx *c = vk_ctx_of(dev);
    const uint32_t rows = 150, cols = 1 << 18;
    struct dl_buf_desc desc = {"large", DL_BUF_WEIGHT, DL_F32, rows * 8, cols / 8, (uint64_t)rows * cols * 4};
    dl_buf *buf = NULL;
    assert_int_equal(dl_buf_create(dev, &desc, &buf), DL_OK);
    const struct vk_buf *b = vk_buf_of(buf);
    check_limits(c, b);
    uint64_t row = desc.bytes / desc.rows;
    if (c->caps.storage_range < desc.bytes)
        assert_true(b->chunk_rows < desc.rows);
    float *values = dl_xcalloc(cols / 8, sizeof *values);
    for (uint32_t r = 0; r < desc.rows; r += 100) {
        for (uint32_t i = 0; i < cols / 8; i++)
            values[i] = (float)(r + i);
        assert_int_equal(dl_buf_write(dev, buf, r * row, values, row), DL_OK);
    }
    const uint8_t *gpu = part_bytes(c, &b->parts[0]);
    for (uint32_t r = 0; r < DL_MIN(b->part_rows, desc.rows); r++) {
        float first;
        memcpy(&first, gpu + b->parts[0].plane_at[0] + r * row, 4);
        assert_true(first == (r % 100 ? 0 : (float)r));
    }
    free((void *)(uintptr_t)gpu);
    free(values);
    dl_buf_destroy(dev, &buf);
    vk_test_close(&dev);
}

/* The third plane of activations is what kernels multiply the -8 of Q40 by. */
static void test_sums(void **state)
{
    (void)state;
    NEED_VULKAN();
    for (int face = 0; face < N_FACES; face++) {
        uint64_t rng = 3;
        dl_device *dev = open_face((enum face)face);
        if (!dev)
            continue;
        dl_buf *buf = make(dev, DL_BUF_ACT, DL_Q80, 3, 64);
        float values[3 * 64];
        struct dl_q80 blocks[6];
        for (size_t i = 0; i < DL_COUNT_OF(values); i++)
            values[i] = test_randf(&rng);
        dl_row_from_f32(DL_Q80, values, blocks, DL_COUNT_OF(values));
        assert_int_equal(dl_buf_write(dev, buf, 0, blocks, sizeof blocks), DL_OK);
        /* Changes one code in place, from 34 bytes on: the sum follows. */
        blocks[1].qs[0] = (int8_t)(blocks[1].qs[0] / 2);
        assert_int_equal(dl_buf_write(dev, buf, 36, &blocks[1].qs[0], 1), DL_OK);
        const struct vk_buf *b = vk_buf_of(buf);
        assert_int_equal(b->layout, VK_SOA_A);
        const uint8_t *gpu = part_bytes(vk_ctx_of(dev), &b->parts[0]);
        for (uint32_t i = 0; i < 6; i++) {
            float d, sum;
            int codes = 0;
            memcpy(&d, gpu + b->parts[0].plane_at[1] + 4 * i, 4);
            memcpy(&sum, gpu + b->parts[0].plane_at[2] + 4 * i, 4);
            for (int j = 0; j < DL_BLOCK; j++)
                codes += blocks[i].qs[j];
            assert_memory_equal(gpu + b->parts[0].plane_at[0] + DL_BLOCK * i, blocks[i].qs, DL_BLOCK);
            assert_true(d == dl_f16_to_f32(blocks[i].d) && d > 0);
            assert_true(sum == d * (float)codes);
        }
        free((void *)(uintptr_t)gpu);
        dl_buf_destroy(dev, &buf);
        vk_test_close(&dev);
    }
}

/* ------------------------------------------------------------------------------------------------------ slabs */

/* Many buffers that come and go: none overlaps another, and in the end all memory is given back. */
static void test_churn(void **state)
{
    (void)state;
    NEED_VULKAN();
    enum { N = 60 };
    dl_device *dev = open_face(UNIFIED);
    struct vk_ctx *c = vk_ctx_of(dev);
    dl_buf *bufs[N] = {0};
    uint32_t stamp[N] = {0};
    uint64_t rng = 1;
    for (uint32_t step = 1; step < 1500; step++) {
        uint32_t i = (uint32_t)(test_rand(&rng) % N), got;
        if (bufs[i]) {
            assert_int_equal(dl_buf_read(dev, bufs[i], 0, &got, 4), DL_OK);
            assert_int_equal(got, stamp[i]);
            assert_int_equal(dl_buf_read(dev, bufs[i], bufs[i]->desc.bytes - 4, &got, 4), DL_OK);
            assert_int_equal(got, stamp[i]);
            dl_buf_destroy(dev, &bufs[i]);
            continue;
        }
        bufs[i] =
            make(dev, DL_BUF_ACT, DL_F32, 1 + (uint32_t)(test_rand(&rng) % 50), 1 + (uint32_t)(test_rand(&rng) % 3000));
        stamp[i] = step;
        assert_int_equal(dl_buf_write(dev, bufs[i], 0, &step, 4), DL_OK);
        assert_int_equal(dl_buf_write(dev, bufs[i], bufs[i]->desc.bytes - 4, &step, 4), DL_OK);
    }
    for (uint32_t i = 0; i < N; i++)
        dl_buf_destroy(dev, &bufs[i]);
    for (size_t i = 0; i < c->memory->n; i++)
        assert_true(!c->memory->slabs[i].memory);
    for (size_t i = 0; i < VK_MAX_MEMORY_HEAPS; i++)
        assert_int_equal(c->memory->heap_used[i], 0);
    vk_test_close(&dev);
}

static void test_budget(void **state)
{
    (void)state;
    NEED_VULKAN();
    dl_device *dev = open_face(UNIFIED);
    struct vk_ctx *c = vk_ctx_of(dev);
    uint64_t sizes[VK_MAX_MEMORY_HEAPS];
    for (uint32_t i = 0; i < c->mem.memoryHeapCount; i++) {
        sizes[i] = c->mem.memoryHeaps[i].size;
        c->mem.memoryHeaps[i].size = 40u << 20;
    }
    c->caps.budget = false;
    assert_true(vk_memory_free(c) < c->mem.memoryHeapCount * (40ull << 20));
    struct dl_buf_desc desc = {"blk.7.ffn_up", DL_BUF_WEIGHT, DL_F32, 1024, 4096, 1024 * 4096 * 4};
    dl_buf *bufs[64] = {0};
    int err = DL_OK;
    uint32_t n = 0;
    while (!err && n < 64)
        err = dl_buf_create(dev, &desc, &bufs[n++]);
    assert_int_equal(err, DL_ELIMIT);
    assert_true(n > 1); /* two fit a heap */
    assert_int_equal(logged.n, 1);
    assert_non_null(strstr(logged.last, "blk.7.ffn_up"));
    assert_non_null(strstr(logged.last, "MiB are free"));
    for (uint32_t i = 0; i < n; i++)
        dl_buf_destroy(dev, &bufs[i]);
    for (uint32_t i = 0; i < c->mem.memoryHeapCount; i++)
        c->mem.memoryHeaps[i].size = sizes[i];
    assert_int_equal(dl_buf_create(dev, &desc, &bufs[0]), DL_OK); /* nothing is left behind */
    dl_buf_destroy(dev, &bufs[0]);
    vk_test_close(&dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_read_back, clear_log), cmocka_unit_test_setup(test_weights, clear_log),
        cmocka_unit_test_setup(test_split, clear_log),     cmocka_unit_test_setup(test_large, clear_log),
        cmocka_unit_test_setup(test_sums, clear_log),      cmocka_unit_test_setup(test_churn, clear_log),
        cmocka_unit_test_setup(test_budget, clear_log),
    };
    return cmocka_run_group_tests(tests, vk_test_begin, NULL);
}

#else

int main(void)
{
    fprintf(stderr, "SKIPPED: built without Vulkan\n");
    return 0;
}

#endif
