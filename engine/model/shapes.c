/* SPDX-License-Identifier: MIT
 *
 * engine/model/shapes.c: models of well-known shapes without their files: the header as published, Q40 weights of the right sizes, and on
 * demand made-up values in them (made.c). So a cluster can be planned, and a machine's speed measured, before anything is downloaded.
 */
#include "made.h"

#include <stdio.h>
#include <string.h>

#include "reader.h"

/* Numbers from the models' published config.json. Qwen's expert model names a dense FFN of 6144 too, which no layer has. */
struct shape {
    const char *name;
    enum dl_arch arch;
    uint32_t dim, ffn, layers, heads, kv_heads, head_dim, vocab, experts, experts_used, context;
    float rope_factor; /* of the Llama 3.1 scaling; 0: none */
    bool tied;
};
static const struct shape shapes[] = {
    {"llama3.2-1b", DL_ARCH_LLAMA, 2048, 8192, 16, 32, 8, 64, 128256, 0, 0, 131072, 32, true},
    {"llama3.1-8b", DL_ARCH_LLAMA, 4096, 14336, 32, 32, 8, 128, 128256, 0, 0, 131072, 8, false},
    {"llama3.3-70b", DL_ARCH_LLAMA, 8192, 28672, 80, 64, 8, 128, 128256, 0, 0, 131072, 8, false},
    {"llama3.1-405b", DL_ARCH_LLAMA, 16384, 53248, 126, 128, 8, 128, 128256, 0, 0, 131072, 8, false},
    {"qwen3-0.6b", DL_ARCH_QWEN3, 1024, 3072, 28, 16, 8, 128, 151936, 0, 0, 40960, 0, true},
    {"qwen3-8b", DL_ARCH_QWEN3, 4096, 12288, 36, 32, 8, 128, 151936, 0, 0, 40960, 0, false},
    {"qwen3-30b-a3b", DL_ARCH_QWEN3_MOE, 2048, 768, 48, 32, 4, 128, 151936, 128, 8, 40960, 0, false},
};

const char *dl_shape_name(uint32_t i)
{
    return i < DL_COUNT_OF(shapes) ? shapes[i].name : NULL;
}

static void make_header(const struct shape *s, uint32_t n_layers, struct dl_model_header *h)
{
    const bool qwen = s->arch != DL_ARCH_LLAMA;
    *h = (struct dl_model_header){
        .arch = s->arch,
        .dim = s->dim,
        .hidden_dim = s->experts ? 0 : s->ffn,
        .n_layers = n_layers ? n_layers : s->layers,
        .n_heads = s->heads,
        .n_kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
        .vocab = s->vocab,
        .max_seq = s->context,
        .n_experts = s->experts,
        .n_experts_used = s->experts_used,
        .expert_dim = s->experts ? s->ffn : 0,
        .norm_eps = qwen ? 1e-6f : 1e-5f,
        .act = DL_ACT_SILU,
        .rope_layout = qwen ? DL_ROPE_HALVES : DL_ROPE_PAIRS,
        .n_rot = s->head_dim,
        .rope_theta = qwen ? 1e6 : 5e5,
        .qk_norm = qwen,
        .tied = s->tied,
    };
    if (s->rope_factor > 0) {
        h->rope_scaling = DL_ROPE_SCALE_LLAMA31;
        h->rope_factor = s->rope_factor;
        h->rope_low_freq = 1;
        h->rope_high_freq = 4;
        h->rope_orig_ctx = 8192;
    }
}

/* ----------------------------------------------------------------------------------------------- tensors */

static uint64_t bytes_of(const dl_model *m, bool per_layer)
{
    struct dl_tensor t;
    uint64_t n = 0;
    for (int id = 0; id < DL_T_COUNT; id++)
        n += dl_tensor_per_layer((enum dl_tensor_id)id) == per_layer ? eng_made_tensor(&m->h, (enum dl_tensor_id)id, &t)
                                                                     : 0;
    return n;
}

static int tensor(const dl_model *m, enum dl_tensor_id id, uint32_t layer, struct dl_tensor *out)
{
    (void)layer; /* all are alike */
    return eng_made_tensor(&m->h, id, out) ? DL_OK : DL_EINVAL;
}

static int list(const dl_model *m, dl_model_row_fn *row, void *ud)
{
    for (uint32_t l = 0; l < m->h.n_layers; l++)
        for (int id = 0; id < DL_T_COUNT; id++) {
            struct dl_tensor t;
            char name[64], text[64];
            bool per_layer = dl_tensor_per_layer((enum dl_tensor_id)id);
            if ((l && !per_layer) || !eng_made_tensor(&m->h, (enum dl_tensor_id)id, &t))
                continue;
            if (per_layer)
                snprintf(name, sizeof name, "blk.%u.%s", l, dl_tensor_name((enum dl_tensor_id)id));
            else
                snprintf(name, sizeof name, "%s", dl_tensor_name((enum dl_tensor_id)id));
            snprintf(text, sizeof text, "%s %u x %u", dl_type_info(t.type)->name, t.rows * t.n_experts, t.cols);
            row(ud, "tensor", name, text);
        }
    return DL_OK;
}

static const struct eng_reader reader = {.tensor = tensor, .list = list};

int dl_model_open_shape(const char *name, uint32_t n_layers, bool weights, dl_model **out)
{
    *out = NULL;
    const struct shape *s = NULL;
    for (size_t i = 0; i < DL_COUNT_OF(shapes); i++)
        s = strcmp(name, shapes[i].name) ? s : &shapes[i];
    if (!s) {
        char known[256] = "";
        for (size_t i = 0, at = 0; i < DL_COUNT_OF(shapes); i++)
            at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", shapes[i].name);
        return dl_fail(DL_EINVAL, "shape %s: unknown; there are: %s", name, known);
    }
    if (n_layers > DL_MAX_LAYERS)
        return dl_fail(DL_EINVAL, "shape %s: %u layers are over the limit of %u", name, n_layers, DL_MAX_LAYERS);
    dl_model *m = dl_xcalloc(1, sizeof *m);
    m->reader = &reader;
    m->name = dl_xstrdup(s->name);
    m->parts = dl_xcalloc(1, sizeof *m->parts);
    m->n_parts = m->cap_parts = 1;
    m->parts[0].path = dl_xstrdup(s->name);
    snprintf(m->format, sizeof m->format, "shape");
    make_header(s, n_layers, &m->h);
    m->weight_bytes = bytes_of(m, false) + m->h.n_layers * bytes_of(m, true);
    int err = eng_model_check_header(&m->h, m->name);
    if (!err && weights) {
        m->made = eng_made_create();
        err = m->made ? DL_OK : DL_ENOMEM;
    }
    if (err)
        dl_model_close(&m);
    *out = m;
    return err;
}
