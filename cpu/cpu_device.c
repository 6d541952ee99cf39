/* SPDX-License-Identifier: MIT
 *
 * cpu/cpu_device.c: the CPU as a device (dl/device.h). One driver thread takes submissions in order, waits for the host
 * counter, runs the program with the pool (of which it is thread 0) and raises the device counter. Where the engine thread has nothing
 * to do but wait (computes_in_wait), it does that itself: two changes of threads less per submission, and with one thread on
 * a machine whose other cores are busy, two less that have to wait for a core.
 *
 * Atomics. `tail` is written by the submitting thread, `head` and `device` by the driver, `host` by any thread. All are
 * seq_cst where a gate may sleep on them (gate.h says why). They also carry the data: `tail` a submission and the batch the
 * host wrote before it, `host` what the transport put into wire buffers, `device` everything the program wrote. `lent` says who takes
 * the next submission; it changes only while there is none, before `tail`, and the driver reads it after `tail`.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dl/device.h"
#include "arena.h"
#include "cpu_features.h"
#include "gate.h"
#include "pack.h"
#include "pool.h"
#include "program.h"

#define MAX_IN_FLIGHT 64u
#define SPIN_NS 100000u /* longer than the gaps inside a batch, shorter than anyone notices */

struct submission {
    struct cpu_program *prog;
    const uint8_t *batch;
    uint32_t n_tokens, n_out;
    uint64_t host_wait, signal;
};

struct device {
    dl_device pub;
    unsigned isa;
    uint64_t waiter_spin_ns;
    struct cpu_pool *pool;
    struct cpu_arena packed;
    float *scratch; /* of programs (CPU_SCRATCH_FLOATS) */
    struct cpu_gate driver_gate, waiter_gate;
    pthread_t driver;
    uint64_t driver_spin_ns;
    uint64_t last_signal; /* the submitting thread's */
    uint64_t wait_value;  /* the waiting thread's */
    struct submission ring[MAX_IN_FLIGHT];
    _Alignas(64) atomic_uint_fast64_t tail; /* submissions so far */
    _Alignas(64) atomic_uint_fast64_t head; /* of them finished */
    _Alignas(64) atomic_uint_fast64_t device;
    _Alignas(64) atomic_uint_fast64_t host;
    atomic_bool stop, lent;
};

struct buf {
    dl_buf pub;
    uint8_t *data;
    bool imported; /* data is the caller's: read-only */
    bool packed;   /* pack.h */
    char name[64];
};

static struct device *device_of(dl_device *dev)
{
    return (struct device *)(void *)dev;
}
static struct buf *buf_of(dl_buf *buf)
{
    return (struct buf *)(void *)buf;
}

/* ----------------------------------------------------------------------------------------------- the driver */

static bool queued(void *ud)
{
    struct device *d = ud;
    return (atomic_load_explicit(&d->tail, memory_order_seq_cst) !=
                atomic_load_explicit(&d->head, memory_order_relaxed) &&
            !atomic_load_explicit(&d->lent, memory_order_seq_cst)) ||
           atomic_load_explicit(&d->stop, memory_order_seq_cst);
}

static bool host_reached(void *ud)
{
    struct device *d = ud;
    const struct submission *s = &d->ring[atomic_load_explicit(&d->head, memory_order_relaxed) % MAX_IN_FLIGHT];
    return atomic_load_explicit(&d->host, memory_order_seq_cst) >= s->host_wait ||
           atomic_load_explicit(&d->stop, memory_order_seq_cst);
}

/* The oldest submission, whose host value is reached. */
static void run_next(struct device *d)
{
    uint64_t head = atomic_load_explicit(&d->head, memory_order_relaxed);
    const struct submission *s = &d->ring[head % MAX_IN_FLIGHT];
    cpu_program_run(s->prog, d->pool, d->pub.threads, s->n_tokens, s->n_out, s->batch, d->scratch);
    /* First the slot, then the counter: who has seen the counter may submit again. */
    uint64_t signal = s->signal;
    atomic_store_explicit(&d->head, head + 1, memory_order_release);
    atomic_store_explicit(&d->device, signal, memory_order_seq_cst);
}

static void *driver_main(void *ud)
{
    struct device *d = ud;
    for (;;) {
        cpu_gate_wait(&d->driver_gate, queued, d, d->driver_spin_ns, UINT64_MAX);
        uint64_t head = atomic_load_explicit(&d->head, memory_order_relaxed);
        if (atomic_load_explicit(&d->tail, memory_order_seq_cst) == head)
            return NULL; /* stopped, and nothing is left */
        cpu_gate_wait(&d->driver_gate, host_reached, d, d->driver_spin_ns, UINT64_MAX);
        const struct submission *s = &d->ring[head % MAX_IN_FLIGHT];
        if (atomic_load_explicit(&d->host, memory_order_seq_cst) < s->host_wait)
            return NULL; /* the device is being closed: nobody will raise the counter any more */
        run_next(d);
        cpu_gate_wake(&d->waiter_gate);
    }
}

static int dev_submit(dl_device *dev, dl_prog *prog, const struct dl_run_args *args, uint64_t host_wait,
                      uint64_t signal)
{
    struct device *d = device_of(dev);
    struct cpu_program *p = (struct cpu_program *)(void *)prog;
    int err = cpu_program_fits(p, args);
    if (err)
        return err;
    if (signal <= d->last_signal)
        return dl_fail(DL_EINVAL, "cpu: signal %llu after %llu: the counter only grows", (unsigned long long)signal,
                       (unsigned long long)d->last_signal);
    uint64_t tail = atomic_load_explicit(&d->tail, memory_order_relaxed),
             waiting = tail - atomic_load_explicit(&d->head, memory_order_acquire);
    if (!waiting)
        atomic_store_explicit(&d->lent, dev->computes_in_wait, memory_order_seq_cst);
    if (waiting >= MAX_IN_FLIGHT)
        return dl_fail(DL_ELIMIT, "cpu: more than %u submissions in flight", MAX_IN_FLIGHT);
    d->ring[tail % MAX_IN_FLIGHT] = (struct submission){.prog = p,
                                                        .batch = buf_of(args->batch)->data,
                                                        .n_tokens = args->n_tokens,
                                                        .n_out = args->n_out,
                                                        .host_wait = host_wait,
                                                        .signal = signal};
    d->last_signal = signal;
    atomic_store_explicit(&d->tail, tail + 1, memory_order_seq_cst);
    if (!atomic_load_explicit(&d->lent, memory_order_relaxed))
        cpu_gate_wake(&d->driver_gate);
    return DL_OK;
}

static int dev_host_signal(dl_device *dev, uint64_t value)
{
    struct device *d = device_of(dev);
    uint_fast64_t now = atomic_load_explicit(&d->host, memory_order_relaxed);
    while (now < value)
        if (atomic_compare_exchange_weak_explicit(&d->host, &now, value, memory_order_seq_cst, memory_order_relaxed)) {
            cpu_gate_wake(atomic_load_explicit(&d->lent, memory_order_seq_cst) ? &d->waiter_gate : &d->driver_gate);
            break;
        }
    return DL_OK;
}

static bool device_reached(void *ud)
{
    struct device *d = ud;
    return atomic_load_explicit(&d->device, memory_order_seq_cst) >= d->wait_value;
}

/* A time-out is an answer, not a failure: it is not logged. */
static int dev_wait(dl_device *dev, uint64_t value, uint64_t timeout_ns)
{
    struct device *d = device_of(dev);
    d->wait_value = value;
    if (!timeout_ns)
        return device_reached(d) ? DL_OK : DL_ETIMEDOUT;
    uint64_t deadline = dl_now_ns();
    if (!dl_add_u64(deadline, timeout_ns, &deadline))
        deadline = UINT64_MAX;
    while (atomic_load_explicit(&d->lent, memory_order_relaxed) && !device_reached(d) &&
           atomic_load_explicit(&d->tail, memory_order_relaxed) !=
               atomic_load_explicit(&d->head, memory_order_relaxed)) {
        if (!cpu_gate_wait(&d->waiter_gate, host_reached, d, 0, deadline))
            return DL_ETIMEDOUT;
        run_next(d);
    }
    return cpu_gate_wait(&d->waiter_gate, device_reached, d, d->waiter_spin_ns, deadline) ? DL_OK : DL_ETIMEDOUT;
}

/* -------------------------------------------------------------------------------------- buffers and programs */

static struct buf *buf_new(const struct dl_buf_desc *desc)
{
    struct buf *b = dl_calloc(1, sizeof *b);
    if (!b)
        return NULL;
    snprintf(b->name, sizeof b->name, "%s", desc->name);
    b->pub.desc = *desc;
    b->pub.desc.name = b->name;
    return b;
}

/* What is read in full for every token is worth huge pages. */
static void *buf_alloc(struct device *d, const struct dl_buf_desc *desc, bool packed, size_t bytes)
{
    if (packed)
        return cpu_arena_alloc(&d->packed, bytes);
    return desc->use == DL_BUF_KV ? dl_alloc_huge(bytes) : dl_alloc_aligned(64, bytes);
}

static int dev_buf_create(dl_device *dev, const struct dl_buf_desc *desc, dl_buf **out)
{
    uint64_t bytes = desc->bytes;
    bool packed = cpu_packs(device_of(dev)->isa, desc), fits = !packed || cpu_pack_bytes(desc, &bytes);
    struct buf *b = buf_new(desc);
    if (!b)
        return DL_ENOMEM;
    b->packed = packed;
    if (fits && bytes <= SIZE_MAX / 2)
        b->data = buf_alloc(device_of(dev), desc, packed, (size_t)bytes);
    if (!b->data) {
        free(b);
        return dl_fail(DL_ENOMEM, "%s: buffer %s of %llu bytes does not fit into memory", dev->name, desc->name,
                       (unsigned long long)bytes);
    }
    *out = &b->pub;
    return DL_OK;
}

/* ------------------------------------------------------------------------------------------------- packing */

#define PACK_CHUNK ((uint64_t)128 << 10)

struct packing {
    const struct buf *buf;
    const uint8_t *bytes;
    uint32_t rows, first, per_chunk;
};

static void pack_chunk(void *ud, uint32_t chunk)
{
    const struct packing *p = ud;
    const struct dl_buf_desc *d = &p->buf->pub.desc;
    uint32_t at = chunk * p->per_chunk;
    cpu_pack_rows(d, p->buf->data, p->first + at, p->bytes + at * (d->bytes / d->rows),
                  DL_MIN(p->rows - at, p->per_chunk));
}

static bool idle(struct device *d)
{
    return atomic_load_explicit(&d->tail, memory_order_relaxed) == atomic_load_explicit(&d->head, memory_order_acquire);
}

/* On all threads, the caller standing in for the driver, while nothing is queued: then the driver leaves the pool alone. */
static void pack(struct device *d, struct buf *b, uint32_t first, const uint8_t *bytes, uint32_t rows)
{
    uint64_t row = b->pub.desc.bytes / b->pub.desc.rows;
    /* A tile is one thread's, so chunks that begin with one share none when `first` does. */
    uint64_t per_chunk = DL_MAX(DL_MAX(PACK_CHUNK / row, dl_div_up(rows, CPU_POOL_MAX_CHUNKS)), 1);
    per_chunk = dl_round_up(per_chunk, CPU_TILE);
    struct packing p = {b, bytes, rows, first, (uint32_t)DL_MIN(per_chunk, UINT32_MAX / CPU_TILE * CPU_TILE)};
    if (first % CPU_TILE || rows <= p.per_chunk || !idle(d))
        cpu_pack_rows(&b->pub.desc, b->data, first, bytes, rows);
    else
        cpu_pool_run(d->pool, pack_chunk, &p, (uint32_t)dl_div_up(rows, p.per_chunk));
}

static int dev_buf_import(dl_device *dev, const struct dl_buf_desc *desc, const void *bytes, dl_buf **out)
{
    if (cpu_packs(device_of(dev)->isa, desc)) {
        int err = dev_buf_create(dev, desc, out);
        if (!err)
            pack(device_of(dev), buf_of(*out), 0, bytes, desc->rows);
        return err;
    }
    struct buf *b = buf_new(desc);
    if (!b)
        return DL_ENOMEM;
    b->data = (uint8_t *)(uintptr_t)bytes;
    b->imported = true;
    *out = &b->pub;
    return DL_OK;
}

static void dev_buf_destroy(dl_device *dev, dl_buf *buf)
{
    struct buf *b = buf_of(buf);
    if (b->packed)
        cpu_arena_free(&device_of(dev)->packed, b->data);
    else if (!b->imported)
        dl_free_aligned(b->data);
    free(b);
}

static int dev_buf_write(dl_device *dev, dl_buf *buf, uint64_t offset, const void *bytes, size_t n)
{
    struct buf *b = buf_of(buf);
    if (b->imported)
        return dl_fail(DL_EINVAL, "%s: buffer %s was imported and is read-only", dev->name, b->name);
    uint64_t row = b->pub.desc.bytes / b->pub.desc.rows;
    if (b->packed)
        pack(device_of(dev), b, (uint32_t)(offset / row), bytes, (uint32_t)(n / row));
    else
        memcpy(b->data + offset, bytes, n);
    return DL_OK;
}

static int dev_buf_read(dl_device *dev, dl_buf *buf, uint64_t offset, void *bytes, size_t n)
{
    (void)dev;
    memcpy(bytes, buf_of(buf)->data + offset, n);
    return DL_OK;
}

static void *dev_buf_map(dl_device *dev, dl_buf *buf)
{
    (void)dev;
    return buf_of(buf)->data;
}

static bool dev_supports(dl_device *dev, const struct dl_op *op)
{
    return cpu_pick(op, device_of(dev)->isa) != NULL;
}

static int dev_prog_create(dl_device *dev, const struct dl_op *ops, uint32_t n_ops, dl_buf *const *bufs,
                           uint32_t n_bufs, dl_prog **out)
{
    for (uint32_t i = 0; i < n_ops; i++)
        if (ops[i].dst.buf == DL_NO_BUF || buf_of(bufs[ops[i].dst.buf])->imported)
            return dl_fail(DL_EINVAL, "%s: op %s has no buffer that it may write", dev->name, ops[i].name);
    struct cpu_base *base = dl_calloc(n_bufs, sizeof *base);
    if (!base)
        return DL_ENOMEM;
    for (uint32_t i = 0; i < n_bufs; i++)
        if (bufs[i])
            base[i] = (struct cpu_base){buf_of(bufs[i])->data, buf_of(bufs[i])->packed};
    struct cpu_program *p = NULL;
    int err = cpu_program_create(ops, n_ops, base, device_of(dev)->isa, &p);
    free(base);
    *out = (dl_prog *)(void *)p;
    return err;
}

static void dev_prog_destroy(dl_device *dev, dl_prog *prog)
{
    (void)dev;
    cpu_program_destroy((struct cpu_program *)(void *)prog);
}

/* ------------------------------------------------------------------------------------------ open and close */

static void dev_destroy(dl_device *dev)
{
    struct device *d = device_of(dev);
    atomic_store_explicit(&d->stop, true, memory_order_seq_cst);
    cpu_gate_wake(&d->driver_gate);
    pthread_join(d->driver, NULL);
    cpu_pool_destroy(&d->pool);
    cpu_gate_finish(&d->driver_gate);
    cpu_gate_finish(&d->waiter_gate);
    dl_free_aligned(d->scratch);
    dl_free_aligned(d);
}

static const struct dl_device_fns fns = {
    .destroy = dev_destroy,
    .buf_create = dev_buf_create,
    .buf_import = dev_buf_import,
    .buf_destroy = dev_buf_destroy,
    .buf_write = dev_buf_write,
    .buf_read = dev_buf_read,
    .buf_map = dev_buf_map,
    .supports = dev_supports,
    .prog_create = dev_prog_create,
    .prog_destroy = dev_prog_destroy,
    .submit = dev_submit,
    .host_signal = dev_host_signal,
    .wait = dev_wait,
};

int dl_cpu_open(const struct dl_cpu_opts *opts, dl_device **out)
{
    *out = NULL;
    unsigned isa;
    int err = cpu_isa_choose(opts->isa ? opts->isa : getenv("DLLAMA_CPU"), &isa);
    if (err)
        return err;
    uint32_t processors = dl_cpu_count(), threads = opts->threads;
    if (!threads)
        threads = DL_MIN(processors, DL_CPU_MAX_THREADS);
    if (threads > DL_CPU_MAX_THREADS)
        return dl_fail(DL_EINVAL, "cpu: %u threads: at most %u make sense", threads, DL_CPU_MAX_THREADS);
    struct device *d = dl_alloc_aligned(64, sizeof *d);
    if (!d)
        return DL_ENOMEM;
    /* Spinning only helps on a processor that nobody else needs. */
    uint64_t spin_ns = threads <= processors ? SPIN_NS : 0;
    d->driver_spin_ns = spin_ns;
    d->waiter_spin_ns = threads < processors ? SPIN_NS : 0;
    d->isa = isa;
    d->pub = (dl_device){.fns = &fns,
                         .kind = "cpu",
                         .mem_total = dl_mem_total(),
                         .mem_free = dl_mem_available(),
                         .max_buf_bytes = SIZE_MAX / 2,
                         .threads = threads,
                         .max_tokens = 512};
    for (uint32_t t = 0; t < DL_TYPE_COUNT; t++)
        if (cpu_packs(isa, &(struct dl_buf_desc){.use = DL_BUF_WEIGHT, .type = (enum dl_type)t}))
            d->pub.copies |= 1u << t;
    snprintf(d->pub.name, sizeof d->pub.name, "cpu (%s, %u thread%s)", cpu_isa_best(isa), threads,
             threads == 1 ? "" : "s");
    int gates = 0;
    d->scratch =
        dl_alloc_aligned(64, CPU_SCRATCH_FLOATS * sizeof *d->scratch); /* pages that nobody touches cost nothing */
    err = d->scratch ? cpu_gate_init(&d->driver_gate) : DL_ENOMEM;
    if (!err) {
        gates = 1;
        err = cpu_gate_init(&d->waiter_gate);
    }
    if (!err) {
        gates = 2;
        err = cpu_pool_create(threads, spin_ns, &d->pool);
    }
    if (!err) {
        int e = cpu_thread_start(&d->driver, driver_main, d);
        if (e)
            err = dl_fail(DL_EDEVICE, "cpu: cannot start a thread: %s", strerror(e));
    }
    if (!err) {
        *out = &d->pub;
        return DL_OK;
    }
    cpu_pool_destroy(&d->pool);
    if (gates > 0)
        cpu_gate_finish(&d->driver_gate);
    if (gates > 1)
        cpu_gate_finish(&d->waiter_gate);
    dl_free_aligned(d->scratch);
    dl_free_aligned(d);
    return err;
}

/* ------------------------------------------------------------------------------------------------ bandwidth */

#define READ_CHUNK ((size_t)1 << 20)
#ifdef __SANITIZE_THREAD__ /* which keeps four bytes about each, in pages that two threads fetch from the kernel one by one */
#define READ_CHUNKS 16u
#else
#define READ_CHUNKS 256u /* more than a cache holds, or part of what is measured is the cache */
#endif

struct stream {
    uint8_t *bytes;
    atomic_uint_fast64_t sum; /* so that the reads cannot be left out */
};

static void stream_fill(void *ud, uint32_t chunk)
{
    struct stream *s = ud;
    memset(s->bytes + chunk * READ_CHUNK, (int)(chunk & 0x7f) + 1, READ_CHUNK);
}

static void stream_read(void *ud, uint32_t chunk)
{
    struct stream *s = ud;
    const uint64_t *v = (const uint64_t *)(void *)(s->bytes + chunk * READ_CHUNK);
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < READ_CHUNK / sizeof *v; i += 8)
        for (size_t j = 0; j < 8; j++)
            sum[j] += v[i + j];
    uint64_t all = 0;
    for (size_t j = 0; j < 8; j++)
        all ^= sum[j];
    atomic_fetch_add_explicit(&s->sum, all, memory_order_relaxed);
}

double dl_cpu_read_bandwidth(dl_device *dev, uint32_t ms)
{
    struct device *d = device_of(dev);
    if (dev->fns != &fns || !idle(d)) {
        dl_fail(DL_EINVAL, "%s: bandwidth is measured on an idle CPU device", dev->name);
        return 0;
    }
    struct stream s = {.bytes = dl_alloc_huge(READ_CHUNKS * READ_CHUNK)};
    if (!s.bytes)
        return 0;
    cpu_pool_run(d->pool, stream_fill, &s, READ_CHUNKS);
    uint64_t start = dl_now_ns(), limit = (uint64_t)ms * 1000000u, spent, bytes = 0;
    do {
        cpu_pool_run(d->pool, stream_read, &s, READ_CHUNKS);
        bytes += READ_CHUNKS * READ_CHUNK;
        spent = dl_now_ns() - start;
    } while (spent < limit);
    dl_free_aligned(s.bytes);
    return spent ? (double)bytes * 1e9 / (double)spent : 0;
}
