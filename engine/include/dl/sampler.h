/* SPDX-License-Identifier: MIT
 *
 * dl/sampler.h: from logits to the next token. A plain value that the caller owns: copy it to fork a random stream.
 */
#ifndef DL_SAMPLER_H
#define DL_SAMPLER_H

#include "dl/base.h"

#define DL_PENALTY_WINDOW 64 /* tokens that the repeat penalty looks back over */

/* Order: repeat penalty, (temperature == 0: the largest logit, lowest id first among equals), top_k, temperature + softmax,
 * top_p, min_p, draw: the first token, by falling probability (equals by rising id), at which the probabilities added up reach
 * a random number. So the likeliest ones often settle it (dl_sample_top). */
struct dl_sampler {
    float temperature;    /* 0: greedy */
    uint32_t top_k;       /* 0: off */
    float top_p;          /* 1: off; keeps the fewest tokens that together reach it */
    float min_p;          /* 0: off; drops tokens less likely than min_p x the likeliest */
    float repeat_penalty; /* 1: off; logits > 0 are divided by it, others multiplied, once per distinct recent token */
    uint64_t rng;         /* state of the random stream (SplitMix64) */
    int32_t recent[DL_PENALTY_WINDOW];
    uint32_t n_recent, at_recent;
};

/* Greedy, with everything off. */
void dl_sampler_init(struct dl_sampler *s, uint64_t seed);

/* DL_EINVAL (logged, naming the setting and its range) when a setting makes no sense. */
int dl_sampler_check(const struct dl_sampler *s);

/* A token that is now part of the text (prompt or answer), for the repeat penalty. */
void dl_sampler_accept(struct dl_sampler *s, int32_t token);

/* Picks from logits[0 .. n); NaN counts as -infinity. logits become scratch. Returns a token id, DL_ENOMEM, or DL_EDEVICE (logged)
 * when no logit is a number. Same state and logits: same token on every machine of one build. */
int32_t dl_sample(struct dl_sampler *s, float *logits, uint32_t n);

struct dl_candidate {
    int32_t id;
    float logit;
};

/* Can the likeliest tokens settle anything under these settings? Not with a repeat penalty, which changes who is likeliest. */
bool dl_sampler_top_helps(const struct dl_sampler *s);

/* *id = what dl_sample would pick from all `vocab` logits, found from the n likeliest alone: v by falling logit, equals by rising
 * id, no NaN; log_sum = log of the sum of exp(logit / temperature) over the whole vocabulary (not used when greedy). false,
 * and nothing has changed: they do not settle it (or rounding could tip it), only all logits do. */
bool dl_sample_top(struct dl_sampler *s, const struct dl_candidate *v, uint32_t n, double log_sum, uint32_t vocab,
                   int32_t *id);

#endif
