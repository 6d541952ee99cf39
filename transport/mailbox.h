/* SPDX-License-Identifier: MIT
 *
 * transport/mailbox.h: the control messages that wait for one node from one other, in order, each with the time from which it is
 * there. Bounded, so that a peer that nobody reads from cannot fill the memory. Knows no threads: the caller locks.
 */
#ifndef TP_MAILBOX_H
#define TP_MAILBOX_H

#include "dl/base.h"

#define TP_MAILBOX_BYTES ((size_t)64 << 20) /* what may wait, each message counted with its head */

struct tp_msg {
    struct tp_msg *next;
    uint64_t due_ns;
    size_t n;
    unsigned char bytes[];
};

/* Zero-initialised is empty. */
struct tp_mailbox {
    struct tp_msg *first, *last;
    size_t bytes;
};

/* Room for a message, and a copy of one, outside any mailbox. NULL (logged) when memory is out. Free with free(). */
struct tp_msg *tp_msg_room(size_t n);
struct tp_msg *tp_msg_make(const void *bytes, size_t n);

/* Room for a message of n bytes. */
bool tp_mailbox_fits(const struct tp_mailbox *box, size_t n);
/* Takes ownership. It comes not earlier than the one before it. */
void tp_mailbox_put(struct tp_mailbox *box, struct tp_msg *msg, uint64_t due_ns);
/* The first one, which is then the caller's; the mailbox is not empty. */
struct tp_msg *tp_mailbox_take(struct tp_mailbox *box);
void tp_mailbox_finish(struct tp_mailbox *box);

#endif
