/* SPDX-License-Identifier: MIT
 *
 * transport/link.c: the life of a link: connecting, greeting, shaking hands, reading frames, failing, closing.
 */
#include "link.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IN_BYTES = 64 * 1024, DIRECT_BYTES = 32 * 1024, STAGE_BYTES = 16384, PLAIN_BYTES = 16384 };

/* ------------------------------------------------------------------------------------------------------ conf */

static int copy_text(const char *what, const char *text, char *out, size_t most)
{
    text = text ? text : "";
    if (strlen(text) > most)
        return dl_fail(DL_EINVAL, "transport: %s has %zu bytes, at most %zu are possible", what, strlen(text), most);
    memcpy(out, text, strlen(text) + 1);
    return DL_OK;
}

int tp_conf_init(struct tp_conf *c, const struct dl_tcp_opts *o)
{
    *c = (struct tp_conf){
        .insecure = o->insecure,
        .features = o->features,
        .retry_ms = o->retry_ms,
        .handshake_ms = o->handshake_ms ? o->handshake_ms : 5000,
        .beat_ms = o->beat_ms ? o->beat_ms : 300,
        .dead_ms = o->dead_ms ? o->dead_ms : 1500,
        .spin_us = o->spin_us,
    };
    if (c->dead_ms <= c->beat_ms || c->beat_ms > 60000 || c->dead_ms > 600000)
        return dl_fail(DL_EINVAL, "transport: heartbeats every %u ms and death after %u ms do not go together",
                       c->beat_ms, c->dead_ms);
    int err = copy_text("the build's name", o->build, c->build, TP_BUILD_MOST);
    if (!err)
        err = copy_text("what a node says of itself", o->about, c->about, TP_ABOUT_MOST);
    return err || !o->key ? err : tp_tls_ctx_create(o->key, &c->tls);
}

void tp_conf_finish(struct tp_conf *c)
{
    tp_tls_ctx_destroy(&c->tls);
}

/* ------------------------------------------------------------------------------------------------------ ends */

static void closed(uv_handle_t *handle)
{
    struct tp_link *l = handle->data;
    while (l->q_head < l->q_len) {
        struct tp_out o = l->q[l->q_head++];
        free(o.owned);
        if (o.token != TP_NO_TOKEN)
            l->fns->sent(l, o.token, false);
    }
    l->fns->gone(l);
    tp_tls_destroy(&l->tls);
    free(l->q);
    free(l->in);
    free(l->plain);
    free(l->stage);
    free(l->sealed);
    free(l);
}

void tp_link_close(struct tp_link *l)
{
    if (l->state == TP_CLOSING)
        return;
    l->state = TP_CLOSING;
    uv_close((uv_handle_t *)&l->tcp, closed);
}

void tp_link_fail(struct tp_link *l, int err, const char *fmt, ...)
{
    if (l->state == TP_CLOSING)
        return;
    char why[TP_WHY_MOST + 1];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    tp_link_close(l);
    l->fns->lost(l, err, why);
}

/* ------------------------------------------------------------------------------------------------------ greeting */

/* Preambles and alerts are so small, and come so early, that the system takes them at once or never. */
static void write_now(struct tp_link *l, const uint8_t *bytes, size_t n)
{
    union {
        const uint8_t *bytes;
        char *base;
    } u = {bytes};
    uv_buf_t buf = uv_buf_init(u.base, (unsigned)n);
    int r = uv_try_write((uv_stream_t *)&l->tcp, &buf, 1);
    if (r != (int)n)
        tp_link_fail(l, DL_EPEER, "the connection broke: %s", uv_strerror(r < 0 ? r : UV_EPIPE));
}

static void greet(struct tp_link *l, enum tp_status status)
{
    struct tp_preamble mine = {.protocol = TP_PROTOCOL,
                               .status = (uint8_t)status,
                               .security = l->conf->tls != NULL,
                               .purpose = l->dialed ? l->purpose : TP_ANSWER};
    memcpy(mine.build, l->conf->build, sizeof mine.build);
    uint8_t bytes[TP_PREAMBLE_BYTES];
    tp_preamble_put(bytes, &mine);
    write_now(l, bytes, sizeof bytes);
}

static void opened(struct tp_link *l)
{
    if (l->state == TP_CLOSING)
        return;
    l->state = TP_OPEN;
    l->conf = NULL;
    l->fns->open(l);
}

/* The preambles allow it: on to TLS, or to frames. */
static void greeted(struct tp_link *l)
{
    if (l->state == TP_CLOSING)
        return;
    if (!l->conf->tls) {
        opened(l);
        return;
    }
    l->state = TP_SHAKING;
    l->tls = tp_tls_create(l->conf->tls, !l->dialed);
    l->plain = dl_calloc(1, PLAIN_BYTES);
    if (!l->tls || !l->plain)
        tp_link_fail(l, DL_ENOMEM, "out of memory");
}

/* What does not go together is refused by the side that was dialed, and both say why. */
static void answer(struct tp_link *l, enum tp_status status, const struct tp_preamble *peer)
{
    const char *build = *peer->build ? peer->build : "?", *mine = *l->conf->build ? l->conf->build : "?";
    switch (status) {
    case TP_OTHER_PROTOCOL:
        tp_link_fail(l, DL_EUNSUP,
                     "it speaks protocol %u (build %s), this side protocol %u (build %s): install the same version",
                     peer->protocol, build, TP_PROTOCOL, mine);
        break;
    case TP_OTHER_SECURITY:
        tp_link_fail(l, DL_EUNSUP, "it runs %s a key, this side %s: give all nodes the same --key FILE",
                     peer->security ? "with" : "without", peer->security ? "without" : "with one");
        break;
    case TP_BUSY:
        tp_link_fail(l, DL_EBUSY, "%s",
                     l->dialed ? "it is busy: it works for another root" : "told it that this worker is busy");
        break;
    default:
        tp_link_fail(l, DL_EFORMAT, "it does not speak this protocol");
    }
}

static void got_greeting(struct tp_link *l)
{
    struct tp_preamble peer;
    const char *wrong = tp_preamble_get(l->greeting, &peer);
    if (wrong || (peer.status == TP_ASK) == l->dialed) {
        tp_link_fail(l, DL_EFORMAT, "%s", wrong ? wrong : "it does not speak this protocol");
        return;
    }
    enum tp_status status = peer.status;
    if (!l->dialed) {
        l->purpose = peer.purpose;
        bool key = l->conf->tls != NULL;
        status = peer.protocol != TP_PROTOCOL  ? TP_OTHER_PROTOCOL
                 : (peer.security != 0) != key ? TP_OTHER_SECURITY
                                               : l->fns->asked(l);
        greet(l, status);
    }
    if (l->state != TP_CLOSING && status != TP_WELCOME)
        answer(l, status, &peer);
    else
        greeted(l);
}

static void shake(struct tp_link *l)
{
    const char *why;
    int r = tp_tls_handshake(l->tls, &why);
    tp_link_flush(l); /* also the alert that tells the peer */
    if (l->state == TP_CLOSING)
        return;
    if (r < 0)
        tp_link_fail(l, r, "%s", why);
    else if (r)
        opened(l);
}

/* ------------------------------------------------------------------------------------------------------ reading */

static int begin(void *ud, const struct tp_frame *f, void **dest)
{
    struct tp_link *l = ud;
    int err = l->fns->begin(l, f, dest);
    return l->state == TP_CLOSING ? DL_ECANCELED : err;
}
static int end(void *ud, const struct tp_frame *f)
{
    struct tp_link *l = ud;
    int err = l->fns->end(l, f);
    return l->state == TP_CLOSING ? DL_ECANCELED : err;
}
static const struct tp_reader_fns reader_fns = {begin, end};

static void pause_reading(struct tp_link *l)
{
    l->paused = true;
    uv_read_stop((uv_stream_t *)&l->tcp);
}

/* What the reader says. True: go on. */
static bool go_on(struct tp_link *l, int r)
{
    if (l->state == TP_CLOSING)
        return false;
    if (r == DL_EFORMAT)
        tp_link_fail(l, DL_EFORMAT, "%s", l->reader.wrong ? l->reader.wrong : "it breaks the protocol");
    else if (r == TP_LATER)
        pause_reading(l);
    return !r;
}

/* Decrypts the next record: large payloads to where they go, else to `plain`. Small ones in one piece with their heads, since each call
 * of TLS costs more than it copies. False: nothing more now. */
static bool unseal(struct tp_link *l)
{
    uint8_t *p;
    size_t cap;
    if (!go_on(l, tp_reader_want(&l->reader, &p, &cap)))
        return false;
    const bool direct = cap >= PLAIN_BYTES;
    const int n = tp_tls_read(l->tls, direct ? p : l->plain, direct ? cap : PLAIN_BYTES);
    if (n < 0)
        tp_link_fail(l, DL_EPEER, "its stream is not what the key makes of it, or has ended");
    if (n <= 0)
        return false;
    if (direct)
        return go_on(l, tp_reader_got(&l->reader, (size_t)n));
    l->plain_at = 0;
    l->plain_len = (size_t)n;
    return true;
}

/* Frames out of what has been decrypted. */
static void take_sealed(struct tp_link *l)
{
    bool more = true;
    while (more) {
        if (l->plain_at == l->plain_len) {
            more = unseal(l) && (l->plain_at < l->plain_len || tp_tls_more(l->tls));
            continue;
        }
        size_t used;
        int r = tp_reader_feed(&l->reader, l->plain + l->plain_at, l->plain_len - l->plain_at, &used);
        l->plain_at += used;
        more = go_on(l, r) && tp_tls_more(l->tls);
    }
    if (l->state != TP_CLOSING)
        tp_link_flush(l); /* TLS may have something to say of its own */
}

/* Everything in l->in, as far as it goes. */
static void take(struct tp_link *l)
{
    while (l->in_at < l->in_len && l->state != TP_CLOSING && !l->paused) {
        const uint8_t *p = l->in + l->in_at;
        size_t n = l->in_len - l->in_at, used = n;
        if (l->state == TP_GREETING) {
            used = DL_MIN(n, TP_PREAMBLE_BYTES - l->n_greeting);
            memcpy(l->greeting + l->n_greeting, p, used);
            l->n_greeting += used;
            l->in_at += used;
            if (!tp_preamble_begins(l->greeting, l->n_greeting))
                tp_link_fail(l, DL_EFORMAT, "it does not speak this protocol");
            else if (l->n_greeting == TP_PREAMBLE_BYTES)
                got_greeting(l);
            if (l->state == TP_SHAKING && l->dialed)
                shake(l); /* the first word is the dialer's */
        } else if (l->tls) {
            l->in_at = l->in_len;
            if (tp_tls_put(l->tls, p, n))
                tp_link_fail(l, DL_ENOMEM, "out of memory");
            else if (l->state == TP_SHAKING)
                shake(l);
            if (l->state == TP_OPEN)
                take_sealed(l);
        } else {
            int r = tp_reader_feed(&l->reader, p, n, &used);
            l->in_at += used;
            (void)go_on(l, r);
        }
    }
}

static void give_buffer(uv_handle_t *handle, size_t hint, uv_buf_t *buf)
{
    struct tp_link *l = handle->data;
    (void)hint;
    const struct tp_reader *r = &l->reader;
    size_t rest = r->in_payload ? r->frame.length - r->got : 0;
    if (l->state == TP_OPEN && !l->tls && r->dest && rest >= DIRECT_BYTES) {
        *buf = uv_buf_init((char *)r->dest + r->got, (unsigned)rest);
        return;
    }
    if (!l->in)
        l->in = malloc(IN_BYTES);
    *buf = uv_buf_init((char *)l->in, l->in ? IN_BYTES : 0);
}

static void have_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct tp_link *l = stream->data;
    if (l->state == TP_CLOSING || !n)
        return;
    if (n < 0) {
        if (n == UV_EOF)
            tp_link_fail(l, DL_EPEER, "it closed the connection");
        else
            tp_link_fail(l, DL_EPEER, "the connection broke: %s", uv_strerror((int)n));
        return;
    }
    l->heard_ns = dl_now_ns();
    atomic_fetch_add_explicit(&l->count->received, (uint64_t)n, memory_order_relaxed);
    if ((uint8_t *)buf->base == l->in) {
        l->in_at = 0;
        l->in_len = (size_t)n;
        take(l);
    } else {
        (void)go_on(l, tp_reader_got(&l->reader, (size_t)n));
    }
    /* Who sends a long payload waits for word to go on. A short one is answered by what this side sends next, and word of its own would
     * only take time, here and there. */
    if (l->state != TP_CLOSING && l->reader.in_payload)
        tp_sock_quick_ack(&l->tcp);
}

static void start_reading(struct tp_link *l)
{
    int code = uv_read_start((uv_stream_t *)&l->tcp, give_buffer, have_read);
    if (code)
        tp_link_fail(l, DL_EIO, "cannot read: %s", uv_strerror(code));
}

void tp_link_resume(struct tp_link *l)
{
    if (!l->paused || l->state == TP_CLOSING)
        return;
    l->paused = false;
    l->heard_ns = dl_now_ns(); /* it was this side that did not listen */
    uint8_t *p;
    size_t n;
    if (!go_on(l, tp_reader_want(&l->reader, &p, &n)))
        return;
    if (l->tls)
        take_sealed(l);
    else
        take(l);
    if (!l->paused && l->state != TP_CLOSING)
        start_reading(l);
}

/* ------------------------------------------------------------------------------------------------------ begins */

struct tp_link *tp_link_create(struct tp_loop *loop, const struct tp_conf *conf, const char *name,
                               const struct tp_link_fns *fns, void *ud)
{
    struct tp_link *l = dl_calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->stage = dl_calloc(1, STAGE_BYTES);
    int code = l->stage ? uv_tcp_init(tp_loop_uv(loop), &l->tcp) : UV_ENOMEM;
    if (code) {
        (void)dl_fail(DL_EIO, "transport: no connection: %s", uv_strerror(code));
        free(l->stage);
        free(l);
        return NULL;
    }
    l->tcp.data = l;
    l->loop = loop;
    l->conf = conf;
    l->fns = fns;
    l->ud = ud;
    l->count = &l->own_count;
    l->deadline_ns = dl_now_ns() + (uint64_t)conf->handshake_ms * 1000000;
    snprintf(l->name, sizeof l->name, "%s", name);
    tp_reader_init(&l->reader, &reader_fns, l);
    return l;
}

void tp_link_accepted(struct tp_link *l)
{
    l->state = TP_GREETING;
    l->heard_ns = l->said_ns = dl_now_ns();
    (void)uv_tcp_nodelay(&l->tcp, 1);
    start_reading(l);
}

static void connected(uv_connect_t *req, int status)
{
    struct tp_link *l = req->data;
    if (l->state == TP_CLOSING)
        return;
    if (status < 0) {
        tp_link_fail(l, DL_EPEER, "cannot connect: %s", uv_strerror(status));
        return;
    }
    tp_link_accepted(l);
    if (l->state == TP_CLOSING)
        return;
    if (l->fns->connected)
        l->fns->connected(l);
    if (l->state != TP_CLOSING)
        greet(l, TP_ASK);
}

void tp_link_dial(struct tp_link *l, const struct sockaddr *addr)
{
    l->dialed = true;
    l->connect.data = l;
    int code = uv_tcp_connect(&l->connect, &l->tcp, addr, connected);
    if (code)
        tp_link_fail(l, DL_EPEER, "cannot connect: %s", uv_strerror(code));
}
