/* SPDX-License-Identifier: MIT
 *
 * engine/model/gguf.h: a GGUF v2/v3 file taken apart: metadata and tensor list, every length checked against the file before
 * it is used. Knows nothing of architectures (model_gguf.c) or vocabularies (engine/text/vocab_gguf.c), who call it.
 * Strings and arrays point into the caller's bytes, which outlive the struct.
 */
#ifndef ENG_GGUF_H
#define ENG_GGUF_H

#include "dl/base.h"

enum eng_gguf_type {
    ENG_GGUF_U8, ENG_GGUF_I8, ENG_GGUF_U16, ENG_GGUF_I16, ENG_GGUF_U32, ENG_GGUF_I32, ENG_GGUF_F32, ENG_GGUF_BOOL,
    ENG_GGUF_STR, ENG_GGUF_ARR, ENG_GGUF_U64, ENG_GGUF_I64, ENG_GGUF_F64, ENG_GGUF_TYPE_COUNT
};

/* Not NUL-terminated; may hold any bytes. */
struct eng_span {
    const char *v;
    size_t n;
};

struct eng_gguf_kv {
    struct eng_span key;
    enum eng_gguf_type type;      /* ENG_GGUF_ARR: n values of elem_type at data */
    enum eng_gguf_type elem_type;
    uint64_t n;                   /* 1 for scalars */
    const uint8_t *data;          /* the value's bytes; for strings, those of the first length field */
    size_t bytes;                 /* that belong to the value(s) */
};

struct eng_gguf_tensor {
    struct eng_span name;
    uint32_t n_dims;
    uint64_t dims[4]; /* dims[0] varies fastest: a matrix (rows, cols) is dims {cols, rows} */
    uint32_t type;    /* GGML's number: 0 F32, 1 F16, 2 Q4_0, 8 Q8_0, 30 BF16, ... */
    uint64_t offset;  /* from data_start; bounds are checked by who knows the type's size */
};

struct eng_gguf {
    const uint8_t *bytes;
    size_t size;
    const char *name; /* for messages; the caller's */
    uint32_t version, alignment;
    struct eng_gguf_kv *kvs;
    size_t n_kvs;
    struct eng_gguf_tensor *tensors;
    size_t n_tensors;
    size_t data_start; /* == size where there are no tensors */
    const struct eng_gguf_kv **by_key;         /* the entries in byte order of their names: for the lookups below */
    const struct eng_gguf_tensor **by_name;
};

/* First four bytes of every GGUF file, as a little-endian number. */
#define ENG_GGUF_MAGIC 0x46554747u

/* DL_EFORMAT, DL_EUNSUP (another version) or DL_ENOMEM, logged with `name` and the byte offset. Refused besides what does not fit
 * into the file: empty or repeated keys and tensor names, arrays of arrays, tensors of no or more than 4 dimensions or with
 * more than 2^63 values, an alignment that is no power of two, and lists of so many tiny entries that the tables for them
 * would need more than twice the file (and 4 KiB); nothing else is allocated. */
int eng_gguf_parse(const uint8_t *bytes, size_t size, const char *name, struct eng_gguf *out);
void eng_gguf_finish(struct eng_gguf *g); /* accepts a zeroed struct */

const struct eng_gguf_kv *eng_gguf_find(const struct eng_gguf *g, const char *key); /* NULL when absent */
const struct eng_gguf_tensor *eng_gguf_find_tensor(const struct eng_gguf *g, const char *name);

/* Scalars, whatever integer or float width the file chose. False when absent, of another kind, or out of range; *out keeps its
 * value then, so preset the default. */
bool eng_gguf_u64(const struct eng_gguf *g, const char *key, uint64_t *out);
bool eng_gguf_u32(const struct eng_gguf *g, const char *key, uint32_t *out);
bool eng_gguf_f64(const struct eng_gguf *g, const char *key, double *out);
bool eng_gguf_bool(const struct eng_gguf *g, const char *key, bool *out);
bool eng_gguf_str(const struct eng_gguf *g, const char *key, struct eng_span *out);

/* Walks an array of strings: start with *at = 0, each call yields the next one; false at the end. */
bool eng_gguf_next_str(const struct eng_gguf_kv *kv, size_t *at, struct eng_span *out);
/* Value i of a scalar or an array of integers or floats (any width), i < kv->n. What does not fit is clamped; 0 for strings. */
int64_t eng_gguf_arr_i64(const struct eng_gguf_kv *kv, uint64_t i);
double eng_gguf_arr_f64(const struct eng_gguf_kv *kv, uint64_t i);

bool eng_span_is(struct eng_span s, const char *text);
/* For "%.*s": the length as an int, cut to what a message can take. */
static inline int eng_span_len(struct eng_span s) { return s.n > 160 ? 160 : (int)s.n; }

#endif
