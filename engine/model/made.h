/* SPDX-License-Identifier: MIT
 *
 * engine/model/made.h: made-up weights, for measuring a model of some shape without its file. Every byte follows from the tensor, the layer, the
 * row and the column, so that each node of a cluster makes those of its own slice: nothing is stored twice, and nothing is sent.
 */
#ifndef ENG_MADE_H
#define ENG_MADE_H

#include "dl/model.h"

/* What the bytes are taken from; about a MiB, the same everywhere. Read-only once made. */
struct eng_made;
struct eng_made *eng_made_create(void);     /* NULL (logged) when memory is out */
void eng_made_destroy(struct eng_made **m); /* nulls, accepts &NULL */

/* A tensor of such a model: Q40 matrices, F32 vectors and routers. data is NULL. Returns its bytes with all experts, 0 where the model
 * has no such tensor; *out is then untouched. */
uint64_t eng_made_tensor(const struct dl_model_header *h, enum dl_tensor_id id, struct dl_tensor *out);

/* Bytes [at, at + n) of one row of the tensor; rows count through all experts. */
void eng_made_read(const struct eng_made *m, const struct dl_tensor *t, enum dl_tensor_id id, uint32_t layer,
                   uint64_t row, uint64_t at, uint8_t *out, size_t n);
/* One whole row as numbers. */
void eng_made_row_f32(const struct eng_made *m, const struct dl_tensor *t, enum dl_tensor_id id, uint32_t layer,
                      uint64_t row, float *out);

#endif
