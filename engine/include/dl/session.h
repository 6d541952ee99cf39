/* SPDX-License-Identifier: MIT
 *
 * dl/session.h: the only thing that the commands and the server see. An engine is a loaded model on its devices; a session is
 * one sequence of tokens with its KV cache. One thread (the engine thread) makes all calls on an engine and its sessions.
 */
#ifndef DL_SESSION_H
#define DL_SESSION_H

#include "dl/device.h"
#include "dl/model.h"
#include "dl/sampler.h"
#include "dl/split.h"
#include "dl/transport.h"

typedef struct dl_engine dl_engine;
typedef struct dl_session dl_session;

/* Opens one device by its name in --device: "cpu", "vulkan", "vulkan:1" (engine/backends.c); "auto" is the CPU here. `cpu` gives the CPU's
 * settings, NULL the defaults. DL_EUNSUP (logged, with what there is) when there is no such device. */
int dl_device_open(const char *which, const struct dl_cpu_opts *cpu, dl_device **out);

/* How fast a device decodes: the rate at which its mat-vec reads weights of this type that no cache holds, what one more small op
 * costs, and what a submit with its wait costs. And how many operations a second its products with many tokens do. */
struct dl_device_rate {
    double bytes_per_s, op_ns, submit_ns, flops;
};
/* Measures with matrices as wide as the model, for about a third of a second on 64 MiB of weights made up for it. */
int dl_device_measure(dl_device *dev, const struct dl_model_header *h, enum dl_type weight, struct dl_device_rate *out);
/* Predicted nanoseconds to decode one token on that device alone, attention not counted. */
double dl_device_token_ns(const struct dl_device_rate *rate, const struct dl_model_header *h, uint64_t bytes_per_token);

/* "auto": the CPU or the GPU that decodes this model fastest by measurement, among those whose memory holds its n-th part (n >= 1: the
 * nodes that share it). model NULL: a common one, of whatever size. Machines without a GPU measure nothing. What is chosen and
 * why is logged at INFO. progress, which may be NULL, is told of kernels that are compiled for it. */
int dl_device_open_best(const dl_model *model, uint32_t n, const struct dl_cpu_opts *cpu, dl_progress_fn *progress,
                        void *progress_ud, dl_device **out);
/* Relative shares of n devices by their measured rates, for dl_engine_opts.shares. */
int dl_devices_shares(const dl_model *model, dl_device *const *devices, uint32_t n, double *shares);

/* How well an engine is. DEGRADED: it computes without some of its nodes. HEALING: a node was lost, and a call is about to do without it or
 * to get it back. DOWN: that did not work; every later step tries again. */
enum dl_health { DL_HEALTH_READY, DL_HEALTH_DEGRADED, DL_HEALTH_HEALING, DL_HEALTH_DOWN };
struct dl_engine_health {
    enum dl_health state;
    uint32_t n_nodes, n_all; /* that compute now, and when all are there; the root is one of them */
    char text[320];          /* "node 2 (10.0.0.7:9990) lost in step 17: no sign of life for 1.5 s"; empty when READY */
};

/* Where an engine gets its nodes: when it is made, and again whenever one was lost or is back. All is called on the engine thread.
 * Worker w is node w + 1 to the user, whoever of the others is there. */
struct dl_cluster {
    uint32_t n_workers;
    const char *const *names; /* (n_workers) where they are, for messages; outlive the engine. May be NULL */
    bool some; /* the engine may be made without those that are not there; else only with all, and is without some later only */
    /* A transport of which this process is node 0, to the workers w with wanted[w]: `all`: to each of them, or an error (logged; DL_EPEER or
     * DL_ETIMEDOUT: some are not there, and nothing else is wrong); else to those that can be had by now, to none if need be. who[i] is the worker behind node i + 1. The transport is the engine's. */
    int (*connect)(void *ud, const bool *wanted, bool all, uint32_t *who, dl_transport **out);
    /* Could this worker, which the cluster is without, be had now? Answers at once, from what is known. NULL: it is not asked for again
     * before another one is lost. */
    bool (*is_back)(void *ud, uint32_t worker);
    bool (*stop)(void *ud); /* polled while nodes are waited for: true ends that with DL_ECANCELED. May be NULL */
    void (*changed)(void *ud, const struct dl_engine_health *now); /* for those who cannot ask meanwhile. May be NULL */
    /* The root's own device has failed for good, as the log knows: puts another one in its place, which is logged, and closes it; nothing of
     * the engine's is on it any more. DL_EDEVICE (not logged) where there is none. NULL: likewise; then the step fails. */
    int (*replace)(void *ud, dl_device **dev);
    void *ud;
    uint32_t patience_ms; /* how long lost workers are waited for where the others cannot hold the model; 0: 15000 */
    /* A fault is forgotten after this long, and a worker that had not memory for a share of any use is asked again, unless is_back saw
     * it go and come before; each time that it still has not, after twice as long (up to 16 times). 0: 60000. */
    uint32_t forgiven_ms;
};

/* What the workers are being sent, for a bar each: several times a second, in the order of the nodes. total 0: it lacks nothing, or has not
 * said yet. n 0: all is sent. On the engine thread. */
struct dl_sending {
    const char *name;     /* its address; lives as long as the call */
    uint64_t done, total; /* bytes */
};
typedef void dl_sending_fn(void *ud, const struct dl_sending *nodes, uint32_t n);

struct dl_engine_opts {
    const dl_model *model;     /* outlives the engine */
    dl_device *const *devices; /* one or more, each gets a slice; outlive the engine */
    uint32_t n_devices;
    const double *shares; /* relative share per device, in a cluster per node; NULL: equal, or as `measure` says */
    /* In a cluster: nodes and network are measured, or what was measured before is taken from rates_file (NULL: nowhere), which is
     * kept up to date. The best shares are found by that, unless `shares` gives them; a node that is of no use gets nothing, and a
     * warning names those without which it would be faster. */
    bool measure;
    const char *rates_file; /* its text is the caller's, as long as the engine lives */
    /* NULL: this process alone. Else a cluster of which this is the root, node 0; on the others dl_worker_run runs, or is about to. The
     * engine owns it from here on and closes it, also when creating fails. n_devices is 1. */
    dl_transport *transport;
    /* Instead of `transport`, for an engine that outlives its nodes: see dl_engine_step. Copied; n_devices is 1. `shares` are those of the
     * root and of all workers. */
    const struct dl_cluster *cluster;
    uint32_t wait_ms;   /* a node that keeps the others waiting this long is given up; 0: 120000 */
    uint32_t ctx;       /* positions per session; 0: as many as the model knows, at most 8192 and what memory holds */
    uint32_t max_batch; /* largest prefill batch; 0: 128 */
    uint32_t max_out;   /* tokens of one batch whose logits may be wanted; 0: 8 */
    uint32_t max_sessions; /* at once; 0: 1 */
    uint32_t kv_tokens;    /* positions that all sessions may hold together, at least ctx; 0: a full context each */
    enum dl_type kv_type;  /* DL_F16, DL_F32 or DL_Q80 */
    enum dl_type wire;     /* exchange precision between devices: DL_F32, DL_F16 or DL_Q80, see dl_wire_type */
    enum dl_collective collective;
    dl_progress_fn *progress; /* called while the engine is made, not later; may be NULL */
    dl_sending_fn *sending;   /* likewise, in place of progress while weights are sent */
    void *progress_ud;        /* of both */
};

/* Loads: checks that it fits before touching weights, makes the plan, gives the devices and the workers their slices. DL_ELIMIT (logged
 * with the numbers and the fix, naming the node) when memory does not suffice; DL_EPEER when a node is lost, DL_EUNSUP when one is of
 * another version or plans otherwise, in a line that names the node and the phase. */
int dl_engine_create(const struct dl_engine_opts *opts, dl_engine **out);
void dl_engine_destroy(dl_engine **engine); /* its sessions are destroyed first; nulls, accepts &NULL */

struct dl_engine_info {
    uint32_t ctx, max_batch, max_out, vocab;
    uint32_t kv_blocks; /* of DL_KV_BLOCK positions: what all sessions may hold together */
    uint64_t kv_bytes, act_bytes, weight_bytes; /* what this node holds */
    enum dl_type wire;             /* how partial sums travel where there are several nodes or devices: as dl_wire_type has it, ... */
    enum dl_collective collective; /* ... and as was asked for or chosen: never AUTO */
};
void dl_engine_info(const dl_engine *engine, struct dl_engine_info *out);

/* For the engine thread; others are told by dl_cluster.changed. */
void dl_engine_health(const dl_engine *engine, struct dl_engine_health *out);
/* With a dl_cluster: what a step does before its batch, for those who have none to do, to be called now and then: gets lost nodes back, or does
 * without them. While that cannot be done, DL_EPEER, and tried only every ten seconds or when somebody is back. Others: DL_OK. */
int dl_engine_tend(dl_engine *engine);

/* Bytes that the devices of this process read for such a batch (dl_plan_read_bytes); tokens beyond max_batch are not one batch. */
uint64_t dl_engine_read_bytes(const dl_engine *engine, const struct dl_batch_load *b);

/* Where the time of this node went inside steps, since creation or the last reset: its (first) device computed; exchanges were under way,
 * which includes waiting for other nodes; both at once (part of either); neither. */
struct dl_engine_stats {
    uint64_t steps, tokens;
    uint64_t compute_ns, exchange_ns, exchange_hidden_ns, idle_ns;
    uint64_t sent_bytes, received_bytes;
};
void dl_engine_stats(const dl_engine *engine, struct dl_engine_stats *out);
void dl_engine_stats_reset(dl_engine *engine); /* of all nodes of a cluster; waits for them */

/* The same of each node of a cluster, this one first, and how much of the model each has (0 to 1); alone, of this one. Asks the workers: for
 * after an answer. Fills up to `cap` entries; *n is how many nodes there are. DL_EPEER (logged) when one is lost: then nothing. */
struct dl_node_stats {
    char name[160];   /* "root", or the address as it was given */
    char device[192]; /* what computes there */
    double share;
    struct dl_engine_stats stats;
};
int dl_engine_nodes(dl_engine *engine, struct dl_node_stats *out, uint32_t cap, uint32_t *n);

int dl_session_create(dl_engine *engine, dl_session **out);
void dl_session_destroy(dl_session **session); /* nulls, accepts &NULL */

/* Tokens whose KV is in the cache. */
uint32_t dl_session_len(const dl_session *session);
const int32_t *dl_session_tokens(const dl_session *session);
/* Forgets all but the first n tokens. */
void dl_session_truncate(dl_session *session, uint32_t n);

/* For an empty session, which is to hold these n tokens: begins with as many of them, in whole blocks and all but the last token at most, as
 * the cache still knows from sessions for which this was called, too, and gives their number. What such sessions evaluate is known
 * to later ones, also after they are destroyed, until its memory is needed. */
uint32_t dl_session_reuse(dl_session *session, const int32_t *tokens, size_t n);

/* Whose room is it? The blocks that nobody holds, with those whose content is only remembered; those that a session holds, shared or
 * not; those that dl_session_reuse would share with sessions that there are, so that they take no room from the free ones. */
uint32_t dl_engine_free_blocks(const dl_engine *engine);
uint32_t dl_session_blocks(const dl_session *session);
uint32_t dl_engine_shared_blocks(dl_engine *engine, const int32_t *tokens, size_t n);

/* Makes the session hold exactly these n >= 1 tokens: keeps the common prefix, evaluates the rest in batches. *logits
 * (vocab floats, owned by the engine, writable scratch until its next call) belong to the last token. `stop` is polled between
 * batches and may be NULL: returning true ends with DL_ECANCELED and what was evaluated stays. DL_ELIMIT (logged, both
 * numbers) when the context is too small; DL_EINVAL for an id outside the vocabulary. */
typedef bool dl_stop_fn(void *ud);
int dl_session_sync(dl_session *session, const int32_t *tokens, size_t n, dl_stop_fn *stop, void *ud, float **logits);

/* Appends one token and evaluates it. */
int dl_session_eval(dl_session *session, int32_t token, float **logits);

/* The same with what is wanted of the last token (last->want, ->k) and what comes of it, as dl_engine_step fills it in. */
struct dl_step_item;
int dl_session_feed(dl_session *session, const int32_t *tokens, size_t n, dl_stop_fn *stop, void *ud,
                    struct dl_step_item *last);

/* What a step is to give of an item's logits: nothing, the row of its last token, a row for each of its tokens, the best candidate of
 * its last token, or the best k of them with the log of the sum over all. In a cluster a row costs 4 bytes per id, a candidate
 * 8 per node. */
enum dl_want { DL_WANT_NONE, DL_WANT_LAST, DL_WANT_ALL, DL_WANT_BEST, DL_WANT_TOP };
#define DL_TOP_MOST 256

/* One batch made of many sessions' tokens: appends item i's tokens to its session. The sum of n is at most max_batch, that of
 * the wanted rows (BEST and TOP: one each) at most max_out; a session appears once. What it gives is the engine's, and stays until
 * its next call. DL_EPEER (logged: which node, in which phase, why) when a node is lost or keeps the others waiting. The sessions
 * are then as they were before.
 *
 * With a transport, the engine is then good for nothing but to be destroyed. With a dl_cluster, it does not come to that: the nodes that are
 * left, or those that are back, get new slices, the sessions of this step are evaluated again, and the step goes on; one line in the
 * log says so. So it goes on, too, when the root's own device fails and there is another one. Only when that does not work does the step
 * fail, after a line that says why; the next step tries again. A node that is missing is taken in again at the beginning of a step. */
struct dl_step_item {
    dl_session *session;
    const int32_t *tokens;
    uint32_t n;
    enum dl_want want;
    float *logits;     /* out, of LAST and ALL: (wanted, vocab), writable scratch; else NULL */
    uint32_t k;        /* of TOP: 1 to DL_TOP_MOST */
    float temperature; /* of TOP: what log_sum is taken at; 0: 1 */
    /* Out, of BEST and TOP: (n_top) by falling logit, lower id first among equals: the first is what a greedy sampler picks. Fewer than
     * asked for only where there are not as many numbers; else NULL. */
    const struct dl_candidate *top;
    uint32_t n_top;
    /* Out, of TOP: log of the sum of exp(logit / temperature) over the vocabulary; at 1, exp(logit - log_sum) is a probability. */
    double log_sum;
};
int dl_engine_step(dl_engine *engine, struct dl_step_item *items, uint32_t n_items);

/* A wanted row of the last step in full, for whom its candidates do not suffice. Rows count in the order of the items. As
 * item.logits. DL_EINVAL where there is no such row. */
int dl_engine_logits(dl_engine *engine, uint32_t row, float **logits);

/* What is known of a cluster that was only looked at: for dl_split_input. */
struct dl_cluster_survey {
    struct dl_split_node *nodes; /* (n_nodes), the root first */
    uint32_t n_nodes;
    struct dl_split_link link;
    char *names; /* owns their texts */
};
/* As the root, lets the workers and dev measure themselves with this model's shape, and all the network, and says goodbye. No weights are
 * needed. Owns the transport. What was measured is put into rates_file (may be NULL), for engines that are made later. Errors as of
 * dl_engine_create. */
int dl_cluster_survey(const dl_model *model, dl_device *dev, dl_transport *t, const char *rates_file,
                      struct dl_cluster_survey *out);
void dl_cluster_survey_finish(struct dl_cluster_survey *s);

/* --------------------------------------------------------------------------------------------------- network */

/* One way of adding up a partial sum of `bytes` bytes over all nodes, as the root saw it: the median and the ends. floor_ns: what it takes by
 * its formula with the shortest exchange and the highest rate that were seen in any of this. sent_bytes: payload of one node. */
struct dl_link_time {
    const char *name; /* "oneshot", "rs"; static */
    uint64_t bytes, sent_bytes;
    double floor_ns, ns, least_ns, most_ns;
};
/* A worker: round trips, the last and the shortest (0: unknown, in one process), and streams to it and back. */
struct dl_link_peer {
    char name[160], about[256];
    uint64_t rtt_ns, rtt_least_ns;
    double send_bytes_per_s, receive_bytes_per_s;
};
struct dl_link_report {
    struct dl_link_speed speed; /* of all nodes at once */
    struct dl_link_peer *peers; /* (n_peers) */
    struct dl_link_time *times; /* (n_times): for each size all ways */
    uint32_t n_peers, n_times;
};
/* Measures the network between this process, the root, and workers in dl_worker_run: sums of bytes[i] (1 to 64 MiB), `rounds` (1 to 1000)
 * times each. Owns the transport from here on and closes it. dev: what the root is called by. Blocks, some seconds. Errors (logged) as
 * of dl_engine_create. */
int dl_link_measure(dl_transport *t, dl_device *dev, const uint64_t *bytes, uint32_t n_bytes, uint32_t rounds,
                    struct dl_link_report *out);
void dl_link_report_finish(struct dl_link_report *r);

/* ---------------------------------------------------------------------------------------------------- worker */

/* What a worker has to do for the cluster it is part of. Texts live until dl_worker_run returns. */
struct dl_worker_job {
    const char *root, *root_about; /* its address, and what it says of itself */
    const char *model;
    uint32_t node, n_nodes;
    double share;                               /* of all weights, 0 to 1 */
    uint64_t weight_bytes, kv_bytes, act_bytes; /* of this share */
    uint64_t sent_bytes;                        /* from READY on: of weights, that the root had to send */
    uint64_t steps, tokens;                     /* from ENDED on: computed */
};
/* JOINED: the plan stands; READY: all weights are there; ENDED, also without the others: the last
 * word. On the worker's thread. */
enum dl_worker_phase { DL_WORKER_JOINED, DL_WORKER_READY, DL_WORKER_ENDED };
typedef void dl_worker_fn(void *ud, enum dl_worker_phase phase, const struct dl_worker_job *job);

struct dl_worker_opts {
    const char *cache;    /* folder in which slices are kept for the next time, made when needed; NULL: nowhere */
    uint64_t cache_bytes; /* of all files in it; what was not used for longest goes first */
    const dl_model *
        model; /* a local copy of what the root has, used where its bytes are the same; NULL: none. Outlives the call */
    uint64_t memory;    /* bytes that may be used; 0: what is free */
    uint32_t wait_ms;   /* a node that keeps the others waiting this long within a step is given up; 0: 120000 */
    dl_worker_fn *tell; /* may be NULL */
    void *tell_ud;
    dl_stop_fn *
        stop; /* polled between messages, a few times a second; true ends with DL_ECANCELED, which the root is told. May be NULL */
    void *stop_ud;
};

/* Serves one cluster, as a node other than 0: until the root says goodbye (DL_OK), is lost, or sends what makes no sense, or
 * something fails here: then with the error, after one line in the log (that of a lost node may have more than one). Owns the
 * transport from here on and closes it; all memory on the device is given back. Blocks; its thread is the device's engine
 * thread meanwhile. opts may be NULL. */
int dl_worker_run(dl_transport *t, dl_device *dev, const struct dl_worker_opts *opts);

#endif
