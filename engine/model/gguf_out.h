/* SPDX-License-Identifier: MIT
 *
 * engine/model/gguf_out.h: writes a GGUF v3 image in memory. Values and tensors are added in any order, then eng_gguf_out_finish
 * lays them out. The first error sticks and is returned there, so that callers need no check per line. The same calls
 * give the same bytes on every machine.
 */
#ifndef ENG_GGUF_OUT_H
#define ENG_GGUF_OUT_H

#include "dl/quant.h"

/* Zero-initialised is empty. */
struct eng_gguf_out {
    struct dl_str kvs, infos, data;
    uint64_t n_kvs, n_tensors;
    int err;
};

void eng_gguf_out_str(struct eng_gguf_out *o, const char *key, const char *text);
void eng_gguf_out_u32(struct eng_gguf_out *o, const char *key, uint32_t v);
void eng_gguf_out_f32(struct eng_gguf_out *o, const char *key, float v);
void eng_gguf_out_bool(struct eng_gguf_out *o, const char *key, bool v);

/* Starts an array of n values of GGUF type `type`; the caller then adds them one by one with the functions below. */
void eng_gguf_out_array(struct eng_gguf_out *o, const char *key, uint32_t type, uint64_t n);
void eng_gguf_out_item_str(struct eng_gguf_out *o, const char *text);
void eng_gguf_out_item_i32(struct eng_gguf_out *o, int32_t v);
void eng_gguf_out_item_f32(struct eng_gguf_out *o, float v);

/* Tensors: n values as F32, a (rows, cols) matrix as Q40. Both copy. */
void eng_gguf_out_vector(struct eng_gguf_out *o, const char *name, const float *values, uint32_t n);
void eng_gguf_out_q40(struct eng_gguf_out *o, const char *name, const struct dl_q40 *blocks, uint32_t rows,
                      uint32_t cols);

/* Gives the image, which the caller frees with free(), or the first error; frees what the writer holds either way. */
int eng_gguf_out_finish(struct eng_gguf_out *o, void **bytes, size_t *n);

#endif
