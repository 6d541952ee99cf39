/* SPDX-License-Identifier: MIT
 *
 * cli/bench_link.c: `bench link`: what the network between the nodes of a cluster takes: to each worker by itself, and for the sums of a model, over
 * the same connections, encrypted or not, as a run would use.
 */
#include <string.h>

#include "bench.h"

#define DEFAULT_ROUNDS 31u

struct link {
    const struct cli_opts *o;
    struct cli_bench_out out;
    uint32_t tokens[2], n_tokens, n_layers;
    uint64_t bytes[2]; /* of a partial sum of so many tokens */
    enum dl_type wire;
    bool tls;
};

static int print_row(struct cli_bench_out *out, const json_t *row)
{
    char ratio[32];
    const size_t n = json_array_size(out->rows);
    const char *test = cli_bench_text(row, "test");
    const bool first = n < 2 || strcmp(cli_bench_text(json_array_get(out->rows, n - 2), "test"), test) != 0;
    int err = DL_OK;
    if (!strcmp(test, "link")) {
        if (first)
            err = cli_outf("%-24s %14s %14s %14s %14s\n", "worker", "round trip us", "least us", "to it MB/s",
                           "back MB/s");
        return err ? err
                   : cli_outf("%-24s %14.1f %14.1f %14.1f %14.1f%s\n", cli_bench_text(row, "worker"),
                              cli_bench_number(row, "us"), cli_bench_number(row, "us_min"),
                              cli_bench_number(row, "send_bytes_s") / 1e6,
                              cli_bench_number(row, "receive_bytes_s") / 1e6, cli_bench_ratio(row, ratio));
    }
    if (!strcmp(test, "all"))
        return cli_outf("%.0f nodes%s, all at once: %.1f us, %.1f MB/s%s\n", cli_bench_number(row, "n_nodes"),
                        json_is_true(json_object_get(row, "tls")) ? ", encrypted" : "", cli_bench_number(row, "us"),
                        cli_bench_number(row, "bytes_s") / 1e6, cli_bench_ratio(row, ratio));
    if (first)
        err = cli_outf("%-10s %7s %12s %12s %10s %10s %22s %12s\n", "sum by", "tokens", "bytes", "sent bytes",
                       "floor us", "us", "(min .. max)", "ms/batch");
    return err ? err
               : cli_outf("%-10s %7.0f %12.0f %12.0f %10.1f %10.1f %10.1f .. %8.1f %12.2f%s\n",
                          cli_bench_text(row, "collective"), cli_bench_number(row, "tokens"),
                          cli_bench_number(row, "bytes"), cli_bench_number(row, "sent_bytes"),
                          cli_bench_number(row, "floor_us"), cli_bench_number(row, "us"),
                          cli_bench_number(row, "us_min"), cli_bench_number(row, "us_max"),
                          cli_bench_number(row, "batch_ms"), cli_bench_ratio(row, ratio));
}

static int give_out(struct link *b, const struct dl_link_report *r)
{
    const json_int_t n_nodes = (json_int_t)r->n_peers + 1;
    int err = DL_OK;
    for (uint32_t i = 0; i < r->n_peers && !err; i++) {
        const struct dl_link_peer *p = &r->peers[i];
        err = cli_bench_add(&b->out, json_pack("{s:s,s:s,s:s,s:f,s:f,s:f,s:f,s:b}", "test", "link", "worker", p->name,
                                               "about", p->about, "us", (double)p->rtt_ns / 1e3, "us_min",
                                               (double)p->rtt_least_ns / 1e3, "send_bytes_s", p->send_bytes_per_s,
                                               "receive_bytes_s", p->receive_bytes_per_s, "tls", b->tls));
    }
    if (!err)
        err = cli_bench_add(&b->out, json_pack("{s:s,s:I,s:f,s:f,s:b}", "test", "all", "n_nodes", n_nodes, "us",
                                               (double)r->speed.latency_ns / 1e3, "bytes_s", r->speed.bytes_per_s,
                                               "tls", b->tls));
    for (uint32_t i = 0; i < r->n_times && !err; i++) {
        const struct dl_link_time *t = &r->times[i];
        err = cli_bench_add(
            &b->out,
            json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:f,s:f,s:s,s:b}", "test", "sum", "collective", t->name,
                      "n_nodes", n_nodes, "tokens", (json_int_t)b->tokens[i / (r->n_times / b->n_tokens)], "bytes",
                      (json_int_t)t->bytes, "sent_bytes", (json_int_t)t->sent_bytes, "floor_us", t->floor_ns / 1e3,
                      "us", t->ns / 1e3, "us_min", t->least_ns / 1e3, "us_max", t->most_ns / 1e3, "batch_ms",
                      t->ns / 1e6 * 2 * b->n_layers, "wire", dl_type_info(b->wire)->name, "tls", b->tls));
    }
    return err;
}

/* Two sums per layer, of a row of `dim` values per token. */
static int find_sizes(struct link *b, const dl_model *m)
{
    const struct dl_model_header *h = dl_model_header(m);
    uint64_t row = 0;
    b->wire = dl_wire_type(h, b->wire);
    (void)dl_row_bytes(b->wire, h->dim, &row);
    b->n_layers = h->n_layers;
    b->tokens[b->n_tokens++] = 1;
    if (b->o->batch != 1)
        b->tokens[b->n_tokens++] = b->o->batch ? (uint32_t)b->o->batch : 128;
    for (uint32_t i = 0; i < b->n_tokens; i++)
        b->bytes[i] = row * b->tokens[i];
    return b->bytes[b->n_tokens - 1] <= UINT64_C(64) << 20
               ? DL_OK
               : dl_fail(DL_ELIMIT, "bench link: sums of %u tokens are more than 64 MiB: use a smaller --batch",
                         b->tokens[b->n_tokens - 1]);
}

static int measure(struct link *b, struct cli_engine *e)
{
    struct dl_link_report report;
    uint32_t who[CLI_MAX_WORKERS];
    bool wanted[CLI_MAX_WORKERS];
    struct dl_key key;
    dl_transport *t = NULL;
    int err = cli_key(b->o, &key, &b->tls);
    if (err)
        return err;
    dl_key_forget(&key);
    memset(wanted, 1, sizeof wanted);
    err = cli_cluster_open(b->o, &e->workers, &e->devices[0], &e->cluster);
    const struct dl_cluster *how = cli_cluster_how(e->cluster);
    if (!err)
        err = how->connect(how->ud, wanted, true, who, &t);
    if (!err)
        err = dl_link_measure(t, e->devices[0], b->bytes, b->n_tokens,
                              b->o->reps ? (uint32_t)b->o->reps : DEFAULT_ROUNDS, &report);
    if (!err) {
        err = give_out(b, &report);
        dl_link_report_finish(&report);
    }
    return err;
}

int cli_cmd_bench_link(const struct cli_opts *o)
{
    struct link b = {.o = o, .out = {.o = o, .print = print_row}};
    struct cli_engine e = {0};
    struct cli_opts cpu = *o; /* what this node is called by; nothing is computed */
    cpu.device = "cpu";
    int err = o->workers ? cli_workers_parse(o, &e.workers)
                         : cli_usage("bench link: needs the nodes to measure, --workers HOST:PORT,...");
    if (!err)
        err = cli_wire(o, true, &b.wire);
    if (!err)
        err = cli_bench_begin(&b.out);
    if (!err)
        err = cli_bench_model(o, false, &e);
    if (!err)
        err = find_sizes(&b, e.model);
    if (!err)
        err = cli_load_devices(&cpu, &e);
    if (!err)
        err = measure(&b, &e);
    cli_bench_finish(&b.out);
    cli_unload(&e);
    return err;
}
