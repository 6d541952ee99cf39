/* SPDX-License-Identifier: MIT
 *
 * engine/run/digest.h: names for bytes: the XXH3-128 of what a weight buffer holds, and of a plan. It finds damage and tells slices
 * apart; it is no signature (who may talk to a node at all is the transport's business).
 */
#ifndef ENG_DIGEST_H
#define ENG_DIGEST_H

#include "dl/base.h"

#define ENG_DIGEST_BYTES 16
#define ENG_DIGEST_HEX (2 * ENG_DIGEST_BYTES)

/* The same bytes on every machine. */
struct eng_digest {
    uint8_t v[ENG_DIGEST_BYTES];
};

struct eng_hash;

struct eng_hash *eng_hash_create(void); /* NULL, logged, when memory is out */
void eng_hash_destroy(struct eng_hash **h);
void eng_hash_begin(struct eng_hash *h); /* forgets what was added */
void eng_hash_add(struct eng_hash *h, const void *bytes, size_t n);
void eng_hash_end(const struct eng_hash *h, struct eng_digest *out);

bool eng_digest_equal(const struct eng_digest *a, const struct eng_digest *b);
void eng_digest_hex(const struct eng_digest *d, char out[ENG_DIGEST_HEX + 1]); /* lower case */

#endif
