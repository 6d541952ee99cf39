/* SPDX-License-Identifier: MIT
 *
 * transport/link_out.c: what a link sends: a queue of frames that leaves in as few writes as possible. The system gets what it takes at
 * once (uv_try_write); only when its buffers are full does libuv keep the rest until the socket is writable.
 */
#include "link.h"

#include <stdlib.h>
#include <string.h>

enum {
    FRAMES = 32,              /* in one write */
    RECORD = 16384,           /* plain bytes that TLS seals at once */
    SEALED_AHEAD = 256 * 1024 /* sealed bytes in one write */
};

bool tp_link_put(struct tp_link *l, const struct tp_frame *f, const void *data, void *owned, uint64_t token)
{
    if (l->q_head && l->q_len == l->q_cap) {
        memmove(l->q, l->q + l->q_head, (l->q_len - l->q_head) * sizeof *l->q);
        l->q_len -= l->q_head;
        l->q_head = 0;
    }
    void *v = l->q;
    int err = dl_grow(&v, &l->q_cap, l->q_len + 1, sizeof *l->q);
    l->q = v;
    if (err) {
        free(owned);
        tp_link_fail(l, DL_ENOMEM, "no memory for what is to be sent");
        return false;
    }
    struct tp_out *o = &l->q[l->q_len++];
    *o = (struct tp_out){.data = data, .n = f->length, .owned = owned, .token = token};
    tp_frame_put(o->head, f);
    return true;
}

bool tp_link_put_copy(struct tp_link *l, const struct tp_frame *f, const void *data)
{
    void *copy = f->length ? dl_calloc(1, f->length) : NULL;
    if (f->length && !copy) {
        tp_link_fail(l, DL_ENOMEM, "no memory for what is to be sent");
        return false;
    }
    if (f->length)
        memcpy(copy, data, f->length);
    return tp_link_put(l, f, copy, copy, TP_NO_TOKEN);
}

/* n bytes of the queue are on their way. */
static void advance(struct tp_link *l, size_t n)
{
    while (n) {
        struct tp_out *o = &l->q[l->q_head];
        size_t part = DL_MIN(n, TP_HEAD_BYTES + o->n - o->done);
        o->done += part;
        n -= part;
        if (o->done < TP_HEAD_BYTES + o->n)
            return;
        uint64_t token = o->token;
        free(o->owned);
        if (++l->q_head == l->q_len)
            l->q_head = l->q_len = 0;
        if (token != TP_NO_TOKEN)
            l->fns->sent(l, token, true);
    }
}

static void note_sent(struct tp_link *l, size_t n)
{
    atomic_fetch_add_explicit(&l->count->sent, n, memory_order_relaxed);
    l->said_ns = dl_now_ns();
}

/* uv_try_write: how many bytes the system took, 0 when its buffers are full; < 0: the link has failed. */
static int64_t try_write(struct tp_link *l, const uv_buf_t *bufs, unsigned n)
{
    int r = uv_try_write((uv_stream_t *)&l->tcp, bufs, n);
    if (r == UV_EAGAIN)
        return 0;
    if (r < 0) {
        tp_link_fail(l, DL_EPEER, "the connection broke: %s", uv_strerror(r));
        return -1;
    }
    note_sent(l, (size_t)r);
    return r;
}

static void written(uv_write_t *req, int status)
{
    struct tp_link *l = req->data;
    size_t n = l->in_write;
    l->in_write = 0;
    if (l->state == TP_CLOSING)
        return;
    if (status < 0) {
        tp_link_fail(l, DL_EPEER, "the connection broke: %s", uv_strerror(status));
        return;
    }
    note_sent(l, n);
    if (!l->tls)
        advance(l, n);
    if (l->state != TP_CLOSING)
        tp_link_flush(l);
}

/* libuv keeps n bytes until the socket takes them. */
static void write_later(struct tp_link *l, const uv_buf_t *bufs, unsigned n_bufs, size_t n)
{
    l->write.data = l;
    l->in_write = n;
    int code = uv_write(&l->write, (uv_stream_t *)&l->tcp, bufs, n_bufs, written);
    if (code) {
        l->in_write = 0;
        tp_link_fail(l, DL_EPEER, "the connection broke: %s", uv_strerror(code));
    }
}

static unsigned gather(const struct tp_link *l, uv_buf_t bufs[2 * FRAMES], size_t *total)
{
    unsigned n = 0;
    *total = 0;
    for (size_t i = l->q_head; i < l->q_len && n < 2 * FRAMES - 1; i++) {
        struct tp_out *o = &l->q[i];
        union {
            const uint8_t *data;
            char *base;
        } u = {o->data};
        if (o->done < TP_HEAD_BYTES)
            bufs[n++] = uv_buf_init((char *)o->head + o->done, (unsigned)(TP_HEAD_BYTES - o->done));
        size_t skip = o->done > TP_HEAD_BYTES ? o->done - TP_HEAD_BYTES : 0;
        if (o->n > skip)
            bufs[n++] = uv_buf_init(u.base + skip, (unsigned)(o->n - skip));
        *total += TP_HEAD_BYTES + o->n - o->done;
    }
    return n;
}

static void flush_plain(struct tp_link *l)
{
    while (l->q_head < l->q_len) {
        uv_buf_t bufs[2 * FRAMES];
        size_t total;
        unsigned n = gather(l, bufs, &total);
        int64_t away = try_write(l, bufs, n);
        if (away < 0)
            return;
        advance(l, (size_t)away);
        if (l->state == TP_CLOSING)
            return;
        if ((size_t)away < total) {
            /* The heads in the queue would move if it grew meanwhile: libuv gets the one frame it is in, whose head lies in
             * `stage`. */
            struct tp_out *o = &l->q[l->q_head];
            size_t rest = TP_HEAD_BYTES + o->n - o->done;
            n = gather(l, bufs, &total);
            if (o->done < TP_HEAD_BYTES) {
                memcpy(l->stage, bufs[0].base, bufs[0].len);
                bufs[0].base = (char *)l->stage;
            }
            write_later(l, bufs, o->done < TP_HEAD_BYTES && o->n ? 2 : 1, rest);
            return;
        }
    }
}

/* Frames become records: large payloads from where they lie, small ones together. False: the link has failed. */
static bool seal(struct tp_link *l)
{
    const uint8_t *bytes;
    while (l->q_head < l->q_len && tp_tls_out(l->tls, &bytes) < SEALED_AHEAD) {
        size_t staged = 0;
        const struct tp_out *o = &l->q[l->q_head];
        if (o->done >= TP_HEAD_BYTES && TP_HEAD_BYTES + o->n - o->done >= RECORD) {
            size_t n = DL_MIN(TP_HEAD_BYTES + o->n - o->done, 4 * (size_t)RECORD);
            if (tp_tls_write(l->tls, o->data + (o->done - TP_HEAD_BYTES), n)) {
                tp_link_fail(l, DL_ENOMEM, "no memory to encrypt");
                return false;
            }
            staged = n;
        } else {
            for (size_t i = l->q_head; i < l->q_len && staged < RECORD; i++) {
                o = &l->q[i];
                size_t at = o->done;
                if (at < TP_HEAD_BYTES) {
                    size_t n = DL_MIN(TP_HEAD_BYTES - at, RECORD - staged);
                    memcpy(l->stage + staged, o->head + at, n);
                    staged += n;
                    at += n;
                }
                if (at >= TP_HEAD_BYTES && at < TP_HEAD_BYTES + o->n) {
                    size_t n = DL_MIN(TP_HEAD_BYTES + o->n - at, RECORD - staged);
                    memcpy(l->stage + staged, o->data + (at - TP_HEAD_BYTES), n);
                    staged += n;
                }
            }
            if (tp_tls_write(l->tls, l->stage, staged)) {
                tp_link_fail(l, DL_ENOMEM, "no memory to encrypt");
                return false;
            }
        }
        advance(l, staged);
        if (l->state == TP_CLOSING)
            return false;
    }
    return true;
}

static void flush_sealed(struct tp_link *l)
{
    while (!l->in_write && (l->state != TP_OPEN || seal(l))) {
        const uint8_t *bytes;
        size_t n = tp_tls_out(l->tls, &bytes);
        if (!n)
            return;
        union {
            const uint8_t *bytes;
            char *base;
        } u = {bytes};
        uv_buf_t buf = uv_buf_init(u.base, (unsigned)n);
        int64_t away = try_write(l, &buf, 1);
        if (away < 0)
            return;
        tp_tls_took(l->tls, (size_t)away);
        n -= (size_t)away;
        if (!n)
            continue;
        /* TLS may want to say more before libuv is through with this. */
        void *v = l->sealed;
        if (dl_grow(&v, &l->sealed_cap, n, 1)) {
            tp_link_fail(l, DL_ENOMEM, "no memory for what is to be sent");
            return;
        }
        l->sealed = v;
        (void)tp_tls_out(l->tls, &bytes);
        memcpy(l->sealed, bytes, n);
        tp_tls_took(l->tls, n);
        buf = uv_buf_init((char *)l->sealed, (unsigned)n);
        write_later(l, &buf, 1, n);
        return;
    }
}

void tp_link_flush(struct tp_link *l)
{
    if (l->state == TP_CLOSING || l->state == TP_CONNECTING || l->in_write)
        return;
    if (l->tls)
        flush_sealed(l);
    else if (l->state == TP_OPEN)
        flush_plain(l);
}

bool tp_link_flushed(struct tp_link *l)
{
    const uint8_t *bytes;
    return !l->in_write && l->q_head == l->q_len && (!l->tls || !tp_tls_out(l->tls, &bytes));
}
