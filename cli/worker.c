/* SPDX-License-Identifier: MIT
 *
 * cli/worker.c: `worker`: one device, lent to one root after the other. Its log on stderr is for whoever looks after the machine: a
 * line where something begins or ends, none while it computes or waits.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

#define LOOK_NS UINT64_C(200000000) /* how often a wait for a root looks whether Ctrl-C came */
#define CACHE_MOST (UINT64_C(32) << 30)

struct service {
    const struct cli_opts *o;
    struct cli_engine e; /* its device, and the local model */
    struct dl_key key;
    bool has_key;
    dl_tcp_listener *listener;
    struct dl_worker_opts opts;
    char cache[3072], about[CLI_ABOUT];
    uint64_t joined_ns, ready_ns; /* 0: not (yet) */
    struct dl_worker_job last;    /* its numbers; the texts are gone */
    char root[512], model[128];
};

/* What others say of themselves does not drive this terminal. */
DL_PRINTF(2, 3) static void say(const struct service *s, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    if (s->o->quiet)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    for (char *c = line; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    fprintf(stderr, "worker: %s\n", line);
}

/* -------------------------------------------------------------------------------------------------- one root */

static void on_joined(struct service *s, const struct dl_worker_job *j)
{
    char weights[32], kv[32], act[32];
    s->joined_ns = dl_now_ns();
    say(s, "%s joined: %s, as node %u of %u with %.1f %% of it: weights %s, KV cache %s, activations %s", s->root,
        s->model, j->node, j->n_nodes, 100 * j->share, cli_size(weights, j->weight_bytes), cli_size(kv, j->kv_bytes),
        cli_size(act, j->act_bytes));
}

static void on_ready(struct service *s, const struct dl_worker_job *j)
{
    char sent[32];
    s->ready_ns = dl_now_ns();
    say(s, "ready after %.1f s: %s of weights were sent, the rest was here", (double)(s->ready_ns - s->joined_ns) / 1e9,
        cli_size(sent, j->sent_bytes));
}

static void on_event(void *ud, enum dl_worker_phase phase, const struct dl_worker_job *j)
{
    struct service *s = ud;
    s->last = *j;
    snprintf(s->root, sizeof s->root, "%s%s%.200s%s", j->root, *j->root_about ? " (" : "", j->root_about,
             *j->root_about ? ")" : "");
    snprintf(s->model, sizeof s->model, "%s", j->model ? j->model : "");
    if (phase == DL_WORKER_JOINED)
        on_joined(s, j);
    else if (phase == DL_WORKER_READY)
        on_ready(s, j);
}

static void say_end(const struct service *s, int err)
{
    const struct dl_worker_job *j = &s->last;
    if (err == DL_ECANCELED)
        say(s, "stopped while it served %s, which was told", s->root);
    else if (err)
        say(s, "%s: ended, %s%s", s->root, dl_err_text(err), s->joined_ns ? "" : ", before its cluster stood");
    else
        say(s, "%s: finished, %llu tokens in %llu steps", s->root, (unsigned long long)j->tokens,
            (unsigned long long)j->steps);
}

/* A root that is told of the end is not to find the door open once more. */
static bool stop(void *ud)
{
    struct service *s = ud;
    if (!cli_interrupted(NULL))
        return false;
    dl_tcp_listener_shut(s->listener);
    return true;
}

/* A GPU that was lost is opened anew: the driver has reset it, or it is gone. */
static int reopen(struct service *s)
{
    for (uint32_t i = 0; i < s->e.n_devices; i++)
        dl_device_close(&s->e.devices[i]);
    s->e.n_devices = 0;
    int err = cli_load_devices(s->o, &s->e);
    if (!err)
        err = cli_choose_devices(s->o, &s->e);
    if (!err)
        say(s, "the device was lost and is opened anew: %s", s->e.devices[0]->name);
    return err;
}

static int serve_one(struct service *s, dl_transport *t)
{
    s->joined_ns = s->ready_ns = 0;
    s->last = (struct dl_worker_job){0};
    int err = dl_worker_run(t, s->e.devices[0], &s->opts);
    dl_mem_trim();
    say_end(s, err);
    if (err == DL_EDEVICE) {
        int lost = reopen(s);
        return lost ? lost : err;
    }
    return err;
}

/* ------------------------------------------------------------------------------------------------ the service */

static void say_listening(const struct service *s)
{
    char memory[32];
    const dl_device *dev = s->e.devices[0];
    uint64_t free_bytes = dev->threads ? dl_mem_available() : dev->mem_free;
    say(s, "listening on %s with %s, %s of memory free%s", dl_tcp_listener_address(s->listener), dev->name,
        cli_size(memory, free_bytes),
        s->has_key       ? ", encrypted"
        : s->o->insecure ? ", without a key: whoever reaches this port may use it"
                         : "");
}

/* Until Ctrl-C. Whatever a root does, the next one is served. */
static int serve(struct service *s)
{
    int err = DL_OK;
    for (bool told = false; !cli_interrupted(NULL);) {
        dl_transport *t = NULL;
        if (!told)
            say_listening(s);
        told = true;
        if (dl_tcp_accept(s->listener, LOOK_NS, &t))
            continue;
        told = false;
        err = serve_one(s, t);
        if (!s->e.n_devices || !s->e.devices[0])
            return err; /* there is nothing left to compute with, which was said */
        if (s->o->once)
            return err;
    }
    return DL_OK;
}

/* -------------------------------------------------------------------------------------------------- beginning */

static void count(void *ud, const char *name, uint64_t bytes, uint64_t age_ns)
{
    (void)name, (void)age_ns;
    *(uint64_t *)ud += bytes;
}

/* As much as was asked for; else half of what the disk could give, at most CACHE_MOST. */
static void open_cache(struct service *s)
{
    const struct cli_opts *o = s->o;
    if (cli_given(o, CLI_OPT_CACHE_SIZE) && !o->cache_size)
        return;
    if (!dl_cache_path("weights", s->cache, sizeof s->cache)) {
        dl_log(DL_LOG_WARN, "worker: there is no folder for weights, so they are sent at every start: set "
                            "DLLAMA_CACHE_DIR");
        return;
    }
    uint64_t held = 0, room = dl_disk_free(s->cache);
    (void)dl_dir_list(s->cache, count, &held);
    s->opts.cache = s->cache;
    s->opts.cache_bytes = cli_given(o, CLI_OPT_CACHE_SIZE) ? o->cache_size
                          : room                           ? DL_MIN(CACHE_MOST, (room + held) / 2)
                                                           : CACHE_MOST;
    char most[32];
    dl_log(DL_LOG_INFO, "worker: keeps up to %s of weights in %s", cli_size(most, s->opts.cache_bytes), s->cache);
}

static int begin(struct service *s)
{
    const struct cli_opts *o = s->o;
    int err = cli_key(o, &s->key, &s->has_key);
    if (!err)
        err = cli_load_devices(o, &s->e);
    if (!err && s->e.n_devices > 1)
        err = cli_usage("--device: a worker computes with one device: start another worker, on another port, for each");
    if (!err)
        err = cli_choose_devices(o, &s->e);
    if (!err && o->local)
        err = dl_model_open(o->local, &s->e.model);
    if (err)
        return err;
    s->opts.model = s->e.model;
    s->opts.tell = on_event;
    s->opts.tell_ud = s;
    s->opts.stop = stop;
    s->opts.stop_ud = s;
    open_cache(s);
    struct dl_tcp_opts tcp;
    cli_tcp_opts(o, s->has_key ? &s->key : NULL, s->e.devices[0], s->about, &tcp);
    return dl_tcp_listen(o->listen ? o->listen : "127.0.0.1:" CLI_PORT, &tcp, &s->listener);
}

int cli_cmd_worker(const struct cli_opts *o)
{
    struct service s = {.o = o};
    cli_interrupt_begin_service();
    int err = begin(&s);
    if (!err)
        err = serve(&s);
    bool listened = s.listener;
    dl_tcp_listener_close(&s.listener);
    if (listened && cli_interrupted(NULL))
        say(&s, "stopped");
    cli_interrupt_end();
    cli_unload(&s.e);
    dl_key_forget(&s.key);
    return err;
}
