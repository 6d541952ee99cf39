/* SPDX-License-Identifier: MIT
 *
 * transport/wire.h: what bytes on a connection mean. All integers are little-endian; lengths are checked before anything is allocated.
 *
 * A connection begins with one preamble from each side, in the clear and of a form that never changes, so that any two versions can
 * tell each other why they do not work together. Then, where there is a key, TLS. Then frames: a head and a payload. The
 * first frame of each side is a HELLO. A change of anything here is a new TP_PROTOCOL.
 *
 * Functions that read return NULL, or what is wrong, as words for the log.
 */
#ifndef TP_WIRE_H
#define TP_WIRE_H

#include "dl/transport.h"

enum {
    TP_PROTOCOL = 2,
    TP_NODES_MOST = 256,
    TP_BUILD_MOST = 47,
    TP_ABOUT_MOST = 255,
    TP_NAME_MOST = 255,
    TP_ADDR_MOST = 63,
    TP_WHY_MOST = 255
};

/* ------------------------------------------------------------------------------------------------------ preamble */

/* 0 magic u32, 4 protocol u16, 6 status u8, 7 security u8, 8 purpose u8, 9 reserved (7 zeros), 16 build, padded with zeros to 64. Who
 * dials sends status TP_ASK; the answer is one of the others. The reserved bytes are not looked at: they are for later. */
enum { TP_PREAMBLE_BYTES = 64 };
enum tp_purpose { TP_FOR_ROOT = 1, TP_FOR_MESH, TP_ANSWER, TP_FOR_LOOK }; /* LOOK: is it free? Then it hangs up */
enum tp_status { TP_ASK, TP_WELCOME, TP_BUSY, TP_OTHER_PROTOCOL, TP_OTHER_SECURITY, TP_STATUS_COUNT };
struct tp_preamble {
    uint16_t protocol;
    uint8_t status, security, purpose; /* security: is there a key? */
    char build[TP_BUILD_MOST + 1];
};
void tp_preamble_put(uint8_t out[TP_PREAMBLE_BYTES], const struct tp_preamble *p);
const char *tp_preamble_get(const uint8_t in[TP_PREAMBLE_BYTES], struct tp_preamble *p);
/* Can these first n bytes still become a preamble? */
bool tp_preamble_begins(const uint8_t *in, size_t n);

/* ------------------------------------------------------------------------------------------------------ frames */

/* 0 magic u32, 4 type u8, 5 flags u8, 6 zero u16, 8 sequence u64, 16 length u32. */
enum { TP_HEAD_BYTES = 20 };
enum tp_type {
    TP_DATA = 1, /* a slice; flags: kind, sequence: which collective */
    TP_MSG,      /* a control message */
    TP_PING,     /* a sign of life; sequence: the sender's clock */
    TP_PONG,     /* the answer, with the same sequence */
    TP_BROKEN,   /* a node is lost; sequence: the sender takes part in collectives before that one only; tp_broken */
    TP_BYE,      /* the sender leaves; sequence: likewise */
    TP_HELLO,    /* tp_hello */
    TP_REFUSE,   /* instead of a hello; flags: enum tp_refusal; payload: why, in words */
    TP_JOIN,     /* root to worker: tp_join */
    TP_JOINED,   /* worker to root: the others may connect to me */
    TP_MESH,     /* root to worker: connect to those before you */
    TP_READY,    /* worker to root: I have all my links */
    TP_GO,       /* root to worker: the cluster stands */
    TP_FAIL,     /* worker to root: it will not, and why, in words */
    TP_TYPE_COUNT
};
enum tp_refusal { TP_NO_BUSY = 1, TP_NO_BUILD, TP_NO_CLUSTER };
struct tp_frame {
    uint8_t type, flags;
    uint32_t length;
    uint64_t seq;
};
void tp_frame_put(uint8_t out[TP_HEAD_BYTES], const struct tp_frame *f);
const char *tp_frame_get(const uint8_t in[TP_HEAD_BYTES], struct tp_frame *f);

/* ------------------------------------------------------------------------------------------------------ payloads */

enum { TP_ID_BYTES = 16 };
/* Who dials says what for; the id, which is its cluster's, and its rank in it only where it is in one already (TP_FOR_MESH). In an answer the
 * id is the listener's own, another one each time that it is started; zeros: it does not say. Repeats of the preamble what TLS now
 * vouches for. */
struct tp_hello {
    uint8_t purpose, id[TP_ID_BYTES];
    uint16_t protocol, rank;
    uint64_t features;
    char build[TP_BUILD_MOST + 1], about[TP_ABOUT_MOST + 1];
};
int tp_hello_put(struct dl_str *out, const struct tp_hello *h);
const char *tp_hello_get(const uint8_t *in, size_t n, struct tp_hello *h);

/* The cluster as the root has it. Nodes: [n_nodes], 0 is the root, whose addr is empty. */
struct tp_join_node {
    uint64_t features;
    char name[TP_NAME_MOST + 1], about[TP_ABOUT_MOST + 1], addr[TP_ADDR_MOST + 1]; /* addr: "1.2.3.4:5", "[::1]:5" */
};
struct tp_join {
    uint8_t cluster[TP_ID_BYTES];
    uint16_t rank, n_nodes;
    uint32_t beat_ms, dead_ms;
    struct tp_join_node *nodes;
};
int tp_join_put(struct dl_str *out, const struct tp_join *j);
/* nodes are allocated after all else is checked; tp_join_finish frees them. */
const char *tp_join_get(const uint8_t *in, size_t n, struct tp_join *j);
void tp_join_finish(struct tp_join *j);

struct tp_broken {
    uint16_t node, by; /* who is lost, who noticed */
    char why[TP_WHY_MOST + 1];
};
int tp_broken_put(struct dl_str *out, const struct tp_broken *b);
const char *tp_broken_get(const uint8_t *in, size_t n, struct tp_broken *b);

/* Words from a peer, up to a NUL: cut to `most`, control bytes replaced; out has room for one more. */
void tp_text_get(const uint8_t *in, size_t n, char *out, size_t most);

#endif
