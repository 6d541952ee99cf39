/* SPDX-License-Identifier: MIT
 *
 * engine/base/cursor.c: see cursor.h.
 */
#include "cursor.h"

#include <string.h>

const uint8_t *eng_read_bytes(struct eng_cursor *c, uint64_t n, const char *what)
{
    if (c->bad)
        return NULL;
    if (n > c->size - c->at) {
        c->bad = what;
        c->bad_at = c->at;
        return NULL;
    }
    const uint8_t *p = c->bytes + c->at;
    c->at += (size_t)n;
    return p;
}

uint8_t eng_read_u8(struct eng_cursor *c, const char *what)
{
    const uint8_t *p = eng_read_bytes(c, 1, what);
    return p ? p[0] : 0;
}

uint32_t eng_read_u32(struct eng_cursor *c, const char *what)
{
    const uint8_t *p = eng_read_bytes(c, 4, what);
    return p ? (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24 : 0;
}

int32_t eng_read_i32(struct eng_cursor *c, const char *what)
{
    uint32_t u = eng_read_u32(c, what);
    int32_t i;
    memcpy(&i, &u, sizeof i);
    return i;
}

uint64_t eng_read_u64(struct eng_cursor *c, const char *what)
{
    uint64_t lo = eng_read_u32(c, what);
    uint64_t hi = eng_read_u32(c, what);
    return lo | hi << 32;
}

float eng_read_f32(struct eng_cursor *c, const char *what)
{
    uint32_t u = eng_read_u32(c, what);
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
