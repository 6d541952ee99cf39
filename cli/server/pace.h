/* SPDX-License-Identifier: MIT
 *
 * cli/server/pace.h: how many tokens of prompts a batch may take besides those of running answers. A batch with them may last about
 * twice as long as one without; both are measured all the time. A plain value, zero-initialised.
 */
#ifndef CLI_SERVER_PACE_H
#define CLI_SERVER_PACE_H

#include <stdint.h>

struct cli_pace {
    double gap_ns;    /* of a batch of answers alone; 0: none was seen */
    double prompt_ns; /* what one more token of a prompt costs; 0: likewise */
};

/* At most `room`. */
uint32_t cli_pace_chunk(const struct cli_pace *p, uint32_t n_decode, uint32_t room);
/* A batch took so long. */
void cli_pace_learn(struct cli_pace *p, uint32_t n_decode, uint32_t n_prompt, uint64_t ns);

#endif
