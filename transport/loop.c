/* SPDX-License-Identifier: MIT
 *
 * transport/loop.c: who holds the loop, and how it is handed over.
 *
 * `own` is the loop; who holds it may touch libuv. `gate` guards who wants it: the loop's thread stays out while others wait for it or a
 * thread that drives has a lease. `posted` and `asleep` are Dekker's handshake, both sequentially consistent: who has work
 * stores `posted` and then reads `asleep`, who is about to sleep stores `asleep` and then reads `posted`, so at least one of them
 * sees the other, and an eventfd is written only when somebody sleeps. So are `wanted` and `asleep`, for who wants the loop
 * itself: that is no work, which whoever holds the loop would have done before he sleeps with it all the same.
 */
#include "loop.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "inside.h"

#define LEASE_NS \
    ((uint64_t)2000000) /* the loop's thread stays away so long after a drive; it costs at most as many wake-ups */

#define PATIENCE_NS ((uint64_t)20000000)
#define ALONE_NS ((uint64_t)50000)
#define SPIN_MOST_NS ((uint64_t)1000000) /* what usually takes longer is not worth a core */
#define YIELDED_NS ((uint64_t)5000)      /* a yield that took longer than this had somebody to yield to */
#define HOGGED_NS ((uint64_t)500000)     /* and longer than this, one who computes and does not wait himself */
#define SHY_NS ((uint64_t)200000000)
#define NAP_PART 16
#define NAP_LEAST_NS ((uint64_t)20000)

struct tp_loop {
    uv_loop_t uv;
    uv_async_t async;
    uv_timer_t alarm; /* the deadline of tp_loop_drive */
    pthread_t thread;
    uint64_t spin_ns;

    pthread_mutex_t own;
    struct tp_client *clients;
    uint64_t active_ns; /* when there was last something posted */
    uint64_t usual_ns;  /* how long drives take of late */
    uint64_t shy_until; /* somebody else computes here: no core is offered until then */
    bool near;
    int n_lookups;
    bool orphan; /* nobody joins the thread: it frees the loop */

    pthread_mutex_t gate;
    pthread_cond_t open;
    unsigned n_waiting; /* threads that want the loop or hold it, but for its own */
    uint64_t lease_until;
    bool quit;

    atomic_bool posted, asleep;
    atomic_uint wanted; /* threads that wait for `own` */
    atomic_bool leased; /* the loop's thread is out, and because of a lease */
};

/* ------------------------------------------------------------------------------------------------------ the holder */

static void run_posted(struct tp_loop *l)
{
    if (!atomic_exchange(&l->posted, false))
        return;
    l->active_ns = l->spin_ns ? dl_now_ns() : 0;
    for (struct tp_client *c = l->clients, *next; c; c = next) {
        next = c->next;
        c->wake(c->ud, false);
    }
}

static bool spins(const struct tp_loop *l)
{
    if (!l->spin_ns || dl_now_ns() - l->active_ns > l->spin_ns)
        return false;
    for (const struct tp_client *c = l->clients; c; c = c->next)
        if (c->busy(c->ud))
            return true;
    return false;
}

/* gives_way: does not sleep while others want the loop, but lets go of it then. */
static void turn(struct tp_loop *l, bool block, bool gives_way)
{
    run_posted(l);
    if (!block || spins(l)) {
        uv_run(&l->uv, UV_RUN_NOWAIT);
        return;
    }
    atomic_store(&l->asleep, true);
    const bool stays = atomic_load(&l->posted) || (gives_way && atomic_load(&l->wanted));
    uv_run(&l->uv, stays ? UV_RUN_NOWAIT : UV_RUN_ONCE);
    atomic_store(&l->asleep, false);
}

void tp_loop_turn(struct tp_loop *l, bool block)
{
    turn(l, block, false);
}

/* While the loop's thread is out on a lease and nobody drives: what is posted leaves at once, by the thread that posted it. Whatever
 * else there is to do remains posted: for who drives next, or the loop's thread when the lease is over. */
static void run_inside(struct tp_loop *l)
{
    if (!atomic_load(&l->leased) || pthread_mutex_trylock(&l->own))
        return;
    for (struct tp_client *c = l->clients; c; c = c->next)
        c->wake(c->ud, true);
    pthread_mutex_unlock(&l->own);
}

void tp_loop_wake(struct tp_loop *l)
{
    atomic_store(&l->posted, true);
    if (atomic_load(&l->asleep))
        (void)uv_async_send(&l->async);
    else
        run_inside(l);
}

bool tp_loop_leased(struct tp_loop *l)
{
    return atomic_load(&l->leased);
}

static void enter(struct tp_loop *l, uint64_t lease_ns)
{
    pthread_mutex_lock(&l->gate);
    l->n_waiting++;
    l->lease_until = lease_ns ? dl_now_ns() + lease_ns : l->lease_until;
    pthread_mutex_unlock(&l->gate);
    if (pthread_mutex_trylock(&l->own)) {
        atomic_fetch_add(&l->wanted, 1);
        if (atomic_load(&l->asleep))
            (void)uv_async_send(&l->async);
        pthread_mutex_lock(&l->own);
        atomic_fetch_sub(&l->wanted, 1);
    }
}

static void leave(struct tp_loop *l, uint64_t lease_ns)
{
    pthread_mutex_unlock(&l->own);
    pthread_mutex_lock(&l->gate);
    l->n_waiting--;
    l->lease_until = lease_ns ? dl_now_ns() + lease_ns : l->lease_until;
    /* With a lease its thread comes by itself; but only if it knows of one. */
    if (!l->n_waiting && !(lease_ns && atomic_load(&l->leased)))
        pthread_cond_signal(&l->open);
    pthread_mutex_unlock(&l->gate);
    if (lease_ns && atomic_load(&l->posted)) /* between the last look and letting go */
        run_inside(l);
}

void tp_loop_enter(struct tp_loop *l)
{
    enter(l, 0);
}
void tp_loop_leave(struct tp_loop *l)
{
    leave(l, 0);
}

static bool others_want_it(struct tp_loop *l)
{
    pthread_mutex_lock(&l->gate);
    bool others = l->n_waiting > 1;
    pthread_mutex_unlock(&l->gate);
    return others;
}

static void alarm_rings(uv_timer_t *timer)
{
    (void)timer; /* it ends the sleep, that is all */
}

/* Ends the lease of a drive that nothing of the kind follows. */
static void end_lease(struct tp_loop *l)
{
    pthread_mutex_lock(&l->gate);
    bool was = l->lease_until;
    l->lease_until = 0;
    if (was && !l->n_waiting)
        pthread_cond_signal(&l->open);
    pthread_mutex_unlock(&l->gate);
}

/* How a thread waits for what should come at once. Blocking costs most where cores are busy: the system wakes a sleeper where the news
 * come from, which on one machine is beside the sender, who goes on computing there, and one core ends up with the work of
 * all. So at first it stays: as long as it finds others to yield to, or for a moment, it only yields. Then it takes naps, which the
 * clock of its own core ends, each a small part of what it has waited, and leaves the core to whoever wants it. What takes
 * still longer is slept for.
 *
 * A nap ends when it ends, not when the news are there. So where those who are waited for compute elsewhere, the moment lasts for as
 * long as such waits usually take, and half of that again. But a program that computes on this core, too, takes it for some
 * milliseconds when it is offered; a sleeper gets it back at once. So there it sleeps for a while. */
struct patience {
    uint64_t began_ns, alone_ns; /* alone: since when nobody took the core that was offered */
};

static uint64_t moment_ns(const struct tp_loop *l)
{
    return l->near || l->usual_ns > SPIN_MOST_NS ? ALONE_NS : DL_MAX(l->usual_ns + l->usual_ns / 2, ALONE_NS);
}

static bool stay_awake(struct tp_loop *l, struct patience *p)
{
    uint64_t now = dl_now_ns(), waited = now - p->began_ns;
    if (waited > PATIENCE_NS || (!l->near && now < l->shy_until))
        return false;
    if (now - p->alone_ns > moment_ns(l)) {
        dl_sleep_ns(DL_MAX(waited / NAP_PART, NAP_LEAST_NS));
    } else {
        dl_yield();
        uint64_t back = dl_now_ns();
        if (back - now > YIELDED_NS)
            p->alone_ns = back;
        if (back - now > HOGGED_NS)
            l->shy_until = back + SHY_NS;
    }
    return true;
}

/* It took as long as it took: the next will be like the last few. */
static void learn(struct tp_loop *l, const struct patience *p)
{
    l->usual_ns = (7 * l->usual_ns + DL_MIN(dl_now_ns() - p->began_ns, 2 * SPIN_MOST_NS)) / 8;
}

void tp_loop_drive(struct tp_loop *l, bool (*done)(void *ud), void *ud, uint64_t deadline)
{
    if (!done) {
        end_lease(l);
        return;
    }
    enter(l, LEASE_NS);
    bool armed = false;
    struct patience patience = {.began_ns = dl_now_ns()};
    patience.alone_ns = patience.began_ns;
    for (;;) {
        run_posted(l);
        uint64_t now = deadline == UINT64_MAX ? 0 : dl_now_ns();
        if (done(ud) || now >= deadline || others_want_it(l))
            break;
        turn(l, false, true);
        if (done(ud))
            break;
        if (stay_awake(l, &patience))
            continue;
        if (!armed && deadline != UINT64_MAX) {
            uv_update_time(&l->uv);
            armed = !uv_timer_start(&l->alarm, alarm_rings, (deadline - now + 999999) / 1000000, 0);
        }
        turn(l, true, true);
    }
    if (armed)
        uv_timer_stop(&l->alarm);
    learn(l, &patience);
    leave(l, LEASE_NS);
}

void tp_loop_near(struct tp_loop *l, bool near)
{
    l->near = near;
}

int tp_timer_start(struct tp_loop *l, uv_timer_t *timer, uv_timer_cb fn, uint64_t ms)
{
    uv_update_time(&l->uv);
    return uv_timer_start(timer, fn, ms, ms);
}

void tp_loop_add(struct tp_loop *l, struct tp_client *c)
{
    c->next = l->clients;
    l->clients = c;
}

void tp_loop_remove(struct tp_loop *l, struct tp_client *c)
{
    for (struct tp_client **p = &l->clients; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            return;
        }
}

uv_loop_t *tp_loop_uv(struct tp_loop *l)
{
    return &l->uv;
}

void tp_loop_lookup(struct tp_loop *l, int change)
{
    l->n_lookups += change;
}

/* ------------------------------------------------------------------------------------------------------ its thread */

/* Stays out while others want the loop. False: it is over. */
static bool may_hold(struct tp_loop *l)
{
    pthread_mutex_lock(&l->gate);
    for (;;) {
        bool leased = l->lease_until && dl_now_ns() < l->lease_until;
        if (l->quit || (!l->n_waiting && !leased))
            break;
        atomic_store(&l->leased, leased);
        tp_cond_wait_until(&l->open, &l->gate, leased ? l->lease_until : UINT64_MAX);
    }
    atomic_store(&l->leased, false);
    bool may = !l->quit;
    pthread_mutex_unlock(&l->gate);
    return may;
}

static void loop_free(struct tp_loop *l)
{
    pthread_mutex_destroy(&l->own);
    pthread_mutex_destroy(&l->gate);
    pthread_cond_destroy(&l->open);
    free(l);
}

static void *run(void *arg)
{
    struct tp_loop *l = arg;
    while (may_hold(l)) {
        pthread_mutex_lock(&l->own);
        turn(l, true, true);
        pthread_mutex_unlock(&l->own);
    }
    pthread_mutex_lock(&l->own);
    uv_close((uv_handle_t *)&l->async, NULL);
    uv_close((uv_handle_t *)&l->alarm, NULL);
    uv_run(&l->uv, UV_RUN_DEFAULT);
    (void)uv_loop_close(&l->uv);
    bool orphan = l->orphan;
    pthread_mutex_unlock(&l->own);
    if (orphan)
        loop_free(l);
    return NULL;
}

static void woken(uv_async_t *async)
{
    (void)async; /* it ends the sleep; what is posted is done at the next turn */
}

/* libuv writes to sockets whose peer may be gone, and by default that signal ends the process. */
static void ignore_sigpipe(void)
{
#ifdef SIGPIPE
    struct sigaction is;
    if (!sigaction(SIGPIPE, NULL, &is) && is.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);
#endif
}

static void close_handle(uv_handle_t *handle, void *ud)
{
    (void)ud;
    uv_close(handle, NULL);
}

int tp_loop_create(uint32_t spin_us, struct tp_loop **out)
{
    struct tp_loop *l = dl_xcalloc(1, sizeof *l);
    ignore_sigpipe();
    l->spin_ns = (uint64_t)spin_us * 1000;
    pthread_mutex_init(&l->own, NULL);
    pthread_mutex_init(&l->gate, NULL);
    tp_cond_init(&l->open);
    int code = uv_loop_init(&l->uv);
    if (code) {
        loop_free(l);
        return dl_fail(DL_EIO, "transport: no event loop: %s", uv_strerror(code));
    }
    (void)uv_timer_init(&l->uv, &l->alarm);
    code = uv_async_init(&l->uv, &l->async, woken);
    /* Signals are for the threads of the program. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (!code)
        code = -pthread_create(&l->thread, NULL, run, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code) {
        uv_walk(&l->uv, close_handle, NULL);
        uv_run(&l->uv, UV_RUN_DEFAULT);
        (void)uv_loop_close(&l->uv);
        loop_free(l);
        return dl_fail(DL_EIO, "transport: no thread for the network: %s", uv_strerror(code));
    }
    *out = l;
    return DL_OK;
}

void tp_loop_destroy(struct tp_loop **loop)
{
    struct tp_loop *l = *loop;
    if (!l)
        return;
    *loop = NULL;
    tp_loop_enter(l);
    bool orphan = l->orphan = l->n_lookups > 0;
    pthread_t thread = l->thread;
    if (orphan)
        pthread_detach(thread);
    pthread_mutex_lock(&l->gate);
    l->quit = true;
    pthread_cond_signal(&l->open);
    pthread_mutex_unlock(&l->gate);
    /* The thread may have looked before `quit` was there and be about to take its turn: it is not to sleep in it. */
    (void)uv_async_send(&l->async);
    pthread_mutex_unlock(&l->own); /* and not tp_loop_leave: the thread may be through with it by now */
    if (orphan)
        return;
    pthread_join(thread, NULL);
    loop_free(l);
}
