/* SPDX-License-Identifier: MIT
 *
 * cli/server/metrics.c: see metrics.h.
 */
#include "metrics.h"

#include <stdio.h>

static const double seconds[] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300};
static const double tokens[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
_Static_assert(DL_COUNT_OF(seconds) == CLI_HISTOGRAM_MOST && DL_COUNT_OF(tokens) == CLI_HISTOGRAM_MOST,
               "as many counts as bounds");

static void observe(struct cli_histogram *h, const double *bounds, double v)
{
    uint32_t i = 0;
    while (i < CLI_HISTOGRAM_MOST && v > bounds[i])
        i++;
    h->counts[i]++;
    h->sum += v;
}

void cli_metrics_seconds(struct cli_histogram *h, uint64_t ns)
{
    observe(h, seconds, (double)ns * 1e-9);
}

void cli_metrics_tokens(struct cli_histogram *h, uint64_t n)
{
    observe(h, tokens, (double)n);
}

struct writer {
    struct dl_str *out;
    int err;
};

static void head(struct writer *w, const char *name, const char *type, const char *help)
{
    if (!w->err)
        w->err = dl_str_addf(w->out, "# HELP dllama_%s %s\n# TYPE dllama_%s %s\n", name, help, name, type);
}

static void value(struct writer *w, const char *name, const char *labels, double v)
{
    if (!w->err)
        w->err = dl_str_addf(w->out, "dllama_%s%s %.17g\n", name, labels, v);
}

static void counter(struct writer *w, const char *name, const char *help, double v)
{
    head(w, name, "counter", help);
    value(w, name, "", v);
}

static void gauge(struct writer *w, const char *name, const char *help, double v)
{
    head(w, name, "gauge", help);
    value(w, name, "", v);
}

static void histogram(struct writer *w, const char *name, const char *help, const struct cli_histogram *h,
                      const double *bounds)
{
    uint64_t n = 0;
    head(w, name, "histogram", help);
    for (uint32_t i = 0; i < CLI_HISTOGRAM_MOST && !w->err; i++) {
        n += h->counts[i];
        w->err = dl_str_addf(w->out, "dllama_%s_bucket{le=\"%g\"} %llu\n", name, bounds[i], (unsigned long long)n);
    }
    n += h->counts[CLI_HISTOGRAM_MOST];
    if (!w->err)
        w->err = dl_str_addf(w->out, "dllama_%s_bucket{le=\"+Inf\"} %llu\ndllama_%s_sum %.9g\ndllama_%s_count %llu\n",
                             name, (unsigned long long)n, name, h->sum, name, (unsigned long long)n);
}

int cli_metrics_text(const struct cli_metrics *m, struct dl_str *out)
{
    struct writer w = {.out = out};
    head(&w, "requests_total", "counter", "Requests for an answer, by how they ended.");
    value(&w, "requests_total", "{result=\"ok\"}", (double)m->ok);
    value(&w, "requests_total", "{result=\"refused\"}", (double)m->refused);
    value(&w, "requests_total", "{result=\"busy\"}", (double)m->busy);
    value(&w, "requests_total", "{result=\"failed\"}", (double)m->failed);
    value(&w, "requests_total", "{result=\"cancelled\"}", (double)m->cancelled);
    counter(&w, "prompt_tokens_total", "Tokens of prompts, found in the cache or not.", (double)m->prompt_tokens);
    counter(&w, "cached_tokens_total", "Tokens of prompts that were found in the cache.", (double)m->cached_tokens);
    counter(&w, "generated_tokens_total", "Tokens of answers.", (double)m->generated_tokens);
    counter(&w, "steps_total", "Batches that were evaluated.", (double)m->steps);
    counter(&w, "fetched_rows_total", "Tokens for which the likeliest candidates did not do: all logits had to travel.",
            (double)m->fetched_rows);
    gauge(&w, "queued_requests", "Requests that wait.", m->queued);
    gauge(&w, "running_sequences", "Answers that are being made.", m->running);
    gauge(&w, "kv_blocks", "Blocks of 32 tokens that the KV cache has.", m->kv_blocks);
    gauge(&w, "kv_free_blocks", "Of those, the ones that no answer holds.", m->free_blocks);
    counter(&w, "preempted_total", "Answers that gave up their place for a while, as the KV cache was full.",
            (double)m->preempted);
    histogram(&w, "queue_seconds", "Time from a request to the start of its work.", &m->queue_seconds, seconds);
    histogram(&w, "first_token_seconds", "Time from a request to its first token.", &m->first_token_seconds, seconds);
    histogram(&w, "token_seconds", "Time between two tokens of an answer.", &m->token_seconds, seconds);
    histogram(&w, "request_seconds", "Time from a request to the end of its answer.", &m->request_seconds, seconds);
    histogram(&w, "batch_tokens", "Tokens of one batch.", &m->batch_tokens, tokens);
    return w.err;
}

int cli_metrics_nodes(const struct dl_node_stats *nodes, uint32_t n, struct dl_str *out)
{
    struct writer w = {.out = out};
    char labels[80];
    head(&w, "node_seconds_total", "counter", "Where the time of a node went while it worked.");
    for (uint32_t i = 0; i < n; i++) {
        const struct dl_engine_stats *e = &nodes[i].stats;
        const struct {
            const char *state;
            uint64_t ns;
        } parts[] = {{"compute", e->compute_ns},
                     {"exchange", e->exchange_ns},
                     {"exchange_hidden", e->exchange_hidden_ns},
                     {"idle", e->idle_ns}};
        for (size_t k = 0; k < DL_COUNT_OF(parts); k++) {
            snprintf(labels, sizeof labels, "{node=\"%u\",state=\"%s\"}", i, parts[k].state);
            value(&w, "node_seconds_total", labels, (double)parts[k].ns * 1e-9);
        }
    }
    head(&w, "node_bytes_total", "counter", "What a node sent to others and received from them.");
    for (uint32_t i = 0; i < n; i++) {
        snprintf(labels, sizeof labels, "{node=\"%u\",direction=\"sent\"}", i);
        value(&w, "node_bytes_total", labels, (double)nodes[i].stats.sent_bytes);
        snprintf(labels, sizeof labels, "{node=\"%u\",direction=\"received\"}", i);
        value(&w, "node_bytes_total", labels, (double)nodes[i].stats.received_bytes);
    }
    return w.err;
}
