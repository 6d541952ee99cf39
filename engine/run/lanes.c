/* SPDX-License-Identifier: MIT
 *
 * engine/run/lanes.c: which tokens of a batch go in which lane. One that is too large for the first is halved. A smaller one, a token of
 * each of some sequences mostly, goes as a whole or halved, whichever has been faster for so many: halved, one part is computed
 * while the other is exchanged, but weights are read twice, and which of the two is more is known only by trying.
 */
#include "lanes.h"

#include "dl/base.h"

#define TRIES 3u    /* of each way, of which the fastest counts, before there is a choice */
#define AGAIN 64u   /* batches, after which the slower way is tried once more */
#define WEIGHT 0.25 /* of the latest measurement */
#define LEAST 4u    /* tokens of a batch that may be halved: of fewer, each half takes nearly as long as all */
#define WORTH 0.95  /* of the time as a whole: what halves have to be faster than */

/* Sizes are told apart one by one where they are small, by powers of two beyond. */
static uint32_t place(uint32_t n_tokens)
{
    uint32_t i = n_tokens;
    if (n_tokens > ENG_LANES_EXACT)
        for (i = ENG_LANES_EXACT; n_tokens > ENG_LANES_EXACT; n_tokens /= 2)
            i++;
    return DL_MIN(i, ENG_LANES_SIZES - 1);
}

uint32_t eng_lanes_cut(struct eng_lanes *l, uint32_t n_tokens, uint32_t n_lanes, uint32_t lane_tokens)
{
    const uint32_t half = n_tokens - n_tokens / 2;
    if (n_lanes < 2 || n_tokens < LEAST || n_tokens > lane_tokens)
        return n_tokens > lane_tokens ? half : n_tokens;
    struct eng_lanes_size *s = &l->sizes[place(n_tokens)];
    if (s->tries[ENG_LANES_WHOLE] < TRIES)
        return n_tokens;
    if (s->tries[ENG_LANES_HALVED] < TRIES)
        return half;
    bool halved = s->ns[ENG_LANES_HALVED] < WORTH * s->ns[ENG_LANES_WHOLE];
    if (++s->since >= AGAIN) {
        s->since = 0;
        halved = !halved;
    }
    return halved ? half : n_tokens;
}

void eng_lanes_learn(struct eng_lanes *l, uint32_t n_tokens, uint32_t cut, uint64_t ns)
{
    struct eng_lanes_size *s = &l->sizes[place(n_tokens)];
    const unsigned way = cut < n_tokens ? ENG_LANES_HALVED : ENG_LANES_WHOLE;
    const double each = (double)ns / n_tokens;
    if (s->tries[way] < TRIES)
        s->ns[way] = s->tries[way]++ ? DL_MIN(s->ns[way], each) : each;
    else
        s->ns[way] += WEIGHT * (each - s->ns[way]);
}
