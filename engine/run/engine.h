/* SPDX-License-Identifier: MIT
 *
 * engine/run/engine.h: the inside of an engine, shared by the files of engine/run. Everything here belongs to the engine
 * thread, except what eng_exec hands to a transport until its `done` has run.
 */
#ifndef ENG_ENGINE_H
#define ENG_ENGINE_H

#include <stdatomic.h>

#include "batch.h"
#include "dl/session.h"
#include "dl/transport.h"
#include "embed_row.h"
#include "kv.h"
#include "lanes.h"
#include "source.h"

struct eng_node;
struct eng_cluster;
struct eng_rate;
struct eng_heal;

/* One step; of a RUN, only finished_ns. An exchange in flight: written by the transport's thread before it sets `done` and then raises the host counter; read by the
 * engine thread once it has seen `done` (acquire), or after the device counter has passed a RUN that waits for the exchange. */
struct eng_xfer {
    struct eng_node *node;
    uint64_t host_value, started_ns, finished_ns;
    int status;
    atomic_bool done;
};

/* One device with its slice of the model. */
struct eng_node {
    dl_device *dev;
    dl_transport *transport; /* NULL when alone, and after it was given up */
    struct dl_model_plan *mp;
    dl_buf **bufs;                   /* one per plan buffer */
    dl_buf *batch[DL_PLAN_LANES];    /* NULL: the plan has no such lane */
    dl_prog **progs;                 /* one per step, NULL for exchanges */
    struct eng_xfer *xfers;          /* one per step */
    struct eng_xfer *last_xfer;      /* the latest that was started in this batch */
    uint64_t device_base, host_base; /* counters before the next batch */
    /* This batch: how many tokens each lane has, the first step that is not submitted, the last RUN that was come to; whether the thread
     * that waits does the transport's work. */
    uint32_t lane_tokens[DL_PLAN_LANES], next_submit, last_run;
    bool drives;
    uint64_t began_ns;
};

/* The devices of this process. In a cluster that is one: the root's (slice 0) or a worker's; a worker has no model and no sessions,
 * its header comes over the wire. */
struct dl_engine {
    const dl_model *model;
    const struct dl_model_header *h;
    struct dl_tensor_types types;
    struct dl_plan_opts plan_opts;
    struct eng_node *nodes; /* (n_nodes): device d has slice first_slice + d */
    uint32_t n_nodes, first_slice;
    struct dl_slice *slices; /* (n_slices): of all devices, of all nodes */
    uint32_t n_slices;
    struct eng_cluster *cluster; /* the root's; else NULL */
    bool balance;                /* slices by measured speed and memory */
    double halves_gain_ns; /* ... and what sums gain per token by going in halves; 0: they cannot, or nobody knows */
    struct eng_rate *rates; /* (n_slices): what the nodes of a cluster that was measured say of themselves; else NULL */
    struct dl_link_speed link; /* of that cluster; zeros: unknown */
    uint32_t link_nodes;       /* among how many it was measured */
    struct eng_heal *heal;     /* with a dl_cluster; else NULL */
    struct dl_engine_opts
        opts;                /* as given, but for what the caller may throw away: devices, transport, cluster, shares */
    bool formed;             /* all that a batch takes is there */
    uint32_t epoch;          /* how often it was formed: KV of an earlier one is gone */
    uint64_t wait_ns;        /* an exchange that takes this long has failed; UINT64_MAX: none ever does */
    enum eng_embed embed_kind; /* how embedding rows travel, and are rounded so that all nodes begin with the same; F32 where they do not */
    struct dl_batch_shape shape;
    uint32_t ctx;
    struct eng_kv kv;
    uint32_t kv_epoch; /* of what kv remembers */
    struct dl_tensor embed;
    float *rope_factors; /* NULL where the model has none */
    struct eng_batch batch;
    struct eng_lanes lanes;    /* the root's */
    float *logits;             /* (max_out, vocab), where several devices hold parts of a row */
    struct eng_row *rows;      /* (max_out) */
    struct eng_row_of *row_of; /* (max_out): of the last step's rows */
    uint32_t n_rows;           /* which the last step gave */
    bool rows_gone;            /* but the devices do not hold them any more */
    struct dl_candidate *tops; /* (max_out, DL_TOP_MOST), what rows[].top points to */
    struct dl_engine_info info;
    struct dl_engine_stats stats;
    struct dl_transport_stats carried; /* by transports that are closed */
    uint64_t step_id, batch_ns; /* batch_ns: the end of the last batch */
    uint32_t n_sessions;
    int failed;            /* sticky, without `heal`: a device or an exchange broke */
    uint32_t bad_exchange; /* of the last batch, from 1: the one that failed; 0: something else did, or nothing */
    bool bad_silence;      /* it took longer than wait_ns */
    dl_progress_fn *progress;
    void *progress_ud;
};

struct dl_session {
    dl_engine *engine;
    int32_t *tokens;  /* ctx */
    uint32_t *blocks; /* shape.table_cols */
    uint32_t len, n_blocks;
    uint32_t kv, epoch; /* positions whose KV the devices hold, if they still are those of that epoch */
    uint64_t step_id;   /* of the last batch it was part of */
    bool shares;        /* its full blocks become known to others, ... */
    uint32_t n_known;   /* ... the first of them are */
};

/* Which token's logits a row holds. */
struct eng_row_of {
    dl_session *session; /* NULL: it is gone */
    uint32_t pos;
};

/* engine.c: slices, plans, buffers, weights, programs, for the nodes of this transport, which it takes over, or for the devices of this
 * process (NULL). And the end of that: what is left of a cluster hears `err` and why, or a goodbye (0). Both are done again when nodes
 * come and go; what sessions hold of the engine stays. */
int eng_form(dl_engine *e, dl_transport *t);
void eng_unform(dl_engine *e, int err, const char *why);

/* node.c. The plan is there; `alive` is called between steps that may take long, and may be NULL. */
int eng_node_buffers(const dl_engine *e, struct eng_node *n); /* all but the weights */
int eng_node_programs(struct eng_node *n, void (*alive)(void *ud), void *ud);
void eng_node_finish(struct eng_node *n);
/* Bytes of the plan's buffers by use; false when they cannot be counted. */
bool eng_node_sizes(const struct eng_node *n, uint64_t *kv, uint64_t *act, uint64_t *weights);
/* How much of all weights a slice is, 0 to 1. */
double eng_slice_share(const struct dl_model_header *h, const struct dl_slice *slices, uint32_t n, uint32_t i);
/* Memory for the batch and the rows that come of it; e->shape is set. */
int eng_batch_buffers(dl_engine *e);
/* Do its lanes hold what is to go into each? */
bool eng_batch_suits(const struct eng_batch *b, const struct dl_plan *p);
/* e->batch into a node's INPUT buffers, all but the embedding rows. */
void eng_batch_fill(const dl_engine *e, struct eng_node *n);
/* The row of a buffer for all lanes that token t has. */
uint32_t eng_batch_row(const struct eng_batch *b, const struct dl_plan *p, uint32_t t);

/* balance.c: slices for all nodes, and the context where it is not fixed yet, by e->rates and e->link. DL_ELIMIT (logged) when the
 * model does not fit. */
int eng_balance(dl_engine *e);

/* weights.c: gives a node's device the weights of its plan; *done counts bytes for the progress bar. */
int eng_weights_load(dl_engine *e, struct eng_node *n, uint64_t *done, uint64_t total);
/* Bytes of the node's weights, and of those that have to be copied on a CPU device instead of being used in the mapping. */
int eng_weights_size(const dl_engine *e, const struct eng_node *n, uint64_t *bytes, uint64_t *copied);
/* Does the device make a copy of weights of this type, so that where they came from is of no more use? */
bool eng_weights_copied(const dl_device *dev, enum dl_type type);
/* Fills a weight buffer with a slice, in pieces of about a MiB. */
int eng_weights_write(dl_device *dev, dl_buf *buf, const struct eng_source *s, eng_source_tick *tick, void *ud);

/* sums.c: how the nodes exchange, into e->plan_opts. The nodes and the batch's shape are known. */
void eng_sums_choose(dl_engine *e);

/* exec.c: runs the plan on all nodes for e->batch, which their INPUT buffers hold. After a failure something may still be in flight:
 * who can end that (by closing the transport) does so, then everyone calls eng_exec_abort, which waits for the devices. A
 * failed exchange is not logged: see bad_exchange. */
int eng_exec(dl_engine *e);
void eng_exec_abort(dl_engine *e);

/* session.c: what belongs to a cluster has failed, between batches: as after a batch. Returns the error. */
int eng_give_up(dl_engine *e, int err);

/* logits.c: what the finished batch gives, into e->rows. The rows of this process's devices, and those of the workers. */
int eng_logits_collect(dl_engine *e);
/* One of its rows in full, wherever it is kept. */
int eng_logits_row(dl_engine *e, uint32_t row, float **logits);

#endif
