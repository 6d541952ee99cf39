/* SPDX-License-Identifier: MIT
 *
 * cli/perplexity.c: `perplexity`: how well a model predicts a text. The text is cut into chunks that fill the context; each
 * begins with BOS where the model wants one, and every token that has one before it in its chunk is scored.
 */
#include "cli.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CTX 512u
#define MAX_OUT 64u /* rows of logits at once: 32 MiB for a vocabulary of 128 K */

struct score {
    uint64_t n;
    double nll; /* sum */
};

/* -log of the probability of `target`, in double: a sum over a large vocabulary loses digits in float. */
static double surprise(const float *logits, uint32_t vocab, int32_t target)
{
    double most = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        most = fmax(most, (double)logits[i]);
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - most);
    return log(sum) + most - (double)logits[target];
}

/* One chunk: ids[0 .. n), n >= 2, in an empty session. */
static int chunk(struct cli_engine *e, dl_session *session, const int32_t *ids, uint32_t n, struct score *score)
{
    uint32_t step = DL_MIN(e->info.max_batch, e->info.max_out), vocab = e->info.vocab;
    dl_session_truncate(session, 0);
    for (uint32_t at = 0; at + 1 < n;) {
        /* The last token of the chunk has no successor to be scored. */
        uint32_t count = DL_MIN(step, n - 1 - at);
        struct dl_step_item item = {.session = session, .tokens = ids + at, .n = count, .want = DL_WANT_ALL};
        int err = dl_engine_step(e->engine, &item, 1);
        if (err)
            return err;
        for (uint32_t i = 0; i < count; i++)
            score->nll += surprise(item.logits + (size_t)i * vocab, vocab, ids[at + i + 1]);
        score->n += count;
        at += count;
    }
    return DL_OK;
}

static int chunks(const struct cli_opts *o, struct cli_engine *e, const struct dl_tokens *text, struct score *score)
{
    const struct dl_tokenizer_info *info = dl_tokenizer_info(e->tok);
    bool bos = info->add_bos && info->bos != DL_TOK_NONE;
    uint32_t ctx = e->info.ctx, per = ctx - bos;
    if (ctx < 2)
        return dl_fail(DL_ELIMIT, "perplexity: needs a context of 2 tokens, the model's is %u; --ctx N makes it larger",
                       ctx);
    struct cli_progress bar;
    cli_progress_init(&bar, o);
    dl_session *session = NULL;
    int32_t *ids = dl_calloc(ctx, sizeof *ids);
    int err = ids ? dl_session_create(e->engine, &session) : DL_ENOMEM;
    for (size_t at = 0; at < text->len && !err; at += per) {
        uint32_t n = (uint32_t)DL_MIN((size_t)per, text->len - at);
        if (bos)
            ids[0] = info->bos;
        memcpy(ids + bos, text->v + at, n * sizeof *ids);
        if (n + bos > 1)
            err = chunk(e, session, ids, n + bos, score);
        cli_progress(&bar, "perplexity", at + n, text->len);
    }
    cli_progress_clear(&bar);
    dl_session_destroy(&session);
    free(ids);
    if (!err && !score->n)
        err = dl_fail(DL_EINVAL, "perplexity: the text has only %zu tokens, there is nothing to predict", text->len);
    return err;
}

static int print(const struct cli_opts *o, const struct score *s)
{
    double nll = s->nll / (double)s->n, perplexity = exp(nll);
    if (!isfinite(perplexity))
        return dl_fail(DL_EDEVICE, "perplexity: the model's logits are no numbers");
    if (!o->json)
        return cli_outf("perplexity %.6g over %llu tokens (mean nll %.6g)\n", perplexity, (unsigned long long)s->n,
                        nll);
    json_t *all = json_pack("{s:I,s:f,s:f}", "tokens", (json_int_t)s->n, "perplexity", perplexity, "nll", nll);
    char *line = all ? json_dumps(all, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
    int err = line ? cli_outf("%s\n", line) : dl_fail(DL_ENOMEM, "perplexity: cannot write the result as JSON");
    free(line);
    json_decref(all);
    return err;
}

int cli_cmd_perplexity(const struct cli_opts *o)
{
    if (!o->file)
        return cli_usage("perplexity: needs a text, -f FILE (-: stdin)");
    if (cli_given(o, CLI_OPT_CTX) && o->ctx < 2)
        return cli_usage("--ctx: perplexity needs at least 2");
    struct cli_engine e = {0};
    struct dl_str in = {0};
    struct dl_tokens text = {0};
    struct score score = {0};
    int err = cli_read_file(o->file, &in);
    if (!err)
        err = cli_load(o, DEFAULT_CTX, MAX_OUT, &e);
    if (!err)
        err = dl_tokenize(e.tok, in.v, in.len, 0, &text);
    if (!err)
        err = chunks(o, &e, &text, &score);
    if (!err)
        err = print(o, &score);
    if (!err)
        err = cli_out_flush();
    dl_tokens_finish(&text);
    dl_str_finish(&in);
    cli_unload(&e);
    return err;
}
