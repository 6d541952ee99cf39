/* SPDX-License-Identifier: MIT
 *
 * transport/reader.c: the state machine of reader.h.
 */
#include "reader.h"

#include <string.h>

void tp_reader_init(struct tp_reader *r, const struct tp_reader_fns *fns, void *ud)
{
    memset(r, 0, sizeof *r);
    r->fns = fns;
    r->ud = ud;
}

static int ended(struct tp_reader *r)
{
    r->in_payload = false;
    r->got = 0;
    r->dest = NULL;
    return r->fns->end(r->ud, &r->frame);
}

/* The head is complete: asks where the payload goes. A frame without payload is over at once. */
static int begin(struct tp_reader *r)
{
    void *dest = NULL;
    int err = r->fns->begin(r->ud, &r->frame, &dest);
    if (err)
        return err;
    r->in_payload = true;
    r->got = 0;
    r->dest = dest;
    return r->frame.length ? DL_OK : ended(r);
}

int tp_reader_want(struct tp_reader *r, uint8_t **p, size_t *n)
{
    while (!r->in_payload && r->got == TP_HEAD_BYTES) {
        int err = begin(r);
        if (err)
            return err;
    }
    if (!r->in_payload) {
        *p = r->head + r->got;
        *n = TP_HEAD_BYTES - r->got;
    } else if (r->dest) {
        *p = r->dest + r->got;
        *n = r->frame.length - r->got;
    } else {
        *p = r->trash;
        *n = DL_MIN(r->frame.length - r->got, sizeof r->trash);
    }
    return DL_OK;
}

int tp_reader_got(struct tp_reader *r, size_t n)
{
    r->got += n;
    if (r->in_payload)
        return r->got == r->frame.length ? ended(r) : DL_OK;
    if (r->got < TP_HEAD_BYTES)
        return DL_OK;
    r->wrong = tp_frame_get(r->head, &r->frame);
    if (r->wrong)
        return DL_EFORMAT;
    return begin(r);
}

int tp_reader_feed(struct tp_reader *r, const uint8_t *bytes, size_t n, size_t *used)
{
    int err = DL_OK;
    for (*used = 0; *used < n && !err;) {
        uint8_t *p;
        size_t cap;
        err = tp_reader_want(r, &p, &cap);
        if (err)
            break;
        cap = DL_MIN(cap, n - *used);
        memcpy(p, bytes + *used, cap);
        *used += cap;
        err = tp_reader_got(r, cap);
    }
    return err;
}

void tp_reader_discard(struct tp_reader *r)
{
    r->dest = NULL;
}
