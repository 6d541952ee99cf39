/* SPDX-License-Identifier: MIT
 *
 * engine/model/gguf.c: see gguf.h. One pass over the header with a bounded cursor. Every count is held against the bytes that
 * are left before a table is made for it; strings and arrays are walked, never copied. Lookups go through tables of pointers that are
 * sorted once, which also finds repeated names whatever the file's author had in mind (a hash could be attacked).
 */
#include "gguf.h"
#include "cursor.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The fewest bytes an entry can take: a name of one byte and a one-byte value; a name of one byte and one dimension. */
#define MIN_KV_BYTES (8 + 1 + 4 + 1)
#define MIN_TENSOR_BYTES (8 + 1 + 4 + 8 + 4 + 8)
#define MAX_NAME 65535u
#define SMALL 4096u /* bytes of tables that any file may cause */

static const uint8_t type_bytes[ENG_GGUF_TYPE_COUNT] = {
    [ENG_GGUF_U8] = 1,  [ENG_GGUF_I8] = 1,  [ENG_GGUF_U16] = 2, [ENG_GGUF_I16] = 2,
    [ENG_GGUF_U32] = 4, [ENG_GGUF_I32] = 4, [ENG_GGUF_F32] = 4, [ENG_GGUF_BOOL] = 1,
    [ENG_GGUF_U64] = 8, [ENG_GGUF_I64] = 8, [ENG_GGUF_F64] = 8,
};

/* ----------------------------------------------------------------------------------------------- reading */

static int cut_short(const struct eng_gguf *g, const struct eng_cursor *c)
{
    return dl_fail(DL_EFORMAT, "%s: byte %zu: the file ends inside %s: it is damaged or not completely downloaded",
                   g->name, c->bad_at, c->bad);
}

static struct eng_span read_str(struct eng_cursor *c, const char *what)
{
    uint64_t n = eng_read_u64(c, what);
    const uint8_t *p = eng_read_bytes(c, n, what);
    return (struct eng_span){.v = (const char *)p, .n = p ? (size_t)n : 0};
}

static int read_name(struct eng_gguf *g, struct eng_cursor *c, const char *what, struct eng_span *out)
{
    size_t at = c->at;
    *out = read_str(c, what);
    if (c->bad)
        return cut_short(g, c);
    if (out->n == 0 || out->n > MAX_NAME)
        return dl_fail(DL_EFORMAT, "%s: byte %zu: %s of %zu bytes (1 to %u are allowed)", g->name, at, what, out->n,
                       MAX_NAME);
    return DL_OK;
}

static int read_value(struct eng_gguf *g, struct eng_cursor *c, struct eng_gguf_kv *kv)
{
    int key_len = eng_span_len(kv->key);
    size_t type_at = c->at;
    uint32_t type = eng_read_u32(c, "a metadata type"), elem = type;
    kv->n = 1;
    if (type == ENG_GGUF_ARR) {
        elem = eng_read_u32(c, "a metadata type");
        kv->n = eng_read_u64(c, "an array's length");
    }
    if (c->bad)
        return cut_short(g, c);
    if (type >= ENG_GGUF_TYPE_COUNT || elem >= ENG_GGUF_TYPE_COUNT)
        return dl_fail(DL_EFORMAT, "%s: byte %zu: key %.*s has the unknown type %u", g->name, type_at, key_len,
                       kv->key.v, type >= ENG_GGUF_TYPE_COUNT ? type : elem);
    if (elem == ENG_GGUF_ARR)
        return dl_fail(DL_EFORMAT, "%s: byte %zu: key %.*s is an array of arrays", g->name, type_at, key_len,
                       kv->key.v);
    kv->type = (enum eng_gguf_type)type;
    kv->elem_type = (enum eng_gguf_type)elem;

    size_t start = c->at;
    uint64_t least = elem == ENG_GGUF_STR ? 8 : type_bytes[elem];
    kv->data = c->bytes + start;
    if (kv->n > eng_left(c) / least)
        return dl_fail(DL_EFORMAT, "%s: byte %zu: key %.*s claims %" PRIu64 " values, but the file ends before that",
                       g->name, start, key_len, kv->key.v, kv->n);
    if (elem == ENG_GGUF_STR)
        for (uint64_t i = 0; i < kv->n && !c->bad; i++)
            (void)read_str(c, "a metadata string");
    else
        (void)eng_read_bytes(c, kv->n * least, "a metadata value");
    if (c->bad)
        return cut_short(g, c);
    kv->bytes = c->at - start;
    return DL_OK;
}

static int read_tensor(struct eng_gguf *g, struct eng_cursor *c, struct eng_gguf_tensor *t)
{
    int err = read_name(g, c, "a tensor's name", &t->name);
    if (err)
        return err;
    size_t at = c->at;
    t->n_dims = eng_read_u32(c, "a tensor's dimensions");
    if (!c->bad && (t->n_dims == 0 || t->n_dims > 4))
        return dl_fail(DL_EFORMAT, "%s: byte %zu: tensor %.*s has %u dimensions (1 to 4 are allowed)", g->name, at,
                       eng_span_len(t->name), t->name.v, t->n_dims);
    uint64_t values = 1;
    bool fits = true;
    for (uint32_t i = 0; i < 4; i++) {
        t->dims[i] = i < t->n_dims && !c->bad ? eng_read_u64(c, "a tensor's dimensions") : 1;
        fits = fits && dl_mul_u64(values, t->dims[i], &values) && values <= INT64_MAX;
    }
    t->type = eng_read_u32(c, "a tensor's type");
    t->offset = eng_read_u64(c, "a tensor's offset");
    if (c->bad)
        return cut_short(g, c);
    if (!fits)
        return dl_fail(DL_EFORMAT, "%s: byte %zu: tensor %.*s has more values than can be counted", g->name, at,
                       eng_span_len(t->name), t->name.v);
    return DL_OK;
}

/* ------------------------------------------------------------------------------------------------ lookup */

static int span_cmp(struct eng_span a, struct eng_span b)
{
    int cmp = memcmp(a.v, b.v, DL_MIN(a.n, b.n));
    return cmp ? cmp : (a.n > b.n) - (a.n < b.n);
}

static int kv_cmp(const void *a, const void *b)
{
    const struct eng_gguf_kv *const *x = a, *const *y = b;
    return span_cmp((*x)->key, (*y)->key);
}

static int tensor_cmp(const void *a, const void *b)
{
    const struct eng_gguf_tensor *const *x = a, *const *y = b;
    return span_cmp((*x)->name, (*y)->name);
}

static int index_kvs(struct eng_gguf *g)
{
    g->by_key = dl_calloc(g->n_kvs, sizeof *g->by_key);
    if (!g->by_key)
        return DL_ENOMEM;
    for (size_t i = 0; i < g->n_kvs; i++)
        g->by_key[i] = &g->kvs[i];
    qsort(g->by_key, g->n_kvs, sizeof *g->by_key, kv_cmp);
    for (size_t i = 1; i < g->n_kvs; i++)
        if (!kv_cmp(&g->by_key[i - 1], &g->by_key[i])) {
            struct eng_span key = g->by_key[i]->key;
            return dl_fail(DL_EFORMAT, "%s: byte %zu: key %.*s is there twice", g->name,
                           (size_t)((const uint8_t *)key.v - g->bytes), eng_span_len(key), key.v);
        }
    return DL_OK;
}

static int index_tensors(struct eng_gguf *g)
{
    g->by_name = dl_calloc(g->n_tensors, sizeof *g->by_name);
    if (!g->by_name)
        return DL_ENOMEM;
    for (size_t i = 0; i < g->n_tensors; i++)
        g->by_name[i] = &g->tensors[i];
    qsort(g->by_name, g->n_tensors, sizeof *g->by_name, tensor_cmp);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (!tensor_cmp(&g->by_name[i - 1], &g->by_name[i])) {
            struct eng_span name = g->by_name[i]->name;
            return dl_fail(DL_EFORMAT, "%s: byte %zu: tensor %.*s is there twice", g->name,
                           (size_t)((const uint8_t *)name.v - g->bytes), eng_span_len(name), name.v);
        }
    return DL_OK;
}

/* ------------------------------------------------------------------------------------------------- parse */

/* Both lists with their sorted pointers, and as much again for what qsort may take on the side. */
static bool tables_fit(size_t size, uint64_t n_kvs, uint64_t n_tensors)
{
    /* The counts are below size / MIN_*_BYTES, so none of this overflows. */
    uint64_t need = n_kvs * (sizeof(struct eng_gguf_kv) + 2 * sizeof(void *)) +
                    n_tensors * (sizeof(struct eng_gguf_tensor) + 2 * sizeof(void *));
    return need <= SMALL || (need - SMALL) / 2 <= size;
}

static int read_start(struct eng_gguf *g, struct eng_cursor *c)
{
    if (eng_read_u32(c, "the file's magic") != ENG_GGUF_MAGIC && !c->bad)
        return dl_fail(DL_EFORMAT, "%s: not a GGUF file", g->name);
    g->version = eng_read_u32(c, "the header");
    if (!c->bad && g->version != 2 && g->version != 3)
        return g->version == 0x03000000 || g->version == 0x02000000
                   ? dl_fail(DL_EUNSUP, "%s: a big-endian GGUF file: convert it for little-endian machines", g->name)
                   : dl_fail(DL_EUNSUP, "%s: GGUF version %u (2 and 3 are supported): convert the model again", g->name,
                             g->version);
    uint64_t n_tensors = eng_read_u64(c, "the header"), n_kvs = eng_read_u64(c, "the header");
    if (c->bad)
        return cut_short(g, c);
    if (n_tensors > eng_left(c) / MIN_TENSOR_BYTES || n_kvs > eng_left(c) / MIN_KV_BYTES ||
        !tables_fit(g->size, n_kvs, n_tensors))
        return dl_fail(DL_EFORMAT,
                       "%s: byte 8: claims %" PRIu64 " tensors and %" PRIu64 " metadata entries in %zu bytes", g->name,
                       n_tensors, n_kvs, g->size);
    g->n_tensors = (size_t)n_tensors;
    g->n_kvs = (size_t)n_kvs;
    g->kvs = dl_calloc(g->n_kvs, sizeof *g->kvs);
    if (!g->kvs)
        return DL_ENOMEM;
    g->tensors = dl_calloc(g->n_tensors, sizeof *g->tensors);
    return g->tensors ? DL_OK : DL_ENOMEM;
}

static int read_alignment(struct eng_gguf *g)
{
    g->alignment = 32;
    if (eng_gguf_find(g, "general.alignment") && (!eng_gguf_u32(g, "general.alignment", &g->alignment) ||
                                                  g->alignment == 0 || (g->alignment & (g->alignment - 1))))
        return dl_fail(DL_EFORMAT, "%s: key general.alignment is no power of two", g->name);
    return DL_OK;
}

static int parse(struct eng_gguf *g)
{
    struct eng_cursor c = eng_cursor_make(g->bytes, g->size);
    int err = read_start(g, &c);
    for (size_t i = 0; !err && i < g->n_kvs; i++) {
        err = read_name(g, &c, "a metadata key", &g->kvs[i].key);
        if (!err)
            err = read_value(g, &c, &g->kvs[i]);
    }
    if (!err)
        err = index_kvs(g);
    if (!err)
        err = read_alignment(g);
    for (size_t i = 0; !err && i < g->n_tensors; i++)
        err = read_tensor(g, &c, &g->tensors[i]);
    if (!err)
        err = index_tensors(g);
    if (err)
        return err;
    g->data_start = g->size;
    if (g->n_tensors) {
        uint64_t start = dl_round_up(c.at, g->alignment);
        if (start > g->size)
            return dl_fail(DL_EFORMAT,
                           "%s: byte %zu: the file ends before its tensors: it is damaged or not completely downloaded",
                           g->name, g->size);
        g->data_start = (size_t)start;
    }
    return DL_OK;
}

int eng_gguf_parse(const uint8_t *bytes, size_t size, const char *name, struct eng_gguf *out)
{
    *out = (struct eng_gguf){.bytes = bytes, .size = size, .name = name};
    int err = parse(out);
    if (err)
        eng_gguf_finish(out);
    return err;
}

void eng_gguf_finish(struct eng_gguf *g)
{
    free(g->kvs);
    free(g->tensors);
    free(g->by_key);
    free(g->by_name);
    *g = (struct eng_gguf){0};
}

const struct eng_gguf_kv *eng_gguf_find(const struct eng_gguf *g, const char *key)
{
    struct eng_gguf_kv want = {.key = {.v = key, .n = strlen(key)}};
    const struct eng_gguf_kv *p = &want, **hit;
    hit = g->n_kvs ? bsearch(&p, g->by_key, g->n_kvs, sizeof *g->by_key, kv_cmp) : NULL;
    return hit ? *hit : NULL;
}

const struct eng_gguf_tensor *eng_gguf_find_tensor(const struct eng_gguf *g, const char *name)
{
    struct eng_gguf_tensor want = {.name = {.v = name, .n = strlen(name)}};
    const struct eng_gguf_tensor *p = &want, **hit;
    hit = g->n_tensors ? bsearch(&p, g->by_name, g->n_tensors, sizeof *g->by_name, tensor_cmp) : NULL;
    return hit ? *hit : NULL;
}

/* ------------------------------------------------------------------------------------------------ values */

static uint64_t load_le(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static bool is_float(enum eng_gguf_type t)
{
    return t == ENG_GGUF_F32 || t == ENG_GGUF_F64;
}
static bool is_signed(enum eng_gguf_type t)
{
    return t == ENG_GGUF_I8 || t == ENG_GGUF_I16 || t == ENG_GGUF_I32 || t == ENG_GGUF_I64;
}
static bool is_number(enum eng_gguf_type t)
{
    return t < ENG_GGUF_TYPE_COUNT && t != ENG_GGUF_STR && t != ENG_GGUF_ARR;
}

static double load_float(const struct eng_gguf_kv *kv, const uint8_t *p)
{
    if (kv->elem_type == ENG_GGUF_F32) {
        uint32_t u = (uint32_t)load_le(p, 4);
        float f;
        memcpy(&f, &u, sizeof f);
        return (double)f;
    }
    uint64_t u = load_le(p, 8);
    double d;
    memcpy(&d, &u, sizeof d);
    return d;
}

int64_t eng_gguf_arr_i64(const struct eng_gguf_kv *kv, uint64_t i)
{
    if (!is_number(kv->elem_type))
        return 0;
    unsigned n = type_bytes[kv->elem_type];
    const uint8_t *p = kv->data + i * n;
    if (is_float(kv->elem_type)) {
        double d = load_float(kv, p);
        return isnan(d) ? 0 : d >= 0x1p63 ? INT64_MAX : d <= -0x1p63 ? INT64_MIN : (int64_t)d;
    }
    uint64_t u = load_le(p, n);
    if (!is_signed(kv->elem_type))
        return u > INT64_MAX ? INT64_MAX : (int64_t)u;
    uint64_t sign = (uint64_t)1 << (8 * n - 1);
    u = (u ^ sign) - sign; /* extends the sign to 64 bits */
    int64_t v;
    memcpy(&v, &u, sizeof v);
    return v;
}

double eng_gguf_arr_f64(const struct eng_gguf_kv *kv, uint64_t i)
{
    if (!is_number(kv->elem_type))
        return 0;
    unsigned n = type_bytes[kv->elem_type];
    const uint8_t *p = kv->data + i * n;
    if (is_float(kv->elem_type))
        return load_float(kv, p);
    return kv->elem_type == ENG_GGUF_U64 ? (double)load_le(p, n) : (double)eng_gguf_arr_i64(kv, i);
}

/* The entry when it is a scalar number, else NULL. */
static const struct eng_gguf_kv *find_number(const struct eng_gguf *g, const char *key)
{
    const struct eng_gguf_kv *kv = eng_gguf_find(g, key);
    return kv && is_number(kv->type) ? kv : NULL;
}

bool eng_gguf_u64(const struct eng_gguf *g, const char *key, uint64_t *out)
{
    const struct eng_gguf_kv *kv = find_number(g, key);
    if (!kv || is_float(kv->type) || kv->type == ENG_GGUF_BOOL)
        return false;
    if (is_signed(kv->type) && eng_gguf_arr_i64(kv, 0) < 0)
        return false;
    *out = load_le(kv->data, type_bytes[kv->type]);
    if (is_signed(kv->type))
        *out = (uint64_t)eng_gguf_arr_i64(kv, 0);
    return true;
}

bool eng_gguf_u32(const struct eng_gguf *g, const char *key, uint32_t *out)
{
    uint64_t v;
    if (!eng_gguf_u64(g, key, &v) || v > UINT32_MAX)
        return false;
    *out = (uint32_t)v;
    return true;
}

bool eng_gguf_f64(const struct eng_gguf *g, const char *key, double *out)
{
    const struct eng_gguf_kv *kv = find_number(g, key);
    if (!kv || kv->type == ENG_GGUF_BOOL)
        return false;
    *out = eng_gguf_arr_f64(kv, 0);
    return true;
}

bool eng_gguf_bool(const struct eng_gguf *g, const char *key, bool *out)
{
    const struct eng_gguf_kv *kv = eng_gguf_find(g, key);
    if (!kv || kv->type != ENG_GGUF_BOOL)
        return false;
    *out = kv->data[0] != 0;
    return true;
}

bool eng_gguf_str(const struct eng_gguf *g, const char *key, struct eng_span *out)
{
    const struct eng_gguf_kv *kv = eng_gguf_find(g, key);
    size_t at = 0;
    return kv && kv->type == ENG_GGUF_STR && eng_gguf_next_str(kv, &at, out);
}

bool eng_gguf_next_str(const struct eng_gguf_kv *kv, size_t *at, struct eng_span *out)
{
    if (kv->elem_type != ENG_GGUF_STR || *at >= kv->bytes)
        return false;
    /* Every length was checked by read_value. */
    size_t n = (size_t)load_le(kv->data + *at, 8);
    *out = (struct eng_span){.v = (const char *)kv->data + *at + 8, .n = n};
    *at += 8 + n;
    return true;
}

bool eng_span_is(struct eng_span s, const char *text)
{
    size_t n = strlen(text);
    return s.n == n && !memcmp(s.v, text, n);
}
