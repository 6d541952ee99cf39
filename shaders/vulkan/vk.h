/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/vk.h: the inside of the Vulkan device, shared by the files of this folder. Who owns what:
 *   context.c   loader, instance, choosing a device, the queue                               (struct vk_ctx)
 *   caps.c      what a physical device can do, and what of it is switched on                 (struct vk_caps)
 *   memory.c    slabs, buffers and their planes, host copies in and out                      (struct vk_buf)
 *   view.c      views of ops as descriptor ranges: what every lowering needs                 (vk_bind_*, vk_push*)
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
    uint32_t subgroup; /* size that we compile for; 1: treat as having no subgroup operations */
    uint32_t subgroup_min, subgroup_max;
    bool subgroup_arith, subgroup_shuffle; /* arithmetic, shuffles (xor included), in compute shaders */
    bool
        subgroup_require; /* pipelines must demand this size and full subgroups: `subgroup` is exact. Else subgroup == 1 */
    bool f16, int8, storage16, storage8, int_dot, int_dot_fast, timeline, push_descriptor, budget, coopmat;
    bool uma; /* one memory for both sides */
};

struct vk_memory; /* memory.c */
struct vk_pipes;  /* pipeline.c */

#define VK_CLASSES 16u

struct vk_ctx {
    struct vk_caps caps;
    char label[300]; /* "vulkan:0 llvmpipe ...": how messages begin */
    uint32_t index;  /* among the physical devices */
    VkInstance instance;
    VkPhysicalDevice phys;
    VkDevice device;
    struct VolkDeviceTable vk; /* every device call goes through it: tests replace entries to make calls fail */
    VkQueue queue;
    pthread_mutex_t queue_lock; /* the queue is used by the engine thread and, without timelines, by a driver thread */
    uint32_t family;
    VkPhysicalDeviceMemoryProperties mem;
    VkCommandPool commands; /* the engine thread's: staging and recordings */
    atomic_int lost;        /* the code of what broke the device for good; see vk_lost */
    VkDebugUtilsMessengerEXT messenger;
    atomic_uint messages; /* warnings and errors of the validation layers so far */
    bool validation;      /* the layers are on */
    struct vk_memory *memory;
    struct vk_pipes *pipes;
    double speed[VK_CLASSES]; /* work per ns that programs of a class reach here; see vk_prog_took */
};

/* Opens a physical device as dl_vulkan_open's options say. The context is zeroed by the caller and stays where it is; after a
 * failure nothing is left to close. */
int vk_ctx_open(struct vk_ctx *c, const struct dl_vulkan_opts *opts);
void vk_ctx_close(struct vk_ctx *c);

/* caps.c. Optional features by name: f16 (arithmetic and 16-bit storage), int8 (arithmetic and 8-bit storage), int-dot, subgroup,
 * timeline. `disable` is a list of those to do without, as in dl_vulkan_opts; unknown names are ignored. */
void vk_caps_get(VkPhysicalDevice phys, const char *disable, struct vk_caps *caps);

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
    enum vk_layout layout;
    struct vk_part *parts;
    uint32_t n_parts;
    uint32_t part_rows; /* rows of every part but the last */
    uint32_t n_planes;
    uint64_t plane_row[VK_PLANES];   /* bytes of one row in each plane; 0: no such plane */
    uint64_t plane_bytes[VK_PLANES]; /* rows * plane_row */
    uint32_t chunk_rows; /* rows per descriptor: divides part_rows where there are several parts, keeps every plane
                                       * aligned and in range; == rows where the whole buffer fits one descriptor. Only weights
                                       * are ever larger than one chunk */
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

#define VK_BINDS 10u
#define VK_PUSH_WORDS 32u /* 128 bytes: what every device has */

struct vk_bind {
    const struct vk_buf *buf;
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
    uint32_t
        groups[3]; /* each 1 .. caps.max_groups. Kernels do not look at gl_NumWorkGroups: record.c may launch pieces
                                * (vkCmdDispatchBase), so that no submit takes too long */
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
    struct vk_dispatch *out;  /* growable, by vk_add */
    size_t n, cap;
    uint64_t scratch_bytes; /* wanted by vk_bind_scratch so far for this lowering */
    const struct vk_buf *scratch;
};

/* Turns ops[0 .. n) into dispatches that run without a barrier between them (but for vk_dispatch.barrier), appended by vk_add.
 * Returns how many ops it took (>= 1; more where it has one kernel for several), or an error (logged). Ops after the first are only
 * taken in order and without a gap. */
typedef int vk_lower_fn(struct vk_lower *l, const struct dl_op *ops, uint32_t n);

/* lower.c: who lowers this op; NULL: no kernel. Looks at opcode, types and shapes, not at buffers. */
vk_lower_fn *vk_lower_find(const struct vk_ctx *c, const struct dl_op *op);

/* ------------------------------------------------------------------------------- what lowerings are made of (view.c) */

/* Appends an empty dispatch of one workgroup. NULL (logged) when memory is out. Valid until the next vk_add. */
struct vk_dispatch *vk_add(struct vk_lower *l, const char *shader);

/* Adds ";NAME=value" (no ';' before the first). */
void vk_define(struct vk_dispatch *d, const char *name, uint32_t value);

void vk_push(struct vk_dispatch *d, uint32_t word);
void vk_push_f32(struct vk_dispatch *d, float value);

/* The next binding of d: bytes [at, at + bytes) of a plane. The descriptor starts at or before `at`; *skip is how many bytes before
 * (a multiple of 4 where `at` is), for the kernel to add. Its range is rounded up to 16 bytes. DL_EUNSUP (logged) where the range is
 * larger than a descriptor may be, or crosses parts: bind weights chunk by chunk. */
int vk_bind_bytes(struct vk_lower *l, struct vk_dispatch *d, const struct vk_buf *b, uint32_t plane, uint64_t at,
                  uint64_t bytes, uint32_t *skip);

/* The same for rows [row, row + rows) of a plane. With row a multiple of chunk_rows and rows <= chunk_rows: never fails, *skip == 0. */
int vk_bind_rows(struct vk_lower *l, struct vk_dispatch *d, const struct vk_buf *b, uint32_t plane, uint32_t row,
                 uint32_t rows, uint32_t *skip);

/* The same for all a view covers in a plane of its buffer, from its first value on. Views of VK_SOA_W buffers are whole rows. */
int vk_bind_view(struct vk_lower *l, struct vk_dispatch *d, const struct dl_view *v, uint32_t plane, uint32_t *skip);

/* Bytes from one row of a view to the next in a plane. */
uint64_t vk_view_stride(const struct vk_lower *l, const struct dl_view *v, uint32_t plane);

/* First row of a view of whole rows (weights, caches) in its buffer. */
uint32_t vk_view_row(const struct vk_lower *l, const struct dl_view *v);

/* The batch buffer, whole (struct dl_batch_head onwards). */
int vk_bind_batch(struct vk_lower *l, struct vk_dispatch *d);

/* Device memory that lives from one dispatch of a lowering to its later ones (which set .barrier): bytes [at, at + bytes), at a
 * multiple of 256. Undefined at first. record.c keeps lowerings that use it apart. */
int vk_bind_scratch(struct vk_lower *l, struct vk_dispatch *d, uint64_t at, uint64_t bytes);

/* ------------------------------------------------------------------------------------------------- pipelines */

struct vk_pipe {
    VkPipeline pipeline;       /* made with VK_PIPELINE_CREATE_DISPATCH_BASE_BIT */
    VkPipelineLayout layout;   /* set 0 and n_push words of push constants for the compute stage */
    VkDescriptorSetLayout set; /* n_binds storage buffers */
    uint32_t n_binds, n_push;
};

/* pipeline.c. Open reads the caches (context and memory are there), close writes and frees them; both accept c->pipes == NULL. */
int vk_pipes_open(struct vk_ctx *c);
void vk_pipes_close(struct vk_ctx *c);

/* A program will need this dispatch's pipeline: starts compiling it in the background. Never fails; vk_pipe_get tells. */
void vk_pipe_want(struct vk_ctx *c, const struct vk_dispatch *d);

/* The pipeline for d's shader, defines, n_binds and n_push; waits until it is compiled. Lives until vk_pipes_close. */
int vk_pipe_get(struct vk_ctx *c, const struct vk_dispatch *d, const struct vk_pipe **out);

/* -------------------------------------------------------------------------------------------------- programs */

struct vk_prog;

/* Command buffers for one batch class and batch buffer, each to be a submit of its own. */
struct vk_recording {
    struct vk_buf *batch;
    uint32_t class_tokens, class_out; /* out: 0 for none, else 1 + vk_class_of */
    VkCommandBuffer *cmds;
    uint32_t n_cmds;
    uint64_t work; /* of all dispatches */
    double speed;  /* work per ns that the cut into command buffers assumed */
    VkDescriptorPool descriptors;
    uint32_t n_dispatches, n_barriers;
};

int vk_prog_create(struct vk_ctx *c, const struct dl_op *ops, uint32_t n_ops, dl_buf *const *bufs, uint32_t n_bufs,
                   struct vk_prog **out);
void vk_prog_destroy(struct vk_ctx *c, struct vk_prog *p); /* not in flight */

/* Finds or makes the recording for a batch; valid until the program is destroyed or this is called again. */
int vk_prog_record(struct vk_ctx *c, struct vk_prog *p, const struct dl_run_args *args, struct vk_recording **out);

/* What a recording's run took; steers how later ones are cut. */
void vk_prog_took(struct vk_ctx *c, struct vk_recording *r, uint64_t ns);

/* ---------------------------------------------------------------------------------------------------- device */

struct vk_ctx *vk_ctx_of(dl_device *dev); /* NULL: no Vulkan device. For tests and self-tests */

#endif
