/* SPDX-License-Identifier: MIT
 *
 * cli/server/pace.h: how many tokens of prompts a batch may take besides those of running answers. A batch with them may last
 * twice as long as one without at most; both are measured all the time. A plain value, zero-initialised.
 */
#ifndef CLI_SERVER_PACE_H
#define CLI_SERVER_PACE_H

#include <stdint.h>

#define CLI_PACE_MOST 256u /* answers of a batch that are told apart */

struct cli_pace {
    double gap_ns[CLI_PACE_MOST]; /* of a batch of so many (from 1) answers alone; 0: none was seen */
    double prompt_ns;             /* what one more token of a prompt costs; 0: none was seen */
    uint32_t n_mixed;             /* batches of both since the last one of answers alone */
};

/* At most `room`; all of it where nobody waits for an answer, none where it has to be seen first what so many answers take alone. */
uint32_t cli_pace_chunk(const struct cli_pace *p, uint32_t n_decode, uint32_t room);
/* A batch took so long. */
void cli_pace_learn(struct cli_pace *p, uint32_t n_decode, uint32_t n_prompt, uint64_t ns);

#endif
