/* SPDX-License-Identifier: MIT
 *
 * engine/run/worker.h: a worker's side of a cluster (dl_worker_run). worker.c talks and computes; worker_weights.c gets the weights, from a
 * local file, the cache or the root.
 */
#ifndef ENG_WORKER_H
#define ENG_WORKER_H

#include "engine.h"
#include "link.h"
#include "weight_cache.h"

struct eng_worker {
    struct eng_link link; /* to the root */
    struct eng_out out;
    const struct dl_worker_opts *opts;
    dl_engine *e; /* with one node; its header, types and slices are those of `model` */
    struct eng_model_msg model;
    struct eng_cache *cache; /* NULL: none */
    struct dl_map *maps;     /* files that weight buffers point into; closed after those */
    uint32_t n_maps;
    struct eng_tables tables;
    struct eng_step_limits limits;
    uint64_t step;    /* the last one */
    uint64_t got;     /* bytes of DATA taken in */
    uint64_t said_ns; /* when we last sent something */
    bool deaf;        /* the root is gone or has closed: there is nobody to tell */
    bool local_off;   /* the local file is another model */
    bool stopped;     /* opts->stop said so */
    struct dl_worker_job job;
    char root[256], root_about[256]; /* what job points to */
    char phase[48];
};

/* The next message of the root's. ERROR and BYE end in an error: of the first its code, of the second DL_ECANCELED (not logged). */
int eng_worker_recv(struct eng_worker *w, size_t most, uint64_t timeout_ns, struct eng_in *in);
int eng_worker_send(struct eng_worker *w);
/* Called in long work: says GOT when nothing was said for a while, so that the root keeps waiting. ud: the worker. */
void eng_worker_alive(void *ud);
/* Logs, and tells the root. Returns err. */
int eng_worker_fail(struct eng_worker *w, int err, const char *fmt, ...) DL_PRINTF(3, 4);

/* Fills all weight buffers of the plan. */
int eng_worker_weights(struct eng_worker *w);

#endif
