/* SPDX-License-Identifier: MIT
 *
 * cli/inspect.c: `inspect`: what is in a model or tokenizer file. A file whose weights cannot be used here still shows its
 * tokenizer, and says why.
 */
#include "cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Text of a file as a JSON string: bytes that are no UTF-8 become '?'. */
static json_t *text_json(const char *s)
{
    json_t *j = json_string(s);
    if (j)
        return j;
    char *copy = dl_xstrdup(s);
    for (char *p = copy; *p; p++)
        if ((unsigned char)*p >= 0x80)
            *p = '?';
    j = json_string(copy);
    free(copy);
    return j;
}

struct count {
    uint64_t tensors, values, bytes;
};

/* By type, over the tensors that the architecture has; a tied output matrix is counted once, as the embedding. */
static uint64_t count_tensors(const dl_model *model, struct count types[DL_TYPE_COUNT])
{
    const struct dl_model_header *h = dl_model_header(model);
    uint64_t values = 0;
    for (int id = 0; id < DL_T_COUNT; id++) {
        uint32_t layers = dl_tensor_per_layer((enum dl_tensor_id)id) ? h->n_layers : 1;
        for (uint32_t l = 0; l < layers; l++) {
            struct dl_tensor t;
            if ((id == DL_T_OUTPUT && h->tied) || dl_model_tensor(model, (enum dl_tensor_id)id, l, &t))
                continue;
            struct count *c = &types[t.type];
            uint64_t n = (uint64_t)t.rows * t.cols * t.n_experts;
            c->tensors++;
            c->values += n;
            c->bytes += t.row_bytes * t.rows * t.n_experts;
            values += n;
        }
    }
    return values;
}

/* "4.02 B" */
static const char *short_count(char text[32], uint64_t n)
{
    double v = (double)n;
    if (n >= 1000000000u)
        snprintf(text, 32, "%.2f B", v / 1e9);
    else if (n >= 1000000u)
        snprintf(text, 32, "%.1f M", v / 1e6);
    else
        snprintf(text, 32, "%.1f K", v / 1e3);
    return text;
}

static const char *scaling_name(enum dl_rope_scaling s)
{
    static const char *const names[] = {"none", "linear", "llama3.1", "table"};
    return (unsigned)s < DL_COUNT_OF(names) ? names[s] : "?";
}

static void row_text(void *ud, const char *what, const char *name, const char *text)
{
    int *err = ud;
    if (!*err)
        *err = cli_outf("  %-6s %-40s %s\n", what, name, text);
}

static void row_json(void *ud, const char *what, const char *name, const char *text)
{
    json_t *row = json_array();
    json_array_append_new(row, text_json(name));
    json_array_append_new(row, text_json(text));
    json_array_append_new(json_object_get(ud, what), row);
}

static int model_text(const struct cli_opts *o, const dl_model *model)
{
    const struct dl_model_header *h = dl_model_header(model);
    struct count types[DL_TYPE_COUNT] = {0};
    uint64_t values = count_tensors(model, types);
    char a[32], b[32];
    int err = cli_outf("file          %s (%s)\nformat        %s\nname          %s\narchitecture  %s\n"
                       "parameters    %llu (%s)\nweights       %s\n",
                       dl_model_path(model), cli_size(a, dl_model_file_bytes(model)), dl_model_format(model),
                       dl_model_name(model), dl_arch_name(h->arch), (unsigned long long)values, short_count(b, values),
                       cli_size(a, dl_model_weight_bytes(model)));
    for (int t = 0; t < DL_TYPE_COUNT && !err; t++)
        if (types[t].tensors)
            err = cli_outf("  %-11s %llu tensors, %s\n", dl_type_info((enum dl_type)t)->name,
                           (unsigned long long)types[t].tensors, cli_size(a, types[t].bytes));
    if (!err)
        err = cli_outf("dim           %u\nlayers        %u\nheads         %u (KV %u) x %u\n", h->dim, h->n_layers,
                       h->n_heads, h->n_kv_heads, h->head_dim);
    if (!err && h->hidden_dim)
        err = cli_outf("ffn           %u\n", h->hidden_dim);
    if (!err && h->n_experts)
        err = cli_outf("experts       %u x %u, %u used per token\n", h->n_experts, h->expert_dim, h->n_experts_used);
    if (!err)
        err = cli_outf("vocabulary    %u%s\ncontext       %u\nrope          theta %g, %u of %u values, %s, scaling %s\n"
                       "norm epsilon  %g\n",
                       h->vocab, h->tied ? " (output tied to the embedding)" : "", h->max_seq, h->rope_theta, h->n_rot,
                       h->head_dim, h->rope_layout == DL_ROPE_PAIRS ? "adjacent pairs" : "halves",
                       scaling_name(h->rope_scaling), (double)h->norm_eps);
    if (!err && o->verbose) {
        int failed = dl_model_list(model, row_text, &err);
        err = err ? err : failed;
    }
    return err;
}

static int token_row(const dl_tokenizer *tok, const char *what, int32_t id)
{
    if (id == DL_TOK_NONE)
        return DL_OK;
    size_t n;
    const char *text = dl_token_text(tok, id, &n);
    return cli_outf("  %-11s %d %.*s\n", what, id, (int)DL_MIN(n, (size_t)64), text);
}

static int tokenizer_text(const dl_tokenizer *tok)
{
    const struct dl_tokenizer_info *t = dl_tokenizer_info(tok);
    enum dl_chat_kind kind = dl_chat_detect(t->chat_template, strlen(t->chat_template));
    int err = cli_outf("tokenizer     %s%s%s, %u tokens\n", t->kind, *t->pre ? " " : "", t->pre, t->vocab);
    if (!err)
        err = token_row(tok, "bos", t->bos);
    if (!err)
        err = token_row(tok, "eos", t->eos);
    if (!err)
        err = token_row(tok, "pad", t->pad);
    if (!err)
        err = cli_outf("  add bos     %s\n  template    %s\n", t->add_bos ? "yes" : "no",
                       kind != DL_CHAT_NONE ? dl_chat_name(kind)
                       : *t->chat_template  ? "not recognised"
                                            : "none");
    return err;
}

static json_t *model_json(const struct cli_opts *o, const dl_model *model)
{
    const struct dl_model_header *h = dl_model_header(model);
    struct count types[DL_TYPE_COUNT] = {0};
    uint64_t values = count_tensors(model, types);
    json_t *by_type = json_object();
    for (int t = 0; t < DL_TYPE_COUNT; t++)
        if (types[t].tensors)
            json_object_set_new(
                by_type, dl_type_info((enum dl_type)t)->name,
                json_pack("{s:I,s:I}", "tensors", (json_int_t)types[t].tensors, "bytes", (json_int_t)types[t].bytes));
    json_t *all = json_pack("{s:o,s:s,s:o,s:s,s:I,s:I,s:I,s:o}", "file", text_json(dl_model_path(model)), "format",
                            dl_model_format(model), "name", text_json(dl_model_name(model)), "architecture",
                            dl_arch_name(h->arch), "parameters", (json_int_t)values, "file_bytes",
                            (json_int_t)dl_model_file_bytes(model), "weight_bytes",
                            (json_int_t)dl_model_weight_bytes(model), "types", by_type);
    json_object_set_new(
        all, "header",
        json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:I,s:s,s:s,s:b,s:b,s:b}", "dim",
                  (json_int_t)h->dim, "hidden_dim", (json_int_t)h->hidden_dim, "layers", (json_int_t)h->n_layers,
                  "heads", (json_int_t)h->n_heads, "kv_heads", (json_int_t)h->n_kv_heads, "head_dim",
                  (json_int_t)h->head_dim, "vocab", (json_int_t)h->vocab, "context", (json_int_t)h->max_seq, "experts",
                  (json_int_t)h->n_experts, "experts_used", (json_int_t)h->n_experts_used, "expert_dim",
                  (json_int_t)h->expert_dim, "norm_eps", (double)h->norm_eps, "rope_theta", h->rope_theta, "rope_dims",
                  (json_int_t)h->n_rot, "rope_layout", h->rope_layout == DL_ROPE_PAIRS ? "pairs" : "halves",
                  "rope_scaling", scaling_name(h->rope_scaling), "qkv_bias", h->qkv_bias, "qk_norm", h->qk_norm, "tied",
                  h->tied));
    if (o->verbose) {
        json_t *lists = json_pack("{s:[],s:[]}", "tensor", "meta");
        if (dl_model_list(model, row_json, lists)) {
            json_decref(lists);
            json_decref(all);
            return NULL;
        }
        json_object_set(all, "tensors", json_object_get(lists, "tensor"));
        json_object_set(all, "meta", json_object_get(lists, "meta"));
        json_decref(lists);
    }
    return all;
}

static json_t *tokenizer_json(const dl_tokenizer *tok)
{
    const struct dl_tokenizer_info *t = dl_tokenizer_info(tok);
    enum dl_chat_kind kind = dl_chat_detect(t->chat_template, strlen(t->chat_template));
    return json_pack("{s:s,s:s,s:I,s:i,s:i,s:i,s:b,s:b,s:b,s:s}", "kind", t->kind, "pre", t->pre, "vocab",
                     (json_int_t)t->vocab, "bos", t->bos, "eos", t->eos, "pad", t->pad, "add_bos", t->add_bos,
                     "add_eos", t->add_eos, "has_template", *t->chat_template != 0, "template", dl_chat_name(kind));
}

/* Keeps the reason why the weights cannot be used, until it is known whether there is anything else to show. */
struct reason {
    char line[512];
};
static void keep_reason(void *ud, enum dl_log_level level, const char *line)
{
    struct reason *r = ud;
    if (level == DL_LOG_ERROR && !*r->line)
        snprintf(r->line, sizeof r->line, "%s", line);
}

static int print_all(const struct cli_opts *o, const dl_model *model, const dl_tokenizer *tok, const char *why)
{
    int err = DL_OK;
    if (!o->json) {
        if (model)
            err = model_text(o, model);
        else
            err = cli_outf("file          %s\nweights       %s%s\n", o->model, *why ? "not usable: " : "none", why);
        if (!err && tok)
            err = tokenizer_text(tok);
        return err;
    }
    json_t *all = model ? model_json(o, model) : json_pack("{s:o}", "file", text_json(o->model));
    if (all && !model && *why)
        json_object_set_new(all, "error", text_json(why));
    if (all && tok)
        json_object_set_new(all, "tokenizer", tokenizer_json(tok));
    char *line = all ? json_dumps(all, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    err = line ? cli_outf("%s\n", line) : dl_fail(DL_ENOMEM, "inspect: cannot write the result as JSON");
    free(line);
    json_decref(all);
    return err;
}

int cli_cmd_inspect(const struct cli_opts *o)
{
    dl_model *model = NULL;
    dl_tokenizer *tok = NULL;
    struct reason why = {{0}}, no_tokenizer = {{0}};
    enum cli_file kind = cli_file_kind(o->model);
    int err = DL_OK;
    /* Nothing runs beside this thread, so the log may be redirected for a while. */
    if (kind != CLI_FILE_T) {
        cli_log_to(keep_reason, &why);
        err = dl_model_open(o->model, &model);
        cli_log_to(NULL, NULL);
        if (err && kind != CLI_FILE_GGUF)
            return dl_fail(err, "%s", why.line);
    }
    cli_log_to(keep_reason, &no_tokenizer);
    int tok_err = cli_load_tokenizer(o->model, o->tokenizer, &tok);
    cli_log_to(NULL, NULL);
    if (tok_err && !model)
        return dl_fail(err ? err : tok_err, "%s", *why.line ? why.line : no_tokenizer.line);
    if (tok_err)
        dl_log(DL_LOG_WARN, "%s", no_tokenizer.line);
    err = print_all(o, model, tok, why.line);
    if (!err)
        err = cli_out_flush();
    dl_tokenizer_close(&tok);
    dl_model_close(&model);
    return err;
}
