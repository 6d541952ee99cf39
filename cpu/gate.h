/* SPDX-License-Identifier: MIT
 *
 * cpu/gate.h: waiting for a condition on atomics: spin for a while, then sleep. Who makes the condition true pays one
 * atomic load when nobody sleeps.
 */
#ifndef CPU_GATE_H
#define CPU_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct cpu_gate {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    atomic_uint sleepers;
};

/* DL_EDEVICE (logged) when the system refuses. finish only after a successful init, with nobody waiting. */
int cpu_gate_init(struct cpu_gate *g);
void cpu_gate_finish(struct cpu_gate *g);

/* Reads its atomics with memory_order_seq_cst; see cpu_gate_wait. */
typedef bool cpu_gate_pred(void *ud);

/* Blocks until pred(ud), or until dl_now_ns() >= deadline_ns (UINT64_MAX: never); returns whether pred held. Spins for
 * spin_ns at first. No wake-up is lost as long as the condition is made true by a seq_cst operation that is followed by
 * cpu_gate_wake: either the waker sees the sleeper's count, or the sleeper, who counts itself before it looks, sees the
 * condition. */
bool cpu_gate_wait(struct cpu_gate *g, cpu_gate_pred *pred, void *ud, uint64_t spin_ns, uint64_t deadline_ns);

/* Any thread. */
void cpu_gate_wake(struct cpu_gate *g);

#endif
