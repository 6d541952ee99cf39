/* SPDX-License-Identifier: MIT
 *
 * engine/model/model_gguf.c: GGUF models of the supported architectures: from metadata keys to a dl_model_header, and from tensor
 * names to checked dl_tensors. What would change the result without our knowing (a bias that is not added, a rope scaling
 * that is not computed) is refused; tensors that say nothing to us are passed over.
 */
#include "reader.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------- types */

static const struct {
    uint32_t number;
    const char *name;
} ggml_types[] = {
    {0, "F32"},      {1, "F16"},       {2, "Q4_0"},      {3, "Q4_1"},      {6, "Q5_0"},    {7, "Q5_1"},   {8, "Q8_0"},
    {9, "Q8_1"},     {10, "Q2_K"},     {11, "Q3_K"},     {12, "Q4_K"},     {13, "Q5_K"},   {14, "Q6_K"},  {15, "Q8_K"},
    {16, "IQ2_XXS"}, {17, "IQ2_XS"},   {18, "IQ3_XXS"},  {19, "IQ1_S"},    {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},
    {23, "IQ4_XS"},  {24, "I8"},       {25, "I16"},      {26, "I32"},      {27, "I64"},    {28, "F64"},   {29, "IQ1_M"},
    {30, "BF16"},    {31, "Q4_0_4_4"}, {32, "Q4_0_4_8"}, {33, "Q4_0_8_8"}, {34, "TQ1_0"},  {35, "TQ2_0"}, {39, "MXFP4"},
};

const char *eng_ggml_type_name(uint32_t type, char buf[24])
{
    for (size_t i = 0; i < DL_COUNT_OF(ggml_types); i++)
        if (ggml_types[i].number == type)
            return ggml_types[i].name;
    snprintf(buf, 24, "type %u", type);
    return buf;
}

static bool our_type(uint32_t ggml, enum dl_type *out)
{
    switch (ggml) {
    case 0:
        *out = DL_F32;
        return true;
    case 1:
        *out = DL_F16;
        return true;
    case 2:
        *out = DL_Q40;
        return true;
    case 8:
        *out = DL_Q80;
        return true;
    case 30:
        *out = DL_BF16;
        return true;
    default:
        return false;
    }
}

/* ------------------------------------------------------------------------------------------------ header */

struct keys {
    const struct eng_gguf *g;
    const char *arch;
    int err;
    char key[96];
};

static const char *arch_key(struct keys *k, const char *rest)
{
    snprintf(k->key, sizeof k->key, "%s.%s", k->arch, rest);
    return k->key;
}

/* A whole number, or an array of equal ones (files may give some numbers per layer). Absent: `absent`. The first error stays. */
static uint32_t get_u32(struct keys *k, const char *rest, uint32_t absent)
{
    const struct eng_gguf_kv *kv = k->err ? NULL : eng_gguf_find(k->g, arch_key(k, rest));
    uint32_t v = absent;
    if (!kv)
        return v;
    if (kv->type == ENG_GGUF_ARR && kv->n && kv->elem_type != ENG_GGUF_STR) {
        int64_t first = eng_gguf_arr_i64(kv, 0);
        for (uint64_t i = 1; i < kv->n; i++)
            if (eng_gguf_arr_i64(kv, i) != first) {
                k->err =
                    dl_fail(DL_EUNSUP, "%s: %s differs between layers, which is not supported", k->g->name, k->key);
                return absent;
            }
        if (first >= 0 && first <= UINT32_MAX)
            return (uint32_t)first;
    } else if (eng_gguf_u32(k->g, k->key, &v)) {
        return v;
    }
    k->err = dl_fail(DL_EFORMAT, "%s: key %s is no whole number in range", k->g->name, k->key);
    return absent;
}

static uint32_t need_u32(struct keys *k, const char *rest)
{
    if (!k->err && !eng_gguf_find(k->g, arch_key(k, rest)))
        k->err = dl_fail(DL_EFORMAT, "%s: key %s is missing", k->g->name, k->key);
    return get_u32(k, rest, 0);
}

static double get_f64(struct keys *k, const char *rest, double absent)
{
    double v = absent;
    if (!k->err && eng_gguf_find(k->g, arch_key(k, rest)) &&
        (!eng_gguf_f64(k->g, k->key, &v) || !isfinite(v) || fabs(v) > 1e30)) {
        k->err = dl_fail(DL_EFORMAT, "%s: key %s is no number in range", k->g->name, k->key);
        v = absent;
    }
    return v;
}

static int find_arch(const struct eng_gguf *g, enum dl_arch *out)
{
    struct eng_span name;
    if (!eng_gguf_str(g, "general.architecture", &name))
        return dl_fail(DL_EFORMAT, "%s: key general.architecture is missing", g->name);
    for (unsigned a = 0; a < DL_ARCH_COUNT; a++)
        if (eng_span_is(name, dl_arch_name((enum dl_arch)a))) {
            *out = (enum dl_arch)a;
            return DL_OK;
        }
    return dl_fail(DL_EUNSUP, "%s: architecture %.*s is not supported (llama, qwen2, qwen3 and qwen3moe are)", g->name,
                   eng_span_len(name), name.v);
}

static void read_rope(struct keys *k, struct dl_model_header *h, bool table)
{
    struct eng_span type = {.v = "none", .n = 4};
    h->n_rot = get_u32(k, "rope.dimension_count", h->head_dim);
    h->rope_theta = get_f64(k, "rope.freq_base", 10000);
    double factor = get_f64(k, "rope.scaling.factor", get_f64(k, "rope.scale_linear", 1));
    if (!k->err && eng_gguf_find(k->g, arch_key(k, "rope.scaling.type")) && !eng_gguf_str(k->g, k->key, &type))
        k->err = dl_fail(DL_EFORMAT, "%s: key %s is no text", k->g->name, k->key);
    else if (eng_gguf_find(k->g, arch_key(k, "rope.scale_linear")))
        type = (struct eng_span){.v = "linear", .n = 6};
    if (k->err)
        return;

    h->rope_factor = (float)factor;
    if (eng_span_is(type, "none")) {
        h->rope_scaling = DL_ROPE_SCALE_NONE;
    } else if (eng_span_is(type, "linear")) {
        h->rope_scaling = factor == 1 ? DL_ROPE_SCALE_NONE : DL_ROPE_SCALE_LINEAR;
    } else if (eng_span_is(type, "llama3")) {
        h->rope_scaling = DL_ROPE_SCALE_LLAMA31;
        h->rope_low_freq = (float)get_f64(k, "rope.scaling.low_freq_factor", 1);
        h->rope_high_freq = (float)get_f64(k, "rope.scaling.high_freq_factor", 4);
        h->rope_orig_ctx = get_u32(k, "rope.scaling.original_context_length", 8192);
    } else {
        k->err = dl_fail(DL_EUNSUP, "%s: rope scaling %.*s is not supported (none, linear and llama3 are)", k->g->name,
                         eng_span_len(type), type.v);
    }
    if (k->err || !table)
        return;
    /* The table of a Llama 3.1 file already is the scaling; together with a linear one it would be something else. */
    if (h->rope_scaling == DL_ROPE_SCALE_LINEAR)
        k->err = dl_fail(DL_EUNSUP, "%s: has both %s and linear rope scaling, which is not supported", k->g->name,
                         dl_tensor_name(DL_T_ROPE_FREQS));
    h->rope_scaling = DL_ROPE_SCALE_TABLE;
}

static void read_experts(struct keys *k, struct dl_model_header *h)
{
    h->n_experts = get_u32(k, "expert_count", 0);
    if (h->n_experts == 0) {
        if (h->arch == DL_ARCH_QWEN3_MOE && !k->err)
            k->err = dl_fail(DL_EFORMAT, "%s: key %s.expert_count is missing or 0", k->g->name, k->arch);
        return;
    }
    if (h->arch != DL_ARCH_LLAMA && h->arch != DL_ARCH_QWEN3_MOE && !k->err)
        k->err = dl_fail(DL_EUNSUP, "%s: architecture %s with experts is not supported", k->g->name, k->arch);
    h->n_experts_used = need_u32(k, "expert_used_count");
    h->expert_dim = get_u32(k, "expert_feed_forward_length", h->hidden_dim);
    h->hidden_dim = 0;
    double scale = get_f64(k, "expert_weights_scale", 1);
    if (!k->err && scale != 1 && scale != 0)
        k->err =
            dl_fail(DL_EUNSUP, "%s: key %s.expert_weights_scale = %g is not supported", k->g->name, k->arch, scale);
}

static const struct eng_gguf_tensor *find_tensor(const dl_model *m, const char *name, const struct eng_part **part)
{
    for (size_t i = 0; i < m->n_parts; i++) {
        const struct eng_gguf_tensor *t = eng_gguf_find_tensor(&m->parts[i].gguf, name);
        if (t) {
            *part = &m->parts[i];
            return t;
        }
    }
    return NULL;
}

static int read_header(dl_model *m)
{
    const struct eng_part *part;
    const struct eng_gguf *g = &m->parts[0].gguf;
    struct dl_model_header *h = &m->h;
    int err = find_arch(g, &h->arch);
    if (err)
        return err;
    struct keys k = {.g = g, .arch = dl_arch_name(h->arch)};
    const struct eng_gguf_tensor *embed = find_tensor(m, dl_tensor_name(DL_T_EMBED), &part);
    if (!embed)
        return dl_fail(DL_EFORMAT, "%s: tensor %s is missing", g->name, dl_tensor_name(DL_T_EMBED));
    h->vocab = embed->dims[1] > UINT32_MAX ? UINT32_MAX : (uint32_t)embed->dims[1];
    h->dim = need_u32(&k, "embedding_length");
    h->hidden_dim = get_u32(&k, "feed_forward_length", 0);
    h->n_layers = need_u32(&k, "block_count");
    h->n_heads = need_u32(&k, "attention.head_count");
    h->n_kv_heads = get_u32(&k, "attention.head_count_kv", h->n_heads);
    h->max_seq = need_u32(&k, "context_length");
    h->norm_eps = (float)get_f64(&k, "attention.layer_norm_rms_epsilon", 0);
    h->act = DL_ACT_SILU;
    h->rope_layout = h->arch == DL_ARCH_LLAMA ? DL_ROPE_PAIRS : DL_ROPE_HALVES;
    h->head_dim = get_u32(&k, "attention.key_length", h->n_heads ? h->dim / h->n_heads : 0);
    if (get_u32(&k, "attention.value_length", h->head_dim) != h->head_dim && !k.err)
        k.err = dl_fail(DL_EUNSUP, "%s: keys and values of different length are not supported", g->name);
    read_experts(&k, h);
    read_rope(&k, h, find_tensor(m, dl_tensor_name(DL_T_ROPE_FREQS), &part) != NULL);
    h->tied = !find_tensor(m, dl_tensor_name(DL_T_OUTPUT), &part);
    h->qkv_bias = find_tensor(m, "blk.0.attn_q.bias", &part) != NULL;
    h->qk_norm = h->arch == DL_ARCH_QWEN3 || h->arch == DL_ARCH_QWEN3_MOE;
    return k.err ? k.err : eng_model_check_header(h, g->name);
}

/* ----------------------------------------------------------------------------------------------- tensors */

static const char *full_name(enum dl_tensor_id id, uint32_t layer, char buf[64])
{
    if (!dl_tensor_per_layer(id))
        return dl_tensor_name(id);
    snprintf(buf, 64, "blk.%u.%s", layer, dl_tensor_name(id));
    return buf;
}

static int tensor(const dl_model *m, enum dl_tensor_id id, uint32_t layer, struct dl_tensor *out)
{
    char buf[64];
    struct eng_shape s;
    const struct eng_part *part;
    const struct eng_gguf_tensor *t = find_tensor(m, full_name(id, layer, buf), &part);
    enum dl_type type;
    uint64_t row_bytes;
    if (!t || !eng_model_shape(&m->h, id, &s) || !our_type(t->type, &type) || !dl_row_bytes(type, s.cols, &row_bytes))
        return DL_EINVAL;
    *out = (struct dl_tensor){
        .type = type,
        .rows = s.rows,
        .cols = s.cols,
        .data = part->gguf.bytes + part->gguf.data_start + t->offset,
        .row_bytes = row_bytes,
        .n_experts = s.n_experts,
        .expert_bytes = s.n_experts > 1 ? row_bytes * s.rows : 0,
    };
    return DL_OK;
}

static int bad_type(const char *path, const char *name, uint32_t ggml)
{
    char buf[24];
    return dl_fail(DL_EUNSUP,
                   "%s: tensor %s is %s, which is not supported: use a Q8_0, F16 or BF16 file, or a Q4_0 one made with "
                   "llama-quantize --pure",
                   path, name, eng_ggml_type_name(ggml, buf));
}

/* All that tensor() relies on. */
static int check_tensor(dl_model *m, enum dl_tensor_id id, uint32_t layer, const struct eng_shape *s)
{
    char buf[64], type_buf[24];
    const char *name = full_name(id, layer, buf), *path = m->parts[0].path;
    const struct eng_part *part;
    const struct eng_gguf_tensor *t = find_tensor(m, name, &part);
    enum dl_type type;
    uint64_t row_bytes, rows, bytes, end;
    if (!t && (id == DL_T_MOE_GATE || id == DL_T_MOE_UP || id == DL_T_MOE_DOWN) &&
        find_tensor(m, "blk.0.ffn_gate.0.weight", &part))
        return dl_fail(DL_EUNSUP, "%s: keeps each expert in tensors of its own: convert the model again", path);
    if (!t)
        return dl_fail(DL_EFORMAT, "%s: tensor %s is missing", path, name);
    path = part->path;
    const uint64_t *d = t->dims;
    if (d[0] != s->cols || d[1] != s->rows || d[2] != s->n_experts || d[3] != 1)
        return dl_fail(DL_EFORMAT,
                       "%s: tensor %s is %" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64
                       ", not %u x %u x %u as the header says",
                       path, name, d[0], d[1], d[2], d[3], s->cols, s->rows, s->n_experts);
    if (!our_type(t->type, &type))
        return bad_type(path, name, t->type);
    if (s->vector && type != DL_F32)
        return dl_fail(DL_EUNSUP, "%s: tensor %s is %s, but norms and biases must be F32: convert the model again",
                       path, name, eng_ggml_type_name(t->type, type_buf));
    if (!dl_row_bytes(type, s->cols, &row_bytes))
        return dl_fail(DL_EFORMAT, "%s: tensor %s: rows of %u values are no whole number of %s blocks of %u", path,
                       name, s->cols, eng_ggml_type_name(t->type, type_buf), DL_BLOCK);
    if (!dl_mul_u64(s->rows, s->n_experts, &rows) || !dl_mul_u64(rows, row_bytes, &bytes) ||
        !dl_add_u64(t->offset, bytes, &end) || end > part->gguf.size - part->gguf.data_start)
        return dl_fail(DL_EFORMAT,
                       "%s: tensor %s lies at %" PRIu64 " of a data area of %zu bytes: the file is damaged or not "
                       "completely downloaded",
                       path, name, t->offset, part->gguf.size - part->gguf.data_start);
    m->weight_bytes += bytes;
    return DL_OK;
}

/* Factors divide frequencies. */
static int check_rope_table(const dl_model *m)
{
    struct dl_tensor t;
    if (m->h.rope_scaling != DL_ROPE_SCALE_TABLE || tensor(m, DL_T_ROPE_FREQS, 0, &t))
        return DL_OK;
    for (uint32_t i = 0; i < t.cols; i++) {
        float f;
        memcpy(&f, t.data + 4 * (size_t)i, sizeof f);
        if (!isfinite(f) || f < 1e-6f)
            return dl_fail(DL_EFORMAT, "%s: tensor %s holds the factor %g", m->parts[0].path,
                           dl_tensor_name(DL_T_ROPE_FREQS), (double)f);
    }
    return DL_OK;
}

/* Which tensor of ours a name means; false for none. */
static bool id_of(struct eng_span name, enum dl_tensor_id *id, uint32_t *layer)
{
    bool per_layer = name.n > 4 && !memcmp(name.v, "blk.", 4);
    *layer = 0;
    if (per_layer) {
        size_t i = 4;
        for (; i < name.n && i < 10 && name.v[i] >= '0' && name.v[i] <= '9'; i++)
            *layer = *layer * 10 + (uint32_t)(name.v[i] - '0');
        if (i >= name.n || name.v[i] != '.')
            return false;
        name = (struct eng_span){.v = name.v + i + 1, .n = name.n - i - 1};
    }
    for (unsigned i = 0; i < DL_T_COUNT; i++)
        if (dl_tensor_per_layer((enum dl_tensor_id)i) == per_layer &&
            eng_span_is(name, dl_tensor_name((enum dl_tensor_id)i))) {
            *id = (enum dl_tensor_id)i;
            return true;
        }
    return false;
}

/* Tensors beyond those needed: one that is part of the computation elsewhere (a bias, a norm of q) would be missing in ours. */
static int check_extra(const dl_model *m, const struct eng_part *part, const struct eng_gguf_tensor *t)
{
    enum dl_tensor_id id;
    uint32_t layer;
    struct eng_shape s;
    bool ours = id_of(t->name, &id, &layer);
    if (ours && layer >= m->h.n_layers)
        ours = false;
    else if (ours && eng_model_shape(&m->h, id, &s))
        return DL_OK;
    static const char bias[] = ".bias";
    size_t n = sizeof bias - 1;
    if (ours || (t->name.n > n && !memcmp(t->name.v + t->name.n - n, bias, n)))
        return dl_fail(DL_EUNSUP, "%s: tensor %.*s has no place in architecture %s as it is known here", part->path,
                       eng_span_len(t->name), t->name.v, dl_arch_name(m->h.arch));
    dl_log(DL_LOG_DEBUG, "%s: tensor %.*s is not used", part->path, eng_span_len(t->name), t->name.v);
    return DL_OK;
}

static int check_tensors(dl_model *m)
{
    struct eng_shape s;
    int err = DL_OK;
    for (unsigned i = 0; i < DL_T_COUNT && !err; i++) {
        enum dl_tensor_id id = (enum dl_tensor_id)i;
        uint32_t n = dl_tensor_per_layer(id) ? m->h.n_layers : 1;
        for (uint32_t layer = 0; layer < n && !err; layer++)
            if (eng_model_shape(&m->h, id, &s))
                err = check_tensor(m, id, layer, &s);
    }
    for (size_t p = 0; p < m->n_parts && !err; p++)
        for (size_t i = 0; i < m->parts[p].gguf.n_tensors && !err; i++)
            err = check_extra(m, &m->parts[p], &m->parts[p].gguf.tensors[i]);
    return err ? err : check_rope_table(m);
}

static int read(dl_model *m)
{
    struct eng_part *part = &m->parts[0];
    int err = eng_gguf_parse(part->map.data, part->map.size, part->path, &part->gguf);
    if (err)
        return err;
    snprintf(m->format, sizeof m->format, "gguf v%u", part->gguf.version);
    err = eng_gguf_open_parts(m);
    if (err)
        return err;
    size_t n_tensors = 0;
    for (size_t i = 0; i < m->n_parts; i++)
        n_tensors += m->parts[i].gguf.n_tensors;
    if (n_tensors == 0)
        return dl_fail(DL_EUNSUP, "%s: holds no weights, only metadata: give the file of a whole model",
                       m->parts[0].path);
    err = read_header(m);
    return err ? err : check_tensors(m);
}

const struct eng_reader eng_reader_gguf = {.read = read, .tensor = tensor, .list = eng_list_gguf};
