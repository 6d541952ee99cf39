/* SPDX-License-Identifier: MIT
 *
 * engine/backends.c: which devices this build knows, by the names of --device, and which of them suits a model.
 */
#include "dl/session.h"

#include <stdlib.h>
#include <string.h>

#ifndef DL_HAVE_VULKAN /* by the build: the library with the real ones is linked */
int dl_vulkan_open(const struct dl_vulkan_opts *opts, dl_device **out)
{
    (void)opts;
    *out = NULL;
    return dl_fail(DL_EUNSUP, "vulkan: this build has no Vulkan back-end; use --device cpu");
}

int dl_vulkan_list(struct dl_vulkan_info *out, uint32_t cap, uint32_t *n, enum dl_log_level absent_level)
{
    (void)out;
    (void)cap;
    *n = 0;
    dl_log(absent_level, "vulkan: this build has no Vulkan back-end");
    return DL_EUNSUP;
}
#endif

/* "vulkan" or "vulkan:N". */
static bool vulkan_index(const char *which, int *index)
{
    *index = -1;
    if (strncmp(which, "vulkan", 6))
        return false;
    if (!which[6])
        return true;
    char *end;
    if (which[6] != ':' || which[7] < '0' || which[7] > '9')
        return false;
    unsigned long n = strtoul(which + 7, &end, 10);
    *index = (int)n;
    return !*end && n < 1000;
}

int dl_device_open(const char *which, const struct dl_cpu_opts *cpu, dl_device **out)
{
    static const struct dl_cpu_opts defaults;
    *out = NULL;
    if (!strcmp(which, "auto") || !strcmp(which, "cpu"))
        return dl_cpu_open(cpu ? cpu : &defaults, out);
    struct dl_vulkan_opts opts = {0};
    if (vulkan_index(which, &opts.index))
        return dl_vulkan_open(&opts, out);
    return dl_fail(DL_EUNSUP, "device %s: unknown; there are: auto, cpu, vulkan, vulkan:0, vulkan:1 ...", which);
}

#define MAX_GPUS 16u
#define FITS_RESERVE ((uint64_t)256 << 20) /* for the cache of a short context, activations and the driver */

/* The type of most weights: that of the first layer's queries. */
static enum dl_type weight_type(const dl_model *model)
{
    struct dl_tensor t;
    return dl_model_tensor(model, DL_T_ATTN_Q, 0, &t) ? DL_Q40 : t.type;
}

/* Weights that one token reads: all but the embedding table (unless it is the output too) and the experts not chosen. */
static uint64_t bytes_per_token(const dl_model *model)
{
    const struct dl_model_header *h = dl_model_header(model);
    uint64_t bytes = dl_model_weight_bytes(model);
    struct dl_tensor t;
    if (!h->tied && !dl_model_tensor(model, DL_T_EMBED, 0, &t))
        bytes -= DL_MIN(bytes, t.row_bytes * t.rows);
    for (uint32_t l = 0; h->n_experts && l < h->n_layers; l++)
        for (int id = DL_T_MOE_GATE; id <= DL_T_MOE_DOWN; id++)
            if (!dl_model_tensor(model, (enum dl_tensor_id)id, l, &t))
                bytes -= DL_MIN(bytes, t.row_bytes * t.rows * (h->n_experts - h->n_experts_used));
    return bytes;
}

static double token_ns(dl_device *dev, const dl_model *model, struct dl_device_rate *rate)
{
    static const struct dl_model_header common = {.dim = 4096, .n_layers = 32}; /* 8 billion weights, 4 bits each */
    const struct dl_model_header *h = model ? dl_model_header(model) : &common;
    const uint64_t bytes = model ? bytes_per_token(model) : UINT64_C(4500000000);
    if (dl_device_measure(dev, h, model ? weight_type(model) : DL_Q40, rate) || !(rate->bytes_per_s > 0))
        return 0;
    double ns = dl_device_token_ns(rate, h, bytes);
    dl_log(DL_LOG_INFO, "%s: reads weights at %.1f GB/s, %.0f tok/s to be expected", dev->name, rate->bytes_per_s / 1e9,
           1e9 / ns);
    return ns;
}

int dl_device_open_best(const dl_model *model, uint32_t n_nodes, const struct dl_cpu_opts *cpu,
                        dl_progress_fn *progress, void *progress_ud, dl_device **out)
{
    const uint64_t need = model ? dl_model_weight_bytes(model) / n_nodes + FITS_RESERVE : 0;
    struct dl_vulkan_info gpus[MAX_GPUS];
    struct dl_device_rate rate;
    uint32_t n = 0;
    double best = 0;
    int err = dl_device_open("cpu", cpu, out);
    if (err || dl_vulkan_list(gpus, MAX_GPUS, &n, DL_LOG_DEBUG))
        return err;
    for (uint32_t i = 0; i < DL_MIN(n, MAX_GPUS); i++) {
        if (!gpus[i].eligible)
            continue;
        struct dl_vulkan_opts opts = {.index = (int)gpus[i].index};
        dl_device *gpu = NULL;
        if (dl_vulkan_open(&opts, &gpu))
            continue; /* it has said why */
        if (gpu->mem_free && need > gpu->mem_free) {
            dl_log(DL_LOG_WARN, "%s: %.1f GiB are free, the model%s has %.1f: not used", gpu->name,
                   dl_gib(gpu->mem_free), n_nodes > 1 ? "'s part" : "", dl_gib(need - FITS_RESERVE));
            dl_device_close(&gpu);
            continue;
        }
        if (best <= 0)
            best = token_ns(*out, model, &rate);
        gpu->progress = progress;
        gpu->progress_ud = progress_ud;
        double ns = token_ns(gpu, model, &rate);
        gpu->progress = NULL;
        if (ns > 0 && (ns < best || best <= 0)) {
            dl_device_close(out);
            *out = gpu;
            best = ns;
        } else {
            dl_log(DL_LOG_INFO, "%s: slower than %s%s, not used", gpu->name, (*out)->name,
                   model ? " for this model" : "");
            dl_device_close(&gpu);
        }
    }
    return DL_OK;
}

int dl_devices_shares(const dl_model *model, dl_device *const *devices, uint32_t n, double *shares)
{
    for (uint32_t i = 0; i < n; i++) {
        struct dl_device_rate rate;
        int err = dl_device_measure(devices[i], dl_model_header(model), weight_type(model), &rate);
        if (err)
            return err;
        shares[i] = rate.bytes_per_s;
    }
    return DL_OK;
}
