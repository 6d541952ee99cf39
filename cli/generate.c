/* SPDX-License-Identifier: MIT
 *
 * cli/generate.c: the generation loop of `run`, for a single answer and for each answer of a chat. Text leaves as soon as no
 * stop string can begin in it.
 */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char *cli_finish_name(enum cli_finish finish)
{
    static const char *const names[] = {"stop", "length", "cancelled"};
    return names[finish];
}

double cli_per_second(uint64_t n, uint64_t ns)
{
    return ns ? (double)n * 1e9 / (double)ns : 0;
}

static int dump(const struct cli_gen *g, const float *logits)
{
    if (g->dump && fwrite(logits, sizeof *logits, g->e->info.vocab, g->dump) != g->e->info.vocab)
        return dl_fail(DL_EIO, "%s: cannot write: %s", g->dump_name, strerror(errno));
    return DL_OK;
}

/* Text that is final: kept, and shown. */
static int emit(struct cli_gen *g, const struct dl_str *piece)
{
    int err = piece->len ? dl_str_add(&g->text, piece->v, piece->len) : DL_OK;
    if (!err && piece->len && g->show == CLI_SHOW_TEXT)
        err = cli_out(piece->v, piece->len);
    if (!err && piece->len && g->show == CLI_SHOW_TEXT)
        err = cli_out_flush();
    return err;
}

static int emit_id(const struct cli_gen *g, int32_t id)
{
    if (g->show != CLI_SHOW_IDS)
        return DL_OK;
    int err = cli_outf("%s%d", g->n_new > 1 ? " " : "", id);
    return err ? err : cli_out_flush();
}

/* 1 when a stop string was found. */
static int push(struct cli_gen *g, struct dl_decoder *decoder, int32_t id)
{
    struct dl_str bytes = {0}, piece = {0};
    int err = dl_decoder_push(decoder, id, &bytes);
    int found = err ? err : bytes.len ? dl_stops_push(g->stops, bytes.v, bytes.len, &piece) : 0;
    if (found >= 0 && (err = emit(g, &piece)) < 0)
        found = err;
    dl_str_finish(&bytes);
    dl_str_finish(&piece);
    return found;
}

/* The end of the answer: what was held back comes out, unless a stop string ended it. */
static int flush(struct cli_gen *g, struct dl_decoder *decoder)
{
    struct dl_str bytes = {0}, piece = {0};
    int err = dl_decoder_flush(decoder, &bytes);
    int found = err ? err : bytes.len ? dl_stops_push(g->stops, bytes.v, bytes.len, &piece) : 0;
    err = found < 0 ? found : found ? DL_OK : dl_stops_flush(g->stops, &piece);
    if (!err)
        err = emit(g, &piece);
    dl_str_finish(&bytes);
    dl_str_finish(&piece);
    return err;
}

/* In a cluster a row costs 4 bytes per id of the vocabulary, a candidate 8. The likeliest token is all that a greedy sampler looks at,
 * and the likeliest few nearly always settle a draw. In one process a row is free. */
static enum dl_want wanted(const struct cli_gen *g)
{
    if (g->dump || !dl_sampler_top_helps(g->sampler))
        return DL_WANT_LAST;
    return g->sampler->temperature == 0 ? DL_WANT_BEST : g->e->workers.n ? DL_WANT_TOP : DL_WANT_LAST;
}

static int32_t pick(const struct cli_gen *g, struct dl_step_item *last)
{
    float *logits = last->logits;
    int32_t id;
    if (last->want != DL_WANT_LAST) {
        if (dl_sample_top(g->sampler, last->top, last->n_top, last->log_sum, g->e->info.vocab, &id))
            return id;
        int err = dl_engine_logits(g->e->engine, 0, &logits);
        if (err)
            return err;
    }
    return dl_sample(g->sampler, logits, g->e->info.vocab);
}

/* After a GPU failed, which has been said: the same tokens on the CPU. `err` where there is no other way. */
static int resume(struct cli_gen *g, int err, struct dl_step_item *last)
{
    if (!g->fall_back || (err != DL_EDEVICE && err != DL_ENOMEM))
        return err;
    dl_session_destroy(&g->session);
    int failed = cli_fall_back(g->fall_back, g->e);
    g->fall_back = NULL;
    if (!failed)
        failed = dl_session_create(g->e->engine, &g->session);
    if (!failed)
        failed = dl_session_feed(g->session, g->so_far.v, g->so_far.len, cli_interrupted, NULL, last);
    return failed;
}

/* at: the last step, whose result the first token comes from. */
static int decode(struct cli_gen *g, struct dl_step_item *at)
{
    struct dl_decoder decoder;
    dl_decoder_init(&decoder, g->e->tok, g->at_start);
    bool stopped = false;
    int err = DL_OK;
    for (g->finish = CLI_FINISH_LENGTH; g->n_new < g->max_new;) {
        if (cli_interrupted(NULL)) {
            g->finish = CLI_FINISH_CANCELLED;
            break;
        }
        int32_t id = pick(g, at);
        if (id < 0)
            return id;
        if (!g->n_new)
            g->ttft_ns = dl_now_ns();
        if (dl_token_is_eog(g->e->tok, id)) {
            g->finish = CLI_FINISH_STOP;
            break;
        }
        g->n_new++;
        dl_sampler_accept(g->sampler, id);
        err = emit_id(g, id);
        if (!err)
            err = push(g, &decoder, id);
        if (err < 0)
            return err;
        stopped = err > 0;
        if (stopped)
            g->finish = CLI_FINISH_STOP;
        /* The last token needs no evaluation, unless somebody wants to see the logits after it. */
        bool last = stopped || g->n_new == g->max_new;
        if (last && !g->dump)
            break;
        if (dl_session_len(g->session) >= g->e->info.ctx) {
            g->context_full = !last;
            break;
        }
        at->session = g->session;
        at->tokens = &id;
        at->n = 1;
        err = dl_tokens_add(&g->so_far, id);
        if (!err)
            err = dl_engine_step(g->e->engine, at, 1);
        if (err)
            err = resume(g, err, at);
        if (err == DL_ECANCELED) { /* Ctrl-C while a cluster mended itself */
            g->finish = CLI_FINISH_CANCELLED;
            break;
        }
        if (!err)
            err = dump(g, at->logits);
        if (err)
            return err;
        g->n_steps++;
        if (stopped)
            break;
    }
    return stopped ? DL_OK : flush(g, &decoder);
}

/* An answer that is there stays one when a node is lost now. */
static int get_nodes(struct cli_gen *g)
{
    const uint32_t most = g->e->workers.n + 1;
    if (!g->nodes)
        g->nodes = dl_calloc(most, sizeof *g->nodes);
    if (!g->nodes)
        return DL_ENOMEM;
    if (dl_engine_nodes(g->e->engine, g->nodes, most, &g->n_nodes))
        g->n_nodes = 0;
    g->n_nodes = DL_MIN(g->n_nodes, most);
    return DL_OK;
}

int cli_generate(struct cli_gen *g, const int32_t *prompt, size_t n)
{
    dl_str_finish(&g->text);
    dl_stops_reset(g->stops);
    g->n_prompt = n;
    g->n_new = g->n_steps = g->prefill_ns = g->decode_ns = g->ttft_ns = 0;
    g->n_nodes = 0;
    g->context_full = false;
    g->finish = CLI_FINISH_CANCELLED;
    size_t held = dl_session_len(g->session), kept = 0;
    const int32_t *have = dl_session_tokens(g->session);
    while (kept < held && kept < n && have[kept] == prompt[kept])
        kept++;
    /* The last token is evaluated in any case: its logits are wanted. */
    g->n_evaluated = n - DL_MIN(kept, n - 1);
    for (size_t i = n - DL_MIN(n, (size_t)DL_PENALTY_WINDOW); i < n; i++)
        dl_sampler_accept(g->sampler, prompt[i]);

    struct dl_step_item last = {.want = wanted(g), .k = DL_TOP_MOST, .temperature = g->sampler->temperature};
    cli_interrupt_begin(-1);
    uint64_t start = dl_now_ns();
    g->so_far.len = 0;
    int err = dl_tokens_append(&g->so_far, prompt, n);
    if (!err)
        err = dl_session_feed(g->session, prompt, n, cli_interrupted, NULL, &last);
    if (err)
        err = resume(g, err, &last);
    uint64_t evaluated = dl_now_ns();
    g->prefill_ns = evaluated - start;
    if (!err)
        err = dump(g, last.logits);
    if (!err) {
        dl_engine_stats_reset(g->e->engine);
        err = decode(g, &last);
        uint64_t end = dl_now_ns();
        if (!err && g->want_nodes)
            err = get_nodes(g);
        if (g->ttft_ns) {
            g->decode_ns = end - g->ttft_ns;
            g->ttft_ns -= start;
        }
    } else if (err == DL_ECANCELED) {
        g->n_evaluated = dl_session_len(g->session) - DL_MIN(kept, DL_MIN(dl_session_len(g->session), n - 1));
        err = DL_OK;
    }
    cli_interrupt_end();
    if (!err && g->context_full)
        dl_log(DL_LOG_WARN, "context: full at %u tokens, the answer ends here; --ctx N makes it larger",
               g->e->info.ctx);
    return err;
}

void cli_gen_finish(struct cli_gen *g)
{
    dl_str_finish(&g->text);
    dl_tokens_finish(&g->so_far);
    free(g->nodes);
    g->nodes = NULL;
}

void cli_gen_summary(const struct cli_gen *g)
{
    if (g->n_evaluated < g->n_prompt) /* the beginning was in the cache, or Ctrl-C came */
        fprintf(stderr, "%llu of ", (unsigned long long)g->n_evaluated);
    fprintf(stderr,
            "%llu prompt tokens, %.1f tok/s | %llu generated, %.1f tok/s | first token after %.0f ms | finish: %s\n",
            (unsigned long long)g->n_prompt, cli_per_second(g->n_evaluated, g->prefill_ns),
            (unsigned long long)g->n_new, cli_per_second(g->n_steps, g->decode_ns), (double)g->ttft_ns / 1e6,
            g->context_full ? "length (context full)" : cli_finish_name(g->finish));
}

void cli_gen_table(const struct cli_gen *g)
{
    double steps = (double)DL_MAX(g->n_steps, 1);
    fprintf(stderr, "%-28s %-10s %6s %9s %9s %9s %9s %9s %9s\n", "node, per decoded token", "device", "share",
            "compute", "exchange", "hidden", "idle", "sent", "received");
    for (uint32_t i = 0; i < g->n_nodes; i++) {
        const struct dl_node_stats *n = &g->nodes[i];
        const struct dl_engine_stats *s = &n->stats;
        fprintf(stderr, "%-28s %-10.*s %5.1f%% %6.2f ms %6.2f ms %6.2f ms %6.2f ms %6.1f kB %6.1f kB\n", n->name,
                (int)strcspn(n->device, " "), n->device, 100 * n->share, (double)s->compute_ns / steps / 1e6,
                (double)s->exchange_ns / steps / 1e6, (double)s->exchange_hidden_ns / steps / 1e6,
                (double)s->idle_ns / steps / 1e6, (double)s->sent_bytes / steps / 1e3,
                (double)s->received_bytes / steps / 1e3);
    }
}
