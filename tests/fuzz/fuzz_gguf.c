/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_gguf.c: any bytes as a GGUF file: parsed, every string and number in it read, then opened as a model. The magic is
 * put there, so that no time goes into finding it.
 */
#include "fuzz_model.h"
#include "gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const struct eng_gguf *g)
{
    for (size_t i = 0; i < g->n_kvs; i++) {
        const struct eng_gguf_kv *kv = &g->kvs[i];
        size_t at = 0;
        uint64_t n = 0;
        struct eng_span s;
        while (eng_gguf_next_str(kv, &at, &s)) {
            n++;
            if (s.n)
                touched = (uint8_t)(s.v[0] ^ s.v[s.n - 1]);
        }
        check(kv->elem_type == ENG_GGUF_STR ? n == kv->n && at == kv->bytes : n == 0);
        if (kv->n && kv->elem_type != ENG_GGUF_STR)
            touched = (uint8_t)((uint64_t)eng_gguf_arr_i64(kv, kv->n - 1) ^ (eng_gguf_arr_f64(kv, kv->n - 1) > 0));
        char key[64];
        if (kv->key.n < sizeof key && !memchr(kv->key.v, 0, kv->key.n)) {
            memcpy(key, kv->key.v, kv->key.n);
            key[kv->key.n] = 0;
            check(eng_gguf_find(g, key) == kv);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4)
        return 0;
    uint8_t *file = malloc(size);
    check(file != NULL);
    memcpy(file, data, size);
    memcpy(file, "GGUF", 4);
    dl_log_set(count_errors, NULL, DL_LOG_DEBUG);
    struct eng_gguf g;
    if (eng_gguf_parse(file, size, "fuzz", &g) == DL_OK)
        read_all(&g);
    eng_gguf_finish(&g);
    open_model(file, size);
    free(file);
    return 0;
}
