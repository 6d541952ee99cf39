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

static int gpu_json(const struct dl_vulkan_info *g)
{
    json_t *heaps = json_array();
    for (uint32_t i = 0; i < g->n_heaps; i++)
        json_array_append_new(heaps,
                              json_pack("{s:I,s:I,s:b}", "bytes", (json_int_t)g->heaps[i].bytes, "budget",
                                        (json_int_t)g->heaps[i].budget, "device_local", g->heaps[i].device_local));
    char kind[32];
    snprintf(kind, sizeof kind, "vulkan:%u", g->index);
    json_t *all = json_pack("{s:s,s:s,s:s,s:s,s:o,s:[iii],s:I,s:s,s:s,s:s,s:b}", "device", kind, "name", g->name,
                            "type", g->type, "driver", g->driver, "heaps", heaps, "subgroup", (int)g->subgroup,
                            (int)g->subgroup_min, (int)g->subgroup_max, "storage_range", (json_int_t)g->storage_range,
                            "features", g->has, "used", g->uses, "unusable", g->unusable, "auto", g->eligible);
    char *line = all ? json_dumps(all, JSON_COMPACT) : NULL;
    int err = line ? cli_outf("%s\n", line) : dl_fail(DL_EDEVICE, "%s: cannot be written as JSON", kind);
    free(line);
    json_decref(all);
    return err;
}

static int gpu_row(const struct cli_opts *o, const struct dl_vulkan_info *g)
{
    if (o->json)
        return gpu_json(g);
    int err =
        cli_outf("vulkan:%u: %s\n  type            %s\n  driver          %s\n", g->index, g->name, g->type, g->driver);
    if (!err && *g->unusable)
        return cli_outf("  not usable      %s\n", g->unusable);
    for (uint32_t i = 0; i < g->n_heaps && !err; i++) {
        char bytes[32], budget[32];
        err = cli_outf("  memory          %s free of %s, %s\n",
                       g->heaps[i].budget ? cli_size(budget, g->heaps[i].budget) : "?",
                       cli_size(bytes, g->heaps[i].bytes), g->heaps[i].device_local ? "on the device" : "of the host");
    }
    char range[32];
    if (!err)
        err = cli_outf(
            "  subgroups       %u (%u to %u)\n  storage range   %s\n  features        %s\n  used            %s\n",
            g->subgroup, g->subgroup_min, g->subgroup_max, cli_size(range, g->storage_range), g->has, g->uses);
    if (!err && !g->eligible)
        err = cli_outf("  auto            not considered: a CPU pretending; name it (vulkan:%u) or set "
                       "DLLAMA_ALLOW_SOFTWARE_GPU=1\n",
                       g->index);
    return err;
}

/* Every GPU, from what its driver says; why there is none goes to stderr. */
static int gpus(const struct cli_opts *o)
{
    struct dl_vulkan_info all[CLI_MAX_DEVICES];
    uint32_t n = 0;
    if (dl_vulkan_list(all, CLI_MAX_DEVICES, &n, DL_LOG_WARN))
        return DL_OK;
    if (!n)
        dl_log(DL_LOG_WARN, "vulkan: its library knows no device; install the GPU's driver");
    int err = DL_OK;
    for (uint32_t i = 0; i < DL_MIN(n, CLI_MAX_DEVICES) && !err; i++)
        err = gpu_row(o, &all[i]);
    return err;
}

int cli_cmd_devices(const struct cli_opts *o)
{
    /* Without a list: everything there is, not what a run would choose. */
    struct cli_opts all = *o;
    if (!all.device)
        all.device = "cpu";
    struct cli_engine e = {0};
    int err = cli_load_devices(&all, &e);
    for (uint32_t i = 0; i < e.n_devices && !err; i++)
        if (e.devices[i])
            err = row(o, e.devices[i]);
    if (!err && (!o->device || !strcmp(o->device, "auto")))
        err = gpus(o);
    if (!err)
        err = cli_out_flush();
    cli_unload(&e);
    return err;
}
