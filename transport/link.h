/* SPDX-License-Identifier: MIT
 *
 * transport/link.h: one connection to one peer: it connects or was accepted, both sides show their preambles and, with a key, shake
 * hands; then frames go both ways. Knows no clusters and no collectives: what frames mean is its owner's business.
 *
 * A link belongs to the loop; all is called by its holder. It is created here and ends by itself: after tp_link_close, or when it fails
 * (then `lost` says why), `gone` is the last that its owner hears, and only then nothing of the owner's is used any more.
 */
#ifndef TP_LINK_H
#define TP_LINK_H

#include <stdatomic.h>

#include "addr.h"
#include "loop.h"
#include "reader.h"
#include "tls.h"

/* What a node is and wants, from dl_tcp_opts: the same for all its links. */
struct tp_conf {
    struct tp_tls_ctx *tls; /* NULL: no key */
    bool insecure;
    uint64_t features;
    uint32_t retry_ms, handshake_ms, beat_ms, dead_ms, spin_us;
    char build[TP_BUILD_MOST + 1], about[TP_ABOUT_MOST + 1];
};
int tp_conf_init(struct tp_conf *c, const struct dl_tcp_opts *opts);
void tp_conf_finish(struct tp_conf *c);

struct tp_link;
struct tp_link_fns {
    void (*connected)(struct tp_link *l);       /* may be NULL: dialed, and somebody listens */
    enum tp_status (*asked)(struct tp_link *l); /* accepted: TP_WELCOME or TP_BUSY */
    void (*open)(struct tp_link *l);            /* frames can go */
    int (*begin)(struct tp_link *l, const struct tp_frame *f, void **dest); /* as in tp_reader_fns; < 0 after */
    int (*end)(struct tp_link *l, const struct tp_frame *f);                /* tp_link_fail or tp_link_close only */
    void (*sent)(struct tp_link *l, uint64_t token,
                 bool ok); /* a frame with a token: its payload is not needed any more */
    void (*lost)(struct tp_link *l, int err, const char *why);
    void (*gone)(struct tp_link *l);
};

/* For other threads to look at. */
struct tp_count {
    atomic_uint_least64_t sent, received, rtt, rtt_least;
};

struct tp_out {
    uint8_t head[TP_HEAD_BYTES];
    const uint8_t *data;
    size_t n, done; /* bytes of data; of both that are on their way */
    void *owned;    /* freed with it */
    uint64_t token;
};
#define TP_NO_TOKEN UINT64_MAX

struct tp_link {
    uv_tcp_t tcp;
    uv_connect_t connect;
    struct tp_loop *loop;
    const struct tp_conf *conf;    /* until it is open */
    const struct tp_link_fns *fns; /* the owner's; may change hands */
    void *ud;
    struct tp_link *next; /* in a list of the owner's */
    char name[TP_NAME_MOST + 1];
    enum { TP_CONNECTING, TP_GREETING, TP_SHAKING, TP_OPEN, TP_CLOSING } state;
    bool dialed, paused;
    uint8_t purpose;      /* what for, in the dialer's words */
    uint64_t deadline_ns; /* of what is before TP_OPEN; for the owner to look at */
    uint64_t heard_ns, said_ns;
    struct tp_count *count, own_count;

    uint8_t greeting[TP_PREAMBLE_BYTES];
    size_t n_greeting;
    struct tp_tls *tls;
    struct tp_reader reader;
    uint8_t *in; /* what was read and not yet taken: in[in_at .. in_len) */
    size_t in_at, in_len;
    uint8_t *plain; /* with TLS, a record that was decrypted and is not yet taken: plain[plain_at .. plain_len) */
    size_t plain_at, plain_len;

    struct tp_out *q; /* q[q_head .. q_len) */
    size_t q_head, q_len, q_cap;
    uv_write_t write;
    size_t in_write; /* bytes that libuv holds */
    uint8_t *sealed; /* with TLS, they lie here */
    size_t sealed_cap;
    uint8_t *stage; /* with TLS: small pieces that become one record */
};

/* One that will listen to `fns`. tcp is initialised. NULL (logged) when memory or descriptors are out. */
struct tp_link *tp_link_create(struct tp_loop *loop, const struct tp_conf *conf, const char *name,
                               const struct tp_link_fns *fns, void *ud);
/* Begins as one that dials, or one that was accepted (tcp is connected). It may fail at once. */
void tp_link_dial(struct tp_link *l, const struct sockaddr *addr);
void tp_link_accepted(struct tp_link *l);

/* Queues a frame; tp_link_flush sends what is queued in one piece. The payload is freed when sent if it is `owned`, else it stays valid
 * until `sent` says its token. False: memory is out, and the link has failed. */
bool tp_link_put(struct tp_link *l, const struct tp_frame *f, const void *data, void *owned, uint64_t token);
/* One whose payload is copied. */
bool tp_link_put_copy(struct tp_link *l, const struct tp_frame *f, const void *data);
void tp_link_flush(struct tp_link *l);
/* Everything is with the system. */
bool tp_link_flushed(struct tp_link *l);

/* After TP_LATER: asks again. */
void tp_link_resume(struct tp_link *l);

void tp_link_close(struct tp_link *l);
void tp_link_fail(struct tp_link *l, int err, const char *fmt, ...) DL_PRINTF(3, 4);

#endif
