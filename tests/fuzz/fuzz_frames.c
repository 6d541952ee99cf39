/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_frames.c: any bytes as what comes over a connection: a preamble, then a stream of frames, cut into pieces of any size. The first
 * byte says how large the pieces are. Payloads of frames that have a form are read by their readers.
 */
#include <stdlib.h>
#include <string.h>

#include "tcp.h" /* and with it the reader, not the one of another part */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sink {
    uint8_t *payload;
    size_t n;
    unsigned later; /* how often the owner has no room yet */
};

static void check(int ok)
{
    if (!ok)
        abort();
}

static int begin(void *ud, const struct tp_frame *f, void **dest)
{
    struct sink *s = ud;
    check(f->type > 0 && f->type < TP_TYPE_COUNT);
    if (s->later && s->later--)
        return TP_LATER;
    if (f->length > 1 << 20) { /* as where there is no memory */
        *dest = NULL;
        return f->seq % 2 ? DL_OK : DL_ENOMEM;
    }
    free(s->payload);
    s->payload = malloc(f->length ? f->length : 1);
    check(s->payload != NULL);
    s->n = f->length;
    *dest = s->payload;
    return DL_OK;
}

static void written_again(const struct tp_join *j)
{
    struct dl_str out = {0};
    struct tp_join again;
    check(!tp_join_put(&out, j));
    check(!tp_join_get((const uint8_t *)out.v, out.len, &again));
    check(again.rank == j->rank && again.n_nodes == j->n_nodes && again.rank < again.n_nodes);
    tp_join_finish(&again);
    dl_str_finish(&out);
}

static int end(void *ud, const struct tp_frame *f)
{
    struct sink *s = ud;
    struct tp_hello h;
    struct tp_join j;
    struct tp_broken b;
    char why[TP_WHY_MOST + 1];
    if (!s->payload || s->n != f->length)
        return DL_OK; /* it went nowhere */
    if (f->type == TP_HELLO && !tp_hello_get(s->payload, f->length, &h))
        check(strlen(h.build) <= TP_BUILD_MOST && strlen(h.about) <= TP_ABOUT_MOST);
    if (f->type == TP_JOIN && !tp_join_get(s->payload, f->length, &j)) {
        written_again(&j);
        tp_join_finish(&j);
    }
    if (f->type == TP_BROKEN && !tp_broken_get(s->payload, f->length, &b))
        check(strlen(b.why) <= TP_WHY_MOST);
    if (f->type == TP_REFUSE || f->type == TP_FAIL) {
        tp_text_get(s->payload, f->length, why, TP_WHY_MOST);
        check(strlen(why) <= TP_WHY_MOST);
    }
    return DL_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct tp_reader_fns fns = {begin, end};
    struct tp_preamble p;
    if (size < 1 + TP_PREAMBLE_BYTES)
        return 0;
    if (!tp_preamble_get(data + 1, &p)) {
        uint8_t again[TP_PREAMBLE_BYTES];
        check(tp_preamble_begins(data + 1, TP_PREAMBLE_BYTES) && strlen(p.build) <= TP_BUILD_MOST);
        tp_preamble_put(again, &p);
        check(!tp_preamble_get(again, &p));
    }
    struct sink s = {.later = data[0] >> 6};
    struct tp_reader r;
    tp_reader_init(&r, &fns, &s);
    const size_t piece = 1 + (data[0] & 63);
    size_t at = 1 + TP_PREAMBLE_BYTES;
    for (unsigned turns = 0; at < size && turns < 100000; turns++) {
        size_t n = size - at < piece ? size - at : piece, used = 0;
        int err = tp_reader_feed(&r, data + at, n, &used);
        check(used <= n);
        check(err != DL_EFORMAT || r.wrong);
        at += used;
        if (err && err != TP_LATER)
            break;
    }
    free(s.payload);
    return 0;
}
