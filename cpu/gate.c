/* SPDX-License-Identifier: MIT
 *
 * cpu/gate.c: see gate.h.
 */
#include "gate.h"

#include <string.h>
#include <time.h>

#include "dl/base.h"

int cpu_gate_init(struct cpu_gate *g)
{
    atomic_init(&g->sleepers, 0);
    pthread_condattr_t attr;
    int err = pthread_condattr_init(&attr);
    if (!err) {
#ifndef __APPLE__ /* whose timed wait takes a relative time instead */
        err = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
#endif
        if (!err)
            err = pthread_cond_init(&g->cond, &attr);
        pthread_condattr_destroy(&attr);
    }
    if (!err) {
        err = pthread_mutex_init(&g->lock, NULL);
        if (err)
            pthread_cond_destroy(&g->cond);
    }
    return err ? dl_fail(DL_EDEVICE, "cpu: cannot create a condition variable: %s", strerror(err)) : DL_OK;
}

void cpu_gate_finish(struct cpu_gate *g)
{
    pthread_cond_destroy(&g->cond);
    pthread_mutex_destroy(&g->lock);
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void sleep_until(struct cpu_gate *g, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        pthread_cond_wait(&g->cond, &g->lock);
        return;
    }
#ifdef __APPLE__
    uint64_t now = dl_now_ns(), ns = deadline_ns > now ? deadline_ns - now : 0;
    struct timespec left = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    pthread_cond_timedwait_relative_np(&g->cond, &g->lock, &left);
#else
    struct timespec at = {.tv_sec = (time_t)(deadline_ns / 1000000000u), .tv_nsec = (long)(deadline_ns % 1000000000u)};
    pthread_cond_timedwait(&g->cond, &g->lock, &at);
#endif
}

bool cpu_gate_wait(struct cpu_gate *g, cpu_gate_pred *pred, void *ud, uint64_t spin_ns, uint64_t deadline_ns)
{
    if (pred(ud))
        return true;
    if (spin_ns) {
        uint64_t end = dl_now_ns() + spin_ns;
        if (end > deadline_ns)
            end = deadline_ns;
        do {
            for (int i = 0; i < 32; i++) {
                if (pred(ud))
                    return true;
                relax();
            }
        } while (dl_now_ns() < end);
    }
    pthread_mutex_lock(&g->lock);
    atomic_fetch_add_explicit(&g->sleepers, 1, memory_order_seq_cst);
    bool ok;
    while (!(ok = pred(ud)) && dl_now_ns() < deadline_ns)
        sleep_until(g, deadline_ns);
    atomic_fetch_sub_explicit(&g->sleepers, 1, memory_order_relaxed);
    pthread_mutex_unlock(&g->lock);
    return ok;
}

void cpu_gate_wake(struct cpu_gate *g)
{
    if (!atomic_load_explicit(&g->sleepers, memory_order_seq_cst))
        return;
    /* A sleeper holds the lock from its count until it sleeps: after this it sleeps, or has seen the condition. */
    pthread_mutex_lock(&g->lock);
    pthread_cond_broadcast(&g->cond);
    pthread_mutex_unlock(&g->lock);
}
