/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/vk.h: the inside of the Vulkan device, shared by the files of this folder. Who owns what:
 *   context.c   loader, instance, physical devices and what they can do, the queue          (struct vk_ctx)
 *   memory.c    slabs, buffers and their planes, host copies in and out                      (struct vk_buf)
 *   glsl.c      GLSL text to SPIR-V, in threads, cached on disk
 *   pipeline.c  SPIR-V to pipelines, by (shader, defines), cached                            (struct vk_pipe)
 *   lower*.c    ops to dispatches: which kernel, which planes, which numbers                 (struct vk_dispatch)
 *   record.c    dispatches to command buffers, barriers where ops conflict                   (struct vk_prog)
 *   device.c    the dl_device table: submit, counters, waits
 * Everything belongs to the engine thread but for what vk_compile's threads get, and host_signal.
 */
#ifndef VK_VK_H
#define VK_VK_H

#include "dl/device.h"

#include <volk.h>

/* ---------------------------------------------------------------------------------------------- the context */

/* What a physical device can do and which of it we use. Filled once; printed by `devices`. */
struct vk_caps {
    uint32_t api_version, driver_version, vendor_id, device_id;
    VkPhysicalDeviceType type;
    char name[VK_MAX_PHYSICAL_DEVICE_NAME_SIZE];
    char driver[VK_MAX_DRIVER_NAME_SIZE];
    uint8_t uuid[VK_UUID_SIZE];
    bool software;              /* a CPU pretending: used only when asked for */
    uint64_t storage_range;     /* largest descriptor range, bytes */
    uint64_t max_alloc;         /* largest single allocation */
    uint32_t offset_align;      /* of storage buffer descriptors */
    uint32_t shared_bytes;      /* shared memory of a workgroup */
    uint32_t max_groups[3];     /* dispatch size per axis */
    uint32_t max_invocations;   /* per workgroup */
    uint32_t push_bytes;
    uint32_t subgroup;          /* size that we compile for; 1: treat as having no subgroup operations */
    uint32_t subgroup_min, subgroup_max;
    bool subgroup_arith, subgroup_shuffle, subgroup_require; /* arithmetic, shuffles, fixed size + full subgroups */
    bool f16, int8, storage16, storage8, int_dot, int_dot_fast, timeline, push_descriptor, budget, coopmat;
    bool uma;                   /* one memory for both sides */
};

struct vk_ctx {
    struct vk_caps caps;
    VkInstance instance;
    VkPhysicalDevice phys;
    VkDevice device;
    struct VolkDeviceTable vk;  /* every device call goes through it: tests replace entries to make calls fail */
    VkQueue queue;
    uint32_t family;
    VkPhysicalDeviceMemoryProperties mem;
    int lost;                   /* sticky DL_EDEVICE after VK_ERROR_DEVICE_LOST */
    void *validation;           /* counts messages of the validation layers */
};

/* Logs a failed call by its name and result, maps it to DL_ENOMEM / DL_EDEVICE / DL_EUNSUP; notes a lost device. */
int vk_fail(struct vk_ctx *c, VkResult r, const char *what);

/* ---------------------------------------------------------------------------------------------------- buffers */

/* How values lie in device memory. Host bytes are always dl/quant.h's blocks; memory.c converts on the way in and out.
 *   VK_PLAIN       as on the host: F32, F16, BF16 rows; INPUT, OUTPUT and WIRE of any type. Weight rows are padded to 16 bytes.
 *   VK_SOA_W       Q40 and Q80 weights: plane 0 the codes, [row][block] of 16 (Q40: the block's nibbles as they are) or
 *                  32 bytes; plane 1 the scales, [row][block] f16, rows padded to an even number of blocks.
 *   VK_SOA_A       Q80 activations and KV: plane 0 the codes, [row][cols] int8; plane 1 the scales d, [row][block] f32 (values that
 *                  an f16 holds); plane 2 d * sum of the block's codes, [row][block] f32. */
enum vk_layout { VK_PLAIN, VK_SOA_W, VK_SOA_A };
#define VK_PLANES 3u

struct vk_buf {
    struct dl_buf base;
    enum vk_layout layout;
    VkBuffer handle;
    uint64_t plane_at[VK_PLANES];     /* byte offset of each plane in the handle, aligned for descriptors */
    uint64_t plane_row[VK_PLANES];    /* bytes of one row in each plane; 0: no such plane */
    uint64_t plane_bytes[VK_PLANES];
    uint32_t chunk_rows;              /* rows per descriptor: a multiple that keeps every plane aligned and in range */
    void *mapped;                     /* host address of INPUT, OUTPUT, WIRE */
    uint64_t slab_offset, slab_bytes; /* where in which slab */
    uint32_t slab;
};

/* ------------------------------------------------------------------------------------------------- dispatches */

#define VK_BINDS 10u
#define VK_PUSH_WORDS 32u /* 128 bytes: what every device has */

struct vk_bind {
    const struct vk_buf *buf;
    uint32_t plane;
    uint64_t offset, range; /* bytes inside the plane; offset is aligned to caps.offset_align */
};

/* One kernel launch, ready to be recorded. */
struct vk_dispatch {
    const char *shader;        /* "matvec_q40.comp" */
    char defines[192];         /* "SG=32;ROWS=4;COLS=1": sorted by who writes it, always the same for the same kernel */
    struct vk_bind binds[VK_BINDS]; /* set 0, binding i */
    uint32_t n_binds;
    uint32_t push[VK_PUSH_WORDS];
    uint32_t n_push;
    uint32_t groups[3];
};

/* Batch classes: programs are recorded for the largest batch of a class, kernels read the real counts from the batch buffer. */
uint32_t vk_class_of(uint32_t n_tokens);      /* index */
uint32_t vk_class_tokens(uint32_t class_index); /* 1, 2, 4, 8, 16, 32, 64, 128, 256, 512 */

struct vk_lower {
    struct vk_ctx *ctx;
    struct vk_buf *const *bufs; /* by plan buffer */
    struct vk_buf *batch;
    uint32_t n_tokens, n_out;   /* of the class */
    struct vk_dispatch *out;    /* growable */
    size_t n, cap;
};

/* Turns ops[0 .. n) into dispatches that run without a barrier between them, appended to l->out. Returns how many ops it took
 * (>= 1; more where it has one kernel for several), or an error. */
typedef int vk_lower_fn(struct vk_lower *l, const struct dl_op *ops, uint32_t n);

#endif
