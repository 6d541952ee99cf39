/* SPDX-License-Identifier: MIT
 *
 * cpu/pool.c: see pool.h. A region is published in one word, `ticket`: its number and how many of its chunks are not yet
 * claimed. A thread claims a chunk by lowering that word with compare-and-swap, so one that comes late, with a stale word,
 * claims nothing, and nobody ever has to wait for a sleeper.
 */
#include "pool.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "dl/base.h"
#include "gate.h"

struct cpu_pool {
    _Alignas(64) atomic_uint_fast64_t ticket; /* region << 16 | chunks not claimed */
    _Alignas(64) atomic_uint done;            /* chunks finished */
    /* The region. Written only while no chunk is left to claim and all are done. A thread may read them torn between two
     * regions, but then its claim fails: a claim that succeeds proves that this region was not over when they were read. */
    _Alignas(64) _Atomic(cpu_chunk_fn *) fn;
    _Atomic(void *) ud;
    atomic_uint n_chunks;
    atomic_bool stop;
    struct cpu_gate start, finish;
    uint64_t spin_ns;
    uint32_t n_started;
    pthread_t *threads;
};

static uint32_t unclaimed(uint64_t ticket)
{
    return (uint32_t)(ticket & CPU_POOL_MAX_CHUNKS);
}

static void run_chunks(struct cpu_pool *p)
{
    /* acquire: pairs with the store that published the region (claims in between extend its release sequence), so fn, ud
     * and n_chunks are at least as new as the ticket. */
    uint_fast64_t ticket = atomic_load_explicit(&p->ticket, memory_order_acquire);
    while (unclaimed(ticket)) {
        cpu_chunk_fn *fn = atomic_load_explicit(&p->fn, memory_order_relaxed);
        void *ud = atomic_load_explicit(&p->ud, memory_order_relaxed);
        uint32_t n = atomic_load_explicit(&p->n_chunks, memory_order_relaxed);
        /* release: the three loads above come before the claim, and with it before the end of the region. */
        if (!atomic_compare_exchange_weak_explicit(&p->ticket, &ticket, ticket - 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        fn(ud, n - unclaimed(ticket));
        /* Publishes what the chunk wrote; seq_cst because of the gate. */
        if (atomic_fetch_add_explicit(&p->done, 1, memory_order_seq_cst) + 1 == n)
            cpu_gate_wake(&p->finish);
        ticket = atomic_load_explicit(&p->ticket, memory_order_acquire);
    }
}

static bool has_work(void *ud)
{
    struct cpu_pool *p = ud;
    return unclaimed(atomic_load_explicit(&p->ticket, memory_order_seq_cst)) ||
           atomic_load_explicit(&p->stop, memory_order_seq_cst);
}

static void *thread_main(void *ud)
{
    struct cpu_pool *p = ud;
    for (;;) {
        cpu_gate_wait(&p->start, has_work, p, p->spin_ns, UINT64_MAX);
        if (atomic_load_explicit(&p->stop, memory_order_relaxed))
            return NULL;
        run_chunks(p);
    }
}

static bool all_done(void *ud)
{
    struct cpu_pool *p = ud;
    return atomic_load_explicit(&p->done, memory_order_seq_cst) ==
           atomic_load_explicit(&p->n_chunks, memory_order_relaxed);
}

void cpu_pool_run(struct cpu_pool *p, cpu_chunk_fn *fn, void *ud, uint32_t n_chunks)
{
    if (!n_chunks)
        return;
    uint64_t region = (atomic_load_explicit(&p->ticket, memory_order_relaxed) >> 16) + 1;
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store_explicit(&p->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&p->ud, ud, memory_order_relaxed);
    atomic_store_explicit(&p->n_chunks, n_chunks, memory_order_relaxed);
    /* Publishes all of the above and the caller's data; seq_cst because of the gate. */
    atomic_store_explicit(&p->ticket, region << 16 | n_chunks, memory_order_seq_cst);
    cpu_gate_wake(&p->start);
    run_chunks(p);
    cpu_gate_wait(&p->finish, all_done, p, p->spin_ns, UINT64_MAX);
}

int cpu_thread_start(pthread_t *thread, void *(*fn)(void *), void *ud)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(thread, NULL, fn, ud);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return err;
}

int cpu_pool_create(uint32_t n_threads, uint64_t spin_ns, struct cpu_pool **out)
{
    *out = NULL;
    struct cpu_pool *p = dl_alloc_aligned(64, sizeof *p);
    if (!p)
        return DL_ENOMEM;
    p->spin_ns = spin_ns;
    p->threads = dl_calloc(n_threads, sizeof *p->threads);
    bool start = false;
    int err = p->threads ? cpu_gate_init(&p->start) : DL_ENOMEM;
    if (err)
        goto fail;
    start = true;
    err = cpu_gate_init(&p->finish);
    if (err)
        goto fail;
    for (; p->n_started + 1 < n_threads; p->n_started++) {
        int e = cpu_thread_start(&p->threads[p->n_started], thread_main, p);
        if (e) {
            err = dl_fail(DL_EDEVICE, "cpu: cannot start thread %u of %u: %s; ask for fewer threads", p->n_started + 2,
                          n_threads, strerror(e));
            cpu_pool_destroy(&p);
            return err;
        }
    }
    *out = p;
    return DL_OK;
fail:
    if (start)
        cpu_gate_finish(&p->start);
    free(p->threads);
    dl_free_aligned(p);
    return err;
}

void cpu_pool_destroy(struct cpu_pool **pool)
{
    struct cpu_pool *p = *pool;
    if (!p)
        return;
    atomic_store_explicit(&p->stop, true, memory_order_seq_cst);
    cpu_gate_wake(&p->start);
    for (uint32_t i = 0; i < p->n_started; i++)
        pthread_join(p->threads[i], NULL);
    cpu_gate_finish(&p->start);
    cpu_gate_finish(&p->finish);
    free(p->threads);
    dl_free_aligned(p);
    *pool = NULL;
}
