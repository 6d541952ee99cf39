/* SPDX-License-Identifier: MIT
 *
 * cli/server/pace.c: see pace.h.
 */
#include "pace.h"

#include "dl/base.h"

#define FIRST_CHUNK 16u /* before anything is known */
#define LONGER 0.7  /* of a batch without prompts: what they may add, so that what is measured wrongly stays below 1 */
#define WEIGHT 0.25 /* of the latest measurement */
#define LOOK_AGAIN 32u /* batches with prompts, until one without is measured again: contexts grow */

static void blend(double *mean, double v)
{
    *mean = *mean > 0 ? *mean + WEIGHT * (v - *mean) : v;
}

static uint32_t place(uint32_t n_decode)
{
    return DL_MIN(n_decode, CLI_PACE_MOST) - 1;
}

uint32_t cli_pace_chunk(const struct cli_pace *p, uint32_t n_decode, uint32_t room)
{
    if (!n_decode || !room)
        return room;
    const double alone = p->gap_ns[place(n_decode)];
    if (!(alone > 0) || p->n_mixed >= LOOK_AGAIN)
        return 0;
    if (!(p->prompt_ns > 0))
        return DL_MIN(room, FIRST_CHUNK);
    double n = LONGER * alone / p->prompt_ns;
    return n < 1 ? 1 : n > (double)room ? room : (uint32_t)n;
}

void cli_pace_learn(struct cli_pace *p, uint32_t n_decode, uint32_t n_prompt, uint64_t ns)
{
    if (!n_prompt) {
        if (n_decode)
            blend(&p->gap_ns[place(n_decode)], (double)ns);
        p->n_mixed = 0;
        return;
    }
    const double alone = n_decode ? p->gap_ns[place(n_decode)] : 0;
    p->n_mixed = n_decode ? p->n_mixed + 1 : 0;
    if (n_decode && !(alone > 0))
        return; /* which part of it is whose is not known */
    /* A batch that was faster than usual says that the token costs next to nothing, not less. */
    blend(&p->prompt_ns, DL_MAX((double)ns - alone, (double)ns / 64) / n_prompt);
}
