/* SPDX-License-Identifier: MIT
 *
 * transport/mailbox.c: the bounded message queue of mailbox.h.
 */
#include "mailbox.h"

#include <stdlib.h>
#include <string.h>

struct tp_msg *tp_msg_room(size_t n)
{
    size_t size;
    struct tp_msg *msg = dl_add_size(sizeof *msg, n, &size) ? malloc(size) : NULL;
    if (!msg) {
        (void)dl_fail(DL_ENOMEM, "transport: no memory for a message of %zu bytes", n);
        return NULL;
    }
    *msg = (struct tp_msg){.n = n};
    return msg;
}

struct tp_msg *tp_msg_make(const void *bytes, size_t n)
{
    struct tp_msg *msg = tp_msg_room(n);
    if (msg && n)
        memcpy(msg->bytes, bytes, n);
    return msg;
}

bool tp_mailbox_fits(const struct tp_mailbox *box, size_t n)
{
    size_t free_bytes = TP_MAILBOX_BYTES - box->bytes;
    return free_bytes >= sizeof(struct tp_msg) && n <= free_bytes - sizeof(struct tp_msg);
}

void tp_mailbox_put(struct tp_mailbox *box, struct tp_msg *msg, uint64_t due_ns)
{
    msg->due_ns = box->last ? DL_MAX(due_ns, box->last->due_ns) : due_ns;
    if (box->last)
        box->last->next = msg;
    else
        box->first = msg;
    box->last = msg;
    box->bytes += sizeof *msg + msg->n;
}

struct tp_msg *tp_mailbox_take(struct tp_mailbox *box)
{
    struct tp_msg *msg = box->first;
    box->first = msg->next;
    if (!box->first)
        box->last = NULL;
    box->bytes -= sizeof *msg + msg->n;
    msg->next = NULL;
    return msg;
}

void tp_mailbox_finish(struct tp_mailbox *box)
{
    while (box->first)
        free(tp_mailbox_take(box));
}
