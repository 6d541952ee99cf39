/* SPDX-License-Identifier: MIT
 *
 * engine/model/model_list.c: a model file's metadata and tensors as rows of text, for `inspect`. Text out of the file is made fit for
 * a terminal.
 */
#include "reader.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MOST_TEXT 60u /* bytes of one string */
#define MOST_ITEMS 6u /* of an array */

int eng_list_text(struct dl_str *out, struct eng_span text, size_t most)
{
    int err = DL_OK;
    size_t n = DL_MIN(text.n, most);
    while (n && n < text.n && ((unsigned char)text.v[n] & 0xc0) == 0x80)
        n--; /* not through the middle of a character */
    for (size_t i = 0; i < n && !err; i++) {
        unsigned char c = (unsigned char)text.v[i];
        if (c == '\n' || c == '\t' || c == '\\')
            err = dl_str_addz(out, c == '\n' ? "\\n" : c == '\t' ? "\\t" : "\\\\");
        else
            err = dl_str_add(out, c < 0x20 || c == 0x7f ? "?" : &text.v[i], 1);
    }
    return err || n == text.n ? err : dl_str_addz(out, "...");
}

static const char *const type_names[ENG_GGUF_TYPE_COUNT] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                            "bool", "string", "array", "u64", "i64", "f64"};

static int add_number(struct dl_str *s, const struct eng_gguf_kv *kv, uint64_t i)
{
    switch (kv->elem_type) {
    case ENG_GGUF_F32:
    case ENG_GGUF_F64:
        return dl_str_addf(s, "%.9g", eng_gguf_arr_f64(kv, i));
    case ENG_GGUF_BOOL:
        return dl_str_addz(s, eng_gguf_arr_i64(kv, i) ? "true" : "false");
    default:
        return dl_str_addf(s, "%" PRId64, eng_gguf_arr_i64(kv, i));
    }
}

static int add_value(struct dl_str *s, const struct eng_gguf_kv *kv)
{
    bool array = kv->type == ENG_GGUF_ARR;
    int err = array ? dl_str_addf(s, "%" PRIu64 " x %s:", kv->n, type_names[kv->elem_type]) : DL_OK;
    size_t at = 0;
    uint64_t n = DL_MIN(kv->n, MOST_ITEMS);
    for (uint64_t i = 0; i < n && !err; i++) {
        struct eng_span text;
        if (array)
            err = dl_str_addz(s, i ? ", " : " ");
        if (err)
            return err;
        if (eng_gguf_next_str(kv, &at, &text))
            err = eng_list_text(s, text, array ? 20 : MOST_TEXT);
        else
            err = add_number(s, kv, i);
    }
    return err || n == kv->n ? err : dl_str_addz(s, ", ...");
}

static int add_tensor(struct dl_str *s, const struct eng_gguf *g, const struct eng_gguf_tensor *t)
{
    char buf[24];
    int err = dl_str_addf(s, "%s (", eng_ggml_type_name(t->type, buf));
    for (uint32_t i = t->n_dims; i-- > 0 && !err;)
        err = dl_str_addf(s, "%" PRIu64 "%s", t->dims[i], i ? ", " : ")");
    return err ? err : dl_str_addf(s, " at byte %" PRIu64, g->data_start + t->offset);
}

/* Calls row with what `name` and `text` hold, and empties both. */
static int put(struct dl_str *name, struct dl_str *text, const char *what, dl_model_row_fn *row, void *ud)
{
    row(ud, what, name->v ? name->v : "", text->v ? text->v : "");
    name->len = text->len = 0;
    return DL_OK;
}

int eng_list_gguf(const dl_model *m, dl_model_row_fn *row, void *ud)
{
    struct dl_str name = {0}, text = {0};
    int err = DL_OK;
    const struct eng_gguf *g = &m->parts[0].gguf;
    for (size_t i = 0; i < g->n_kvs && !err; i++) {
        err = eng_list_text(&name, g->kvs[i].key, MOST_TEXT);
        if (!err)
            err = add_value(&text, &g->kvs[i]);
        if (!err)
            err = put(&name, &text, "meta", row, ud);
    }
    for (size_t p = 0; p < m->n_parts && !err; p++) {
        g = &m->parts[p].gguf;
        for (size_t i = 0; i < g->n_tensors && !err; i++) {
            err = eng_list_text(&name, g->tensors[i].name, MOST_TEXT);
            if (!err)
                err = add_tensor(&text, g, &g->tensors[i]);
            if (!err && m->n_parts > 1)
                err = dl_str_addf(&text, " of part %zu", p + 1);
            if (!err)
                err = put(&name, &text, "tensor", row, ud);
        }
    }
    dl_str_finish(&name);
    dl_str_finish(&text);
    return err;
}

/* ------------------------------------------------------------------------------------------------- .m */

static int32_t load_i32(const uint8_t *p)
{
    uint32_t u = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    int32_t v;
    memcpy(&v, &u, sizeof v);
    return v;
}

static int list_dllama_tensor(const dl_model *m, enum dl_tensor_id id, uint32_t layer, dl_model_row_fn *row, void *ud)
{
    struct dl_tensor t;
    if (dl_model_tensor(m, id, layer, &t))
        return DL_OK; /* not in this model */
    struct dl_str name = {0}, text = {0};
    int err = dl_tensor_per_layer(id) ? dl_str_addf(&name, "blk.%u.%s", layer, dl_tensor_name(id))
                                      : dl_str_addz(&name, dl_tensor_name(id));
    if (!err)
        err = dl_str_addf(&text, "%s (", dl_type_info(t.type)->name);
    if (!err && t.n_experts > 1)
        err = dl_str_addf(&text, "%u, ", t.n_experts);
    if (!err)
        err = dl_str_addf(&text, "%u, %u) at byte %zu", t.rows, t.cols, (size_t)(t.data - m->parts[0].map.data));
    if (!err)
        err = put(&name, &text, "tensor", row, ud);
    dl_str_finish(&name);
    dl_str_finish(&text);
    return err;
}

int eng_list_dllama(const dl_model *m, dl_model_row_fn *row, void *ud)
{
    for (uint32_t i = 0; i < m->dllama.n_pairs; i++) {
        const uint8_t *p = m->dllama.header + 8 * (size_t)i;
        int32_t key = load_i32(p), value = load_i32(p + 4);
        char text[32];
        snprintf(text, sizeof text, key == 1 ? "0x%X" : "%d", value);
        row(ud, "meta", eng_dllama_key_name(key), text);
    }
    int err = list_dllama_tensor(m, DL_T_EMBED, 0, row, ud);
    for (uint32_t layer = 0; layer < m->h.n_layers && !err; layer++)
        for (size_t i = 0; i < eng_dllama_n_layer_order && !err; i++)
            err = list_dllama_tensor(m, eng_dllama_layer_order[i], layer, row, ud);
    if (!err)
        err = list_dllama_tensor(m, DL_T_OUTPUT_NORM, 0, row, ud);
    return err ? err : list_dllama_tensor(m, DL_T_OUTPUT, 0, row, ud);
}
