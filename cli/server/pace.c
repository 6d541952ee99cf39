/* SPDX-License-Identifier: MIT
 *
 * cli/server/pace.c: see pace.h.
 */
#include "pace.h"

#include "dl/base.h"

#define FIRST_CHUNK 16u /* before anything is known */
#define LONGER 0.8      /* of a batch without prompts: what they may add */
#define WEIGHT 0.25     /* of the latest measurement */

static void blend(double *mean, double v)
{
    *mean = *mean > 0 ? *mean + WEIGHT * (v - *mean) : v;
}

uint32_t cli_pace_chunk(const struct cli_pace *p, uint32_t n_decode, uint32_t room)
{
    if (!n_decode || !room)
        return room;
    if (!(p->gap_ns > 0) || !(p->prompt_ns > 0))
        return DL_MIN(room, FIRST_CHUNK);
    double n = LONGER * p->gap_ns / p->prompt_ns;
    return n < 1 ? 1 : n > (double)room ? room : (uint32_t)n;
}

void cli_pace_learn(struct cli_pace *p, uint32_t n_decode, uint32_t n_prompt, uint64_t ns)
{
    if (!n_prompt) {
        blend(&p->gap_ns, (double)ns);
        return;
    }
    double rest = n_decode ? (double)ns - p->gap_ns : (double)ns;
    if (n_decode && !(p->gap_ns > 0))
        return; /* which part of it is whose is not known yet */
    /* A batch that was faster than usual says that the token costs next to nothing, not less. */
    blend(&p->prompt_ns, DL_MAX(rest, (double)ns / 64) / n_prompt);
}
