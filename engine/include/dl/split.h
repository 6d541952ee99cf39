/* SPDX-License-Identifier: MIT
 *
 * dl/split.h: how a model is best shared among unequal nodes, and how fast they would be. Pure arithmetic on what the caller knows of them:
 * nothing is measured, loaded or connected here.
 *
 * What ends in an exchange is a phase: attention, FFN, and once a token the output matrix. All nodes wait for the slowest in each, so
 * each phase is balanced on its own: node i needs c_i + bytes_i / rate_i, and the largest of these is to be least, while what a node
 * holds of all phases, its KV cache and activations included, fits into its memory.
 */
#ifndef DL_SPLIT_H
#define DL_SPLIT_H

#include "dl/model.h"

/* What is known of a node. */
struct dl_split_node {
    const char *name, *device;            /* for tables and messages; device may be NULL */
    double bytes_per_s, op_ns, submit_ns; /* as dl_device_measure gives them; bytes_per_s > 0 */
    double flops;                         /* of its matrix products with many tokens; 0: unknown */
    uint64_t memory; /* bytes that its slice, caches and activations may take; 0: unknown, and enough */
    bool host;       /* a CPU in a process of its own: its sums may go in halves without being asked for */
};

/* The network between them. latency_ns: of an exchange of next to nothing among of_nodes nodes, as dl_transport_probe measures it;
 * of_nodes 0: of a message from one node to another, one way (half a ping). bytes_per_s: what a node sends while all send. */
struct dl_split_link {
    double latency_ns, bytes_per_s;
    uint32_t of_nodes;
};

#define DL_SPLIT_ALIKE 0.1 /* `alike` for rates that were measured */

struct dl_split_input {
    const char *model; /* its name, for messages */
    const struct dl_model_header *h;
    const struct dl_tensor_types *types;
    const struct dl_split_node *nodes; /* (n_nodes), the root first */
    uint32_t n_nodes;
    struct dl_split_link link;
    const char *missing;    /* who else could hold some of it, for messages: "node 2 is missing"; NULL or empty: nobody */
    /* NULL, or where to put the number of a node after the first that has no memory even for what every node needs. That is not logged. */
    uint32_t *small;
    const double *shares; /* (n_nodes) relative, > 0: take these for all phases; NULL: find the best */
    double
        alike; /* nodes whose rates differ by less than this are taken as equal: 0.1 where they were measured, 0: none */
    uint32_t ctx; /* positions per session; 0: as many as the model knows, at most 8192, that fit */
    uint32_t max_batch, max_out, max_sessions; /* 0: 128, 8, 1 */
    uint32_t kv_tokens; /* as of dl_engine_opts */
    enum dl_collective collective;
    enum dl_type kv_type, wire;
};

enum dl_phase { DL_PHASE_ATTN, DL_PHASE_FFN, DL_PHASE_VOCAB, DL_PHASE_COUNT };

struct dl_split_part {
    struct dl_slice slice;
    double share;                               /* of the weights that a token reads, 0 to 1 */
    uint64_t weight_bytes, kv_bytes, act_bytes; /* what it needs ... */
    uint64_t memory;                            /* ... and has, 0: unknown */
    double ns[DL_PHASE_COUNT];                  /* per token, all layers */
    uint64_t sent_one_shot, sent_rs;            /* payload per token; about as much is received */
    bool slows;                                 /* the cluster would be faster without it */
};

struct dl_split {
    struct dl_split_part *parts; /* (n_nodes) */
    uint32_t n_nodes, ctx;
    uint32_t at_pos;                   /* position for which times are predicted */
    double compute_ns[DL_PHASE_COUNT]; /* per token: the slowest node's, all layers */
    /* Per token, with what the root sends and gets: by each collective, and by the one that is taken, as a cluster would choose it (by the
     * input's `collective`; with given shares nobody measures the nodes, and nothing goes in halves unasked). halves_ns: what is left to
     * be waited for; 0: they cannot, or a node is no CPU and they were not asked for. */
    double one_shot_ns, halves_ns, rs_ns, exchange_ns;
    enum dl_collective collective; /* the one that is taken: never AUTO */
    double tok_s, prefill_tok_s; /* prefill 0: unknown */
    uint32_t n_slow;             /* nodes that slow the others down ... */
    double tok_s_without;        /* ... and the speed without them */
};

/* DL_ELIMIT (logged: what is needed, what there is on each node, what to do) when it does not fit: then *out holds nothing. DL_EINVAL,
 * DL_EUNSUP as dl_slices_make and dl_plan_build. The same input gives the same split. */
int dl_split_make(const struct dl_split_input *in, struct dl_split *out);
void dl_split_finish(struct dl_split *s);

/* Appends one line, without its end, where fewer nodes would be faster: which to leave out, and what that gains. Else nothing. */
int dl_split_advice(const struct dl_split_input *in, const struct dl_split *s, struct dl_str *out);

/* Appends a table of some lines for people: shares, memory, times, and what is to be expected. */
int dl_split_text(const struct dl_split_input *in, const struct dl_split *s, struct dl_str *out);

#endif
