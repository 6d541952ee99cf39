/* SPDX-License-Identifier: MIT
 *
 * cpu/pool.h: persistent threads that work through the chunks of one parallel region at a time. Knows nothing of ops.
 */
#ifndef CPU_POOL_H
#define CPU_POOL_H

#include <pthread.h>
#include <stdint.h>

struct cpu_pool;

#define CPU_POOL_MAX_CHUNKS 65535u

/* Runs chunk `chunk` of a region. Any thread. */
typedef void cpu_chunk_fn(void *ud, uint32_t chunk);

/* n_threads >= 1 counts the caller of cpu_pool_run: n_threads - 1 are started, which spin for spin_ns before they sleep.
 * DL_EDEVICE or DL_ENOMEM (logged) when the system refuses. */
int cpu_pool_create(uint32_t n_threads, uint64_t spin_ns, struct cpu_pool **out);
void cpu_pool_destroy(struct cpu_pool **pool); /* no region is running; nulls, accepts &NULL */

/* Calls fn(ud, c) once for each chunk c < n_chunks <= CPU_POOL_MAX_CHUNKS, on the calling thread and on whichever threads
 * get there in time, and returns when all are done: their writes are visible to the caller, and the caller's to them. One
 * region at a time. A thread that is still waking up is not waited for. */
void cpu_pool_run(struct cpu_pool *pool, cpu_chunk_fn *fn, void *ud, uint32_t n_chunks);

/* pthread_create for a thread that leaves signals to the others; an error number. */
int cpu_thread_start(pthread_t *thread, void *(*fn)(void *), void *ud);

#endif
