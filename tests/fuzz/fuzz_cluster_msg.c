/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_cluster_msg.c: any bytes as a message between a root and a worker: the first byte, modulo what there is, says which.
 */
#include "cluster_decode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    uint8_t *msg = malloc(size);
    decode_check(msg != NULL, "memory");
    memcpy(msg, data, size);
    msg[0] = (uint8_t)(ENG_MSG_HELLO + (data[0] - ENG_MSG_HELLO) % (ENG_MSG_END - ENG_MSG_HELLO));
    dl_log_set(decode_count, NULL, DL_LOG_DEBUG);
    (void)decode_one(msg, size);
    free(msg);
    return 0;
}
