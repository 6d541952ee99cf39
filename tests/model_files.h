/* SPDX-License-Identifier: MIT
 *
 * tests/model_files.h: writes small GGUF and .m files for tests, well-formed ones and such with chosen faults. Written from the
 * formats' descriptions, not from the readers. Every tensor begins with its mark (which tensor, layer and expert it is), the
 * rest is a random stream, so that a test sees whether a reader found the right bytes.
 */
#ifndef TESTS_MODEL_FILES_H
#define TESTS_MODEL_FILES_H

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dl/model.h"

/* ---------------------------------------------------------------------------------------------- bytes */

static inline void put_le(struct dl_str *s, uint64_t v, unsigned n)
{
    char b[8];
    for (unsigned i = 0; i < n; i++)
        b[i] = (char)(unsigned char)(v >> 8 * i);
    if (dl_str_add(s, b, n))
        abort();
}
static inline void put_bytes(struct dl_str *s, const void *bytes, size_t n)
{
    if (dl_str_add(s, bytes, n))
        abort();
}
static inline void put_f32(struct dl_str *s, float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    put_le(s, u, 4);
}

/* The first four bytes of a tensor (of an expert's matrix). */
static inline uint32_t tensor_mark(enum dl_tensor_id id, uint32_t layer, uint32_t expert)
{
    return 0x3f000000u | (uint32_t)id << 16 | layer << 8 | expert; /* as a float, about 0.5 */
}

/* n bytes: the mark, then a stream seeded by it. */
static inline void put_filled(struct dl_str *s, uint32_t mark, size_t n)
{
    uint64_t x = mark;
    put_le(s, mark, n < 4 ? (unsigned)n : 4);
    for (size_t i = 4; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        char c = (char)(unsigned char)(x >> 56);
        put_bytes(s, &c, 1);
    }
}

/* ----------------------------------------------------------------------------------------------- GGUF */

#define GW_MAX_FIELDS 1024
struct gw {
    struct dl_str meta, infos, data;
    uint64_t n_kvs, n_tensors;
    uint32_t version, alignment; /* 0: 3 and 32 */
    uint32_t
        fields[GW_MAX_FIELDS]; /* where counts, lengths, types and offsets stand: in the file, once it is finished */
    unsigned n_fields, n_meta_fields;
};

static inline void gw_field(struct gw *w, struct dl_str *s, uint64_t v, unsigned n)
{
    if (w->n_fields < GW_MAX_FIELDS)
        w->fields[w->n_fields++] = (uint32_t)s->len;
    if (s == &w->meta)
        w->n_meta_fields = w->n_fields; /* metadata comes first */
    put_le(s, v, n);
}
static inline void gw_text(struct gw *w, struct dl_str *s, const char *text)
{
    gw_field(w, s, strlen(text), 8);
    put_bytes(s, text, strlen(text));
}
static inline void gw_key(struct gw *w, const char *key, uint32_t type)
{
    w->n_kvs++;
    gw_text(w, &w->meta, key);
    gw_field(w, &w->meta, type, 4);
}
static inline void gw_u32(struct gw *w, const char *key, uint32_t v)
{
    gw_key(w, key, 4), gw_field(w, &w->meta, v, 4);
}
static inline void gw_f32(struct gw *w, const char *key, float v)
{
    gw_key(w, key, 6), put_f32(&w->meta, v);
}
static inline void gw_str(struct gw *w, const char *key, const char *v)
{
    gw_key(w, key, 8), gw_text(w, &w->meta, v);
}
static inline void gw_array(struct gw *w, const char *key, uint32_t elem_type, uint64_t n)
{
    gw_key(w, key, 9);
    gw_field(w, &w->meta, elem_type, 4);
    gw_field(w, &w->meta, n, 8);
}

/* Bytes of n values of a GGML type (whole blocks). */
static inline size_t ggml_bytes(uint32_t type, size_t n)
{
    switch (type) {
    case 0:
        return 4 * n;
    case 2:
        return n / 32 * 18;
    case 8:
        return n / 32 * 34;
    default:
        return 2 * n;
    }
}

static inline void gw_tensor(struct gw *w, const char *name, uint32_t type, unsigned n_dims, const uint64_t *dims,
                             const void *bytes, size_t n)
{
    uint32_t align = w->alignment ? w->alignment : 32;
    while (w->data.len % align)
        put_le(&w->data, 0, 1);
    w->n_tensors++;
    gw_text(w, &w->infos, name);
    gw_field(w, &w->infos, n_dims, 4);
    for (unsigned i = 0; i < n_dims; i++)
        gw_field(w, &w->infos, dims[i], 8);
    gw_field(w, &w->infos, type, 4);
    gw_field(w, &w->infos, w->data.len, 8);
    put_bytes(&w->data, bytes, n);
}

/* Puts the file together, frees the parts; w->fields stay. */
static inline struct dl_str gw_finish(struct gw *w)
{
    struct dl_str f = {0};
    uint32_t align = w->alignment ? w->alignment : 32;
    put_bytes(&f, "GGUF", 4);
    put_le(&f, w->version ? w->version : 3, 4);
    put_le(&f, w->n_tensors, 8);
    put_le(&f, w->n_kvs, 8);
    for (unsigned i = 0; i < w->n_fields; i++)
        w->fields[i] += 24 + (i < w->n_meta_fields ? 0 : (uint32_t)w->meta.len);
    put_bytes(&f, w->meta.v ? w->meta.v : "", w->meta.len);
    put_bytes(&f, w->infos.v ? w->infos.v : "", w->infos.len);
    while (w->n_tensors && f.len % align)
        put_le(&f, 0, 1);
    put_bytes(&f, w->data.v ? w->data.v : "", w->data.len);
    dl_str_finish(&w->meta);
    dl_str_finish(&w->infos);
    dl_str_finish(&w->data);
    return f;
}

/* ------------------------------------------------------------------------------------ a tiny GGUF model */

/* dim 32, 4 heads of 8 on 2 KV heads, feed-forward 64, vocabulary 16, context 128. */
struct tiny {
    const char *arch;
    uint32_t type;            /* of the matrices: GGML's number */
    uint32_t layers, experts; /* 0: 2 layers, dense */
    bool tied, bias, factors;
    const char *skip; /* key or tensor that is left out */
    const char *odd;  /* tensor that gets odd_type, or odd_rows more rows */
    uint32_t odd_type, odd_rows;
};

static inline void tiny_tensor(struct gw *w, const struct tiny *t, enum dl_tensor_id id, uint32_t layer, uint64_t rows,
                               uint64_t cols, uint64_t experts, bool vector)
{
    char name[64];
    snprintf(name, sizeof name, id >= DL_T_ATTN_NORM ? "blk.%u.%s" : "%.0u%s", id >= DL_T_ATTN_NORM ? layer : 0,
             dl_tensor_name(id));
    if (t->skip && !strcmp(name, t->skip))
        return;
    bool odd = t->odd && !strcmp(name, t->odd);
    uint32_t type = odd && t->odd_type ? t->odd_type : vector ? 0 : t->type;
    if (odd)
        rows += t->odd_rows;
    struct dl_str data = {0};
    for (uint32_t e = 0; e < (experts ? experts : 1); e++)
        put_filled(&data, tensor_mark(id, layer, e), ggml_bytes(type, rows * cols));
    if (id == DL_T_ROPE_FREQS) { /* the only values that a reader looks at */
        data.len = 0;
        for (uint64_t i = 0; i < cols; i++)
            put_f32(&data, 1 + (float)i);
    }
    gw_tensor(w, name, type, experts ? 3 : vector ? 1 : 2, (uint64_t[]){cols, rows, experts}, data.v, data.len);
    dl_str_finish(&data);
}

static inline void tiny_key(struct gw *w, const struct tiny *t, const char *rest, uint32_t v)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", t->arch, rest);
    if (!t->skip || strcmp(key, t->skip) != 0)
        gw_u32(w, key, v);
}

/* Metadata only; more keys may follow before tiny_tensors. */
static inline void tiny_meta(struct gw *w, const struct tiny *t)
{
    char key[96];
    if (!t->skip || strcmp(t->skip, "general.architecture") != 0)
        gw_str(w, "general.architecture", t->arch);
    gw_str(w, "general.name", "tiny");
    tiny_key(w, t, "context_length", 128);
    tiny_key(w, t, "embedding_length", 32);
    tiny_key(w, t, "block_count", t->layers ? t->layers : 2);
    tiny_key(w, t, "feed_forward_length", 64);
    tiny_key(w, t, "attention.head_count", 4);
    tiny_key(w, t, "attention.head_count_kv", 2);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", t->arch);
    gw_f32(w, key, 1e-5f);
    if (t->experts) {
        tiny_key(w, t, "expert_count", t->experts);
        tiny_key(w, t, "expert_used_count", 2);
        tiny_key(w, t, "expert_feed_forward_length", 32);
    }
    gw_array(w, "tokenizer.ggml.tokens", 8, 4);
    for (unsigned i = 0; i < 4; i++)
        gw_text(w, &w->meta, "ab");
    gw_array(w, "tokenizer.ggml.scores", 6, 4);
    for (unsigned i = 0; i < 4; i++)
        put_f32(&w->meta, 0.5f);
}

static inline void tiny_tensors(struct gw *w, const struct tiny *t)
{
    bool qk_norm = !strncmp(t->arch, "qwen3", 5);
    tiny_tensor(w, t, DL_T_EMBED, 0, 16, 32, 0, false);
    if (t->factors)
        tiny_tensor(w, t, DL_T_ROPE_FREQS, 0, 1, 4, 0, true);
    for (uint32_t l = 0; l < (t->layers ? t->layers : 2); l++) {
        tiny_tensor(w, t, DL_T_ATTN_NORM, l, 1, 32, 0, true);
        tiny_tensor(w, t, DL_T_ATTN_Q, l, 32, 32, 0, false);
        tiny_tensor(w, t, DL_T_ATTN_K, l, 16, 32, 0, false);
        tiny_tensor(w, t, DL_T_ATTN_V, l, 16, 32, 0, false);
        for (unsigned i = 0; i < 3 && t->bias; i++)
            tiny_tensor(w, t, (enum dl_tensor_id)(DL_T_ATTN_Q_BIAS + i), l, 1, i ? 16 : 32, 0, true);
        for (unsigned i = 0; i < 2 && qk_norm; i++)
            tiny_tensor(w, t, (enum dl_tensor_id)(DL_T_ATTN_Q_NORM + i), l, 1, 8, 0, true);
        tiny_tensor(w, t, DL_T_ATTN_OUT, l, 32, 32, 0, false);
        tiny_tensor(w, t, DL_T_FFN_NORM, l, 1, 32, 0, true);
        if (t->experts) {
            tiny_tensor(w, t, DL_T_MOE_ROUTER, l, t->experts, 32, 0, false);
            tiny_tensor(w, t, DL_T_MOE_GATE, l, 32, 32, t->experts, false);
            tiny_tensor(w, t, DL_T_MOE_UP, l, 32, 32, t->experts, false);
            tiny_tensor(w, t, DL_T_MOE_DOWN, l, 32, 32, t->experts, false);
        } else {
            tiny_tensor(w, t, DL_T_FFN_GATE, l, 64, 32, 0, false);
            tiny_tensor(w, t, DL_T_FFN_UP, l, 64, 32, 0, false);
            tiny_tensor(w, t, DL_T_FFN_DOWN, l, 32, 64, 0, false);
        }
    }
    tiny_tensor(w, t, DL_T_OUTPUT_NORM, 0, 1, 32, 0, true);
    if (!t->tied)
        tiny_tensor(w, t, DL_T_OUTPUT, 0, 16, 32, 0, false);
}

static inline struct dl_str tiny_gguf(const struct tiny *t)
{
    struct gw w = {0};
    tiny_meta(&w, t);
    tiny_tensors(&w, t);
    return gw_finish(&w);
}

/* ------------------------------------------------------------------------------------------------- .m */

struct tiny_m {
    int32_t keys[32], values[32];
    unsigned n;
};

static inline void tm_set(struct tiny_m *t, int32_t key, int32_t value)
{
    unsigned i = 0;
    while (i < t->n && t->keys[i] != key)
        i++;
    assert(i < 32);
    t->keys[i] = key;
    t->values[i] = value;
    t->n = i == t->n ? i + 1 : t->n;
}
static inline int32_t tm_get(const struct tiny_m *t, int32_t key)
{
    for (unsigned i = 0; i < t->n; i++)
        if (t->keys[i] == key)
            return t->values[i];
    return 0;
}
static inline void tm_remove(struct tiny_m *t, int32_t key)
{
    for (unsigned i = 0; i < t->n; i++)
        if (t->keys[i] == key) {
            t->n--;
            t->keys[i] = t->keys[t->n];
            t->values[i] = t->values[t->n];
        }
}

/* The same shape as struct tiny's; arch 0xABCD00 .. 02, weight type 0 .. 3. */
static inline struct tiny_m tiny_m(int32_t arch, int32_t weight)
{
    static const int32_t pairs[][2] = {{0, 0},  {2, 32},   {3, 64}, {4, 2},      {5, 4},  {6, 2},
                                       {9, 16}, {10, 128}, {11, 1}, {12, 10000}, {19, 8}, {20, 5}};
    struct tiny_m t = {0};
    tm_set(&t, 1, arch);
    tm_set(&t, 13, weight);
    for (size_t i = 0; i < DL_COUNT_OF(pairs); i++)
        tm_set(&t, pairs[i][0], pairs[i][1]);
    if (arch == 0xABCD02)
        tm_set(&t, 7, 4), tm_set(&t, 8, 2), tm_set(&t, 21, 32);
    return t;
}

static inline void tm_tensor(struct dl_str *f, const struct tiny_m *t, enum dl_tensor_id id, uint32_t layer,
                             uint32_t expert, int32_t values, bool f32)
{
    static const uint32_t ggml[] = {0, 1, 2, 8};
    put_filled(f, tensor_mark(id, layer, expert), ggml_bytes(f32 ? 0 : ggml[tm_get(t, 13)], (size_t)values));
}

static inline struct dl_str tm_finish(const struct tiny_m *t)
{
    struct dl_str f = {0};
    bool qwen = tm_get(t, 1) != 0xABCD00, moe = tm_get(t, 1) == 0xABCD02;
    int32_t dim = tm_get(t, 2), hidden = tm_get(t, 3), vocab = tm_get(t, 9), experts = tm_get(t, 7),
            width = tm_get(t, 21);
    int32_t hd = tm_get(t, 19) ? tm_get(t, 19) : dim / tm_get(t, 5), q = hd * tm_get(t, 5), kv = hd * tm_get(t, 6);
    put_le(&f, 0x0A00ABCD, 4);
    put_le(&f, 8 + 8 * t->n, 4);
    for (unsigned i = 0; i < t->n; i++) {
        put_le(&f, (uint32_t)t->keys[i], 4);
        put_le(&f, (uint32_t)t->values[i], 4);
    }
    tm_tensor(&f, t, DL_T_EMBED, 0, 0, vocab * dim, true);
    for (uint32_t l = 0; l < (uint32_t)tm_get(t, 4); l++) {
        tm_tensor(&f, t, DL_T_ATTN_Q, l, 0, q * dim, false);
        tm_tensor(&f, t, DL_T_ATTN_K, l, 0, kv * dim, false);
        tm_tensor(&f, t, DL_T_ATTN_V, l, 0, kv * dim, false);
        tm_tensor(&f, t, DL_T_ATTN_OUT, l, 0, dim * q, false);
        if (moe)
            tm_tensor(&f, t, DL_T_MOE_ROUTER, l, 0, experts * dim, true);
        for (uint32_t e = 0; e < (moe ? (uint32_t)experts : 1); e++) {
            tm_tensor(&f, t, moe ? DL_T_MOE_GATE : DL_T_FFN_GATE, l, e, (moe ? width : hidden) * dim, false);
            tm_tensor(&f, t, moe ? DL_T_MOE_DOWN : DL_T_FFN_DOWN, l, e, (moe ? width : hidden) * dim, false);
            tm_tensor(&f, t, moe ? DL_T_MOE_UP : DL_T_FFN_UP, l, e, (moe ? width : hidden) * dim, false);
        }
        if (qwen) {
            tm_tensor(&f, t, DL_T_ATTN_Q_NORM, l, 0, hd, true);
            tm_tensor(&f, t, DL_T_ATTN_K_NORM, l, 0, hd, true);
        }
        tm_tensor(&f, t, DL_T_ATTN_NORM, l, 0, dim, true);
        tm_tensor(&f, t, DL_T_FFN_NORM, l, 0, dim, true);
    }
    tm_tensor(&f, t, DL_T_OUTPUT_NORM, 0, 0, dim, true);
    tm_tensor(&f, t, DL_T_OUTPUT, 0, 0, vocab * dim, false);
    return f;
}

#endif
