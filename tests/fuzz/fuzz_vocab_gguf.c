/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_vocab_gguf.c: any bytes after the magic number as a GGUF file with a vocabulary; then as fuzz_tokenizer.c.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 8)
        return 0;
    uint8_t *file = malloc(size);
    fuzz_check(file);
    memcpy(file, data, size);
    memcpy(file, "GGUF\3\0\0\0", 8);
    fuzz_vocab(file, size);
    free(file);
    return 0;
}
