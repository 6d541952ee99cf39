/* SPDX-License-Identifier: MIT
 *
 * transport/reader.h: cuts a stream of bytes into frames. It asks its owner where a payload is to go as soon as the head is there and
 * checked, and holds no payload itself. Knows no sockets: it says where the next bytes belong, and is told when they are.
 */
#ifndef TP_READER_H
#define TP_READER_H

#include "wire.h"

enum { TP_LATER = 1 }; /* of `begin` and what calls it: not now */

struct tp_reader_fns {
    /* A head is there. DL_OK: the payload goes to *dest (NULL: nowhere, it is thrown away). TP_LATER: asked again at the
     * next tp_reader_want. < 0: the stream is given up; the owner knows why. */
    int (*begin)(void *ud, const struct tp_frame *f, void **dest);
    /* The payload is complete. < 0 as above. */
    int (*end)(void *ud, const struct tp_frame *f);
};

struct tp_reader {
    const struct tp_reader_fns *fns;
    void *ud;
    struct tp_frame frame;
    bool in_payload;
    size_t got; /* of the head or the payload */
    uint8_t *dest;
    uint8_t head[TP_HEAD_BYTES], trash[4096];
    const char *wrong; /* after DL_EFORMAT */
};

void tp_reader_init(struct tp_reader *r, const struct tp_reader_fns *fns, void *ud);

/* Where the next bytes of the stream go, and at most how many (>= 1). TP_LATER, DL_EFORMAT (not logged: r->wrong), or what the owner
 * returned. */
int tp_reader_want(struct tp_reader *r, uint8_t **p, size_t *n);
/* n of them are there. TP_LATER: and the next want will ask again. */
int tp_reader_got(struct tp_reader *r, size_t n);
/* Both, for bytes that lie elsewhere: takes what it can of n, *used says how much. */
int tp_reader_feed(struct tp_reader *r, const uint8_t *bytes, size_t n, size_t *used);
/* The rest of the payload that is being received goes nowhere. */
void tp_reader_discard(struct tp_reader *r);

#endif
