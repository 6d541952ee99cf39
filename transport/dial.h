/* SPDX-License-Identifier: MIT
 *
 * transport/dial.h: finds somebody who listens at "HOST:PORT": looks the name up and tries each address. The link that connects is handed
 * over before its first byte is sent. Belongs to the loop.
 */
#ifndef TP_DIAL_H
#define TP_DIAL_H

#include "link.h"

enum { TP_ADDRS_MOST = 8 };

struct tp_lookup;
struct tp_dial {
    struct tp_loop *loop;
    const struct tp_conf *conf;
    uint8_t purpose;
    char target[TP_NAME_MOST + 1];
    void (*connected)(struct tp_dial *d, struct tp_link *l); /* sets the link's owner */
    void (*failed)(struct tp_dial *d, int err, const char *why);
    void *ud;

    struct sockaddr_storage addrs[TP_ADDRS_MOST];
    unsigned n_addrs, at;
    uint64_t deadline_ns; /* of this attempt */
    struct tp_link *link;
    struct tp_lookup *lookup;
    unsigned n_open; /* links that are not gone: it has to stay until there are none */
};

/* The fields above are filled in. It may fail at once. */
void tp_dial_start(struct tp_dial *d);
void tp_dial_tick(struct tp_dial *d, uint64_t now);
/* Nothing is called any more. */
void tp_dial_stop(struct tp_dial *d);

/* The first frame of who has connected: h, with what every hello of this node says. */
void tp_dial_hello(struct tp_link *l, const struct tp_conf *conf, struct tp_hello *h);

#endif
