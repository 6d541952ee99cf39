/* SPDX-License-Identifier: MIT
 *
 * engine/run/engine.h: the inside of an engine, shared by the files of engine/run. Everything here belongs to the engine
 * thread, except what eng_exec hands to a transport until its `done` has run.
 */
#ifndef ENG_ENGINE_H
#define ENG_ENGINE_H

#include "dl/session.h"
#include "dl/transport.h"
#include "kv.h"

struct eng_node;

/* One exchange in flight. Written by the transport's thread before it raises the host counter, read by the engine thread
 * after the device counter has passed a RUN that waits for it: the two counters order the accesses. */
struct eng_xfer {
    struct eng_node *node;
    uint64_t host_value, started_ns, finished_ns;
    int status;
};

/* One device with its slice of the model. */
struct eng_node {
    dl_device *dev;
    dl_transport *transport; /* NULL when alone */
    struct dl_model_plan *mp;
    dl_buf **bufs; /* one per plan buffer */
    dl_buf *batch;
    dl_prog **progs;                 /* one per step, NULL for exchanges */
    struct eng_xfer *xfers;          /* one per step */
    uint64_t device_base, host_base; /* counters before the next batch */
    uint32_t next_submit;            /* first step not yet submitted in this batch */
};

struct dl_engine {
    const dl_model *model;
    const struct dl_model_header *h;
    struct eng_node *nodes;
    struct dl_slice *slices;
    uint32_t n_nodes;
    struct dl_batch_shape shape;
    uint32_t ctx;
    struct eng_kv kv;
    struct dl_tensor embed;
    float *rope_factors; /* NULL where the model has none */
    float *logits;       /* (max_out, vocab), where several devices hold parts of a row */
    struct dl_engine_info info;
    struct dl_engine_stats stats;
    uint64_t step_id;
    uint32_t n_sessions;
    int failed; /* sticky: a device or an exchange broke */
    dl_progress_fn *progress;
    void *progress_ud;
};

struct dl_session {
    dl_engine *engine;
    int32_t *tokens;  /* ctx */
    uint32_t *blocks; /* shape.table_cols */
    uint32_t len, n_blocks;
    uint64_t step_id; /* of the last batch it was part of */
};

/* weights.c: gives a node's device the weights of its plan; *done counts bytes for the progress bar. */
int eng_weights_load(dl_engine *e, struct eng_node *n, uint64_t *done, uint64_t total);
/* Bytes of the node's weights, and of those that have to be copied on a CPU device instead of being used in the mapping. */
int eng_weights_size(const dl_engine *e, const struct eng_node *n, uint64_t *bytes, uint64_t *copied);

/* exec.c: runs the plan on all nodes for the batch that their INPUT buffers hold. */
int eng_exec(dl_engine *e, uint32_t n_tokens, uint32_t n_out);

#endif
