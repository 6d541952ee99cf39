/* SPDX-License-Identifier: MIT
 *
 * dl/session.h: the only thing that the commands and the server see. An engine is a loaded model on its devices; a session is
 * one sequence of tokens with its KV cache. One thread (the engine thread) makes all calls on an engine and its sessions.
 */
#ifndef DL_SESSION_H
#define DL_SESSION_H

#include "dl/device.h"
#include "dl/model.h"

typedef struct dl_engine dl_engine;
typedef struct dl_session dl_session;

/* Opens one device by its name in --device: "cpu", "vulkan", "vulkan:1" (engine/backends.c); "auto" is the CPU here. `cpu` gives the CPU's
 * settings, NULL the defaults. DL_EUNSUP (logged, with what there is) when there is no such device. */
int dl_device_open(const char *which, const struct dl_cpu_opts *cpu, dl_device **out);

/* How fast a device decodes: the rate at which its mat-vec reads weights of this type that no cache holds, what one more small op
 * costs, and what a submit with its wait costs. */
struct dl_device_rate {
    double bytes_per_s, op_ns, submit_ns;
};
/* Measures with matrices as wide as the model, for about a third of a second on 64 MiB of weights made up for it. */
int dl_device_measure(dl_device *dev, const struct dl_model_header *h, enum dl_type weight, struct dl_device_rate *out);
/* Predicted nanoseconds to decode one token on that device alone, attention not counted. */
double dl_device_token_ns(const struct dl_device_rate *rate, const struct dl_model_header *h, uint64_t bytes_per_token);

/* "auto": the CPU or the GPU that decodes this model fastest by measurement, among those whose memory holds it. Machines without
 * a GPU measure nothing. What is chosen and why is logged at INFO. */
int dl_device_open_best(const dl_model *model, const struct dl_cpu_opts *cpu, dl_device **out);
/* Relative shares of n devices by their measured rates, for dl_engine_opts.shares. */
int dl_devices_shares(const dl_model *model, dl_device *const *devices, uint32_t n, double *shares);

/* What loading does, for a progress bar: `done` of `total` bytes; called on the engine thread, ends with done == total. */
typedef void dl_progress_fn(void *ud, const char *phase, uint64_t done, uint64_t total);

struct dl_engine_opts {
    const dl_model *model;     /* outlives the engine */
    dl_device *const *devices; /* one or more, each gets a slice; outlive the engine */
    uint32_t n_devices;
    const double *shares;      /* relative share per device; NULL: equal */
    uint32_t ctx;              /* positions per session; 0: as many as the model knows, at most 8192 and what memory holds */
    uint32_t max_batch;        /* largest prefill batch; 0: 128 */
    uint32_t max_out;          /* tokens of one batch whose logits may be wanted; 0: 8 */
    uint32_t max_sessions;     /* sessions that may hold a full context at once; 0: 1 */
    enum dl_type kv_type;      /* DL_F16, DL_F32 or DL_Q80 */
    enum dl_type wire;         /* exchange precision between devices: DL_F32, DL_F16 or DL_Q80 */
    dl_progress_fn *progress;  /* may be NULL */
    void *progress_ud;
};

/* Loads: checks that it fits before touching weights, makes the plan, gives the devices their slices. DL_ELIMIT (logged
 * with the numbers and the fix) when memory does not suffice. */
int dl_engine_create(const struct dl_engine_opts *opts, dl_engine **out);
void dl_engine_destroy(dl_engine **engine); /* its sessions are destroyed first; nulls, accepts &NULL */

struct dl_engine_info {
    uint32_t ctx, max_batch, max_out, vocab;
    uint64_t kv_bytes, act_bytes, weight_bytes; /* what this node holds */
};
void dl_engine_info(const dl_engine *engine, struct dl_engine_info *out);

/* Where the time of this node went, since creation or the last reset. idle: neither computing nor exchanging. */
struct dl_engine_stats {
    uint64_t steps, tokens;
    uint64_t compute_ns, exchange_ns, exchange_hidden_ns, idle_ns;
    uint64_t sent_bytes, received_bytes;
};
void dl_engine_stats(const dl_engine *engine, struct dl_engine_stats *out);
void dl_engine_stats_reset(dl_engine *engine);

int dl_session_create(dl_engine *engine, dl_session **out);
void dl_session_destroy(dl_session **session); /* nulls, accepts &NULL */

/* Tokens whose KV is in the cache. */
uint32_t dl_session_len(const dl_session *session);
const int32_t *dl_session_tokens(const dl_session *session);
/* Forgets all but the first n tokens. */
void dl_session_truncate(dl_session *session, uint32_t n);

/* Makes the session hold exactly these n >= 1 tokens: keeps the common prefix, evaluates the rest in batches. *logits
 * (vocab floats, owned by the engine, writable scratch until its next call) belong to the last token. `stop` is polled between
 * batches and may be NULL: returning true ends with DL_ECANCELED and what was evaluated stays. DL_ELIMIT (logged, both
 * numbers) when the context is too small; DL_EINVAL for an id outside the vocabulary. */
typedef bool dl_stop_fn(void *ud);
int dl_session_sync(dl_session *session, const int32_t *tokens, size_t n, dl_stop_fn *stop, void *ud, float **logits);

/* Appends one token and evaluates it. */
int dl_session_eval(dl_session *session, int32_t token, float **logits);

/* One batch made of many sessions' tokens: appends item i's tokens to its session. The sum of n is at most max_batch, that of
 * the wanted logits at most max_out; a session appears once. */
enum dl_want { DL_WANT_NONE, DL_WANT_LAST, DL_WANT_ALL };
struct dl_step_item {
    dl_session *session;
    const int32_t *tokens;
    uint32_t n;
    enum dl_want want;
    float *logits; /* out: (wanted, vocab) */
};
int dl_engine_step(dl_engine *engine, struct dl_step_item *items, uint32_t n_items);

#endif
