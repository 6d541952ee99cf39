/* SPDX-License-Identifier: MIT
 *
 * transport/loop.h: a libuv loop and the thread that runs it. The loop belongs to whoever holds it: its own thread most of the time;
 * for a moment, a thread that opens or closes something (tp_loop_enter); for longer, a thread that would only wait for an
 * exchange (tp_loop_drive). Everything of libuv and all that hangs on it is touched by the holder only.
 */
#ifndef TP_LOOP_H
#define TP_LOOP_H

#include <uv.h>

#include "dl/base.h"

struct tp_loop;

/* Someone with work for the loop. Registered and removed by the holder; `wake` is called by the holder after tp_loop_wake; where
 * `inside`, that is inside tp_loop_wake itself, and only what calls nobody back may be done: the rest at the next call.
 * `busy`: it waits for bytes that should come any moment. */
struct tp_client {
    void (*wake)(void *ud, bool inside);
    bool (*busy)(void *ud);
    void *ud;
    struct tp_client *next;
};

int tp_loop_create(uint32_t spin_us, struct tp_loop **out);
/* All handles are closed or closing. A name look-up that is still under way does not hold it up: the thread then cleans up alone. */
void tp_loop_destroy(struct tp_loop **loop);
uv_loop_t *tp_loop_uv(struct tp_loop *loop);

/* Any thread: the clients are to look what there is to do. It is the door from other threads into the loop. */
void tp_loop_wake(struct tp_loop *loop);

/* A name look-up begins (+1) or is over (-1). Holder only. */
void tp_loop_lookup(struct tp_loop *loop, int change);

/* Takes the loop from its thread, and gives it back. Not from a callback of the loop. */
void tp_loop_enter(struct tp_loop *loop);
void tp_loop_leave(struct tp_loop *loop);

/* The holder lets things happen: waits for the next event (block), or only does what is due. */
void tp_loop_turn(struct tp_loop *loop, bool block);

/* Holds the loop and turns it until done(ud), or until another thread wants it, or `deadline`; the loop's thread then stays away for some
 * ms more. Without `done` that time ends now. */
void tp_loop_drive(struct tp_loop *loop, bool (*done)(void *ud), void *ud, uint64_t deadline);

/* Do those who are waited for share this machine's cores? Then who drives leaves his core to them the sooner. Holder only. */
void tp_loop_near(struct tp_loop *loop, bool near);

/* Is the loop's thread out because somebody drove a moment ago? What comes now is seen by who drives, or late. */
bool tp_loop_leased(struct tp_loop *loop);

/* A client's timer, for deadlines: calls fn every `ms`. Holder only. */
int tp_timer_start(struct tp_loop *loop, uv_timer_t *timer, uv_timer_cb fn, uint64_t ms);

void tp_loop_add(struct tp_loop *loop, struct tp_client *c);
void tp_loop_remove(struct tp_loop *loop, struct tp_client *c);

#endif
