/* SPDX-License-Identifier: MIT
 *
 * engine/run/link_job.c: see link_job.h. A sum over nodes is exchanged just as a batch exchanges it, but nothing is computed; streams to and from
 * one worker are DATA messages, as weights are.
 */
#include "link_job.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster.h"
#include "coll_cost.h"

#define LOOK_NS UINT64_C(100000000)
#define MEMORY_MOST ((uint64_t)1 << 30)
#define WARM_UP 1u
/* A node that was ahead finds the others' slices when it starts, and the next round takes it the longer: only several together tell. */
#define GROUP 4u
#define STREAM_LEAST 4u                   /* messages of the first attempt */
#define STREAM_NS UINT64_C(150000000)     /* long enough to tell */
#define STREAM_MOST (UINT64_C(256) << 20) /* bytes */
#define UNDER_WAY ((size_t)4 << 20)

/* ---------------------------------------------------------------------------------------------- collectives */

struct pending {
    int status;
    atomic_bool done;
};

static void done(void *ud, int status)
{
    struct pending *p = ud;
    p->status = status;
    atomic_store_explicit(&p->done, true, memory_order_release);
}

static bool is_done(void *ud)
{
    return atomic_load_explicit(&((struct pending *)ud)->done, memory_order_acquire);
}

static int exchange(dl_transport *t, enum dl_xfer_kind kind, uint8_t *data, size_t slice)
{
    struct pending p = {.done = false};
    struct dl_xfer x = {kind, data, slice, slice};
    int err = dl_transport_start(t, &x, done, &p);
    while (!err && !is_done(&p)) /* a node that is lost ends it, too */
        dl_transport_drive(t, is_done, &p, LOOK_NS);
    return err ? err : p.status;
}

int eng_link_job_run(dl_transport *t, const struct eng_link_job *job, uint64_t *ns)
{
    const uint64_t n = (uint64_t)dl_transport_n_nodes(t), piece = dl_div_up(job->bytes, n);
    const bool in_two = job->kind == ENG_LINK_RS;
    const uint64_t room = in_two ? 2 * n * piece : n * job->bytes;
    if (room > MEMORY_MOST)
        return dl_fail(DL_ELIMIT, "network: sums of %llu bytes over %llu nodes are too large to be measured",
                       (unsigned long long)job->bytes, (unsigned long long)n);
    uint8_t *data = dl_calloc((size_t)room, 1);
    int err = data ? DL_OK : DL_ENOMEM;
    for (uint32_t i = 0; i < job->rounds && !err; i++) {
        uint64_t t0 = dl_now_ns();
        if (in_two) {
            err = exchange(t, DL_XFER_ALL_TO_ALL, data, (size_t)piece);
            if (!err)
                err = exchange(t, DL_XFER_ALL_GATHER, data, (size_t)piece);
        } else {
            err = exchange(t, DL_XFER_ALL_GATHER, data, (size_t)job->bytes);
        }
        if (ns)
            ns[i] = dl_now_ns() - t0;
    }
    free(data);
    return err;
}

/* -------------------------------------------------------------------------------------------------- streams */

static int send_stream(const struct eng_link *l, struct eng_out *o, const struct eng_link_job *job)
{
    int err = DL_OK;
    for (uint32_t i = 0; i < job->rounds && !err; i++) {
        uint8_t *room;
        eng_data_write(o, 0, i * job->bytes, (size_t)job->bytes, &room);
        if (room)
            memset(room, (int)(i & 255), (size_t)job->bytes);
        err = eng_link_send(l, o);
        if (!err && i + 1 < job->rounds) /* who has the last one may be gone by now */
            err = dl_transport_drain(l->t, l->node, UNDER_WAY, UINT64_MAX);
    }
    return err;
}

/* One message of a stream. */
static int take(const struct eng_in *in, const struct eng_link_job *job, uint64_t at)
{
    struct eng_data d;
    int err = eng_in_type(in) == ENG_MSG_DATA ? eng_data_read(in, &d) : eng_link_unexpected(in, "DATA");
    if (!err && (d.weight || d.at != at || d.n != job->bytes))
        err = dl_fail(DL_EFORMAT, "%s: sends other bytes than it was to measure with", in->who);
    return err;
}

/* ------------------------------------------------------------------------------------------- a worker's side */

static int take_stream(struct eng_worker *w, const struct eng_link_job *job)
{
    int err = DL_OK;
    for (uint32_t i = 0; i < job->rounds && !err; i++) {
        struct eng_in in;
        err = eng_worker_recv(w, ENG_CONTROL_MOST, UINT64_MAX, &in);
        if (!err)
            err = take(&in, job, i * job->bytes);
    }
    if (err)
        return err;
    eng_got_write(&w->out, job->rounds * job->bytes);
    return eng_worker_send(w);
}

int eng_link_job_serve(struct eng_worker *w, const struct eng_in *in)
{
    struct eng_link_job job;
    struct dl_link_speed speed;
    int err = eng_link_job_read(in, &job);
    if (err)
        return err;
    if (job.kind == ENG_LINK_TAKE)
        return take_stream(w, &job);
    if (job.kind == ENG_LINK_GIVE)
        err = send_stream(&w->link, &w->out, &job);
    else if (job.kind == ENG_LINK_PROBE)
        err = dl_transport_probe(w->link.t, &speed);
    else
        err = eng_link_job_run(w->link.t, &job, NULL);
    return err ? eng_worker_fail(w, err, "measuring the network: %s", dl_err_text(err)) : DL_OK;
}

/* --------------------------------------------------------------------------------------------- the root's side */

static int ask(struct eng_cluster *c, struct eng_peer *only, const struct eng_link_job *job)
{
    eng_link_job_write(&c->out, job);
    for (uint32_t i = 0; i < c->n_peers; i++)
        if ((!only || only == &c->peers[i]) && eng_link_send(&c->peers[i].link, &c->out))
            return eng_cluster_lost(c, DL_EPEER);
    return DL_OK;
}

static int by_size(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static int time_one(struct eng_cluster *c, enum eng_coll kind, uint64_t bytes, uint32_t rounds,
                    struct dl_link_time *out)
{
    const uint32_t n = c->n_peers + 1;
    const struct eng_link_job job = {kind == ENG_COLL_RS ? ENG_LINK_RS : ENG_LINK_ONE_SHOT, (rounds + WARM_UP) * GROUP,
                                     bytes};
    uint64_t *ns = dl_calloc(job.rounds, sizeof *ns);
    int err = ns ? ask(c, NULL, &job) : DL_ENOMEM;
    if (!err && (err = eng_link_job_run(c->t, &job, ns)) == DL_EPEER)
        err = eng_cluster_lost(c, err);
    for (uint32_t i = 0; i < rounds + WARM_UP && !err; i++) {
        uint64_t sum = 0;
        for (uint32_t k = 0; k < GROUP; k++)
            sum += ns[i * GROUP + k];
        ns[i] = sum / GROUP;
    }
    if (!err) {
        qsort(ns + WARM_UP, rounds, sizeof *ns, by_size);
        *out = (struct dl_link_time){.name = eng_coll_name(kind),
                                     .bytes = bytes,
                                     .sent_bytes = eng_coll_bytes(kind, n, bytes),
                                     .least_ns = (double)ns[WARM_UP],
                                     .ns = (double)ns[WARM_UP + rounds / 2],
                                     .most_ns = (double)ns[WARM_UP + rounds - 1]};
    }
    free(ns);
    return err;
}

/* Waits for GOT, or for the stream itself. */
static int hear(struct eng_cluster *c, struct eng_peer *p, const struct eng_link_job *job)
{
    uint64_t got = 0, total = job->rounds * job->bytes;
    for (uint32_t i = 0; i < c->n_peers; i++)
        c->peers[i].done = p != &c->peers[i];
    while (got < total) {
        struct eng_peer *from;
        struct eng_in in;
        int err = eng_cluster_next(c, ENG_CONTROL_MOST, &from, &in);
        if (err)
            return err;
        if (job->kind == ENG_LINK_GIVE)
            err = take(&in, job, got);
        else if (eng_in_type(&in) != ENG_MSG_GOT)
            err = eng_link_unexpected(&in, "GOT");
        else if (!(err = eng_got_read(&in, &got)) && got != total)
            err = dl_fail(DL_EFORMAT, "%s: has taken in more or less than was sent", in.who);
        if (err)
            return eng_cluster_nonsense(c, p, err);
        got = job->kind == ENG_LINK_GIVE ? got + job->bytes : total;
    }
    return DL_OK;
}

/* Streams that become longer until one tells. */
static int stream(struct eng_cluster *c, struct eng_peer *p, enum eng_link_kind kind, double *bytes_per_s)
{
    struct eng_link_job job = {kind, STREAM_LEAST, ENG_CHUNK_BYTES};
    for (;;) {
        uint64_t t0 = dl_now_ns();
        int err = ask(c, p, &job);
        if (!err && kind == ENG_LINK_TAKE && (err = send_stream(&p->link, &c->out, &job)) == DL_EPEER)
            err = eng_cluster_lost(c, err);
        if (!err)
            err = hear(c, p, &job);
        if (err)
            return err;
        uint64_t ns = dl_now_ns() - t0, bytes = job.rounds * job.bytes;
        *bytes_per_s = (double)bytes * 1e9 / (double)DL_MAX(ns, 1);
        if (ns >= STREAM_NS || bytes * 4 > STREAM_MOST)
            return DL_OK;
        job.rounds *= 4;
    }
}

static int measure_peers(struct eng_cluster *c, struct dl_link_report *out)
{
    int err = DL_OK;
    for (uint32_t i = 0; i < c->n_peers && !err; i++) {
        struct dl_link_peer *to = &out->peers[i];
        struct dl_node_info info;
        dl_transport_node_info(c->t, (int)i + 1, &info);
        snprintf(to->name, sizeof to->name, "%s", info.name);
        snprintf(to->about, sizeof to->about, "%s", info.about);
        err = stream(c, &c->peers[i], ENG_LINK_TAKE, &to->send_bytes_per_s);
        if (!err)
            err = stream(c, &c->peers[i], ENG_LINK_GIVE, &to->receive_bytes_per_s);
    }
    return err;
}

/* What the formulas give for a network that is always as good as it ever was in all this: it is no floor if it can be undercut. */
static void set_floors(uint32_t n_nodes, struct dl_link_report *r)
{
    double latency = (double)r->speed.latency_ns, rate = r->speed.bytes_per_s;
    for (uint32_t i = 0; i < r->n_peers; i++)
        rate = DL_MAX(rate, DL_MAX(r->peers[i].send_bytes_per_s, r->peers[i].receive_bytes_per_s));
    for (uint32_t i = 0; i < r->n_times; i++) {
        const struct dl_link_time *t = &r->times[i];
        rate = DL_MAX(rate, (double)t->sent_bytes * 1e9 / DL_MAX(t->least_ns, 1.0));
        if (!strcmp(t->name, eng_coll_name(ENG_COLL_ONE_SHOT)))
            latency = DL_MIN(latency, t->least_ns);
    }
    for (uint32_t i = 0; i < r->n_times; i++) {
        struct dl_link_time *t = &r->times[i];
        t->floor_ns = eng_coll_ns(i % ENG_COLL_COUNT, n_nodes, t->bytes, latency, rate);
    }
}

static int measure_all(struct eng_cluster *c, const uint64_t *bytes, uint32_t n_bytes, uint32_t rounds,
                       struct dl_link_report *out)
{
    const struct eng_link_job probe = {ENG_LINK_PROBE, 1, 1};
    eng_cluster_phase(c, "measuring the network");
    int err = ask(c, NULL, &probe);
    if (!err && (err = dl_transport_probe(c->t, &out->speed)) == DL_EPEER)
        err = eng_cluster_lost(c, err);
    for (uint32_t i = 0; i < n_bytes && !err; i++)
        for (int kind = 0; kind < ENG_COLL_COUNT && !err; kind++)
            err = time_one(c, (enum eng_coll)kind, bytes[i], rounds, &out->times[out->n_times++]);
    for (uint32_t i = 0; i < c->n_peers && !err; i++) { /* before streams fill the links */
        struct dl_link_stats s;
        dl_transport_link_stats(c->t, (int)i + 1, &s);
        out->peers[i].rtt_ns = s.rtt_ns;
        out->peers[i].rtt_least_ns = s.rtt_least_ns;
    }
    if (!err)
        err = measure_peers(c, out);
    if (!err)
        set_floors(c->n_peers + 1, out);
    return err;
}

int dl_link_measure(dl_transport *t, dl_device *dev, const uint64_t *bytes, uint32_t n_bytes, uint32_t rounds,
                    struct dl_link_report *out)
{
    struct eng_node node = {.dev = dev, .transport = t};
    struct dl_engine e = {.nodes = &node, .n_nodes = 1, .wait_ns = UINT64_C(120000000000)};
    *out = (struct dl_link_report){.n_peers = (uint32_t)dl_transport_n_nodes(t) - 1};
    out->peers = dl_calloc(DL_MAX(out->n_peers, 1), sizeof *out->peers);
    out->times = dl_calloc(DL_MAX(n_bytes, 1), ENG_COLL_COUNT * sizeof *out->times);
    int err = out->peers && out->times ? DL_OK : DL_ENOMEM;
    if (!err)
        err = eng_cluster_join(&e, t);
    if (!err)
        err = measure_all(e.cluster, bytes, n_bytes, rounds, out);
    if (e.cluster)
        eng_cluster_leave(e.cluster, err, "the root could not measure the network");
    eng_cluster_destroy(&e.cluster);
    dl_transport_close(&node.transport);
    if (err)
        dl_link_report_finish(out);
    return err;
}

void dl_link_report_finish(struct dl_link_report *r)
{
    free(r->peers);
    free(r->times);
    *r = (struct dl_link_report){0};
}
