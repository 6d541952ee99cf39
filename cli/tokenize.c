/* SPDX-License-Identifier: MIT
 *
 * cli/tokenize.c: `tokenize`: text to token ids and back. Needs only a tokenizer, no weights.
 */
#include "cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int print_ids(const struct cli_opts *o, const struct dl_tokens *ids)
{
    if (o->json) {
        json_t *list = json_array(), *all;
        for (size_t i = 0; i < ids->len; i++)
            json_array_append_new(list, json_integer(ids->v[i]));
        all = json_pack("{s:I,s:o}", "tokens", (json_int_t)ids->len, "ids", list);
        char *line = json_dumps(all, JSON_COMPACT);
        int err = line ? cli_outf("%s\n", line) : dl_fail(DL_ENOMEM, "tokenize: cannot write the result as JSON");
        free(line);
        json_decref(all);
        return err;
    }
    struct dl_str line = {0};
    int err = DL_OK;
    for (size_t i = 0; i < ids->len && !err; i++)
        err = dl_str_addf(&line, "%s%d", i ? " " : "", ids->v[i]);
    if (!err)
        err = dl_str_addz(&line, "\n");
    if (!err)
        err = cli_out(line.v, line.len);
    dl_str_finish(&line);
    return err;
}

static int encode(const struct cli_opts *o, const dl_tokenizer *tok, const struct dl_str *in)
{
    struct dl_tokens ids = {0};
    unsigned flags = (o->no_bos ? 0u : DL_TOKENIZE_BOS) | (o->no_special ? 0u : DL_TOKENIZE_SPECIAL);
    int err = dl_tokenize(tok, in->v, in->len, flags, &ids);
    if (!err)
        err = print_ids(o, &ids);
    dl_tokens_finish(&ids);
    return err;
}

static int decode(const struct cli_opts *o, const dl_tokenizer *tok, const struct dl_str *in)
{
    struct dl_tokens ids = {0};
    struct dl_str text = {0};
    uint32_t vocab = dl_tokenizer_info(tok)->vocab;
    int err = cli_read_ids("tokenize", in->v, in->len, &ids);
    for (size_t i = 0; i < ids.len && !err; i++)
        if ((uint32_t)ids.v[i] >= vocab)
            err = dl_fail(DL_EINVAL, "tokenize: id %d is outside the vocabulary of %u tokens", ids.v[i], vocab);
    if (!err)
        err = dl_detokenize(tok, ids.v, ids.len, &text);
    if (!err && o->json) {
        /* JSON is text: bytes that are no UTF-8 have no place in it. */
        json_t *all = json_pack("{s:I,s:s%}", "tokens", (json_int_t)ids.len, "text", text.v ? text.v : "", text.len);
        char *line = all ? json_dumps(all, JSON_COMPACT) : NULL;
        err = line
                  ? cli_outf("%s\n", line)
                  : dl_fail(DL_EINVAL, "tokenize: the text is not valid UTF-8, so it cannot be JSON; leave out --json");
        free(line);
        json_decref(all);
    } else if (!err && text.len) {
        err = cli_out(text.v, text.len);
    }
    dl_tokens_finish(&ids);
    dl_str_finish(&text);
    return err;
}

int cli_cmd_tokenize(const struct cli_opts *o)
{
    if (o->prompt && o->file)
        return cli_usage("tokenize: give one of -p and -f");
    dl_tokenizer *tok = NULL;
    struct dl_str in = {0};
    int err = cli_load_tokenizer(o->model, o->tokenizer, &tok);
    if (!err)
        err = o->prompt ? dl_str_addz(&in, o->prompt) : cli_read_file(o->file ? o->file : "-", &in);
    if (!err)
        err = o->decode ? decode(o, tok, &in) : encode(o, tok, &in);
    if (!err)
        err = cli_out_flush();
    dl_tokenizer_close(&tok);
    dl_str_finish(&in);
    return err;
}
