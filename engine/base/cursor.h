/* SPDX-License-Identifier: MIT
 *
 * engine/base/cursor.h: a bounded reader over bytes from outside. The first error sticks: later reads yield zeros, so a caller
 * reads a whole header and asks once. Little-endian. Used by every file reader of dl_engine.
 */
#ifndef ENG_CURSOR_H
#define ENG_CURSOR_H

#include "dl/base.h"

struct eng_cursor {
    const uint8_t *bytes;
    size_t size, at;
    size_t bad_at;   /* where the first failing read began */
    const char *bad; /* what was wanted there; NULL: no error so far */
};

static inline struct eng_cursor eng_cursor_make(const void *bytes, size_t size)
{
    return (struct eng_cursor){.bytes = bytes, .size = size};
}

uint8_t eng_read_u8(struct eng_cursor *c, const char *what);
uint32_t eng_read_u32(struct eng_cursor *c, const char *what);
int32_t eng_read_i32(struct eng_cursor *c, const char *what);
uint64_t eng_read_u64(struct eng_cursor *c, const char *what);
float eng_read_f32(struct eng_cursor *c, const char *what);
/* n bytes in place, NULL when they are not all there. */
const uint8_t *eng_read_bytes(struct eng_cursor *c, uint64_t n, const char *what);

static inline size_t eng_left(const struct eng_cursor *c)
{
    return c->size - c->at;
}

#endif
