/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster.c: the root's workers: joining, waiting for them, and finding out who is to blame when something fails.
 */
#include "cluster.h"
#include "heal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLL_NS UINT64_C(2000000)    /* on one node, while others may speak */
#define BLAME_NS UINT64_C(300000000) /* how long after a failure a worker's own words may take to arrive */

void eng_cluster_phase(struct eng_cluster *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->phase, sizeof c->phase, fmt, ap);
    va_end(ap);
    for (uint32_t i = 0; i < c->n_peers; i++) {
        c->peers[i].done = false;
        c->peers[i].silent_ns = 0;
    }
}

/* ------------------------------------------------------------------------------------------------ who was it */

int eng_cluster_blame(struct eng_cluster *c, const struct eng_peer *p, int err, const char *fmt, ...)
{
    char why[ENG_TEXT_MOST + 1], what[64] = "";
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    if (c->e->bad_exchange)
        snprintf(what, sizeof what, ", exchange %u", c->e->bad_exchange);
    snprintf(c->blame, sizeof c->blame, "%s: %s%s: %s%s", p ? p->link.who : "cluster", c->phase, what,
             err == DL_EPEER && p && !p->explained ? "it is lost: " : "", why);
    if (c->e->heal)
        eng_heal_fault(c->e, p ? p->link.node : -1, err, c->phase, why);
    else
        dl_log(DL_LOG_ERROR, "%s", c->blame);
    return err;
}

int eng_cluster_nonsense(struct eng_cluster *c, const struct eng_peer *p, int err)
{
    if (c->e->heal)
        eng_heal_fault(c->e, p->link.node, err, c->phase, "what it sends makes no sense");
    eng_cluster_leave(c, err, "a worker sends what makes no sense to the root");
    return err;
}

/* What is known of a failure: somebody's own words, or that somebody is gone. One who says that he lost another is no cause. */
struct blame {
    const struct eng_peer *who;
    struct eng_error said;
    bool cause;
};

/* A worker that its user has stopped is as good as lost. */
static int left(int code)
{
    return code == DL_ECANCELED ? DL_EPEER : code;
}

static void listen_to(struct eng_peer *p, uint64_t timeout_ns, struct blame *b)
{
    struct eng_in in;
    int err = p->gone ? DL_ETIMEDOUT : eng_link_recv(&p->link, ENG_BULK_MOST, timeout_ns, &in);
    if (err == DL_ETIMEDOUT || (!err && eng_in_type(&in) != ENG_MSG_ERROR))
        return;
    p->gone = true; /* who says ERROR closes after it */
    struct eng_error said = {.code = DL_EPEER, .text = "its connection has ended"};
    p->explained = !err;
    if (!err && (eng_error_read(&in, &said) || (said.code == DL_EPEER && b->who)))
        return;
    const bool cause = err || said.code != DL_EPEER;
    said.code = left(said.code);
    if (cause || !b->who)
        *b = (struct blame){.who = p, .said = said, .cause = cause};
}

/* What the transport knows is sure: who is gone in our eyes may have left because of the one that it names. */
static void ask_transport(struct eng_cluster *c, struct blame *b)
{
    char why[200];
    int lost = c->t && !(b->cause && b->said.code != DL_EPEER) ? dl_transport_lost(c->t, why, sizeof why) : -1;
    if (lost <= 0 || (uint32_t)lost > c->n_peers)
        return;
    c->peers[lost - 1].explained = false;
    *b = (struct blame){.who = &c->peers[lost - 1], .said = {.code = DL_EPEER}, .cause = true};
    snprintf(b->said.text, sizeof b->said.text, "%s", why);
    c->peers[lost - 1].gone = true;
}

/* Logs it and ends the cluster. Returns what the one who failed says of it, else DL_EPEER. */
static int accuse(struct eng_cluster *c, struct blame *b, int err)
{
    uint64_t end = dl_now_ns() + BLAME_NS;
    for (bool anyone = true; anyone && !b->cause && !c->e->bad_silence && dl_now_ns() < end;) {
        anyone = false;
        ask_transport(c, b);
        for (uint32_t i = 0; i < c->n_peers && !b->cause; i++) {
            listen_to(&c->peers[i], POLL_NS / c->n_peers, b);
            anyone = anyone || !c->peers[i].gone;
        }
    }
    ask_transport(c, b);
    if (b->who && (b->cause || !c->e->heal))
        (void)eng_cluster_blame(c, b->who, b->said.code, "%s", b->said.text);
    else if (b->who) /* a witness */
        (void)eng_cluster_blame(c, NULL, DL_EPEER, "%.80s says: %.300s", b->who->link.who, b->said.text);
    else
        (void)eng_cluster_blame(c, NULL, DL_EPEER, "%s",
                                c->e->bad_silence ? "a node keeps the others waiting" : dl_err_text(err));
    eng_cluster_leave(c, DL_EPEER, c->blame);
    return b->who ? b->said.code : DL_EPEER;
}

int eng_cluster_lost(struct eng_cluster *c, int err)
{
    struct blame b = {0};
    (void)accuse(c, &b, err);
    return DL_EPEER;
}

/* ------------------------------------------------------------------------------------------------- waiting */

static int silent(struct eng_cluster *c, struct eng_peer *p)
{
    p->explained = true;
    (void)eng_cluster_blame(c, p, DL_EPEER, "it has not said anything for %.1f s", (double)p->silent_ns / 1e9);
    eng_cluster_leave(c, DL_EPEER, c->blame);
    return DL_EPEER;
}

/* What recv on one worker gave: a message (DL_OK, *from set), nothing, or the end. */
static int heard(struct eng_cluster *c, struct eng_peer *p, int err, const struct eng_in *in, struct eng_peer **from)
{
    if (err == DL_ETIMEDOUT)
        return DL_OK;
    struct blame b = {.who = p, .said = {.code = err, .text = "its connection has ended"}, .cause = true};
    if (err == DL_EPEER)
        p->gone = true;
    if (err == DL_EPEER)
        return accuse(c, &b, err);
    if (!err && eng_in_type(in) == ENG_MSG_ERROR) {
        p->gone = p->explained = true;
        err = eng_error_read(in, &b.said);
        b.cause = b.said.code != DL_EPEER;
        b.said.code = left(b.said.code);
        if (!err)
            return accuse(c, &b, b.said.code);
    }
    if (err)
        return eng_cluster_nonsense(c, p, err);
    p->silent_ns = 0;
    *from = p;
    return DL_OK;
}

int eng_cluster_poll(struct eng_cluster *c, size_t most, uint64_t timeout_ns, struct eng_peer **from, struct eng_in *in)
{
    *from = NULL;
    struct eng_peer *one = NULL;
    uint32_t n = 0;
    if (!c->e->formed && eng_heal_stop(c->e)) {
        eng_cluster_leave(c, DL_ECANCELED, "the root was told to stop");
        return DL_ECANCELED;
    }
    for (uint32_t i = 0; i < c->n_peers; i++) {
        struct eng_peer *p = &c->peers[(c->turn + i) % c->n_peers];
        if (p->done)
            continue;
        int err = heard(c, p, eng_link_recv(&p->link, most, 0, in), in, from);
        if (err || *from) {
            c->turn++;
            return err;
        }
        one = p;
        n++;
    }
    if (!one || !timeout_ns)
        return DL_OK;
    uint64_t t0 = dl_now_ns();
    int err =
        heard(c, one, eng_link_recv(&one->link, most, n > 1 ? DL_MIN(timeout_ns, POLL_NS) : timeout_ns, in), in, from);
    c->turn++;
    if (err || *from)
        return err;
    uint64_t waited = dl_now_ns() - t0;
    for (uint32_t i = 0; i < c->n_peers; i++) {
        struct eng_peer *p = &c->peers[i];
        p->silent_ns += p->done ? 0 : waited;
        if (p->silent_ns > c->e->wait_ns)
            return silent(c, p);
    }
    return DL_OK;
}

int eng_cluster_next(struct eng_cluster *c, size_t most, struct eng_peer **from, struct eng_in *in)
{
    for (;;) {
        bool anyone = false;
        for (uint32_t i = 0; i < c->n_peers; i++)
            anyone = anyone || !c->peers[i].done;
        *from = NULL;
        if (!anyone)
            return DL_OK;
        int err = eng_cluster_poll(c, most, DL_MIN(c->e->wait_ns / 4 + 1, UINT64_C(50000000)), from, in);
        if (err || *from)
            return err;
    }
}

int eng_cluster_look(struct eng_cluster *c)
{
    struct eng_peer *p;
    struct eng_in in;
    eng_cluster_phase(c, "a pause");
    int err = eng_cluster_poll(c, ENG_CONTROL_MOST, 0, &p, &in);
    return err || !p ? err : eng_cluster_nonsense(c, p, eng_link_unexpected(&in, "nothing"));
}

int eng_cluster_tell_all(struct eng_cluster *c)
{
    if (c->out.err)
        return c->out.err;
    for (uint32_t i = 0; i < c->n_peers; i++)
        if (eng_link_send(&c->peers[i].link, &c->out))
            return eng_cluster_lost(c, DL_EPEER);
    return DL_OK;
}

const char *eng_cluster_device(const struct eng_cluster *c, uint32_t node)
{
    return node ? c->peers[node - 1].device : c->e->nodes[0].dev->name;
}

/* ------------------------------------------------------------------------------------------------- joining */

static int meet(struct eng_cluster *c, struct eng_peer *p, const struct eng_in *in)
{
    struct eng_hello h;
    int err = eng_in_type(in) == ENG_MSG_HELLO ? eng_hello_read(in, &h) : eng_link_unexpected(in, "HELLO");
    if (err)
        return eng_cluster_nonsense(c, p, err);
    if (h.protocol != ENG_PROTOCOL || strcmp(h.build, DL_VERSION) != 0) {
        err = eng_cluster_blame(
            c, p, DL_EUNSUP,
            "it is version %s (protocol %u), the root is %s (protocol %u): install the same on all nodes", h.build,
            h.protocol, DL_VERSION, ENG_PROTOCOL);
        eng_cluster_leave(c, err, c->blame);
        return err;
    }
    const size_t len = strlen(p->link.who);
    snprintf(p->link.who + len, sizeof p->link.who - len, " (%s)", h.about);
    snprintf(p->device, sizeof p->device, "%s", h.about);
    p->done = true;
    return DL_OK;
}

/* By its number, which is what --split counts, and by its address where it has one. */
static void name_it(const dl_engine *e, struct eng_link *l)
{
    struct dl_node_info info;
    char plain[32];
    dl_transport_node_info(l->t, l->node, &info);
    snprintf(plain, sizeof plain, "node %d", l->node);
    int n = snprintf(l->who, sizeof l->who, "node %u", eng_heal_number(e, l->node));
    if (info.name[0] && strcmp(info.name, plain) != 0)
        snprintf(l->who + n, sizeof l->who - (size_t)n, " at %.100s", info.name);
}

int eng_cluster_join(dl_engine *e, dl_transport *t)
{
    struct eng_cluster *c = e->cluster = dl_calloc(1, sizeof *c);
    if (!c)
        return DL_ENOMEM;
    c->e = e;
    c->t = t;
    uint32_t n = (uint32_t)dl_transport_n_nodes(t) - 1;
    c->peers = dl_calloc(n, sizeof *c->peers);
    if (!c->peers)
        return DL_ENOMEM;
    c->n_peers = n;
    for (uint32_t i = 0; i < n; i++) {
        c->peers[i].link = (struct eng_link){.t = t, .node = (int)i + 1};
        name_it(e, &c->peers[i].link);
    }
    eng_cluster_phase(c, "joining");
    struct eng_hello me = {.protocol = ENG_PROTOCOL};
    snprintf(me.build, sizeof me.build, "%s", DL_VERSION);
    snprintf(me.about, sizeof me.about, "%s", e->nodes[0].dev->name);
    eng_hello_write(&c->out, &me);
    int told = eng_cluster_tell_all(c);
    if (told)
        return told;
    for (;;) {
        struct eng_peer *p;
        struct eng_in in;
        int err = eng_cluster_next(c, ENG_CONTROL_MOST, &p, &in);
        if (!err && p)
            err = meet(c, p, &in);
        if (err || !p)
            return err;
    }
}

void eng_cluster_leave(struct eng_cluster *c, int err, const char *why)
{
    if (!c->t)
        return;
    if (err)
        eng_error_write(&c->out, err, why);
    else
        eng_plain_write(&c->out, ENG_MSG_BYE);
    for (uint32_t i = 0; i < c->n_peers; i++)
        if (!c->peers[i].gone)
            (void)eng_link_send(&c->peers[i].link, &c->out);
    struct dl_transport_stats carried;
    dl_transport_stats(c->t, &carried);
    c->e->carried.sent_bytes += carried.sent_bytes;
    c->e->carried.received_bytes += carried.received_bytes;
    c->t = NULL;
    dl_transport_close(&c->e->nodes[0].transport);
}

void eng_cluster_destroy(struct eng_cluster **cluster)
{
    struct eng_cluster *c = *cluster;
    *cluster = NULL;
    if (!c)
        return;
    for (uint32_t i = 0; i < c->n_peers; i++) {
        eng_link_finish(&c->peers[i].link);
        free(c->peers[i].load.weights);
        free(c->peers[i].load.offers);
        free(c->peers[i].load.wanted);
    }
    free(c->peers);
    free(c->sending);
    eng_out_finish(&c->out);
    eng_tables_finish(&c->tables);
    free(c);
}
