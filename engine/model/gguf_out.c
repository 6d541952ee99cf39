/* SPDX-License-Identifier: MIT
 *
 * engine/model/gguf_out.c: see gguf_out.h. Numbers are written byte by byte, little end first, whatever the machine.
 */
#include "gguf_out.h"

#include <string.h>

#include "gguf.h"

#define ALIGNMENT 32u /* GGUF's default for the start of each tensor */
#define GGML_F32 0u
#define GGML_Q4_0 2u

static void put(struct eng_gguf_out *o, struct dl_str *to, const void *bytes, size_t n)
{
    if (!o->err)
        o->err = dl_str_add(to, bytes, n);
}

static void put_int(struct eng_gguf_out *o, struct dl_str *to, uint64_t v, unsigned n_bytes)
{
    char b[8];
    for (unsigned i = 0; i < n_bytes; i++)
        b[i] = (char)(unsigned char)(v >> (8 * i) & 0xff);
    put(o, to, b, n_bytes);
}

static void put_f32(struct eng_gguf_out *o, struct dl_str *to, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_int(o, to, bits, 4);
}

static void put_str(struct eng_gguf_out *o, struct dl_str *to, const char *text)
{
    put_int(o, to, strlen(text), 8);
    put(o, to, text, strlen(text));
}

static void pad(struct eng_gguf_out *o, struct dl_str *to)
{
    static const char zeros[ALIGNMENT];
    put(o, to, zeros, (size_t)(dl_round_up(to->len, ALIGNMENT) - to->len));
}

static void key(struct eng_gguf_out *o, const char *name, uint32_t type)
{
    put_str(o, &o->kvs, name);
    put_int(o, &o->kvs, type, 4);
    o->n_kvs++;
}

void eng_gguf_out_str(struct eng_gguf_out *o, const char *name, const char *text)
{
    key(o, name, ENG_GGUF_STR);
    put_str(o, &o->kvs, text);
}

void eng_gguf_out_u32(struct eng_gguf_out *o, const char *name, uint32_t v)
{
    key(o, name, ENG_GGUF_U32);
    put_int(o, &o->kvs, v, 4);
}

void eng_gguf_out_f32(struct eng_gguf_out *o, const char *name, float v)
{
    key(o, name, ENG_GGUF_F32);
    put_f32(o, &o->kvs, v);
}

void eng_gguf_out_bool(struct eng_gguf_out *o, const char *name, bool v)
{
    key(o, name, ENG_GGUF_BOOL);
    put_int(o, &o->kvs, v, 1);
}

void eng_gguf_out_array(struct eng_gguf_out *o, const char *name, uint32_t type, uint64_t n)
{
    key(o, name, ENG_GGUF_ARR);
    put_int(o, &o->kvs, type, 4);
    put_int(o, &o->kvs, n, 8);
}

void eng_gguf_out_item_str(struct eng_gguf_out *o, const char *text)
{
    put_str(o, &o->kvs, text);
}
void eng_gguf_out_item_i32(struct eng_gguf_out *o, int32_t v)
{
    put_int(o, &o->kvs, (uint32_t)v, 4);
}
void eng_gguf_out_item_f32(struct eng_gguf_out *o, float v)
{
    put_f32(o, &o->kvs, v);
}

/* Name, dimensions (the fastest first), type, place of the data. */
static void info(struct eng_gguf_out *o, const char *name, uint32_t rows, uint32_t cols, uint32_t type)
{
    pad(o, &o->data);
    put_str(o, &o->infos, name);
    put_int(o, &o->infos, rows == 1 ? 1 : 2, 4);
    put_int(o, &o->infos, cols, 8);
    if (rows != 1)
        put_int(o, &o->infos, rows, 8);
    put_int(o, &o->infos, type, 4);
    put_int(o, &o->infos, o->data.len, 8);
    o->n_tensors++;
}

void eng_gguf_out_vector(struct eng_gguf_out *o, const char *name, const float *values, uint32_t n)
{
    info(o, name, 1, n, GGML_F32);
    for (uint32_t i = 0; i < n; i++)
        put_f32(o, &o->data, values[i]);
}

void eng_gguf_out_q40(struct eng_gguf_out *o, const char *name, const struct dl_q40 *blocks, uint32_t rows,
                      uint32_t cols)
{
    size_t n = (size_t)rows * (cols / DL_BLOCK);
    info(o, name, rows, cols, GGML_Q4_0);
    for (size_t i = 0; i < n; i++) {
        put_int(o, &o->data, blocks[i].d, 2);
        put(o, &o->data, blocks[i].qs, sizeof blocks[i].qs);
    }
}

int eng_gguf_out_finish(struct eng_gguf_out *o, void **bytes, size_t *n)
{
    struct dl_str image = {0};
    put(o, &image, "GGUF", 4);
    put_int(o, &image, 3, 4);
    put_int(o, &image, o->n_tensors, 8);
    put_int(o, &image, o->n_kvs, 8);
    put(o, &image, o->kvs.v, o->kvs.len);
    put(o, &image, o->infos.v, o->infos.len);
    pad(o, &image);
    pad(o, &o->data);
    put(o, &image, o->data.v, o->data.len);
    dl_str_finish(&o->kvs);
    dl_str_finish(&o->infos);
    dl_str_finish(&o->data);
    if (o->err) {
        dl_str_finish(&image);
        return o->err;
    }
    *bytes = image.v;
    *n = image.len;
    return DL_OK;
}
