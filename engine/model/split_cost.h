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
/* All exchanges among n nodes: two sums a layer, the message to the workers with the embedding row, and what comes back. */
double eng_split_exchange_ns(const struct eng_split_cost *c, uint32_t n, enum eng_coll kind);
/* The way sums go among n nodes: as asked for, else the faster one. */
enum eng_coll eng_split_sums(const struct eng_split_cost *c, uint32_t n);
/* Tokens per second of a prompt in batches whose halves take turns: what is exchanged travels while the other half is computed. 0: not
 * known. */
double eng_split_prefill(const struct eng_split_cost *c, const struct dl_split *s);

#endif
