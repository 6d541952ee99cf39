/* SPDX-License-Identifier: MIT
 *
 * engine/model/made.c: see made.h. Blocks of codes come out of a pool of random ones, from a place that the row decides; norms and routers are
 * hashed value by value. Values are of about 1 / sqrt(cols), so that what is multiplied with them keeps its size; norms of about 1.
 */
#include "made.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reader.h"

#define POOL_BLOCKS ((uint64_t)1 << 16)
#define PIECE 1024u /* values of a row that are turned into numbers at once: whole blocks */

struct eng_made {
    uint8_t codes[POOL_BLOCKS][DL_BLOCK / 2];
};

/* Mixes all bits (the finaliser of MurmurHash3, in 64 bits). */
static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdu;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53u;
    return x ^ x >> 33;
}

struct eng_made *eng_made_create(void)
{
    struct eng_made *m = dl_calloc(1, sizeof *m);
    for (uint64_t i = 0; m && i < POOL_BLOCKS; i++)
        for (uint64_t j = 0; j < DL_BLOCK / 2; j++) {
            uint64_t r = mix(i * (DL_BLOCK / 2) + j + 1);
            m->codes[i][j] = (uint8_t)((1 + r % 15) | (1 + (r >> 16) % 15) << 4); /* symmetrical about zero */
        }
    return m;
}

void eng_made_destroy(struct eng_made **m)
{
    free(*m);
    *m = NULL;
}

uint64_t eng_made_tensor(const struct dl_model_header *h, enum dl_tensor_id id, struct dl_tensor *out)
{
    struct eng_shape s;
    struct dl_tensor t = {0};
    if (!eng_model_shape(h, id, &s))
        return 0;
    t.type = s.vector || id == DL_T_MOE_ROUTER ? DL_F32 : DL_Q40;
    t.rows = s.rows;
    t.cols = s.cols;
    t.n_experts = s.n_experts;
    if (!dl_row_bytes(t.type, s.cols, &t.row_bytes)) /* a header from elsewhere: no whole blocks */
        return 0;
    uint64_t matrix = t.row_bytes * s.rows;
    t.expert_bytes = s.n_experts > 1 ? matrix : 0;
    *out = t;
    return matrix * s.n_experts;
}

static uint64_t seed_of(enum dl_tensor_id id, uint32_t layer, uint64_t row)
{
    return mix(mix((uint64_t)id << 32 | layer) + row);
}

static void value(const struct dl_tensor *t, uint64_t seed, uint64_t col, uint8_t out[4])
{
    float r = (float)(mix(seed + col) >> 40) * 0x1p-23f - 1.0f; /* [-1, 1) */
    float v = t->rows == 1 ? 1 + r / 10 : r / sqrtf((float)t->cols);
    memcpy(out, &v, sizeof v);
}

void eng_made_read(const struct eng_made *m, const struct dl_tensor *t, enum dl_tensor_id id, uint32_t layer,
                   uint64_t row, uint64_t at, uint8_t *out, size_t n)
{
    const uint64_t seed = seed_of(id, layer, row);
    const size_t unit = t->type == DL_Q40 ? sizeof(struct dl_q40) : sizeof(float);
    struct dl_q40 block = {.d = dl_f32_to_f16(1.0f / (4.32f * sqrtf((float)t->cols)))};
    uint8_t number[sizeof(float)];
    const uint8_t *from = t->type == DL_Q40 ? (const uint8_t *)&block : number;
    while (n) {
        size_t skip = (size_t)(at % unit), part = DL_MIN(n, unit - skip);
        if (t->type == DL_Q40)
            memcpy(block.qs, m->codes[(seed + at / unit) % POOL_BLOCKS], sizeof block.qs);
        else
            value(t, seed, at / unit, number);
        memcpy(out, from + skip, part);
        out += part;
        at += part;
        n -= part;
    }
}

void eng_made_row_f32(const struct eng_made *m, const struct dl_tensor *t, enum dl_tensor_id id, uint32_t layer,
                      uint64_t row, float *out)
{
    uint8_t bytes[PIECE * sizeof(float)];
    for (uint32_t c = 0; c < t->cols; c += PIECE) {
        uint32_t n = DL_MIN(PIECE, t->cols - c);
        uint64_t at = 0, size = 0;
        (void)dl_row_bytes(t->type, c, &at);
        (void)dl_row_bytes(t->type, n, &size);
        eng_made_read(m, t, id, layer, row, at, bytes, (size_t)size);
        dl_row_to_f32(t->type, bytes, out + c, n);
    }
}
