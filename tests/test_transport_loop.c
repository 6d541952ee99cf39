/* SPDX-License-Identifier: MIT
 *
 * tests/test_transport_loop.c: who holds the loop: a thread that wants it gets it at any moment, also while the loop's own thread, or one that
 * drives, is about to fall asleep with it.
 */
#include "common.h"

#include <pthread.h>
#include <stdatomic.h>

#include "loop.h"

#define SEC UINT64_C(1000000000)

struct race {
    struct tp_loop *loop;
    atomic_uint n; /* so often it was had */
    atomic_bool over;
};

/* After pauses of all lengths up to some tens of microseconds. */
static void *enters(void *ud)
{
    struct race *r = ud;
    for (unsigned i = 0; !atomic_load(&r->over); i++) {
        for (uint64_t end = dl_now_ns() + i * 37 % 60000; dl_now_ns() < end;)
            ;
        tp_loop_enter(r->loop);
        tp_loop_leave(r->loop);
        atomic_fetch_add(&r->n, 1);
    }
    return NULL;
}

/* Nothing in this loop ends a sleep but who wants it. */
static void from_its_thread(void **state)
{
    (void)state;
    struct race r = {.n = 0};
    pthread_t thread;
    assert_int_equal(tp_loop_create(0, &r.loop), 0);
    assert_int_equal(pthread_create(&thread, NULL, enters, &r), 0);
    unsigned n = 0;
    for (uint64_t t0 = dl_now_ns(), moved = t0; dl_now_ns() - t0 < SEC; dl_sleep_ns(SEC / 100)) {
        const unsigned now = atomic_load(&r.n);
        moved = now != n ? dl_now_ns() : moved;
        n = now;
    }
    atomic_store(&r.over, true);
    pthread_join(thread, NULL);
    assert_true(n > 10);
    tp_loop_destroy(&r.loop);
}

/* ------------------------------------------------------------------------------------------------- driving */

struct late {
    struct tp_loop *loop;
    unsigned n_looks;
    atomic_bool come, has;
};

static void *comes_late(void *ud)
{
    struct late *l = ud;
    while (!atomic_load(&l->come))
        dl_sleep_ns(SEC / 10000);
    tp_loop_enter(l->loop);
    atomic_store(&l->has, true);
    tp_loop_leave(l->loop);
    return NULL;
}

/* A drive looks twice in a turn. Here the second look of the first takes so long that it is tired of waiting and will fall asleep, and
 * just then the other one comes. */
static bool looks_slowly(void *ud)
{
    struct late *l = ud;
    if (++l->n_looks == 2) {
        atomic_store(&l->come, true);
        dl_sleep_ns(SEC / 20);
    }
    return atomic_load(&l->has);
}

static void from_who_drives(void **state)
{
    (void)state;
    struct late l = {.n_looks = 0};
    pthread_t thread;
    assert_int_equal(tp_loop_create(0, &l.loop), 0);
    assert_int_equal(pthread_create(&thread, NULL, comes_late, &l), 0);
    const uint64_t t0 = dl_now_ns();
    while (!atomic_load(&l.has) && dl_now_ns() - t0 < 5 * SEC)
        tp_loop_drive(l.loop, looks_slowly, &l, t0 + 5 * SEC);
    const uint64_t took = dl_now_ns() - t0;
    pthread_join(thread, NULL);
    tp_loop_destroy(&l.loop);
    if (took >= 5 * SEC)
        fail_msg("who wanted the loop had to wait for the end of a drive");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(from_its_thread), cmocka_unit_test(from_who_drives)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
