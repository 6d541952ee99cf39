/* SPDX-License-Identifier: MIT
 *
 * engine/run/digest.c: see digest.h. Long inputs, piece by piece; dl_hash is for short ones.
 */
#include "digest.h"

#include <string.h>

#include <xxhash.h>

static XXH3_state_t *state_of(struct eng_hash *h)
{
    return (XXH3_state_t *)(void *)h;
}

struct eng_hash *eng_hash_create(void)
{
    XXH3_state_t *s = XXH3_createState();
    if (!s)
        dl_log(DL_LOG_ERROR, "memory: cannot allocate the state of a hash");
    else
        XXH3_128bits_reset(s);
    return (struct eng_hash *)(void *)s;
}

void eng_hash_destroy(struct eng_hash **h)
{
    if (*h)
        XXH3_freeState(state_of(*h));
    *h = NULL;
}

void eng_hash_begin(struct eng_hash *h)
{
    XXH3_128bits_reset(state_of(h));
}

void eng_hash_add(struct eng_hash *h, const void *bytes, size_t n)
{
    XXH3_128bits_update(state_of(h), bytes, n);
}

void eng_hash_end(const struct eng_hash *h, struct eng_digest *out)
{
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, XXH3_128bits_digest((const XXH3_state_t *)(const void *)h));
    _Static_assert(sizeof c.digest == ENG_DIGEST_BYTES, "128 bits");
    memcpy(out->v, c.digest, sizeof out->v);
}

bool eng_digest_equal(const struct eng_digest *a, const struct eng_digest *b)
{
    return !memcmp(a->v, b->v, sizeof a->v);
}

void eng_digest_hex(const struct eng_digest *d, char out[ENG_DIGEST_HEX + 1])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < ENG_DIGEST_BYTES; i++) {
        out[2 * i] = digits[d->v[i] >> 4];
        out[2 * i + 1] = digits[d->v[i] & 15];
    }
    out[ENG_DIGEST_HEX] = 0;
}
