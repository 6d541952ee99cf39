/* SPDX-License-Identifier: MIT
 *
 * cli/nodes.c: see nodes.h.
 */
#include "nodes.h"

#include <string.h>

/* "cpu (avx2, 2 threads)" is `cpu` to --device. The root's devices are known one by one. */
static json_t *devices(const struct cli_engine *e, const struct dl_node_stats *v, uint32_t node)
{
    json_t *all = json_array();
    for (uint32_t i = 0; !node && i < e->n_devices; i++)
        json_array_append_new(all, json_string(e->devices[i]->kind));
    const char *name = v[node].device;
    if (node)
        json_array_append_new(all, json_stringn(name, strcspn(name, " ")));
    return all;
}

json_t *cli_nodes_json(const struct cli_engine *e, const struct dl_node_stats *v, uint32_t n)
{
    json_t *all = json_array();
    for (uint32_t i = 0; i < n; i++) {
        const struct dl_engine_stats *s = &v[i].stats;
        json_array_append_new(all, json_pack("{s:s,s:o,s:f,s:f,s:f,s:f,s:f,s:I,s:I}", "name", v[i].name, "devices",
                                             devices(e, v, i), "share", v[i].share, "compute_ms",
                                             (double)s->compute_ns / 1e6, "exchange_ms", (double)s->exchange_ns / 1e6,
                                             "exchange_hidden_ms", (double)s->exchange_hidden_ns / 1e6, "idle_ms",
                                             (double)s->idle_ns / 1e6, "sent_bytes", (json_int_t)s->sent_bytes,
                                             "received_bytes", (json_int_t)s->received_bytes));
    }
    return all;
}
