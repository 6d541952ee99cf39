/* SPDX-License-Identifier: MIT
 *
 * cli/server/metrics.h: what the server counts, and its text for Prometheus. A plain value; whoever shares it locks it.
 */
#ifndef CLI_SERVER_METRICS_H
#define CLI_SERVER_METRICS_H

#include "dl/session.h"

#define CLI_HISTOGRAM_MOST 14u

/* Counts per bound (seconds, or tokens), not cumulative; the last one is what is above all bounds. */
struct cli_histogram {
    uint64_t counts[CLI_HISTOGRAM_MOST + 1];
    double sum;
};

struct cli_metrics {
    uint64_t ok, refused, busy, failed, cancelled; /* requests for an answer, by how they ended */
    uint64_t prompt_tokens, cached_tokens, generated_tokens;
    uint64_t steps;
    uint64_t fetched_rows; /* of logits, after candidates did not settle a token */
    struct cli_histogram queue_seconds, first_token_seconds, token_seconds, request_seconds, batch_tokens;
    uint64_t preempted;       /* answers that gave up their place for a while, as the KV cache was full */
    uint32_t queued, running; /* now */
    uint32_t kv_blocks, free_blocks;
};

void cli_metrics_seconds(struct cli_histogram *h, uint64_t ns);
void cli_metrics_tokens(struct cli_histogram *h, uint64_t n);
/* Appends the text format of Prometheus, version 0.0.4. */
int cli_metrics_text(const struct cli_metrics *m, struct dl_str *out);
int cli_metrics_nodes(const struct dl_node_stats *nodes, uint32_t n, struct dl_str *out);

#endif
