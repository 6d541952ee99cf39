/* SPDX-License-Identifier: MIT
 *
 * cli/nodes.h: the `nodes` array of --json: what each node did.
 */
#ifndef CLI_NODES_H
#define CLI_NODES_H

#include <jansson.h>

#include "cli.h"

/* One object per node, v (n) being what dl_engine_nodes gave. */
json_t *cli_nodes_json(const struct cli_engine *e, const struct dl_node_stats *v, uint32_t n);

#endif
