/* SPDX-License-Identifier: MIT
 *
 * engine/model/model_dllama.c: Distributed Llama's .m files: a header of (key, value) pairs, then the tensors without padding in an
 * order that the header implies. So the sizes are computed, must end exactly where the file ends, and no table is kept:
 * every layer has the same bytes in the same places.
 */
#include "reader.h"
#include "cursor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MAX_PAIRS 64u

/* The keys 0, 1, 2, ... of the header, with the names that messages and `inspect` use. */
#define KEY_MAP(X)                            \
    X(VERSION, "version")                     \
    X(ARCH, "architecture")                   \
    X(DIM, "dim")                             \
    X(HIDDEN_DIM, "hidden_dim")               \
    X(LAYERS, "n_layers")                     \
    X(HEADS, "n_heads")                       \
    X(KV_HEADS, "n_kv_heads")                 \
    X(EXPERTS, "n_experts")                   \
    X(EXPERTS_USED, "n_experts_used")         \
    X(VOCAB, "vocab")                         \
    X(CONTEXT, "max_seq")                     \
    X(ACT, "hidden_act")                      \
    X(ROPE_THETA, "rope_theta")               \
    X(WEIGHT_TYPE, "weight_type")             \
    X(ROPE_FACTOR, "rope_scaling_factor")     \
    X(ROPE_LOW, "rope_scaling_low_freq")      \
    X(ROPE_HIGH, "rope_scaling_high_freq")    \
    X(ROPE_ORIG, "rope_scaling_original_ctx") \
    X(ROPE_TYPE, "rope_type")                 \
    X(HEAD_DIM, "head_dim")                   \
    X(NORM_EPS, "norm_epsilon")               \
    X(EXPERT_DIM, "expert_dim")

#define X(name, text) KEY_##name,
enum key { KEY_MAP(X) KEY_COUNT };
#undef X
#define X(name, text) text,
static const char *const key_names[] = {KEY_MAP(X)};
#undef X

enum rope_type { ROPE_LLAMA, ROPE_FALCON, ROPE_LLAMA31 };

const char *eng_dllama_key_name(int32_t key)
{
    return key >= 0 && key < KEY_COUNT ? key_names[key] : "?";
}

/* ------------------------------------------------------------------------------------------------ header */

struct pairs {
    uint32_t v[KEY_COUNT];
    bool has[KEY_COUNT];
};

static int read_pairs(dl_model *m, struct pairs *p)
{
    const char *path = m->parts[0].path;
    struct eng_cursor c = eng_cursor_make(m->parts[0].map.data, m->parts[0].map.size);
    (void)eng_read_u32(&c, "magic");
    uint32_t header_bytes = eng_read_u32(&c, "header size");
    if (c.bad)
        return dl_fail(DL_EFORMAT, "%s: byte %zu: the file ends inside its header", path, c.bad_at);
    if (header_bytes < 8 || header_bytes % 8 || header_bytes / 8 - 1 > MAX_PAIRS)
        return dl_fail(DL_EFORMAT, "%s: byte 4: a header of %u bytes makes no sense", path, header_bytes);
    if (header_bytes > c.size)
        return dl_fail(DL_EFORMAT, "%s: byte %zu: the file ends inside its header of %u bytes", path, c.size,
                       header_bytes);
    m->dllama.n_pairs = header_bytes / 8 - 1;
    m->dllama.header = c.bytes + c.at;
    for (uint32_t i = 0; i < m->dllama.n_pairs; i++) {
        size_t at = c.at;
        int32_t key = eng_read_i32(&c, "a key"), value = eng_read_i32(&c, "a value");
        if (key < 0 || key >= KEY_COUNT)
            return dl_fail(DL_EUNSUP, "%s: byte %zu: header key %d is not known: the file is newer than this program",
                           path, at, key);
        if (p->has[key])
            return dl_fail(DL_EFORMAT, "%s: byte %zu: header key %d (%s) is there twice", path, at, key,
                           key_names[key]);
        if (value < 0)
            return dl_fail(DL_EFORMAT, "%s: byte %zu: header key %d (%s) is negative: %d", path, at, key,
                           key_names[key], value);
        p->has[key] = true;
        p->v[key] = (uint32_t)value;
    }
    return DL_OK;
}

/* The value of a key that stands for one of a few things. */
static int bad_value(const dl_model *m, const struct pairs *p, enum key key)
{
    return dl_fail(DL_EUNSUP, "%s: header key %d (%s) is %u, which is not supported", m->parts[0].path, (int)key,
                   key_names[key], p->v[key]);
}

static int read_rope(dl_model *m, const struct pairs *p)
{
    struct dl_model_header *h = &m->h;
    uint32_t type = h->arch == DL_ARCH_LLAMA ? p->v[KEY_ROPE_TYPE] : ROPE_FALCON;
    h->n_rot = h->head_dim;
    h->rope_theta = p->has[KEY_ROPE_THETA] ? p->v[KEY_ROPE_THETA] : 10000;
    h->rope_layout = type == ROPE_FALCON ? DL_ROPE_HALVES : DL_ROPE_PAIRS;
    if (type > ROPE_LLAMA31)
        return bad_value(m, p, KEY_ROPE_TYPE);
    h->rope_factor = (float)p->v[KEY_ROPE_FACTOR];
    h->rope_low_freq = (float)p->v[KEY_ROPE_LOW];
    h->rope_high_freq = (float)p->v[KEY_ROPE_HIGH];
    h->rope_orig_ctx = p->v[KEY_ROPE_ORIG];
    if (p->v[KEY_ROPE_FACTOR] > 1 && type != ROPE_LLAMA31)
        return bad_value(m, p, KEY_ROPE_FACTOR);
    if (type == ROPE_LLAMA31 && p->v[KEY_ROPE_FACTOR] != 1)
        h->rope_scaling = DL_ROPE_SCALE_LLAMA31; /* eng_model_check_header wants its numbers */
    return DL_OK;
}

static int read_header(dl_model *m)
{
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_Q40, DL_Q80};
    static const enum key needed[] = {KEY_ARCH,     KEY_DIM,   KEY_LAYERS,  KEY_HEADS,
                                      KEY_KV_HEADS, KEY_VOCAB, KEY_CONTEXT, KEY_WEIGHT_TYPE};
    struct dl_model_header *h = &m->h;
    struct pairs p = {0};
    int err = read_pairs(m, &p);
    if (err)
        return err;
    for (size_t i = 0; i < DL_COUNT_OF(needed); i++)
        if (!p.has[needed[i]])
            return dl_fail(DL_EFORMAT, "%s: header key %d (%s) is missing", m->parts[0].path, (int)needed[i],
                           key_names[needed[i]]);
    switch (p.v[KEY_ARCH]) {
    case 0xABCD00:
        h->arch = DL_ARCH_LLAMA;
        break;
    case 0xABCD01:
        h->arch = DL_ARCH_QWEN3;
        break;
    case 0xABCD02:
        h->arch = DL_ARCH_QWEN3_MOE;
        break;
    default:
        return dl_fail(DL_EUNSUP, "%s: architecture 0x%X is not supported (Llama, Qwen 3 and Qwen 3 MoE are)",
                       m->parts[0].path, p.v[KEY_ARCH]);
    }
    bool moe = h->arch == DL_ARCH_QWEN3_MOE;
    if (!moe && p.v[KEY_EXPERTS])
        return bad_value(m, &p, KEY_EXPERTS);
    if (moe && !p.v[KEY_EXPERTS])
        return dl_fail(DL_EFORMAT, "%s: header key %d (%s) is missing or 0", m->parts[0].path, KEY_EXPERTS,
                       key_names[KEY_EXPERTS]);
    if (p.v[KEY_WEIGHT_TYPE] >= DL_COUNT_OF(types))
        return bad_value(m, &p, KEY_WEIGHT_TYPE);
    if (p.has[KEY_ACT] && p.v[KEY_ACT] > 1)
        return bad_value(m, &p, KEY_ACT);
    if (p.has[KEY_NORM_EPS] && p.v[KEY_NORM_EPS] != 5 && p.v[KEY_NORM_EPS] != 6)
        return bad_value(m, &p, KEY_NORM_EPS);

    m->dllama.weight = types[p.v[KEY_WEIGHT_TYPE]];
    h->dim = p.v[KEY_DIM];
    h->hidden_dim = moe ? 0 : p.v[KEY_HIDDEN_DIM];
    h->n_layers = p.v[KEY_LAYERS];
    h->n_heads = p.v[KEY_HEADS];
    h->n_kv_heads = p.v[KEY_KV_HEADS];
    h->head_dim = p.has[KEY_HEAD_DIM] ? p.v[KEY_HEAD_DIM] : h->n_heads ? h->dim / h->n_heads : 0;
    h->vocab = p.v[KEY_VOCAB];
    h->max_seq = p.v[KEY_CONTEXT];
    h->n_experts = p.v[KEY_EXPERTS];
    h->n_experts_used = moe ? p.v[KEY_EXPERTS_USED] : 0;
    h->expert_dim = moe ? p.v[KEY_EXPERT_DIM] : 0;
    h->norm_eps = p.v[KEY_NORM_EPS] == 6 ? 1e-6f : 1e-5f;
    h->act = p.has[KEY_ACT] && p.v[KEY_ACT] == 0 ? DL_ACT_GELU : DL_ACT_SILU;
    h->qk_norm = h->arch != DL_ARCH_LLAMA;
    err = read_rope(m, &p);
    return err ? err : eng_model_check_header(h, m->parts[0].path);
}

/* ----------------------------------------------------------------------------------------------- tensors */

/* The order of the file; eng_model_shape says which of them a model has. */
const enum dl_tensor_id eng_dllama_layer_order[] = {
    DL_T_ATTN_Q,   DL_T_ATTN_K,      DL_T_ATTN_V,      DL_T_ATTN_OUT,  DL_T_FFN_GATE,
    DL_T_FFN_DOWN, DL_T_FFN_UP,      DL_T_MOE_ROUTER,  DL_T_MOE_GATE,  DL_T_MOE_DOWN,
    DL_T_MOE_UP,   DL_T_ATTN_Q_NORM, DL_T_ATTN_K_NORM, DL_T_ATTN_NORM, DL_T_FFN_NORM,
};
const size_t eng_dllama_n_layer_order = DL_COUNT_OF(eng_dllama_layer_order);

static enum dl_type type_of(const dl_model *m, enum dl_tensor_id id, const struct eng_shape *s)
{
    return s->vector || id == DL_T_EMBED || id == DL_T_MOE_ROUTER ? DL_F32 : m->dllama.weight;
}

/* Puts one tensor behind *at; sizes are far from overflowing 64 bits: rows and columns are below 2^23. */
static int place(dl_model *m, enum dl_tensor_id id, uint64_t *at)
{
    struct eng_shape s;
    uint64_t row_bytes;
    if (!eng_model_shape(&m->h, id, &s))
        return DL_OK;
    enum dl_type type = type_of(m, id, &s);
    if (!dl_row_bytes(type, s.cols, &row_bytes))
        return dl_fail(DL_EFORMAT, "%s: tensor %s: rows of %u values are no whole number of %s blocks of %u",
                       m->parts[0].path, dl_tensor_name(id), s.cols, dl_type_info(type)->name, DL_BLOCK);
    m->dllama.start[id] = *at;
    if (id == DL_T_MOE_GATE || id == DL_T_MOE_UP || id == DL_T_MOE_DOWN)
        m->dllama.expert_bytes += row_bytes * s.rows; /* of the first expert; the others follow as a block each */
    *at += row_bytes * s.rows;
    return DL_OK;
}

static int place_all(dl_model *m)
{
    struct eng_dllama *d = &m->dllama;
    uint64_t data = 8 + 8 * (uint64_t)d->n_pairs, at = data, layer0, layers, size = m->parts[0].map.size;
    int err = place(m, DL_T_EMBED, &at);
    layer0 = at;
    for (size_t i = 0; i < eng_dllama_n_layer_order && !err; i++) {
        err = place(m, eng_dllama_layer_order[i], &at);
        if (!err && eng_dllama_layer_order[i] == DL_T_MOE_UP && m->h.n_experts)
            at += (m->h.n_experts - 1) * d->expert_bytes;
    }
    if (err)
        return err;
    d->layer_bytes = at - layer0;
    if (!dl_mul_u64(d->layer_bytes, m->h.n_layers, &layers) || !dl_add_u64(layer0, layers, &at) || at > UINT64_MAX / 2)
        return dl_fail(DL_EFORMAT, "%s: the header describes more than a file can hold", m->parts[0].path);
    err = place(m, DL_T_OUTPUT_NORM, &at);
    if (!err)
        err = place(m, DL_T_OUTPUT, &at);
    if (err)
        return err;
    if (at > size)
        return dl_fail(DL_EFORMAT,
                       "%s: byte %" PRIu64 ": the file ends here, but its tensors go on to byte %" PRIu64
                       ": it is damaged or not "
                       "completely downloaded",
                       m->parts[0].path, size, at);
    if (at < size)
        return dl_fail(DL_EFORMAT,
                       "%s: byte %" PRIu64 ": the tensors end here, but the file has %" PRIu64 " bytes more",
                       m->parts[0].path, at, size - at);
    m->weight_bytes = at - data;
    return DL_OK;
}

static int read(dl_model *m)
{
    snprintf(m->format, sizeof m->format, "distributed-llama .m");
    int err = read_header(m);
    return err ? err : place_all(m);
}

static int tensor(const dl_model *m, enum dl_tensor_id id, uint32_t layer, struct dl_tensor *out)
{
    struct eng_shape s;
    uint64_t row_bytes;
    if (!eng_model_shape(&m->h, id, &s) || !dl_row_bytes(type_of(m, id, &s), s.cols, &row_bytes))
        return DL_EINVAL;
    uint64_t start = m->dllama.start[id] + (dl_tensor_per_layer(id) ? layer * m->dllama.layer_bytes : 0);
    *out = (struct dl_tensor){
        .type = type_of(m, id, &s),
        .rows = s.rows,
        .cols = s.cols,
        .data = m->parts[0].map.data + start,
        .row_bytes = row_bytes,
        .n_experts = s.n_experts,
        .expert_bytes = s.n_experts > 1 ? m->dllama.expert_bytes : 0,
    };
    return DL_OK;
}

const struct eng_reader eng_reader_dllama = {.read = read, .tensor = tensor, .list = eng_list_dllama};
