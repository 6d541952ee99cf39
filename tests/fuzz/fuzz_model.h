/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_model.h: any bytes as a model file, for fuzz_gguf.c and fuzz_dllama.c: whatever opens has every tensor inside
 * the file, can be listed, and can be told that its pages are not needed; whatever does not says why in one line.
 */
#ifndef TESTS_FUZZ_MODEL_H
#define TESTS_FUZZ_MODEL_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dl/model.h"

static unsigned error_lines;

static inline void count_errors(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud, (void)line;
    error_lines += level == DL_LOG_ERROR;
}

static inline void check(bool ok)
{
    if (!ok)
        abort();
}

static volatile uint8_t touched;

static inline void touch_tensors(const dl_model *m, const uint8_t *bytes, size_t n)
{
    const struct dl_model_header *h = dl_model_header(m);
    for (unsigned id = 0; id < DL_T_COUNT; id++)
        for (uint32_t l = 0; l < (dl_tensor_per_layer((enum dl_tensor_id)id) ? h->n_layers : 1); l++) {
            struct dl_tensor t;
            if (dl_model_tensor(m, (enum dl_tensor_id)id, l, &t))
                continue;
            uint64_t size = t.row_bytes * t.rows + t.expert_bytes * (t.n_experts - 1);
            check(t.data >= bytes && t.data < bytes + n && size > 0 && size <= (uint64_t)(bytes + n - t.data));
            touched = (uint8_t)(t.data[0] ^ t.data[size - 1]);
            dl_model_drop_pages(m, &t);
        }
}

static inline void touch_row(void *ud, const char *what, const char *name, const char *text)
{
    *(size_t *)ud += strlen(what) + strlen(name) + strlen(text);
}

static inline void open_model(const uint8_t *data, size_t size)
{
    uint8_t *exact = malloc(size ? size : 1);
    check(exact != NULL);
    if (size)
        memcpy(exact, data, size);
    dl_log_set(count_errors, NULL, DL_LOG_DEBUG);
    error_lines = 0;
    dl_model *m;
    int err = dl_model_open_mem(exact, size, "fuzz", &m);
    check(err ? err < 0 && !m && error_lines == 1 : m && error_lines == 0);
    if (!err) {
        size_t chars = 0;
        touch_tensors(m, exact, size);
        check(dl_model_list(m, touch_row, &chars) == DL_OK && chars > 0);
    }
    dl_model_close(&m);
    free(exact);
}

#endif
