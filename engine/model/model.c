/* SPDX-License-Identifier: MIT
 *
 * engine/model/model.c: opens a model file of any format (its first bytes decide, not its name) and answers questions about it.
 * What all formats have in common is checked here: the numbers of the header and the shape of each tensor. Tensors are not
 * kept in a table: the reader computes or looks up each one when asked, so a file cannot make us allocate by its claims.
 */
#include "reader.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HEAD_DIM 16384u

#define DLLAMA_MAGIC 0x0A00ABCDu
#define DLLAMA_OLD_LLAMA 0x00ABCD00u
#define DLLAMA_OLD_GROK 0x00ABCD01u
#define DLLAMA_TOKENIZER 0x00567124u
#define DLLAMA_OLD_TOKENIZER 0x00567123u

/* ------------------------------------------------------------------------------------------------- names */

static const char *const arch_names[] = {"llama", "qwen2", "qwen3", "qwen3moe"};
_Static_assert(DL_COUNT_OF(arch_names) == DL_ARCH_COUNT, "one name per architecture");

const char *dl_arch_name(enum dl_arch arch)
{
    return (unsigned)arch < DL_ARCH_COUNT ? arch_names[arch] : "?";
}

#define X(name, gguf) gguf,
static const char *const tensor_names[] = {DL_TENSOR_MAP(X)};
#undef X

const char *dl_tensor_name(enum dl_tensor_id id)
{
    return (unsigned)id < DL_T_COUNT ? tensor_names[id] : "?";
}

/* ------------------------------------------------------------------------------------------------ shapes */

bool eng_model_shape(const struct dl_model_header *h, enum dl_tensor_id id, struct eng_shape *out)
{
    uint32_t q = h->n_heads * h->head_dim, kv = h->n_kv_heads * h->head_dim;
    bool moe = h->n_experts > 0, has = true;
    struct eng_shape s = {.rows = 1, .cols = h->dim, .n_experts = 1};
    switch (id) {
    case DL_T_OUTPUT:
        has = !h->tied;
        s.rows = h->vocab;
        break;
    case DL_T_EMBED:
        s.rows = h->vocab;
        break;
    case DL_T_ROPE_FREQS:
        has = h->rope_scaling == DL_ROPE_SCALE_TABLE;
        s.cols = h->n_rot / 2;
        s.vector = true;
        break;
    case DL_T_OUTPUT_NORM:
    case DL_T_ATTN_NORM:
    case DL_T_FFN_NORM:
        s.vector = true;
        break;
    case DL_T_ATTN_Q:
        s.rows = q;
        break;
    case DL_T_ATTN_K:
    case DL_T_ATTN_V:
        s.rows = kv;
        break;
    case DL_T_ATTN_Q_BIAS:
    case DL_T_ATTN_K_BIAS:
    case DL_T_ATTN_V_BIAS:
        has = h->qkv_bias;
        s.cols = id == DL_T_ATTN_Q_BIAS ? q : kv;
        s.vector = true;
        break;
    case DL_T_ATTN_Q_NORM:
    case DL_T_ATTN_K_NORM:
        has = h->qk_norm;
        s.cols = h->head_dim;
        s.vector = true;
        break;
    case DL_T_ATTN_OUT:
        s.rows = h->dim;
        s.cols = q;
        break;
    case DL_T_FFN_GATE:
    case DL_T_FFN_UP:
        has = !moe;
        s.rows = h->hidden_dim;
        break;
    case DL_T_FFN_DOWN:
        has = !moe;
        s.rows = h->dim;
        s.cols = h->hidden_dim;
        break;
    case DL_T_MOE_ROUTER:
        has = moe;
        s.rows = h->n_experts;
        break;
    case DL_T_MOE_GATE:
    case DL_T_MOE_UP:
        has = moe;
        s.rows = h->expert_dim;
        s.n_experts = h->n_experts;
        break;
    case DL_T_MOE_DOWN:
        has = moe;
        s.rows = h->dim;
        s.cols = h->expert_dim;
        s.n_experts = h->n_experts;
        break;
    case DL_T_COUNT:
        return false;
    }
    *out = s;
    return has;
}

/* ------------------------------------------------------------------------------------------------ header */

static bool sound(float v, float least, float most)
{
    return isfinite(v) && v >= least && v <= most;
}

static int check_rope(const struct dl_model_header *h, const char *path)
{
    if (h->n_rot == 0 || h->n_rot > h->head_dim || h->n_rot % 2)
        return dl_fail(DL_EFORMAT, "%s: rope turns %u values of heads of %u: it must be an even number up to that",
                       path, h->n_rot, h->head_dim);
    if (!isfinite(h->rope_theta) || h->rope_theta < 1)
        return dl_fail(DL_EFORMAT, "%s: rope theta %g makes no sense", path, h->rope_theta);
    bool linear = h->rope_scaling == DL_ROPE_SCALE_LINEAR, llama31 = h->rope_scaling == DL_ROPE_SCALE_LLAMA31;
    if ((linear || llama31) && !sound(h->rope_factor, 1e-3f, 1e6f))
        return dl_fail(DL_EFORMAT, "%s: rope scaling factor %g makes no sense", path, (double)h->rope_factor);
    if (llama31 && (!sound(h->rope_low_freq, 1e-3f, 1e6f) || !sound(h->rope_high_freq, h->rope_low_freq, 1e6f) ||
                    h->rope_orig_ctx == 0))
        return dl_fail(DL_EFORMAT, "%s: rope scaling by low %g, high %g, original context %u makes no sense", path,
                       (double)h->rope_low_freq, (double)h->rope_high_freq, h->rope_orig_ctx);
    return DL_OK;
}

int eng_model_check_header(const struct dl_model_header *h, const char *path)
{
    bool moe = h->n_experts > 0;
    const struct {
        const char *what;
        uint32_t value, most;
    } numbers[] = {
        {"embedding length", h->dim, DL_MAX_DIM},
        {"layers", h->n_layers, DL_MAX_LAYERS},
        {"attention heads", h->n_heads, DL_MAX_HEADS},
        {"KV heads", h->n_kv_heads, DL_MAX_HEADS},
        {"head length", h->head_dim, MAX_HEAD_DIM},
        {"vocabulary", h->vocab, DL_MAX_VOCAB},
        {"context length", h->max_seq, DL_MAX_SEQ},
        {"feed-forward length", moe ? h->expert_dim : h->hidden_dim, DL_MAX_DIM},
        {"experts", moe ? h->n_experts : 1, DL_MAX_EXPERTS},
        {"experts in use", moe ? h->n_experts_used : 1, DL_MAX_EXPERTS},
    };
    for (size_t i = 0; i < DL_COUNT_OF(numbers); i++) {
        if (numbers[i].value == 0)
            return dl_fail(DL_EFORMAT, "%s: the header gives no %s", path, numbers[i].what);
        if (numbers[i].value > numbers[i].most)
            return dl_fail(DL_EUNSUP, "%s: %s %u is over the limit of %u", path, numbers[i].what, numbers[i].value,
                           numbers[i].most);
    }
    if (h->n_heads % h->n_kv_heads)
        return dl_fail(DL_EFORMAT, "%s: %u attention heads cannot share %u KV heads evenly", path, h->n_heads,
                       h->n_kv_heads);
    if ((uint64_t)h->n_heads * h->head_dim > DL_MAX_DIM)
        return dl_fail(DL_EUNSUP, "%s: %u heads of %u values are over the limit of %u values", path, h->n_heads,
                       h->head_dim, DL_MAX_DIM);
    if (moe && h->n_experts_used > h->n_experts)
        return dl_fail(DL_EFORMAT, "%s: uses %u of %u experts", path, h->n_experts_used, h->n_experts);
    if ((uint64_t)h->n_experts * DL_MAX(h->dim, h->expert_dim) > UINT32_MAX)
        return dl_fail(DL_EUNSUP, "%s: %u experts of %u rows are more than can be counted", path, h->n_experts,
                       DL_MAX(h->dim, h->expert_dim));
    if (!sound(h->norm_eps, 1e-12f, 1))
        return dl_fail(DL_EFORMAT, "%s: norm epsilon %g makes no sense", path, (double)h->norm_eps);
    return check_rope(h, path);
}

/* -------------------------------------------------------------------------------------------------- open */

static uint32_t magic_of(const uint8_t *p, size_t n)
{
    return n < 4 ? 0 : (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static const struct eng_reader *pick_reader(const struct eng_part *part, int *err)
{
    const char *path = part->path;
    switch (magic_of(part->map.data, part->map.size)) {
    case ENG_GGUF_MAGIC:
        return &eng_reader_gguf;
    case DLLAMA_MAGIC:
        return &eng_reader_dllama;
    case DLLAMA_OLD_LLAMA:
    case DLLAMA_OLD_GROK:
        *err = dl_fail(DL_EUNSUP, "%s: a .m of an old layout (magic 0x%06X): convert the model again", path,
                       magic_of(part->map.data, part->map.size));
        return NULL;
    case DLLAMA_TOKENIZER:
    case DLLAMA_OLD_TOKENIZER:
        *err = dl_fail(DL_EUNSUP, "%s: a tokenizer, not a model: give the .m and pass this as --tokenizer", path);
        return NULL;
    default:
        *err = dl_fail(DL_EFORMAT, "%s: neither GGUF nor a Distributed Llama .m (by its first bytes)", path);
        return NULL;
    }
}

/* A copy of the text without control bytes, never longer than a name should be. */
static char *clean_name(struct eng_span s)
{
    size_t n = DL_MIN(s.n, 255);
    char *name = dl_xcalloc(n + 1, 1);
    for (size_t i = 0; i < n; i++)
        name[i] = (unsigned char)s.v[i] < 0x20 || s.v[i] == 0x7f ? '?' : s.v[i];
    return name;
}

/* Takes ownership of the map. */
static int open_map(struct dl_map map, bool mapped, const char *path, dl_model **out)
{
    dl_model *m = dl_xcalloc(1, sizeof *m);
    m->parts = dl_xcalloc(1, sizeof *m->parts);
    m->n_parts = m->cap_parts = 1;
    m->parts[0] = (struct eng_part){.path = dl_xstrdup(path), .map = map, .mapped = mapped};

    int err = DL_OK;
    m->reader = pick_reader(&m->parts[0], &err);
    if (m->reader)
        err = m->reader->read(m);
    if (err) {
        dl_model_close(&m);
        return err;
    }
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    struct eng_span name = {.n = 0};
    if (!eng_gguf_str(&m->parts[0].gguf, "general.name", &name) || name.n == 0)
        name = (struct eng_span){.v = base, .n = strlen(base)};
    m->name = clean_name(name);
    *out = m;
    return DL_OK;
}

int dl_model_open(const char *path, dl_model **out)
{
    *out = NULL;
    struct dl_map map;
    int err = dl_map_open(path, &map);
    return err ? err : open_map(map, true, path, out);
}

int dl_model_open_mem(const void *bytes, size_t n, const char *name, dl_model **out)
{
    *out = NULL;
    return open_map((struct dl_map){.data = bytes, .size = n}, false, name, out);
}

void dl_model_close(dl_model **model)
{
    dl_model *m = *model;
    if (!m)
        return;
    for (size_t i = 0; i < m->n_parts; i++) {
        eng_gguf_finish(&m->parts[i].gguf);
        if (m->parts[i].mapped)
            dl_map_close(&m->parts[i].map);
        free(m->parts[i].path);
    }
    free(m->parts);
    eng_made_destroy(&m->made);
    free(m->name);
    free(m);
    *model = NULL;
}

/* --------------------------------------------------------------------------------------------- questions */

const struct dl_model_header *dl_model_header(const dl_model *model)
{
    return &model->h;
}
const char *dl_model_name(const dl_model *model)
{
    return model->name;
}
const char *dl_model_format(const dl_model *model)
{
    return model->format;
}
const char *dl_model_path(const dl_model *model)
{
    return model->parts[0].path;
}
uint64_t dl_model_weight_bytes(const dl_model *model)
{
    return model->weight_bytes;
}

uint64_t dl_model_file_bytes(const dl_model *model)
{
    uint64_t n = 0;
    for (size_t i = 0; i < model->n_parts; i++)
        n += model->parts[i].map.size;
    return n;
}

int dl_model_tensor(const dl_model *model, enum dl_tensor_id id, uint32_t layer, struct dl_tensor *out)
{
    struct eng_shape shape;
    if (id == DL_T_OUTPUT && model->h.tied)
        id = DL_T_EMBED;
    if ((unsigned)id >= DL_T_COUNT || !eng_model_shape(&model->h, id, &shape))
        return DL_EINVAL;
    if (dl_tensor_per_layer(id) && layer >= model->h.n_layers)
        return DL_EINVAL;
    return model->reader->tensor(model, id, layer, out);
}

void dl_model_drop_pages(const dl_model *model, const struct dl_tensor *tensor)
{
    uint64_t n = tensor->row_bytes * tensor->rows + (tensor->n_experts - 1) * tensor->expert_bytes;
    for (size_t i = 0; i < model->n_parts; i++) {
        const struct eng_part *part = &model->parts[i];
        uintptr_t start = (uintptr_t)part->map.data, at = (uintptr_t)tensor->data;
        if (part->mapped && at >= start && at - start < part->map.size)
            dl_map_drop(&part->map, at - start, (size_t)n);
    }
}

int dl_model_list(const dl_model *model, dl_model_row_fn *row, void *ud)
{
    return model->reader->list(model, row, ud);
}
