/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/vk.h: the inside of the Vulkan device, shared by the files of this folder. Who owns what:
 *   context.c   loader, instance, choosing a device, the queue                               (struct vk_ctx)
 *   caps.c      what a physical device can do, and what of it is switched on                 (struct vk_caps)
 *   memory.c    slabs, buffers and their planes, host copies in and out                      (struct vk_buf)
 *   view.c      weights by chunks, scratch memory                                            (vk_bind_rows, vk_bind_scratch)
 *   glsl.c      GLSL text to SPIR-V, in threads, cached on disk
 *   pipeline.c  SPIR-V to pipelines, by (shader, defines), cached                            (struct vk_pipe)
 *   lower*.c    ops to dispatches: which kernel, which planes, which numbers                 (struct vk_dispatch)
 *   record.c    dispatches to command buffers, barriers where ops conflict                   (struct vk_prog)
 *   device.c    the dl_device table: submit, counters, waits
 * Everything belongs to the engine thread but for what glsl.c's threads get, host_signal, and the queue (vk_queue_submit).
 */
#ifndef VK_VK_H
#define VK_VK_H

#include <pthread.h>
#include <stdatomic.h>

#include <volk.h>

#include "dl/device.h"

/* ---------------------------------------------------------------------------------------------- the context */

/* What a physical device can do and which of it we use. Filled once; printed by `devices`. */
struct vk_caps {
    uint32_t api_version, driver_version, vendor_id, device_id;
    VkPhysicalDeviceType type;
    char name[VK_MAX_PHYSICAL_DEVICE_NAME_SIZE];
    char driver[VK_MAX_DRIVER_NAME_SIZE];
    uint8_t uuid[VK_UUID_SIZE];
    bool software;            /* a CPU pretending: used only when asked for */
    uint64_t storage_range;   /* largest descriptor range, bytes */
    uint64_t max_alloc;       /* largest single allocation, and largest buffer */
    uint32_t offset_align;    /* of storage buffer descriptors: a power of two, 4 .. 256 */
    uint32_t atom;            /* of flushes of memory that is not coherent */
    uint32_t shared_bytes;    /* shared memory of a workgroup */
    uint32_t max_groups[3];   /* dispatch size per axis */
    uint32_t max_local[3];    /* workgroup size per axis */
    uint32_t max_invocations; /* per workgroup */
    uint32_t push_bytes;
    uint32_t max_binds; /* storage buffers of a kernel */
    uint32_t subgroup;  /* size that we compile for; 1: treat as having no subgroup operations */
    uint32_t subgroup_min, subgroup_max;
    bool subgroup_arith, subgroup_shuffle; /* arithmetic, shuffles (xor included), in compute shaders */
    bool
        subgroup_require; /* pipelines must demand this size and full subgroups: `subgroup` is exact. Else subgroup == 1 */
    bool f16, int8, storage16, storage8, int_dot, int_dot_fast, timeline, push_descriptor, budget, coopmat;
    bool uma; /* one memory for both sides */
};

struct vk_memory; /* memory.c */
struct vk_pipes;  /* pipeline.c */
struct vk_tune;   /* tune.c */

#define VK_CLASSES 16u

struct vk_ctx {
    enum dl_log_level absent_level; /* at which it is said that there is no Vulkan */
    struct vk_caps caps;
    const dl_device *pub; /* whoever owns the device may want to know how far it is; NULL: nobody */
    bool quiet;           /* within something that reports its own progress */
    char label[300];      /* "vulkan:0 llvmpipe ...": how messages begin */
    uint32_t index;       /* among the physical devices */
    VkInstance instance;
    VkPhysicalDevice phys;
    VkDevice device;
    struct VolkDeviceTable vk; /* every device call goes through it: tests replace entries to make calls fail */
    VkQueue queue;
    uint64_t lose_after, n_runs; /* $DLLAMA_VK_LOSE_AFTER, for tests: this many programs run, then the device is lost */
    pthread_mutex_t queue_lock;  /* the queue is used by the engine thread and, without timelines, by a driver thread */
    uint32_t family;
    VkPhysicalDeviceMemoryProperties mem;
    VkCommandPool commands; /* the engine thread's: staging and recordings */
    atomic_int lost;        /* the code of what broke the device for good; see vk_lost */
    VkDebugUtilsMessengerEXT messenger;
    atomic_uint messages; /* warnings and errors of the validation layers so far */
    bool validation;      /* the layers are on */
    struct vk_memory *memory;
    struct vk_tune *tune; /* NULL until something is chosen */
    struct vk_pipes *pipes;
    struct vk_buf *scratch[32]; /* each at least twice the one before; old recordings use the old ones */
    uint32_t n_scratch;
    double speed[VK_CLASSES]; /* work per ns that programs of a class reach here; see vk_prog_took */
};

/* Opens a physical device as dl_vulkan_open's options say. The context is zeroed by the caller and stays where it is; after a
 * failure nothing is left to close. */
int vk_ctx_open(struct vk_ctx *c, const struct dl_vulkan_opts *opts);
void vk_ctx_close(struct vk_ctx *c);

/* caps.c: all that a device can do. */
void vk_caps_get(VkPhysicalDevice phys, struct vk_caps *caps);

/* Leaves out optional features by name: f16 (arithmetic and 16-bit storage), int8 (arithmetic and 8-bit storage), int-dot, subgroup,
 * timeline. `disable` is a list as in dl_vulkan_opts, or NULL; unknown names are ignored. DLLAMA_VK_NO_TIMELINE=1 counts too. */
void vk_caps_without(struct vk_caps *caps, const char *disable);

/* The extensions and the chain of features that vkCreateDevice is to switch on for these caps; both live in *s. */
struct vk_switches {
    const char *extensions[16];
    uint32_t n_extensions;
    VkPhysicalDeviceFeatures2 features;
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDevice8BitStorageFeatures storage8;
    VkPhysicalDeviceShaderFloat16Int8Features f16_int8;
    VkPhysicalDeviceTimelineSemaphoreFeatures timeline;
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroup;
    VkPhysicalDeviceShaderIntegerDotProductFeatures int_dot;
};
void vk_caps_switches(VkPhysicalDevice phys, const struct vk_caps *caps, struct vk_switches *s);

/* Logs a failed call by its name and result and maps it to DL_ENOMEM / DL_EDEVICE / DL_EUNSUP; notes a lost device. Any thread. */
int vk_fail(struct vk_ctx *c, VkResult r, const char *what);

/* Tells the device's owner how far something long is, where it wants to know (dl_progress_fn). */
void vk_progress(const struct vk_ctx *c, const char *phase, uint64_t done, uint64_t total);

/* vkQueueSubmit under the lock. Any thread. */
VkResult vk_queue_submit(struct vk_ctx *c, uint32_t n, const VkSubmitInfo *infos, VkFence fence);

/* DL_OK, or for ever the code of what broke the device. Any thread. */
int vk_lost(struct vk_ctx *c);

/* ---------------------------------------------------------------------------------------------------- buffers */

/* How values lie in device memory. Host bytes are always dl/quant.h's blocks; memory.c converts on the way in and out.
 *   VK_PLAIN       as on the host: F32, F16, BF16 rows; INPUT, OUTPUT and WIRE of any type. Weight rows are padded to 16 bytes
 *                  (with zeros), all others are not padded.
 *   VK_SOA_W       Q40 and Q80 weights: plane 0 the codes, [row][block] of 16 (Q40: the block's nibbles as they are) or
 *                  32 bytes; plane 1 the scales, [row][block] f16, rows padded to an even number of blocks (with zeros).
 *   VK_SOA_A       Q80 activations and KV: plane 0 the codes, [row][cols] int8; plane 1 the scales d, [row][block] f32 (values that
 *                  an f16 holds); plane 2 d * sum of the block's codes, [row][block] f32. No padding: block b of the buffer
 *                  lies at b * 32 of plane 0 and at b * 4 of planes 1 and 2. Kernels that write codes write all three.
 * Behind the last row each plane has at least 16 bytes that may be read (not written). */
enum vk_layout { VK_PLAIN, VK_SOA_W, VK_SOA_A };
#define VK_PLANES 3u

/* A buffer is one or more VkBuffers of at most a slab each; lowerings only see planes of rows, as if it were one. */
struct vk_part {
    VkBuffer handle;
    uint32_t slab;
    uint64_t slab_offset, slab_bytes;
    uint64_t plane_at[VK_PLANES]; /* byte offset of each plane in the handle, aligned for descriptors */
};

struct vk_buf {
    struct dl_buf base;
    char name[64];
    uint64_t serial; /* never used twice on one device */
    enum vk_layout layout;
    struct vk_part *parts;
    uint32_t n_parts;
    uint32_t part_rows; /* rows of every part but the last */
    uint32_t n_planes;
    uint64_t plane_row[VK_PLANES];   /* bytes of one row in each plane; 0: no such plane */
    uint64_t plane_bytes[VK_PLANES]; /* rows * plane_row */
    uint32_t chunk_rows; /* rows per descriptor: divides part_rows where there are several parts, keeps every plane
                                       * aligned and in range; == rows where the whole buffer fits one descriptor. Only weights
                                       * and caches are ever larger than one chunk (of a multiple of 256 rows then) */
    void *mapped;        /* host address of INPUT, OUTPUT, WIRE */
};

static inline struct vk_buf *vk_buf_of(dl_buf *b)
{
    return (struct vk_buf *)(void *)b;
}

int vk_memory_open(struct vk_ctx *c);
void vk_memory_close(struct vk_ctx *c); /* accepts what open left; all buffers are destroyed */
int vk_buf_create(struct vk_ctx *c, const struct dl_buf_desc *desc, struct vk_buf **out); /* zeroed */
void vk_buf_destroy(struct vk_ctx *c, struct vk_buf *b);
int vk_buf_write(struct vk_ctx *c, struct vk_buf *b, uint64_t offset, const void *bytes, size_t n);
int vk_buf_read(struct vk_ctx *c, struct vk_buf *b, uint64_t offset, void *bytes, size_t n);
/* Makes OUTPUT memory that is not coherent fit for the host to read. */
int vk_memory_invalidate(struct vk_ctx *c);
/* Free bytes of the heap that weights go to: by budget where the driver tells, else what we left of the heap. */
uint64_t vk_memory_free(struct vk_ctx *c);

/* ------------------------------------------------------------------------------------------------- dispatches */

#define VK_BINDS 16u
#define VK_PUSH_WORDS 32u /* 128 bytes: what every device has */

struct vk_bind {
    const struct vk_buf *buf; /* NULL: scratch */
    uint32_t plane;
    uint64_t offset,
        range; /* bytes inside the plane; offset is aligned to caps.offset_align; range <= caps.storage_range,
                             * inside one part (vk_bind_bytes sees to it) */
};

/* One kernel launch, ready to be recorded. */
struct vk_dispatch {
    const char *shader;             /* "matvec_q40.comp" */
    char defines[192];              /* "SG=32;ROWS=4;COLS=1": in a fixed order, always the same for the same kernel */
    struct vk_bind binds[VK_BINDS]; /* set 0, binding i */
    uint32_t n_binds;
    uint32_t push[VK_PUSH_WORDS];
    uint32_t n_push;
    /* Each 1 .. caps.max_groups. record.c may launch pieces along the last axis that is longer than 1 (vkCmdDispatchBase), so that no
     * submit takes too long: pipelines are made with VK_PIPELINE_CREATE_DISPATCH_BASE_BIT, and kernels may use
     * gl_NumWorkGroups.x only as factor of gl_WorkGroupID.y (and likewise .y of .z). */
    uint32_t groups[3];
    bool barrier;  /* reads what an earlier dispatch of the same lowering wrote */
    uint64_t work; /* about how many multiply-adds (or values moved, where more) at full size; 0: next to nothing */
};

/* Batch classes: programs are recorded for the largest batch of a class, kernels read the real counts from the batch buffer. */
uint32_t vk_class_of(uint32_t n);               /* index; n >= 1 */
uint32_t vk_class_tokens(uint32_t class_index); /* 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, ... */

struct vk_lower {
    struct vk_ctx *ctx;
    struct vk_buf *const *bufs; /* by plan buffer; NULL where the plan has one that this node lacks */
    struct vk_buf *batch;
    uint32_t n_tokens, n_out; /* the most of this recording. Ops that count OUT are not lowered where n_out is 0 */
    uint32_t max_positions;   /* of the longest sequence that the batch's tables can hold; 0: not known */
    struct vk_dispatch *out;  /* growable, by vk_dispatch_new */
    size_t n, cap;
    uint64_t scratch_bytes; /* that vk_bind_scratch was asked for */
};

/* Turns ops[0 .. n) into dispatches that run without a barrier between them (but for vk_dispatch.barrier), appended by vk_dispatch_new.
 * Returns how many ops it took (>= 1; more where it has one kernel for several), or an error (logged). Ops after the first are only
 * taken in order and without a gap. */
typedef int vk_lower_fn(struct vk_lower *l, const struct dl_op *ops, uint32_t n);

/* lower.h has the registry of lowerings and what they are made of; pipeline.h makes what dispatches need. Here is what comes of
 * buffers that are larger than a descriptor, and of memory that only a lowering needs (view.c). */

/* The next binding of d: rows [row, row + rows) of a plane of a weight buffer. *skip is how many bytes the descriptor starts before
 * them, for the kernel to add. With row a multiple of chunk_rows and rows <= chunk_rows it fits and *skip is 0; else DL_EUNSUP
 * (logged) where the rows are more than a descriptor can hold or lie in two parts. */
int vk_bind_rows(struct vk_lower *l, struct vk_dispatch *d, const struct vk_buf *b, uint32_t plane, uint32_t row,
                 uint32_t rows, uint32_t *skip);

/* First row of a view of whole rows (weights, caches) in its buffer. */
uint32_t vk_view_row(const struct vk_lower *l, const struct dl_view *v);

/* How many rows of a cache one binding takes (vk_bind_rows): all of the view, or a chunk, which ends where blocks of 32 rows do. */
uint32_t vk_cache_rows(const struct vk_lower *l, const struct dl_view *v);

/* The next binding of d: device memory that lives from one dispatch of a lowering to its later ones (which set .barrier): bytes
 * [at, at + bytes) of the lowering's own, `at` a multiple of 256. Undefined at first. record.c keeps lowerings that use it apart. */
int vk_bind_scratch(struct vk_lower *l, struct vk_dispatch *d, uint64_t at, uint64_t bytes);

/* -------------------------------------------------------------------------------------------------- programs */

struct vk_prog;

/* Command buffers for one batch class and batch buffer, each to be a submit of its own. */
struct vk_recording {
    uint64_t batch;                   /* serial */
    uint32_t class_tokens, class_out; /* out: 0 for none, else 1 + vk_class_of */
    VkCommandBuffer *cmds;
    uint32_t n_cmds;
    size_t cap_cmds;
    uint64_t work; /* of all dispatches */
    double speed;  /* work per ns that the cut into command buffers assumed */
    VkDescriptorPool descriptors;
    uint32_t n_dispatches, n_barriers;
    uint32_t in_flight; /* kept by device.c */
    bool
        has_run; /* the first run also pays for what the driver does late (a software one compiles): that it was slow tells nothing */
};

int vk_prog_create(struct vk_ctx *c, const struct dl_op *ops, uint32_t n_ops, dl_buf *const *bufs, uint32_t n_bufs,
                   struct vk_prog **out);
void vk_prog_destroy(struct vk_ctx *c, struct vk_prog *p); /* not in flight */

/* Finds or makes the recording for a batch. Lives until the program is destroyed, or until it is asked for again while not in flight. */
int vk_prog_record(struct vk_ctx *c, struct vk_prog *p, const struct dl_run_args *args, struct vk_recording **out);

/* What a recording's run took; steers how later ones are cut. */
void vk_prog_took(struct vk_ctx *c, const struct vk_recording *r, uint64_t ns);

/* Frees what lowerings had as scratch memory; no program is left. */
void vk_scratch_close(struct vk_ctx *c);

/* ---------------------------------------------------------------------------------------------------- device */

struct vk_ctx *vk_ctx_of(dl_device *dev); /* NULL: no Vulkan device. For tests and self-tests */

#endif
