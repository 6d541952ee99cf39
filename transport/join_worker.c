/* SPDX-License-Identifier: MIT
 *
 * transport/join_worker.c: how a worker becomes part of a root's cluster; join_root.c tells the story from the other side. Who is told to
 * connect (MESH) dials those before it; those after it come as guests of the listener.
 */
#include "listen.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void tell_root(struct tp_tcp *t, uint8_t type, const void *text, size_t n)
{
    struct tp_link *link = t->peers[0].link;
    if (link && tp_link_put_copy(link, &(struct tp_frame){.type = type, .length = (uint32_t)n}, text))
        tp_link_flush(link);
}

/* The root is told why; it then hangs up, which ends this for everyone. */
DL_PRINTF(2, 3) static void fail_join(dl_tcp_listener *l, const char *fmt, ...)
{
    if (l->state != TP_JOINING || l->failing)
        return;
    char why[TP_WHY_MOST + 1];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    l->failing = true;
    tp_listen_say(l, "no cluster: %s", why);
    if (n >= 0)
        tell_root(l->t, TP_FAIL, why, strlen(why));
    if (!l->t->peers[0].link)
        tp_join_abort(l);
}

/* READY, when all links are there. */
static void check_ready(dl_tcp_listener *l)
{
    struct tp_tcp *t = l->t;
    for (int i = 0; i < t->base.n_nodes; i++)
        if (i != t->base.node && !t->peers[i].link)
            return;
    if (!l->ready && !l->failing)
        tell_root(t, TP_READY, NULL, 0);
    l->ready = true;
}

/* ------------------------------------------------------------------------------------------------------ links to workers */

static void mesh_open(struct tp_link *link)
{
    struct tp_mesh *m = link->ud;
    const dl_tcp_listener *l = m->l;
    struct tp_hello h = {.purpose = TP_FOR_MESH, .rank = (uint16_t)l->t->base.node};
    memcpy(h.id, l->t->cluster, sizeof h.id);
    tp_dial_hello(link, &l->conf, &h);
}

static int mesh_begin(struct tp_link *link, const struct tp_frame *f, void **dest)
{
    struct tp_mesh *m = link->ud;
    if ((f->type != TP_HELLO && f->type != TP_REFUSE) || f->length > sizeof m->text) {
        tp_link_fail(link, DL_EFORMAT, "it answers what it was not asked");
        return DL_EFORMAT;
    }
    *dest = m->text;
    return DL_OK;
}

static int mesh_end(struct tp_link *link, const struct tp_frame *f)
{
    struct tp_mesh *m = link->ud;
    dl_tcp_listener *l = m->l;
    struct tp_hello h;
    char why[TP_WHY_MOST + 1];
    if (f->type == TP_REFUSE) {
        tp_text_get(m->text, f->length, why, TP_WHY_MOST);
        tp_link_fail(link, DL_EUNSUP, "%s", why);
        return DL_EUNSUP;
    }
    const char *wrong = tp_hello_get(m->text, f->length, &h);
    if (wrong || h.purpose != TP_ANSWER || l->state != TP_JOINING) {
        tp_link_fail(link, DL_EFORMAT, "%s", wrong ? wrong : "it says the wrong hello");
        return DL_EFORMAT;
    }
    m->link = NULL;
    l->n_mesh_links--;
    tp_peer_attach(&l->t->peers[m->node], link);
    check_ready(l);
    return DL_OK;
}

static void mesh_sent(struct tp_link *link, uint64_t token, bool ok)
{
    (void)link, (void)token, (void)ok;
}

static void mesh_failed(struct tp_mesh *m, const char *why)
{
    dl_tcp_listener *l = m->l;
    m->link = NULL;
    if (l->state == TP_JOINING)
        fail_join(l, "it cannot reach node %d (%s) at %s: %s", m->node, l->t->peers[m->node].name, m->dial.target, why);
}

static void mesh_lost(struct tp_link *link, int err, const char *why)
{
    (void)err;
    mesh_failed(link->ud, why);
}

static void mesh_gone(struct tp_link *link)
{
    ((struct tp_mesh *)link->ud)->l->n_mesh_links--;
}

static const struct tp_link_fns mesh_fns = {
    .open = mesh_open,
    .begin = mesh_begin,
    .end = mesh_end,
    .sent = mesh_sent,
    .lost = mesh_lost,
    .gone = mesh_gone,
};

static void dial_connected(struct tp_dial *d, struct tp_link *link)
{
    struct tp_mesh *m = d->ud;
    m->link = link;
    link->fns = &mesh_fns;
    link->ud = m;
    m->l->n_mesh_links++;
}

static void dial_failed(struct tp_dial *d, int err, const char *why)
{
    (void)err;
    mesh_failed(d->ud, why);
}

static void dial_others(dl_tcp_listener *l)
{
    struct tp_tcp *t = l->t;
    for (int i = 1; i < t->base.node && l->state == TP_JOINING; i++) {
        struct tp_mesh *m = &l->mesh[i];
        *m = (struct tp_mesh){.l = l, .node = i};
        m->dial = (struct tp_dial){.loop = l->loop,
                                   .conf = &l->conf,
                                   .purpose = TP_FOR_MESH,
                                   .connected = dial_connected,
                                   .failed = dial_failed,
                                   .ud = m};
        snprintf(m->dial.target, sizeof m->dial.target, "%s", t->peers[i].addr);
        tp_dial_start(&m->dial);
    }
}

void tp_join_mesh(dl_tcp_listener *l, struct tp_guest *g, const struct tp_hello *h)
{
    struct tp_tcp *t = l->state == TP_JOINING ? l->t : NULL;
    if (!t || memcmp(h->id, t->cluster, sizeof t->cluster) != 0 || h->rank <= t->base.node ||
        h->rank >= t->base.n_nodes || t->peers[h->rank].link) {
        tp_guest_refuse(g, TP_NO_CLUSTER, "it does not belong to that cluster");
        return;
    }
    tp_guest_answer(g);
    if (g->link->state == TP_CLOSING)
        return;
    tp_peer_attach(&t->peers[h->rank], g->link);
    tp_guest_forget(g);
    check_ready(l);
}

/* ------------------------------------------------------------------------------------------------------ the root's word */

static void released(void *ud)
{
    ((dl_tcp_listener *)ud)->state = TP_FREE;
}

static void go(dl_tcp_listener *l)
{
    struct tp_tcp *t = l->t;
    t->joining_lost = NULL;
    t->joining_frame = NULL;
    t->released = released;
    t->released_ud = l;
    l->t = NULL;
    l->state = TP_TAKEN;
    pthread_mutex_lock(&l->lock);
    l->formed = t;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static int joining_frame(struct tp_tcp *t, int node, const struct tp_frame *f, const uint8_t *payload)
{
    dl_tcp_listener *l = t->joining;
    (void)payload;
    if (node == 0 && f->type == TP_MESH)
        dial_others(l);
    else if (node == 0 && f->type == TP_GO && l->ready && !l->failing && !l->closing)
        go(l);
    else
        fail_join(l, "node %d sends what does not belong here", node);
    return DL_OK;
}

static void joining_lost(struct tp_tcp *t, int node, const char *why)
{
    dl_tcp_listener *l = t->joining;
    if (node) {
        fail_join(l, "it has lost node %d (%s): %s", node, t->peers[node].name, why);
        return;
    }
    if (!l->failing)
        tp_listen_say(l, "the root went away before its cluster stood: %s", why);
    tp_join_abort(l);
}

static void fill(struct tp_tcp *t, const struct tp_join *j)
{
    memcpy(t->cluster, j->cluster, sizeof t->cluster);
    for (int i = 0; i < t->base.n_nodes; i++) {
        struct tp_peer *p = &t->peers[i];
        const struct tp_join_node *node = &j->nodes[i];
        memcpy(p->name, node->name, sizeof p->name);
        memcpy(p->about, node->about, sizeof p->about);
        memcpy(p->addr, node->addr, sizeof p->addr);
        p->features = node->features;
    }
}

static bool mesh_is_idle(const dl_tcp_listener *l)
{
    for (int i = 1; i < l->n_mesh; i++)
        if (l->mesh[i].dial.n_open)
            return false;
    return !l->n_mesh_links;
}

bool tp_join_clean(dl_tcp_listener *l)
{
    if (l->mesh && !mesh_is_idle(l))
        return false;
    free(l->mesh);
    l->mesh = NULL;
    l->n_mesh = 0;
    return true;
}

void tp_join_begin(dl_tcp_listener *l, struct tp_guest *root, const uint8_t *payload, size_t n)
{
    struct tp_join j;
    struct tp_link *link = root->link;
    const char *wrong = l->mesh ? "this worker has not finished with the cluster before" : tp_join_get(payload, n, &j);
    if (wrong) {
        tp_link_fail(link, DL_EFORMAT, "%s", wrong);
        return;
    }
    l->mesh = dl_calloc(j.rank, sizeof *l->mesh);
    if (!l->mesh || tp_tcp_create(l->loop, j.rank, j.n_nodes, &l->t)) {
        free(l->mesh);
        l->mesh = NULL;
        tp_join_finish(&j);
        tp_link_fail(link, DL_ENOMEM, "no memory for its cluster");
        return;
    }
    struct tp_tcp *t = l->t;
    l->n_mesh = j.rank;
    fill(t, &j);
    snprintf(t->peers[0].name, sizeof t->peers[0].name, "root at %.100s", link->name);
    t->joining = l;
    t->joining_lost = joining_lost;
    t->joining_frame = joining_frame;
    l->root = NULL;
    l->ready = l->failing = false;
    l->deadline_ns = dl_now_ns() + 2 * (uint64_t)l->conf.handshake_ms * 1000000;
    tp_peer_attach(&t->peers[0], link);
    tp_guest_forget(root);
    int err = tp_tcp_watch(t, j.beat_ms, j.dead_ms);
    tp_join_finish(&j);
    if (err)
        fail_join(l, "it has no timer");
    else
        tell_root(t, TP_JOINED, NULL, 0);
    if (l->state == TP_JOINING && l->t == t)
        check_ready(l); /* with one worker, there is nobody else */
}

/* ------------------------------------------------------------------------------------------------------ the end */

void tp_join_abort(dl_tcp_listener *l)
{
    if (l->state != TP_JOINING)
        return;
    l->state = TP_LEAVING;
    if (l->root) {
        l->root->is_root = false;
        tp_link_close(l->root->link);
        l->root = NULL;
    }
    if (l->t)
        tp_tcp_close_links(l->t);
    for (int i = 1; i < l->n_mesh; i++) {
        tp_dial_stop(&l->mesh[i].dial);
        if (l->mesh[i].link)
            tp_link_close(l->mesh[i].link);
        l->mesh[i].link = NULL;
    }
}

void tp_join_tick(dl_tcp_listener *l, uint64_t now)
{
    for (int i = 1; i < l->n_mesh && l->state == TP_JOINING; i++) {
        struct tp_mesh *m = &l->mesh[i];
        if (m->link && now > m->link->deadline_ns)
            tp_link_fail(m->link, DL_ETIMEDOUT, "it is silent");
        else if (!m->link)
            tp_dial_tick(&m->dial, now);
    }
    if (l->state == TP_JOINING && l->t && now > l->deadline_ns) {
        tp_listen_say(l, "the root does not say in time that its cluster stands");
        tp_join_abort(l);
    }
    if (l->state != TP_JOINING)
        (void)tp_join_clean(l);
    if (l->state == TP_LEAVING && !l->mesh && (!l->t || !l->t->n_open)) {
        if (l->t) {
            tp_loop_remove(l->loop, &l->t->client);
            tp_tcp_destroy(l->t);
        }
        l->t = NULL;
        l->state = TP_FREE;
    }
}
