/* SPDX-License-Identifier: MIT
 *
 * cli/devices.c: `devices`: what this machine can compute on, with the bandwidth that bounds its speed.
 */
#include "cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define MEASURE_MS 300

static int row(const struct cli_opts *o, dl_device *dev)
{
    bool cpu = !strcmp(dev->kind, "cpu");
    double rate = cpu ? dl_cpu_read_bandwidth(dev, MEASURE_MS) : 0;
    const char *features = cpu ? dl_cpu_isas() : "";
    if (o->json) {
        json_t *all = json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:s,s:f}", "device", dev->kind, "name", dev->name, "driver",
                                cpu ? "built-in" : "vulkan", "threads", (json_int_t)dev->threads, "memory_total",
                                (json_int_t)dev->mem_total, "memory_free", (json_int_t)dev->mem_free, "features",
                                features, "read_bandwidth", rate);
        char *line = all ? json_dumps(all, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
        int err = line ? cli_outf("%s\n", line) : dl_fail(DL_EDEVICE, "%s: cannot be written as JSON", dev->kind);
        free(line);
        json_decref(all);
        return err;
    }
    char total[32], available[32];
    int err = cli_outf("%s: %s\n", dev->kind, dev->name);
    if (!err && dev->threads)
        err = cli_outf("  threads         %u\n", dev->threads);
    if (!err)
        err = cli_outf("  memory          %s free of %s\n", cli_size(available, dev->mem_free),
                       cli_size(total, dev->mem_total));
    if (!err && *features)
        err = cli_outf("  kernels         %s\n", features);
    if (!err && rate > 0)
        err = cli_outf("  read bandwidth  %.1f GB/s\n", rate / 1e9);
    return err;
}

int cli_cmd_devices(const struct cli_opts *o)
{
    /* Without a list: everything that can be opened, not what a run would choose. */
    struct cli_opts all = *o;
    if (!all.device)
        all.device = "cpu";
    struct cli_engine e = {0};
    int err = cli_load_devices(&all, &e);
    for (uint32_t i = 0; i < e.n_devices && !err; i++)
        err = row(o, e.devices[i]);
    if (!err)
        err = cli_out_flush();
    cli_unload(&e);
    return err;
}
