/* SPDX-License-Identifier: MIT
 *
 * dl/device.h: one compute unit (the CPU pool, one Vulkan GPU) behind a table of functions. cpu/ and shaders/vulkan/
 * implement the table; the dl_device_* and dl_buf_* functions here are the validating front (engine/base/device.c) that
 * everyone else calls. A back-end trusts its arguments.
 *
 * Threads: all calls come from the one thread that owns the device (the engine thread), except dl_device_host_signal.
 */
#ifndef DL_DEVICE_H
#define DL_DEVICE_H

#include <stdatomic.h>

#include "dl/op.h"

typedef struct dl_device dl_device;
typedef struct dl_buf dl_buf;
typedef struct dl_prog dl_prog;

/* How large this batch is, and its INPUT buffer of dl_batch_bytes() bytes. 1 <= n_tokens <= max_tokens, n_out <= max_out. */
struct dl_run_args {
    uint32_t n_tokens, n_out;
    dl_buf *batch;
};

/* What something long does, for a progress bar: `done` of `total` of what `phase` is about ("loading weights", "compiling kernels");
 * called on the engine thread, ends with done == total. */
typedef void dl_progress_fn(void *ud, const char *phase, uint64_t done, uint64_t total);

struct dl_device_fns {
    /* Waits until the device is idle. All buffers and programs are already destroyed. */
    void (*destroy)(dl_device *dev);

    int (*buf_create)(dl_device *dev, const struct dl_buf_desc *desc, dl_buf **out); /* zeroed */
    /* A WEIGHT buffer made of bytes that the caller keeps alive and unchanged until buf_destroy, unless the device copies
     * weights of this type (`copies`). */
    int (*buf_import)(dl_device *dev, const struct dl_buf_desc *desc, const void *bytes, dl_buf **out);
    void (*buf_destroy)(dl_device *dev, dl_buf *buf);
    int (*buf_write)(dl_device *dev, dl_buf *buf, uint64_t offset, const void *bytes, size_t n);
    int (*buf_read)(dl_device *dev, dl_buf *buf, uint64_t offset, void *bytes, size_t n);
    void *(*buf_map)(dl_device *dev, dl_buf *buf);

    bool (*supports)(dl_device *dev, const struct dl_op *op);
    int (*prog_create)(dl_device *dev, const struct dl_op *ops, uint32_t n_ops, dl_buf *const *bufs, uint32_t n_bufs,
                       dl_prog **out);
    void (*prog_destroy)(dl_device *dev, dl_prog *prog);

    int (*submit)(dl_device *dev, dl_prog *prog, const struct dl_run_args *args, uint64_t host_wait, uint64_t signal);
    int (*host_signal)(dl_device *dev, uint64_t value);
    int (*wait)(dl_device *dev, uint64_t value, uint64_t timeout_ns);
};

/* The public part, first member of every implementation's struct. */
struct dl_device {
    const struct dl_device_fns *fns;
    char name[128];         /* "cpu (avx2, 2 threads)", "vulkan:0 NVIDIA ..." */
    char kind[16];          /* "cpu" or "vulkan:N": what --device selects it by */
    uint64_t mem_total;     /* bytes of memory behind this device, 0 unknown */
    uint64_t mem_free;      /* at open */
    uint64_t max_buf_bytes; /* one buffer may not be larger */
    uint32_t threads;       /* of the CPU pool; 0 for a GPU */
    uint32_t max_tokens;    /* largest useful batch */
    uint32_t copies;        /* bit t: imported weights of type t are copied, and the caller's bytes are free at once */
    /* Set by who uses the device, while nothing is submitted: from the next submit on nothing has to happen before dl_device_wait,
     * whose thread may do the computing instead of waiting for another one. Not every device can. */
    bool computes_in_wait;
    uint64_t
        device_at; /* kept by the front: highest signal submitted so far, and highest host value waited for. Whoever */
    uint64_t host_at; /* uses an idle device next counts on from there */
    _Atomic uint64_t host_raised; /* the front's, too: highest value that dl_device_host_signal was given */
    dl_progress_fn *progress; /* whoever owns the device may set these: told by dl_prog_create about kernels that it compiles */
    void *progress_ud;        /* and measures, which is slow at a first start. NULL: nobody is */
};

/* The public part of a buffer, first member of every implementation's struct. */
struct dl_buf {
    struct dl_buf_desc desc;
};

/* ------------------------------------------------------------------------------------------------ the front */

/* Blocks until all submitted work is finished. Nulls *dev, accepts &NULL. */
void dl_device_close(dl_device **dev);

/* `desc->name` is copied or static. DL_ENOMEM / DL_ELIMIT (logged with the size) when it does not fit. */
int dl_buf_create(dl_device *dev, const struct dl_buf_desc *desc, dl_buf **out);
int dl_buf_import(dl_device *dev, const struct dl_buf_desc *desc, const void *bytes, dl_buf **out);
void dl_buf_destroy(dl_device *dev, dl_buf **buf); /* no submitted program uses it any more; nulls, accepts &NULL */

/* Copies; blocks until the bytes may be reused / are there. Copies queue behind what was submitted: while a submitted program waits for a
 * host value that was not raised yet, they are refused (DL_EINVAL), since they could wait for ever. A WEIGHT buffer is written in whole rows, each once, before
 * the first program that uses it is submitted; it is not read back. */
int dl_buf_write(dl_device *dev, dl_buf *buf, uint64_t offset, const void *bytes, size_t n);
int dl_buf_read(dl_device *dev, dl_buf *buf, uint64_t offset, void *bytes, size_t n);

/* Host address of an INPUT, OUTPUT or WIRE buffer; stable until the buffer is destroyed, NULL for others. The host may touch
 * it only while no submitted program does: INPUT before submit, OUTPUT after wait, WIRE between the two counters. */
void *dl_buf_map(dl_device *dev, dl_buf *buf);

/* Whether the device has a kernel for the op. Cheap; asked for the whole plan while loading. */
bool dl_device_supports(dl_device *dev, const struct dl_op *op);

/* Makes ops into something that can be submitted many times. Slow: compiles or records. bufs[i] is plan buffer i (NULL where
 * this node does not have it); buffers outlive the program; ops are copied. */
int dl_prog_create(dl_device *dev, const struct dl_op *ops, uint32_t n_ops, dl_buf *const *bufs, uint32_t n_bufs,
                   dl_prog **out);
void dl_prog_destroy(dl_device *dev, dl_prog **prog); /* not in flight; nulls, accepts &NULL */

/* Queues a program: it starts when all earlier ones are finished and the host counter is >= host_wait, and sets the device
 * counter to `signal` (> every earlier signal) when done (with computes_in_wait, perhaps not before somebody waits). Does not block. At most 64 may be in flight. */
int dl_device_submit(dl_device *dev, dl_prog *prog, const struct dl_run_args *args, uint64_t host_wait,
                     uint64_t signal);

/* Raises the host counter to `value`; lower values are ignored. Any thread; does not block. */
int dl_device_host_signal(dl_device *dev, uint64_t value);

/* Blocks until the device counter is >= value. DL_ETIMEDOUT when that takes longer; DL_EDEVICE when the device failed, then
 * and for ever. timeout_ns == 0 asks without waiting. */
int dl_device_wait(dl_device *dev, uint64_t value, uint64_t timeout_ns);

/* ------------------------------------------------------------------------------------------- implementations */

#define DL_CPU_MAX_THREADS 512u

struct dl_cpu_opts {
    uint32_t threads; /* at most DL_CPU_MAX_THREADS; 0: one per processor that this process may use */
    const char *isa;  /* "ref", "avx2", ...: the most that may be used; NULL: $DLLAMA_CPU, else the best there is */
};

/* The CPU as a device. DL_EINVAL for an unknown instruction set, DL_EUNSUP for one that this CPU lacks (logged). */
int dl_cpu_open(const struct dl_cpu_opts *opts, dl_device **out);

/* What this CPU has that kernels exist for, space-separated, best last ("ref avx2"). Static. */
const char *dl_cpu_isas(void);

struct dl_vulkan_opts {
    int index; /* as dl_vulkan_list counts; -1: the best that is no CPU pretending (any with DLLAMA_ALLOW_SOFTWARE_GPU=1) */
    const char *disable; /* of f16 int8 int-dot subgroup timeline, by commas: to do without; NULL: $DLLAMA_VK_DISABLE */
};

/* A Vulkan GPU as a device, kind "vulkan:N". DL_EUNSUP (logged, with the way out) where there is no Vulkan library or no such
 * device, or it lacks what we need. Builds without Vulkan answer the same. */
int dl_vulkan_open(const struct dl_vulkan_opts *opts, dl_device **out);

/* One physical device, usable or not, as `devices` prints it. */
struct dl_vulkan_info {
    uint32_t index;
    char name[256];
    char type[16];    /* "discrete", "integrated", "virtual", "software", "other" */
    char driver[128]; /* name, version and API version */
    struct {
        uint64_t bytes, budget; /* budget: what this process may use now; 0 unknown */
        bool device_local;
    } heaps[16];
    uint32_t n_heaps;
    uint32_t subgroup, subgroup_min, subgroup_max;
    uint64_t storage_range, max_alloc;
    bool software;
    bool eligible; /* usable, and no CPU pretending unless that is allowed: what `auto` considers */
    char has[128]; /* of f16 int8 int-dot storage16 storage8 coopmat timeline push-descriptor budget, space-separated */
    char uses[128];     /* those that kernels are compiled for here */
    char unusable[128]; /* why it cannot be used; empty: it can */
};

/* Fills up to `cap` entries; *n is how many there are. DL_EUNSUP where there is no Vulkan library, with a line at absent_level
 * that says why; *n == 0 and DL_OK where it knows no device. */
int dl_vulkan_list(struct dl_vulkan_info *out, uint32_t cap, uint32_t *n, enum dl_log_level absent_level);

/* Reads memory with all threads of a CPU device for about `ms` milliseconds; bytes per second. */
double dl_cpu_read_bandwidth(dl_device *dev, uint32_t ms);

#endif
