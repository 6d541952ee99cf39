/* SPDX-License-Identifier: MIT
 *
 * cli/run.c: `run`: decides between continuing a text and answering a message, makes the prompt's tokens, has one answer
 * generated and reports on it. Without a prompt on a terminal it hands over to the chat.
 */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "nodes.h"

/* Wrong combinations that need no model to be seen. */
static int check(const struct cli_opts *o)
{
    if (cli_given(o, CLI_OPT_PROMPT) + cli_given(o, CLI_OPT_FILE) + cli_given(o, CLI_OPT_PROMPT_IDS) > 1)
        return cli_usage("run: give one of -p, -f and --prompt-ids");
    if (o->chat && o->raw)
        return cli_usage("run: --chat and --raw exclude each other");
    if (o->raw && (o->system || o->chat_template))
        return cli_usage("run: --system and --chat-template are for chats, not for --raw");
    if (o->chat && o->prompt_ids)
        return cli_usage("run: --prompt-ids are taken as they are, without a chat");
    return cli_check_template(o);
}

/* What is known before the model is loaded: the prompt's text, or that there will be a chat on the terminal. */
enum source { SOURCE_TEXT, SOURCE_IDS, SOURCE_DEMO, SOURCE_TERMINAL };

static int find_prompt(const struct cli_opts *o, enum source *source, struct dl_str *text)
{
    *source = SOURCE_TEXT;
    if (o->prompt)
        return dl_str_addz(text, o->prompt);
    if (o->prompt_ids) {
        *source = SOURCE_IDS;
        return DL_OK;
    }
    if (!o->file && !o->model) {
        *source = SOURCE_DEMO;
        return dl_str_addz(text, dl_demo_prompt());
    }
    if (!o->file && isatty(STDIN_FILENO)) {
        *source = SOURCE_TERMINAL;
        if (!isatty(STDOUT_FILENO) || o->json)
            return cli_usage("run: no prompt: give one with -p TEXT or -f FILE");
        return DL_OK;
    }
    int err = cli_read_file(o->file ? o->file : "-", text);
    if (err)
        return err;
    if (text->len && text->v[text->len - 1] == '\n') /* the line end that editors and echo leave behind */
        text->v[--text->len] = 0;
    if (!o->file && !text->len)
        return cli_usage("run: no prompt: stdin is empty; give one with -p TEXT or -f FILE");
    return DL_OK;
}

static int make_sampler(const struct cli_opts *o, struct dl_sampler *s)
{
    uint64_t seed = o->seed;
    if (!cli_given(o, CLI_OPT_SEED)) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        seed = ((uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec) ^ (uint64_t)getpid() << 40;
        seed %= 1000000000u; /* short enough to be typed again */
    }
    dl_sampler_init(s, seed);
    s->temperature = cli_given(o, CLI_OPT_TEMP) ? (float)o->temp : o->model ? 0.7f : 0.0f;
    s->top_p = cli_given(o, CLI_OPT_TOP_P) ? (float)o->top_p : 0.9f;
    s->top_k = (uint32_t)o->top_k;
    s->min_p = (float)o->min_p;
    s->repeat_penalty = cli_given(o, CLI_OPT_PENALTY) ? (float)o->repeat_penalty : 1.0f;
    if (s->temperature > 0)
        dl_log(DL_LOG_INFO, "sampler: --seed %llu gives this text again", (unsigned long long)seed);
    return dl_sampler_check(s);
}

static int make_stops(const struct cli_opts *o, enum dl_chat_kind kind, struct dl_stops *stops)
{
    int err = DL_OK;
    for (uint32_t i = 0; i < o->stop.n && !err; i++)
        err = dl_stops_add(stops, o->stop.v[i]);
    const char *const *own = kind == DL_CHAT_NONE ? NULL : dl_chat_stops(kind);
    for (; own && *own && !err; own++)
        err = dl_stops_add(stops, *own);
    return err;
}

static int make_tokens(const struct cli_opts *o, const struct cli_engine *e, enum source source, enum dl_chat_kind kind,
                       const struct dl_str *text, struct dl_tokens *out)
{
    int err;
    if (source == SOURCE_IDS) {
        err = cli_read_ids("--prompt-ids", o->prompt_ids, strlen(o->prompt_ids), out);
    } else if (kind == DL_CHAT_NONE) {
        err = dl_tokenize(e->tok, text->v ? text->v : "", text->len, DL_TOKENIZE_BOS | DL_TOKENIZE_SPECIAL, out);
    } else {
        if (text->v && memchr(text->v, 0, text->len))
            return dl_fail(DL_EINVAL, "prompt: a message may not contain a zero byte");
        struct dl_chat_msg msgs[2];
        size_t n = 0;
        if (o->system)
            msgs[n++] = (struct dl_chat_msg){"system", o->system};
        msgs[n++] = (struct dl_chat_msg){"user", text->v ? text->v : ""};
        err = dl_chat_tokens(e->tok, kind, msgs, n, true, out);
    }
    if (!err && !out->len)
        return dl_fail(DL_EINVAL,
                       "prompt: it is empty, and the model has no token to begin with; give one with -p TEXT");
    return err;
}

static int print_json(const struct cli_gen *g)
{
    struct dl_engine_info now; /* how sums go, and as what: with --wire q80 and experts, not what was asked for */
    dl_engine_info(g->e->engine, &now);
    const bool many = g->n_nodes > 1;
    json_t *all = json_pack(
        "{s:I,s:I,s:f,s:f,s:f,s:f,s:s,s:s%,s:s?,s:s?,s:o}", "prompt_tokens", (json_int_t)g->n_prompt,
        "generated_tokens", (json_int_t)g->n_new, "prefill_tok_s", cli_per_second(g->n_evaluated, g->prefill_ns),
        "decode_tok_s", cli_per_second(g->n_steps, g->decode_ns), "ttft_ms", (double)g->ttft_ns / 1e6, "load_ms",
        (double)g->e->load_ns / 1e6, "finish_reason", cli_finish_name(g->finish), "text", g->text.v ? g->text.v : "",
        g->text.len, "collective", many ? cli_collective_name(now.collective) : NULL, "wire_sums",
        many ? dl_type_info(now.wire)->name : NULL, "nodes", cli_nodes_json(g->e, g->nodes, g->n_nodes));
    char *line = all ? json_dumps(all, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    int err = line ? cli_outf("%s\n", line) : dl_fail(DL_ENOMEM, "run: cannot write the result as JSON");
    free(line);
    json_decref(all);
    return err;
}

static int answer(const struct cli_opts *o, struct cli_gen *g, enum source source, enum dl_chat_kind kind,
                  const struct dl_str *text)
{
    struct dl_tokens prompt = {0};
    int err = make_tokens(o, g->e, source, kind, text, &prompt);
    bool echo = g->show == CLI_SHOW_TEXT && kind == DL_CHAT_NONE && source != SOURCE_IDS;
    g->at_start = kind != DL_CHAT_NONE || (source != SOURCE_IDS && !text->len);
    if (!err && prompt.len > g->e->info.ctx) /* before the text that will not be continued is shown */
        err = dl_fail(DL_ELIMIT, "prompt: %zu tokens do not fit the context of %u: raise --ctx or shorten the prompt",
                      prompt.len, g->e->info.ctx);
    if (!err && echo && text->len)
        err = cli_out(text->v, text->len);
    if (!err && echo)
        err = cli_out_flush();
    if (!err)
        err = cli_generate(g, prompt.v, prompt.len);
    if (!err && g->show != CLI_SHOW_NOTHING)
        err = cli_out("\n", 1);
    if (!err && o->json)
        err = print_json(g);
    if (!err)
        err = cli_out_flush();
    if (!err && !o->quiet)
        cli_gen_summary(g);
    if (!err && o->verbose && g->n_nodes > 1)
        cli_gen_table(g);
    dl_tokens_finish(&prompt);
    return err;
}

static int run_loaded(const struct cli_opts *o, struct cli_engine *e, enum source source, const struct dl_str *text)
{
    struct dl_sampler sampler;
    struct dl_stops stops = {0};
    struct cli_gen g = {
        .e = e,
        .sampler = &sampler,
        .stops = &stops,
        .max_new = cli_given(o, CLI_OPT_N) ? o->n : UINT64_MAX,
        .show = o->json  ? CLI_SHOW_NOTHING
                : o->ids ? CLI_SHOW_IDS
                         : CLI_SHOW_TEXT,
        .dump_name = o->dump_logits,
        .want_nodes = o->json || (o->verbose && e->workers.n),
    };
    enum dl_chat_kind kind;
    int err = cli_find_template(o, e, &kind);
    if (!err)
        err = make_sampler(o, &sampler);
    if (!err)
        err = make_stops(o, kind, &stops);
    if (!err && o->dump_logits) {
        g.dump = fopen(o->dump_logits, "wb");
        if (!g.dump)
            err = dl_fail(DL_EIO, "%s: cannot open for writing: %s", o->dump_logits, strerror(errno));
    }
    if (!err)
        err = dl_session_create(e->engine, &g.session);
    if (!err && source != SOURCE_TERMINAL) /* in a chat one answer fails, and the next one has the CPU */
        g.fall_back = o;
    if (!err)
        err = source == SOURCE_TERMINAL ? cli_chat(o, kind, &g) : answer(o, &g, source, kind, text);
    if (g.dump && fclose(g.dump) && !err)
        err = dl_fail(DL_EIO, "%s: cannot write: %s", o->dump_logits, strerror(errno));
    dl_session_destroy(&g.session);
    dl_stops_finish(&stops);
    cli_gen_finish(&g);
    return err;
}

int cli_cmd_run(const struct cli_opts *o)
{
    struct cli_engine e = {0};
    struct dl_str text = {0};
    enum source source = SOURCE_TEXT;
    int err = check(o);
    if (!err)
        err = find_prompt(o, &source, &text);
    if (!err)
        err = cli_load(o, 0, 0, &e);
    if (!err)
        err = run_loaded(o, &e, source, &text);
    cli_unload(&e);
    dl_str_finish(&text);
    return err;
}
