/* SPDX-License-Identifier: MIT
 *
 * engine/run/lanes.h: how the root puts a batch into the lanes of the plan; workers are told. A plain value, zero-initialised.
 */
#ifndef ENG_LANES_H
#define ENG_LANES_H

#include <stdint.h>

#define ENG_LANES_EXACT 16u
#define ENG_LANES_SIZES 33u /* places: up to EXACT, and powers of two of it */

enum { ENG_LANES_WHOLE, ENG_LANES_HALVED, ENG_LANES_WAYS };

struct eng_lanes {
    struct eng_lanes_size {
        double ns[ENG_LANES_WAYS]; /* per token */
        uint32_t tries[ENG_LANES_WAYS], since;
    } sizes[ENG_LANES_SIZES];
};

/* How many of the tokens are for the first lane; the others are for the second. n_tokens: 1 to n_lanes * lane_tokens. */
uint32_t eng_lanes_cut(struct eng_lanes *l, uint32_t n_tokens, uint32_t n_lanes, uint32_t lane_tokens);
/* So long did it take. */
void eng_lanes_learn(struct eng_lanes *l, uint32_t n_tokens, uint32_t cut, uint64_t ns);

#endif
