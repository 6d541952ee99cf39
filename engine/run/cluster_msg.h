/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster_msg.h: what a root (node 0) and its workers say to each other. One message is one frame of the transport's: a byte for
 * the type, then fields, all little-endian, without padding. Nothing in a message is a pointer, an offset into memory or an
 * op: a node builds its plan itself and both compare its digest.
 *
 *   root    HELLO                          both compare version and build, before anything else is read
 *   worker  HELLO
 *   root    LINK                           before MODEL: all do the same exchange so many times, or one worker takes in or gives so many DATA
 *   root    MEASURE       worker  RATE     how fast it is and how much memory it has; then, if the root wants it, all measure the network
 *   root    MODEL                          header, types, slices, batch sizes: the worker builds its plan
 *   worker  MEMORY                         what it needs and has, and the digest of its plan
 *   root    OFFER...                       the digest of every weight buffer
 *   worker  WANT                           those that it has nowhere
 *   root    DATA...       worker  GOT...   not more than ENG_WINDOW_BYTES are under way; then WANT again for what arrived damaged
 *   worker  READY
 *   root    STEP          worker  LOGITS   where it has rows of the output matrix, and any are wanted
 *   root    FETCH         worker  LOGITS   a row of the last step in full
 *   root    STATS         worker  COUNTS   what it has done since the last STATS that resets
 *   root    BYE
 * Either side says ERROR instead of anything else and closes. GOT also is a worker's sign of life while it loads.
 *
 * The _read functions take what arrived and prove it: every count is checked before it is used, every value against what is
 * known by then, and the message has no byte too many. They log one line, beginning with `who`, and return DL_EFORMAT (or what
 * else they say). What they return points into the message unless said otherwise. The _write functions begin a new message.
 */
#ifndef ENG_CLUSTER_MSG_H
#define ENG_CLUSTER_MSG_H

#include "batch.h"
#include "cursor.h"
#include "digest.h"
#include "dl/session.h"
#include "embed_row.h"

#define ENG_PROTOCOL 7u
#define ENG_CHUNK_BYTES ((size_t)256 << 10) /* DATA as we send it; up to ENG_CHUNK_MOST is accepted */
#define ENG_CHUNK_MOST ((size_t)1 << 20)
#define ENG_WINDOW_BYTES ((uint64_t)1 << 20)
#define ENG_CONTROL_MOST ((size_t)8 << 20) /* any message but STEP and LOGITS */
#define ENG_BULK_MOST ((size_t)48 << 20) /* these: what a transport takes at once. The batch sizes are chosen to suit */
#define ENG_OFFER_MOST 512u              /* entries of one OFFER */
#define ENG_MOST_NODES 1024u
#define ENG_TEXT_MOST 400u

enum eng_msg {
    ENG_MSG_HELLO = 1,
    ENG_MSG_MODEL,
    ENG_MSG_MEMORY,
    ENG_MSG_OFFER,
    ENG_MSG_WANT,
    ENG_MSG_DATA,
    ENG_MSG_GOT,
    ENG_MSG_READY,
    ENG_MSG_STEP,
    ENG_MSG_LOGITS,
    ENG_MSG_FETCH,
    ENG_MSG_ERROR,
    ENG_MSG_BYE,
    ENG_MSG_STATS,
    ENG_MSG_COUNTS,
    ENG_MSG_MEASURE,
    ENG_MSG_RATE,
    ENG_MSG_LINK,
    ENG_MSG_END
};
const char *eng_msg_name(unsigned type); /* "HELLO"; "?" outside the enum */

/* A message being written. Zero-initialised is empty; the memory is kept from one message to the next. The first error sticks. */
struct eng_out {
    struct dl_str s;
    int err;
};
void eng_out_begin(struct eng_out *o, enum eng_msg type);
void eng_put_u8(struct eng_out *o, uint8_t v);
void eng_put_u32(struct eng_out *o, uint32_t v);
void eng_put_u64(struct eng_out *o, uint64_t v);
void eng_put_f32(struct eng_out *o, float v);
void eng_put_f64(struct eng_out *o, double v);
void eng_put_bytes(struct eng_out *o, const void *bytes, size_t n);
void eng_put_text(struct eng_out *o, const char *text, size_t most); /* cut to `most` bytes */
void eng_out_finish(struct eng_out *o);

/* A message that arrived. Its first byte says which; the cursor stands behind it. */
struct eng_in {
    const char *who; /* the sender, for messages */
    const uint8_t *bytes;
    size_t n;
};
static inline unsigned eng_in_type(const struct eng_in *in)
{
    return in->n ? in->bytes[0] : 0;
}

/* BYE, READY: no fields. */
void eng_plain_write(struct eng_out *o, enum eng_msg type);
int eng_plain_read(const struct eng_in *in);

struct eng_hello {
    uint32_t protocol;
    char build[64];  /* DL_VERSION */
    char about[192]; /* what computes there; empty where protocol is not ours */
};
void eng_hello_write(struct eng_out *o, const struct eng_hello *h);
int eng_hello_read(const struct eng_in *in, struct eng_hello *out);

struct eng_error {
    int code; /* DL_E* */
    char text[ENG_TEXT_MOST + 1];
};
void eng_error_write(struct eng_out *o, int code, const char *text); /* a longer text is cut */
int eng_error_read(const struct eng_in *in, struct eng_error *out);

/* What a worker is to measure: its device with weights of this width and type; the network, with everyone else, after its answer. */
struct eng_measure {
    uint32_t dim;
    enum dl_type weight;
    bool speed, link;
};
void eng_measure_write(struct eng_out *o, const struct eng_measure *m);
int eng_measure_read(const struct eng_in *in, struct eng_measure *out);

/* The answer. Without `speed` the rate is all zeros, else bytes_per_s > 0 and all are sensible. */
struct eng_rate {
    struct dl_device_rate rate;
    uint64_t memory;  /* bytes that may be used; 0: unknown */
    uint64_t machine; /* nodes with the same one, other than 0, share a machine, and if `host` its memory too */
    bool host;
};
void eng_rate_write(struct eng_out *o, const struct eng_rate *r);
int eng_rate_read(const struct eng_in *in, bool speed, struct eng_rate *out);

/* All that a plan is made of. */
struct eng_model_msg {
    struct dl_model_header h;
    struct dl_tensor_types types; /* owned */
    struct dl_slice *slices;      /* (n_nodes), owned */
    uint32_t n_nodes, node;       /* node: the receiver */
    struct dl_batch_shape shape;
    struct dl_plan_opts opts;
    float *rope_factors;    /* (n_rot / 2), owned; NULL where the model has none */
    struct eng_digest plan; /* of the receiver's plan, as the sender builds it */
    bool made;              /* there is no file: the receiver makes its weights up, OFFER to GOT are left out */
    char name[128];         /* for messages */
};
void eng_model_write(struct eng_out *o, const struct eng_model_msg *m);
/* n_nodes and node are what the transport says. Owned parts are set only on success. DL_ENOMEM too, DL_EUNSUP for a header over
 * the limits. */
int eng_model_read(const struct eng_in *in, uint32_t n_nodes, uint32_t node, struct eng_model_msg *out);
void eng_model_finish(struct eng_model_msg *m);

struct eng_memory {
    uint64_t kv, act, copied, mapped; /* bytes: KV cache, activations, weights in memory, weights in files */
    uint64_t avail;                   /* 0: unknown */
    bool fits;
    struct eng_digest plan;
};
void eng_memory_write(struct eng_out *o, const struct eng_memory *m);
int eng_memory_read(const struct eng_in *in, struct eng_memory *out);

struct eng_offer_entry {
    uint64_t bytes;
    struct eng_digest digest;
};
void eng_offer_write(struct eng_out *o, uint32_t first, const struct eng_offer_entry *v, uint32_t n);
/* Weights [first, first + *n), first being `want_first`, in a plan with n_weights. Entry i is read by eng_offer_get. */
int eng_offer_read(const struct eng_in *in, uint32_t want_first, uint32_t n_weights, uint32_t *n);
struct eng_offer_entry eng_offer_get(const struct eng_in *in, uint32_t i);

/* One bit per weight, lowest first; at least one is set. */
void eng_want_write(struct eng_out *o, const uint8_t *bits, uint32_t n_weights);
int eng_want_read(const struct eng_in *in, uint32_t n_weights, const uint8_t **bits);

struct eng_data {
    uint32_t weight;
    uint64_t at;
    const uint8_t *bytes;
    size_t n; /* 1 to ENG_CHUNK_MOST */
};
void eng_data_write(struct eng_out *o, uint32_t weight, uint64_t at, size_t n,
                    uint8_t **room); /* *room: n bytes to fill in */
int eng_data_read(const struct eng_in *in, struct eng_data *out);

/* The network is measured: all add up partial sums of `bytes` bytes in one of two ways, or measure as dl_transport_probe does; or one
 * worker takes in DATA messages of that size, and says GOT when it has all, or gives such. */
enum eng_link_kind {
    ENG_LINK_ONE_SHOT,
    ENG_LINK_RS,
    ENG_LINK_PROBE,
    ENG_LINK_TAKE,
    ENG_LINK_GIVE,
    ENG_LINK_KINDS
};
#define ENG_LINK_ROUNDS_MOST 65536u
#define ENG_LINK_BYTES_MOST ((uint64_t)64 << 20)
struct eng_link_job {
    enum eng_link_kind kind;
    uint32_t rounds;
    uint64_t bytes; /* 1 to ENG_LINK_BYTES_MOST, of DATA to ENG_CHUNK_MOST */
};
void eng_link_job_write(struct eng_out *o, const struct eng_link_job *j);
int eng_link_job_read(const struct eng_in *in, struct eng_link_job *out);

void eng_got_write(struct eng_out *o, uint64_t total); /* bytes of DATA taken in so far */
int eng_got_read(const struct eng_in *in, uint64_t *total);

/* A batch. Tables go as differences to the tables of the step before, which both sides keep: row i of `tables` is the first
 * n_table[i] blocks that batch item i used last. Zero-initialised with room (see eng_tables_init) it is what both start with. */
struct eng_tables {
    struct dl_batch_shape shape;
    uint32_t *v; /* (max_tables, table_cols) */
    uint32_t *n; /* (max_tables) */
};
int eng_tables_init(struct eng_tables *t, const struct dl_batch_shape *shape);
void eng_tables_finish(struct eng_tables *t);

/* What a STEP is checked against. */
struct eng_step_limits {
    uint32_t dim, kv_blocks;
    enum eng_embed embed;
};
/* embed: (n_tokens, dim) f32, already rounded to `embed`. Updates t. */
void eng_step_write(struct eng_out *o, uint64_t step, const struct eng_batch *b, const float *embed,
                    const struct eng_step_limits *limits, struct eng_tables *t);
/* Fills *b, whose arrays have room for the shape, with blocks that point into t, and *embed_rows with where the rows are (of
 * limits->embed, unaligned). A refused message leaves t in no state to go on from. */
int eng_step_read(const struct eng_in *in, const struct eng_step_limits *limits, struct eng_tables *t, uint64_t *step,
                  struct eng_batch *b, const uint8_t **embed_rows);

/* One node's part of the wanted rows: begin, then one put per row, in order. */
void eng_logits_begin(struct eng_out *o, uint64_t step, uint32_t n_rows);
void eng_logits_put(struct eng_out *o, const struct eng_want *want, const float *row, uint32_t n_vocab, uint32_t vocab0,
                    struct dl_candidate *scratch);
/* The whole message is for `step` with these n_rows rows. Full rows go to out[r].full (n_vocab floats, stored at full + vocab0); candidates
 * are merged into out[r].top. Nothing is changed by a message that is refused. */
struct eng_row;
int eng_logits_read(const struct eng_in *in, uint64_t step, const struct eng_want *wants, uint32_t n_rows,
                    const struct dl_slice *slice, struct eng_row *out);

void eng_stats_write(struct eng_out *o, bool reset);
int eng_stats_read(const struct eng_in *in, bool *reset);
void eng_counts_write(struct eng_out *o, const struct dl_engine_stats *s);
int eng_counts_read(const struct eng_in *in, struct dl_engine_stats *out);

void eng_fetch_write(struct eng_out *o, uint64_t step, uint32_t row);
int eng_fetch_read(const struct eng_in *in, uint64_t *step, uint32_t *row);

#endif
