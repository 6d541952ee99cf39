/* SPDX-License-Identifier: MIT
 *
 * engine/run/source.h: where in a model file the bytes of a weight buffer are: rows and columns of a tensor, of each of its experts;
 * or how they are made up. Read in pieces of any size, so that nobody needs a second copy of a slice.
 */
#ifndef ENG_SOURCE_H
#define ENG_SOURCE_H

#include "digest.h"
#include "dl/model.h"
#include "made.h"

struct eng_source {
    struct dl_tensor t;
    struct dl_weight w;
    uint64_t row_bytes; /* of the slice */
    uint64_t col_at;    /* bytes before the slice in a row */
    uint64_t bytes;     /* of the slice, all experts */
    bool in_place;      /* they lie in one piece in the mapping */
    const struct eng_made *made; /* there is no mapping: they are made up of this */
};

/* false, without a word, where the model has no such tensor or it is too small. *out is then as told by the model, as far as it went. */
bool eng_source_find(const dl_model *m, const struct dl_weight *w, struct eng_source *out);
/* The same; DL_EFORMAT or DL_EINVAL, logged. */
int eng_source_need(const dl_model *m, const struct dl_weight *w, struct eng_source *out);

/* A slice of made-up weights, of a model that is not here: *out borrows `made`. DL_EINVAL (logged) where such a model has none. */
int eng_source_make(const struct dl_model_header *h, const struct eng_made *made, const struct dl_weight *w,
                    struct eng_source *out);

/* The slice in the mapping; only where in_place. */
const uint8_t *eng_source_bytes(const struct eng_source *s);

/* Copies bytes [at, at + n) of the slice, in the order of the weight buffer. at + n <= bytes. */
void eng_source_read(const struct eng_source *s, uint64_t at, void *out, size_t n);

/* The digest of the slice: what eng_source_read gives, all of it. `stage`: scratch of stage_bytes. Each slice is on its own, and `tick`
 * (may be NULL) is called about every MiB with the bytes read since; other than 0 ends it, and is returned. */
typedef int eng_source_tick(void *ud, uint64_t bytes);
int eng_source_digest(const struct eng_source *s, struct eng_hash *hash, void *stage, size_t stage_bytes,
                      eng_source_tick *tick, void *ud, struct eng_digest *out);

#endif
