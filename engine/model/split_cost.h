/* SPDX-License-Identifier: MIT
 *
 * engine/model/split_cost.h: what a model costs: bytes in memory and bytes read per unit of each phase, and from them and the rates of
 * nodes and network the time of a token. split.c distributes by it and describes the result.
 */
#ifndef ENG_SPLIT_COST_H
#define ENG_SPLIT_COST_H

#include "coll_cost.h"
#include "split_fill.h"

#define ENG_PREDICT_POS 512u /* how far a conversation is for which decoding is predicted */

/* All that the search needs to know of the model, for one context. */
struct eng_split_cost {
    const struct dl_split_input *in;
    struct dl_plan_opts opts;
    struct eng_fill_phase phase[DL_PHASE_COUNT]; /* without units */
    double fixed_read[DL_PHASE_COUNT];
    double act_base;               /* activations of a node that has nothing else */
    struct dl_split_node *nodes;   /* the input's, with rates evened out */
    bool coarse;                   /* memory is rounded, so that it is the same every time */
    bool limited;                  /* by memory was the last that was found */
    uint64_t sum_bytes;            /* a partial sum on the wire */
    double head_bytes, col_bytes;  /* of wo per head, of w2 per column, in a layer; 0: its sums never go in halves */
    double values[DL_PHASE_COUNT]; /* weights that one token multiplies, for prefill */
};

double eng_bytes_per_value(enum dl_type t);

/* Everything for this context but the nodes. DL_ELIMIT where it cannot be counted, and what dl_plan_build says; logged. */
int eng_split_cost(struct eng_split_cost *c, uint32_t ctx);
/* c->nodes: nodes that differ by no more than noise get the mean of their rates, so that they get equal slices, and every time. The caller
 * frees it. DL_ENOMEM. */
int eng_split_even(struct eng_split_cost *c);

/* Bytes of the buffers of a node's plan. */
int eng_split_sizes(const struct dl_model_header *h, const struct dl_tensor_types *types, const struct dl_slice *slices,
                    uint32_t node, uint32_t n, const struct dl_plan_opts *opts, struct dl_split_part *out);

/* Per token and over all layers. Of one of n nodes that has any part of the phase: what does not depend on how much. */
double eng_split_fixed_ns(const struct eng_split_cost *c, const struct dl_split_node *d, enum dl_phase p, uint32_t n);
/* Of a node with `amount` heads (and kv KV heads), columns or rows. */
double eng_split_phase_ns(const struct eng_split_cost *c, uint32_t node, enum dl_phase p, uint32_t amount, uint32_t kv);
/* Latency of an exchange among n nodes, if those are not the ones among which it was measured. */
double eng_split_latency_ns(const struct dl_split_link *link, uint32_t n);

/* What it takes nodes to send half of a sum while the other is computed, gathered one by one: zero-initialised. */
struct eng_halves {
    double attn_ns, ffn_ns; /* the shortest that any computes for half of its part of a sum */
    double more_ns;         /* the longest that any needs for what two halves take more than one whole */
    bool no_host;           /* one of them is no CPU */
};
/* A node with so many heads and columns. */
void eng_halves_add(const struct eng_split_cost *c, uint32_t node, uint32_t heads, uint32_t columns,
                    struct eng_halves *h);

/* All exchanges of a token, ns: two sums a layer, the message to the workers with the embedding row, and what comes back. As in dl_split. */
struct eng_exchange {
    double one_shot, halves, rs, taken;
    enum dl_collective collective;
};
/* Among n nodes, by all that the input says. h: of all of them. */
void eng_split_exchange(const struct eng_split_cost *c, uint32_t n, const struct eng_halves *h,
                        struct eng_exchange *out);
/* Tokens per second of a prompt in batches whose halves take turns: what is exchanged travels while the other half is computed. 0: not
 * known. */
double eng_split_prefill(const struct eng_split_cost *c, const struct dl_split *s);

#endif
