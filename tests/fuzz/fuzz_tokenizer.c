/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_tokenizer.c: any bytes as a Distributed Llama tokenizer (.t). Whatever opens must tokenize its own tail, with and
 * without special tokens, into ids of its vocabulary; streaming and whole decoding take any of them.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4 || memcmp(data, "GGUF", 4) != 0)
        fuzz_vocab(data, size);
    return 0;
}
