/* SPDX-License-Identifier: MIT
 *
 * transport/join_root.c: how the root makes a cluster: it dials all workers at once, and when all have said hello tells each who belongs to
 * it (JOIN). When all know (JOINED), it lets them connect to each other (MESH), and when all have (READY), it says GO. Until then
 * any failure ends the attempt for all, so that no worker is left in half a cluster.
 *
 * Where not all are needed (`some`), who cannot be had is left out before the first JOIN; if one fails later, it is left out of
 * the next attempt.
 */
#include "dial.h"
#include "tcp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_NS ((uint64_t)200 * 1000000)
#define SILENT_NS ((uint64_t)1000 * 1000000) /* where not all are needed, who says nothing this long is left out */
#define BUSY_MS 3000u                        /* and who is still busy then: from the cluster before it comes free sooner */

/* One worker. */
struct seat {
    struct join *j;
    int node; /* once the cluster forms */
    struct tp_dial dial;
    struct tp_link *link; /* connected; from JOIN on the transport's */
    enum { DIALING, PAUSING, GREETED, JOINED, READY, FAILED, LEFT_OUT } state;
    int err;
    char why[TP_WHY_MOST + 1];
    uint64_t again_ns, dialed_ns; /* PAUSING: until then; DIALING: since */
    struct tp_hello hello;
    uint8_t text[1024];
};

struct join {
    struct tp_loop *loop;
    const struct tp_conf *conf;
    int n;
    bool some; /* it goes on without those who cannot be had */
    struct seat *seats, **by_node; /* by_node[i + 1]: those who are in, from the first JOIN on */
    struct tp_tcp *t; /* when all have said hello */
    uv_timer_t tick;
    unsigned n_open;      /* links that seats own, and the timer */
    uint64_t give_up_ns;  /* retries end */
    uint64_t deadline_ns; /* of the forming cluster */
};

/* ------------------------------------------------------------------------------------------------------ one worker */

static bool any_failed(const struct join *j)
{
    for (int i = 0; i < j->n; i++)
        if (j->seats[i].state == FAILED)
            return true;
    return false;
}

static void dial(struct seat *s)
{
    s->state = DIALING;
    s->dialed_ns = dl_now_ns();
    tp_dial_start(&s->dial);
}

static void seat_failed(struct seat *s, int err, const char *why)
{
    s->link = NULL;
    if (s->state == FAILED || s->state == LEFT_OUT)
        return;
    s->err = err;
    snprintf(s->why, sizeof s->why, "%s", why);
    bool may_come = ((err == DL_EPEER && !s->j->some) || err == DL_EBUSY) && !s->j->t;
    s->again_ns = dl_now_ns() + RETRY_NS;
    if (may_come && s->again_ns < s->j->give_up_ns && !any_failed(s->j))
        s->state = PAUSING;
    else
        s->state = s->j->some && !s->j->t ? LEFT_OUT : FAILED;
}

static void dial_failed(struct tp_dial *d, int err, const char *why)
{
    char with_hint[TP_WHY_MOST + 1];
    snprintf(with_hint, sizeof with_hint,
             err == DL_EPEER ? "%s: is `dllama-vk worker` running there, with --listen?" : "%s", why);
    seat_failed(d->ud, err, with_hint);
}

static void seat_open(struct tp_link *l)
{
    struct seat *s = l->ud;
    struct tp_hello h = {.purpose = TP_FOR_ROOT};
    tp_dial_hello(l, s->j->conf, &h);
}

static int seat_begin(struct tp_link *l, const struct tp_frame *f, void **dest)
{
    struct seat *s = l->ud;
    bool expected = f->type == TP_REFUSE || (f->type == TP_HELLO && s->state == DIALING);
    if (!expected || f->length > sizeof s->text) {
        tp_link_fail(l, DL_EFORMAT, "it answers what it was not asked");
        return DL_EFORMAT;
    }
    *dest = s->text;
    return DL_OK;
}

static int seat_end(struct tp_link *l, const struct tp_frame *f)
{
    struct seat *s = l->ud;
    if (f->type == TP_REFUSE) {
        char why[TP_WHY_MOST + 1];
        tp_text_get(s->text, f->length, why, TP_WHY_MOST);
        int err = f->flags == TP_NO_BUSY ? DL_EBUSY : DL_EUNSUP;
        tp_link_fail(l, err, "%s", why);
        return err;
    }
    const char *wrong = tp_hello_get(s->text, f->length, &s->hello);
    if (wrong || s->hello.purpose != TP_ANSWER) {
        tp_link_fail(l, DL_EFORMAT, "%s", wrong ? wrong : "it says the wrong hello");
        return DL_EFORMAT;
    }
    s->state = GREETED;
    return DL_OK;
}

static void seat_sent(struct tp_link *l, uint64_t token, bool ok)
{
    (void)l, (void)token, (void)ok;
}

static void seat_lost(struct tp_link *l, int err, const char *why)
{
    seat_failed(l->ud, err, why);
}

static void seat_gone(struct tp_link *l)
{
    ((struct seat *)l->ud)->j->n_open--;
}

static const struct tp_link_fns seat_fns = {
    .open = seat_open,
    .begin = seat_begin,
    .end = seat_end,
    .sent = seat_sent,
    .lost = seat_lost,
    .gone = seat_gone,
};

static void dial_connected(struct tp_dial *d, struct tp_link *l)
{
    struct seat *s = d->ud;
    s->link = l;
    l->fns = &seat_fns;
    l->ud = s;
    s->j->n_open++;
}

/* A worker that has said hello waits for the others: it hears that the root is still there. */
static void tick(uv_timer_t *timer)
{
    struct join *j = timer->data;
    uint64_t now = dl_now_ns();
    for (int i = 0; i < j->n; i++) {
        struct seat *s = &j->seats[i];
        if (s->state == PAUSING && any_failed(j)) /* nothing comes of this attempt anyway */
            s->state = FAILED;
        else if (s->state == PAUSING && now >= s->again_ns)
            dial(s);
        else if (s->state == DIALING && !s->link && j->some && now - s->dialed_ns > SILENT_NS) {
            tp_dial_stop(&s->dial);
            seat_failed(s, DL_ETIMEDOUT, "no answer");
        } else if (s->state == DIALING && !s->link)
            tp_dial_tick(&s->dial, now);
        else if (s->state == DIALING && j->some && now - s->dialed_ns > SILENT_NS)
            tp_link_fail(s->link, DL_ETIMEDOUT, "it is silent");
        else if (s->state == DIALING && now >= s->link->deadline_ns)
            tp_link_fail(s->link, DL_ETIMEDOUT, "it is silent: nothing within %u ms", j->conf->handshake_ms);
        else if (s->state == GREETED && !j->t && s->link &&
                 now - s->link->said_ns > (uint64_t)j->conf->beat_ms * 1000000 &&
                 tp_link_put(s->link, &(struct tp_frame){.type = TP_PING}, NULL, NULL, TP_NO_TOKEN))
            tp_link_flush(s->link);
    }
}

/* ------------------------------------------------------------------------------------------------------ the cluster */

static void joining_lost(struct tp_tcp *t, int node, const char *why)
{
    seat_failed(((struct join *)t->joining)->by_node[node], DL_EPEER, why);
}

static int joining_frame(struct tp_tcp *t, int node, const struct tp_frame *f, const uint8_t *payload)
{
    struct join *j = t->joining;
    struct seat *s = j->by_node[node];
    if (f->type == TP_JOINED && s->state == GREETED) {
        s->state = JOINED;
    } else if (f->type == TP_READY && s->state == JOINED) {
        s->state = READY;
    } else if (f->type == TP_FAIL) {
        char why[TP_WHY_MOST + 1];
        tp_text_get(payload, f->length, why, TP_WHY_MOST);
        seat_failed(s, DL_EPEER, why);
    } else {
        seat_failed(s, DL_EFORMAT, "it answers what it was not asked");
    }
    return DL_OK;
}

static void tell_all(struct join *j, uint8_t type)
{
    for (int i = 1; i < j->t->base.n_nodes; i++) {
        struct tp_peer *p = &j->t->peers[i];
        if (p->link && tp_link_put(p->link, &(struct tp_frame){.type = type}, NULL, NULL, TP_NO_TOKEN) && p->link)
            tp_link_flush(p->link);
    }
}

/* How `to` reaches worker i: as the root does, but an address that means "this machine" means another one there. */
static void address_for(const struct join *j, int to, int i, char out[TP_ADDR_MOST + 1])
{
    struct sockaddr_storage far = {0}, here = {0}, there = {0};
    struct sockaddr *addr = (struct sockaddr *)&far;
    *out = 0;
    if (!j->t->peers[i].link || !j->t->peers[to].link || !tp_addr_far(&j->t->peers[i].link->tcp, &far) ||
        !tp_addr_far(&j->t->peers[to].link->tcp, &there) || !tp_addr_local(&j->t->peers[to].link->tcp, &here))
        return;
    uint16_t port = tp_addr_port(addr);
    if (tp_addr_is_loopback(addr) && !tp_addr_is_loopback((const struct sockaddr *)&there)) {
        far = here;
        tp_addr_set_port(addr, port);
    }
    tp_addr_text(addr, out);
}

static int send_join(struct join *j, int to)
{
    struct tp_tcp *t = j->t;
    struct tp_join m = {.rank = (uint16_t)to,
                        .n_nodes = (uint16_t)t->base.n_nodes,
                        .beat_ms = j->conf->beat_ms,
                        .dead_ms = j->conf->dead_ms,
                        .nodes = dl_calloc((size_t)t->base.n_nodes, sizeof *m.nodes)};
    if (!m.nodes)
        return DL_ENOMEM;
    memcpy(m.cluster, t->cluster, sizeof m.cluster);
    for (int i = 0; i < t->base.n_nodes; i++) {
        const struct tp_peer *p = &t->peers[i];
        m.nodes[i].features = p->features;
        memcpy(m.nodes[i].name, p->name, sizeof p->name);
        memcpy(m.nodes[i].about, p->about, sizeof p->about);
        if (i && i != to)
            address_for(j, to, i, m.nodes[i].addr);
    }
    struct dl_str text = {0};
    int err = tp_join_put(&text, &m);
    struct tp_link *l = t->peers[to].link;
    if (!err && l && tp_link_put_copy(l, &(struct tp_frame){.type = TP_JOIN, .length = (uint32_t)text.len}, text.v))
        tp_link_flush(l);
    dl_str_finish(&text);
    tp_join_finish(&m);
    return err;
}

/* All have said hello: their links become a transport. */
static int form(struct join *j)
{
    struct tp_tcp *t;
    int n = 1;
    for (int i = 0; i < j->n; i++)
        if (j->seats[i].state != LEFT_OUT) {
            j->seats[i].node = n;
            j->by_node[n++] = &j->seats[i];
        }
    int err = tp_tcp_create(j->loop, 0, n, &t);
    if (err)
        return err;
    j->t = t;
    t->joining = j;
    t->joining_lost = joining_lost;
    t->joining_frame = joining_frame;
    snprintf(t->peers[0].name, sizeof t->peers[0].name, "root");
    memcpy(t->peers[0].about, j->conf->about, sizeof j->conf->about);
    t->peers[0].features = j->conf->features;
    for (int i = 1; i < n; i++) {
        struct seat *s = j->by_node[i];
        struct tp_peer *p = &t->peers[i];
        memcpy(p->name, s->dial.target, sizeof p->name);
        memcpy(p->about, s->hello.about, sizeof p->about);
        p->features = s->hello.features;
        tp_peer_attach(p, s->link);
        s->link = NULL;
        j->n_open--;
    }
    j->deadline_ns = dl_now_ns() + (uint64_t)j->conf->handshake_ms * 1000000;
    int code = uv_random(NULL, NULL, t->cluster, sizeof t->cluster, 0, NULL);
    if (code)
        return dl_fail(DL_EIO, "transport: the system gives no random numbers: %s", uv_strerror(code));
    err = tp_tcp_watch(t, j->conf->beat_ms, j->conf->dead_ms);
    for (int i = 1; i < n && !err; i++)
        err = send_join(j, i);
    return err;
}

static bool all_are(const struct join *j, int state)
{
    for (int i = 0; i < j->n; i++)
        if ((int)j->seats[i].state < state || j->seats[i].state == FAILED)
            return false;
    return true;
}
/* Every dial has led somewhere: one failure does not hide the others. */
static bool all_settled(const struct join *j)
{
    for (int i = 0; i < j->n; i++)
        if (j->seats[i].state < GREETED)
            return false;
    return true;
}

/* Turns the loop until all workers are in the state, or one has failed, or time is up. */
static bool wait_for(struct join *j, int state)
{
    while (!all_are(j, state) && !any_failed(j) && dl_now_ns() < j->deadline_ns)
        tp_loop_turn(j->loop, true);
    for (int i = 0; i < j->n; i++)
        if (!any_failed(j) && (int)j->seats[i].state < state)
            seat_failed(&j->seats[i], DL_ETIMEDOUT, "it does not connect to the other workers in time");
    return !any_failed(j);
}

static int assemble(struct join *j)
{
    for (int i = 0; i < j->n; i++)
        if (j->seats[i].state != LEFT_OUT)
            dial(&j->seats[i]);
    while (!all_settled(j))
        tp_loop_turn(j->loop, true);
    if (any_failed(j))
        return DL_OK; /* the seats say why */
    int err = form(j);
    if (err)
        return err;
    if (!wait_for(j, JOINED))
        return DL_OK;
    tell_all(j, TP_MESH);
    if (!wait_for(j, READY))
        return DL_OK;
    tell_all(j, TP_GO);
    j->t->joining_lost = NULL;
    j->t->joining_frame = NULL;
    return DL_OK;
}

static int report(const struct join *j, int *errs)
{
    int err = DL_OK;
    for (int i = 0; i < j->n; i++) {
        const struct seat *s = &j->seats[i];
        int e = s->state == FAILED ? s->err : DL_OK;
        if (errs)
            errs[i] = s->state == LEFT_OUT ? s->err : e;
        if (j->some && s->err && s->state >= FAILED)
            dl_log(DL_LOG_INFO, "worker %s: %s", s->dial.target, s->why);
        else if (e)
            (void)dl_fail(e, "worker %s: %s", s->dial.target, s->why);
        err = err ? err : e;
    }
    return err;
}

static void tick_closed(uv_handle_t *handle)
{
    ((struct join *)handle->data)->n_open--;
}

/* Nothing of the join is left on the loop. The transport stays, unless it failed. */
static void clean_up(struct join *j, bool failed)
{
    for (int i = 0; i < j->n; i++) {
        struct seat *s = &j->seats[i];
        s->state = FAILED;
        tp_dial_stop(&s->dial);
        if (s->link)
            tp_link_close(s->link);
        s->link = NULL;
    }
    uv_close((uv_handle_t *)&j->tick, tick_closed);
    if (failed && j->t) {
        tp_tcp_hang_up(j->t);
        tp_tcp_destroy(j->t);
        j->t = NULL;
    }
    for (;;) {
        unsigned n = j->n_open;
        for (int i = 0; i < j->n; i++)
            n += j->seats[i].dial.n_open;
        if (!n)
            break;
        tp_loop_turn(j->loop, true);
    }
}

static int connect_all(struct join *j, const char *const *workers, const bool *out, int *errs)
{
    for (int i = 0; i < j->n; i++) {
        struct seat *s = &j->seats[i];
        *s = (struct seat){.j = j, .state = out && out[i] ? LEFT_OUT : DIALING};
        s->dial = (struct tp_dial){.loop = j->loop,
                                   .conf = j->conf,
                                   .purpose = TP_FOR_ROOT,
                                   .connected = dial_connected,
                                   .failed = dial_failed,
                                   .ud = s};
        snprintf(s->dial.target, sizeof s->dial.target, "%s", workers[i]);
    }
    j->give_up_ns = dl_now_ns() + (uint64_t)(j->some ? BUSY_MS : j->conf->retry_ms) * 1000000;
    (void)uv_timer_init(tp_loop_uv(j->loop), &j->tick);
    j->tick.data = j;
    j->n_open++;
    int code = tp_timer_start(j->loop, &j->tick, tick, 50);
    int err = code ? dl_fail(DL_EIO, "transport: no timer: %s", uv_strerror(code)) : assemble(j);
    int first = report(j, errs);
    err = err ? err : first;
    clean_up(j, err != DL_OK);
    return err;
}

static int connect_once(const char *const *workers, int n, const bool *out, bool some, const struct tp_conf *conf,
                        int *errs, uint32_t *who, dl_transport **transport)
{
    struct join j = {.conf = conf, .n = n, .some = some};
    j.seats = dl_calloc((size_t)n + 1, sizeof *j.seats);
    j.by_node = dl_calloc((size_t)n + 1, sizeof(struct seat *));
    int err = j.seats && j.by_node ? tp_loop_create(conf->spin_us, &j.loop) : DL_ENOMEM;
    if (!err) {
        tp_loop_enter(j.loop);
        err = connect_all(&j, workers, out, errs);
        tp_loop_leave(j.loop);
    }
    if (err) {
        tp_loop_destroy(&j.loop);
    } else {
        for (int i = 1; who && i < j.t->base.n_nodes; i++)
            who[i - 1] = (uint32_t)(j.by_node[i] - j.seats);
        j.t->own_loop = true;
        *transport = &j.t->base;
    }
    free((void *)j.by_node);
    free(j.seats);
    return err;
}

static int check_workers(const char *const *workers, int n, int *errs)
{
    for (int i = 0; errs && i < n; i++)
        errs[i] = DL_OK;
    if (n < 0 || n >= TP_NODES_MOST)
        return dl_fail(DL_EINVAL, "transport: %d workers: up to %d are possible", n, TP_NODES_MOST - 1);
    for (int i = 0; i < n; i++)
        if (strlen(workers[i]) > TP_NAME_MOST)
            return dl_fail(DL_EINVAL, "transport: worker %d has an address of %zu bytes", i + 1, strlen(workers[i]));
    return DL_OK;
}

int dl_tcp_connect(const char *const *workers, int n, const struct dl_tcp_opts *opts, int *errs, dl_transport **out)
{
    *out = NULL;
    struct tp_conf conf = {0};
    int err = check_workers(workers, n, errs);
    if (!err)
        err = tp_conf_init(&conf, opts);
    if (!err)
        err = connect_once(workers, n, NULL, false, &conf, errs, NULL, out);
    tp_conf_finish(&conf);
    return err;
}

int dl_tcp_connect_some(const char *const *workers, int n, const bool *wanted, const struct dl_tcp_opts *opts,
                        uint32_t *who, dl_transport **out)
{
    *out = NULL;
    struct tp_conf conf = {0};
    int err = check_workers(workers, n, NULL);
    bool *left_out = err ? NULL : dl_calloc((size_t)n + 1, sizeof *left_out);
    int *errs = err ? NULL : dl_calloc((size_t)n + 1, sizeof *errs);
    if (!err)
        err = left_out && errs ? tp_conf_init(&conf, opts) : DL_ENOMEM;
    for (int i = 0; i < n && !err; i++)
        left_out[i] = !wanted[i];
    /* Each attempt leaves out one more, or is the last. */
    for (int attempt = 0; !err && !*out; attempt++) {
        err = connect_once(workers, n, left_out, true, &conf, errs, who, out);
        bool fewer = false;
        for (int i = 0; i < n && err; i++) {
            fewer = fewer || (errs[i] && !left_out[i]);
            left_out[i] = left_out[i] || errs[i];
        }
        err = err && fewer && attempt <= n ? DL_OK : err;
    }
    free(left_out);
    free(errs);
    tp_conf_finish(&conf);
    return err;
}
