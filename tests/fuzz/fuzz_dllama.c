/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_dllama.c: any bytes as a Distributed Llama .m. The magic is put there; and since a file that does not end where
 * its header says goes no further, the file is also tried at the length that makes it end there, where that is not too long.
 */
#include "fuzz_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* "... go on to byte N ..." is how a reader says how long the file should be. */
static unsigned long wanted_bytes;

static void find_length(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud, (void)level;
    const char *at = strstr(line, "go on to byte ");
    if (at)
        wanted_bytes = strtoul(at + strlen("go on to byte "), NULL, 10);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t magic[] = {0xcd, 0xab, 0x00, 0x0a};
    if (size < 8)
        return 0;
    size_t room = size > 1u << 16 ? size : 1u << 16;
    uint8_t *file = calloc(1, room);
    check(file != NULL);
    memcpy(file, data, size);
    memcpy(file, magic, sizeof magic);
    open_model(file, size);

    dl_model *m;
    wanted_bytes = 0;
    dl_log_set(find_length, NULL, DL_LOG_ERROR);
    (void)dl_model_open_mem(file, size, "fuzz", &m);
    dl_model_close(&m);
    if (wanted_bytes > size && wanted_bytes <= room)
        open_model(file, wanted_bytes);
    free(file);
    return 0;
}
