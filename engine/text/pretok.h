/* SPDX-License-Identifier: MIT
 *
 * engine/text/pretok.h: cuts text into the pieces within which a byte-level BPE merges, by the patterns that its model was
 * trained with. Used by bpe.c and the vocabulary readers.
 */
#ifndef ENG_PRETOK_H
#define ENG_PRETOK_H

#include "dl/base.h"

struct eng_pretok;

struct eng_pretok_traits {
    const char *name; /* static: the name that was asked for */
    bool whole_first; /* pieces that are tokens are not merged */
    bool add_bos;     /* unless the file says otherwise */
};

/* By the value of tokenizer.ggml.pre (n bytes; empty: "default"). DL_EUNSUP (logged with `file`, the name and the known ones). */
int eng_pretok_create(const char *pre, size_t n, const char *file, struct eng_pretok **out,
                      struct eng_pretok_traits *traits);
void eng_pretok_destroy(struct eng_pretok **p);

/* Calls `fn` for each piece in order, together the whole text; stops at its first error. Any thread. Bytes that are no valid
 * UTF-8 count as control characters. */
typedef int eng_piece_fn(void *ud, size_t at, size_t n);
int eng_pretok_split(const struct eng_pretok *p, const char *text, size_t n, eng_piece_fn *fn, void *ud);

#endif
