/* SPDX-License-Identifier: MIT
 *
 * cli/plan.h: what the two files of `plan` share: plan_nodes.c finds the nodes, plan.c plans and prints.
 */
#ifndef CLI_PLAN_H
#define CLI_PLAN_H

#include "cli.h"
#include "dl/split.h"

#define CLI_PLAN_NODES (CLI_MAX_WORKERS + 1)

/* Zero-initialised with e.model open. */
struct cli_plan {
    struct cli_engine e;
    struct dl_split_node nodes[CLI_PLAN_NODES];
    char names[CLI_PLAN_NODES][64];
    uint32_t n;
    struct dl_split_link link;
    double alike;
    bool cluster; /* nodes, and not devices of this machine */
    struct dl_cluster_survey survey;
};

/* Checks --nodes, --link and --workers; reads the first two. Before the model is opened. */
int cli_plan_parse(const struct cli_opts *o, struct cli_plan *p);
/* Measures whatever is there. */
int cli_plan_measure(const struct cli_opts *o, struct cli_plan *p);

#endif
