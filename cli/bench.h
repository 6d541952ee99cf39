/* SPDX-License-Identifier: MIT
 *
 * cli/bench.h: what the files of `bench`, `bench ops` and `bench link` share. A result is a JSON object from the moment it is measured: with
 * --json it is printed as it is, else as a row of a table; --compare and --plot read the same objects.
 */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include <jansson.h>

#include "cli.h"

/* -------------------------------------------------------------------------------------------- bench_out.c */

/* The results of a command. Zero-initialised with o and print set. */
struct cli_bench_out {
    const struct cli_opts *o;
    int (*print)(struct cli_bench_out *out,
                 const json_t *row); /* one row of the table; prints the head before the first */
    json_t *rows;                    /* so far */
    json_t *old;                     /* those of --compare, else NULL */
};
/* Reads --compare: before anything is measured, so that a wrong name is seen at once. */
int cli_bench_begin(struct cli_bench_out *out);
/* Takes over row; NULL is DL_ENOMEM (logged). Prints it. */
int cli_bench_add(struct cli_bench_out *out, json_t *row);
void cli_bench_finish(struct cli_bench_out *out);
/* Numbers and texts of a row; 0 and "" where it has none. */
double cli_bench_number(const json_t *row, const char *key);
const char *cli_bench_text(const json_t *row, const char *key);
/* "  x1.23" behind a row of the table, where it was compared; else "". */
const char *cli_bench_ratio(const json_t *row, char text[32]);

/* The median, and the ends, of n > 0 values, which are sorted. */
struct cli_bench_spread {
    double least, median, most;
};
struct cli_bench_spread cli_bench_spread(double *v, size_t n);

/* ------------------------------------------------------------------------------------------- bench_plot.c */

/* An SVG of its own with the speeds over the context, or over the nodes where their number varies; DL_EINVAL (logged) when there is nothing to
 * draw, DL_EIO. */
int cli_bench_plot(const char *path, const json_t *rows);

/* -------------------------------------------------------------------------------------------- bench_rig.c */

/* Times ops of plans on one device, which nothing else uses. Zero-initialised, then opened. */
struct cli_rig {
    dl_device *dev;
    struct dl_model_plan *mp;
    dl_buf **bufs; /* those of the plan, then copies of weights and caches */
    uint32_t n_bufs, cap_bufs;
    dl_buf *batch;
    struct dl_batch_load load;
    uint32_t reps; /* set after opening: samples of each op at least; 0: 5 */
};
/* For a plan, which stays the caller's, and batches like `load`, of one sequence. */
int cli_rig_open(struct cli_rig *r, dl_device *dev, struct dl_model_plan *mp, const struct dl_batch_load *load);
void cli_rig_close(struct cli_rig *r);

/* How long one op takes, alone, over weights and caches that no cache of the machine holds. */
struct cli_rig_time {
    double ns, least_ns;   /* the median, and the shortest */
    uint64_t memory_bytes; /* weights and KV cache that it reads */
    uint64_t bytes;        /* these, and all that it reads and writes besides */
    double flop;
    uint32_t copies; /* of what it reads, between which it changed */
};
/* spread: rotate over copies; else what it reads is one matrix, and may stay in a cache. */
int cli_rig_time(struct cli_rig *r, const struct dl_op *op, bool spread, struct cli_rig_time *out);

/* The same for all RUN steps of the plan, with what a device fuses, one after the other, as if exchanges took no time. The plan should have so
 * many layers that they are more than CLI_RIG_SPREAD bytes. */
int cli_rig_time_plan(struct cli_rig *r, struct cli_rig_time *out);
#define CLI_RIG_SPREAD ((uint64_t)256 << 20) /* more than any last-level cache that is common keeps */

/* What a device can do at most, measured: reads bytes per second, and arithmetic in its own matrix products, by the type of the weights (0:
 * not asked for). */
struct cli_ceiling {
    double bytes_per_s, flop_per_s[DL_WEIGHT_TYPES];
};
int cli_bench_ceiling(dl_device *dev, bool arithmetic, struct cli_ceiling *out);

/* A model for a benchmark: MODEL, --shape, or the demo. Only its sizes where `weights` is false and it is a shape. */
int cli_bench_model(const struct cli_opts *o, bool weights, struct cli_engine *e);
/* --depth, --nodes: "0,512,2048" to at most CLI_MAX_LIST numbers, which ascend. */
int cli_bench_list(const char *option, const char *text, uint64_t low, uint64_t high, uint32_t *v, uint32_t *n);

#endif
