/* SPDX-License-Identifier: MIT
 *
 * engine/run/heal.c: see heal.h. An engine in pieces is formed again from whoever can be had: a worker that was lost is left out at first, one
 * that only failed gets another chance, and both have to wait longer each time they do it again. One line in the log per event:
 * who was lost in which phase and why, and with how many nodes it goes on.
 */
#include "heal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster.h"
#include "heal_state.h"

#define SECOND_NS UINT64_C(1000000000)
#define DEFAULT_PATIENCE_MS 15000u
#define DEFAULT_FORGIVEN_MS 60000u
#define MOST_DROPS 4u           /* who lacks memory is asked again after at most 2^this times that */
#define SEEN_NS (2 * SECOND_NS) /* who was free less than this ago and is not has gone, or works for another root */
#define LONGEST_LEAVE 6u        /* left out for at most 2^this seconds */
#define REST_NS \
    (2 * SECOND_NS)   /* a cluster computes at least this long before it is formed anew for one that is back ... */
#define REST_TIMES 4u /* ... and this many times as long as forming it took */
#define AGAIN_NS \
    (10 * SECOND_NS)       /* who only tends an engine that is down tries no more often, unless somebody is back */
#define PAUSE_NS SECOND_NS /* without a batch this long, it is looked who is still there before the next one */
#define MOST_ROUNDS 32u    /* of forming it, each without the one who failed */
#define MOST_ATTEMPTS 8u   /* at one batch */
#define LOOK_NS UINT64_C(20000000)
#define LONG_NS (3 * SECOND_NS) /* who waits longer than this for weights hears meanwhile how it goes on */

/* -------------------------------------------------------------------------------------------------- who is who */

uint32_t eng_heal_number(const dl_engine *e, int node)
{
    return node > 0 && e->heal ? e->heal->who[node - 1] + 1 : (uint32_t)node;
}

static uint32_t count_in(const struct eng_heal *h)
{
    uint32_t n = 1;
    for (uint32_t w = 0; w < h->how.n_workers; w++)
        n += h->members[w].is_in;
    return n;
}

static void tell(dl_engine *e, enum dl_health state)
{
    struct eng_heal *h = e->heal;
    struct dl_engine_health *now = &h->health;
    now->state = state;
    now->n_nodes = state == DL_HEALTH_READY || state == DL_HEALTH_DEGRADED ? count_in(h) : 0;
    now->n_all = h->how.n_workers + 1;
    if (state == DL_HEALTH_READY)
        now->text[0] = 0;
    else if (!h->fault[0] && state == DL_HEALTH_DEGRADED)
        snprintf(now->text, sizeof now->text, "%u of %u nodes are there", now->n_nodes, now->n_all);
    else if (h->fault[0])
        snprintf(now->text, sizeof now->text, "%.300s", h->fault);
    if (h->how.changed)
        h->how.changed(h->how.ud, now);
}

void dl_engine_health(const dl_engine *e, struct dl_engine_health *out)
{
    uint32_t n = e->failed ? 0 : e->n_slices;
    *out = (struct dl_engine_health){.state = n ? DL_HEALTH_READY : DL_HEALTH_DOWN, .n_nodes = n, .n_all = e->n_slices};
    if (e->heal)
        *out = e->heal->health;
    else if (e->failed)
        snprintf(out->text, sizeof out->text, "%s", dl_err_text(e->failed));
}

const char *eng_heal_missing(const dl_engine *e, char *out, size_t cap)
{
    const struct eng_heal *h = e->heal;
    size_t at = 0;
    uint32_t n = 0;
    *out = 0;
    for (uint32_t w = 0; h && w < h->how.n_workers; w++) {
        if (h->members[w].is_in)
            continue;
        if (cap - at > 100 && ++n) /* else there are too many to name */
            at += (size_t)snprintf(out + at, 80, "%s%.60s", n > 1 ? ", " : "", h->members[w].name);
    }
    if (n)
        snprintf(out + at, cap - at, n > 1 ? " are missing" : " is missing");
    return out;
}

int eng_heal_stop(const dl_engine *e)
{
    const struct eng_heal *h = e->heal;
    return h && h->how.stop && h->how.stop(h->how.ud) ? DL_ECANCELED : DL_OK;
}

/* ---------------------------------------------------------------------------------------------------- faults */

/* It says of itself, or the root of it, that they do not go together: another version, another plan, no kernel. Asking again does not help. */
static bool refuses_again(struct eng_member *m, int code, const char *why)
{
    if (code != DL_EUNSUP)
        return false;
    char text[sizeof m->refusal];
    snprintf(text, sizeof text, "%s", why);
    const bool again = !strcmp(text, m->refusal);
    memcpy(m->refusal, text, sizeof text);
    return again;
}

void eng_heal_fault(dl_engine *e, int node, int code, const char *phase, const char *why)
{
    struct eng_heal *h = e->heal;
    if (!h || (h->noted && !h->charged))
        return;
    const uint32_t who = node > 0 ? h->who[node - 1] : h->how.n_workers;
    const bool pending = h->noted && !h->stale;
    const bool stale = node > 0 && refuses_again(&h->members[who], code, why);
    const bool same =
        h->noted && node > 0 && who == h->faulty &&
        ((h->code == DL_EPEER && code == DL_EPEER) || (eng_heal_is_memory(h->code) && eng_heal_is_memory(code)));
    if (pending && !same && !stale) /* another one, before there was anybody to go on with */
        dl_log(DL_LOG_WARN, "%s", h->fault);
    h->noted = true;
    h->charged = false;
    h->code = code;
    h->faulty = who;
    h->stale = stale && !pending;
    if (same || (stale && pending)) /* it was asked once more, in vain: what happened before is the news */
        return;
    const char *name = node > 0 ? h->members[h->faulty].name : "a node";
    snprintf(h->fault, sizeof h->fault, "%.200s %s in %.60s: %.240s", name, code == DL_EPEER ? "lost" : "failed", phase,
             why);
}

/* Who has no memory for any share of use, or refuses, is asked again later, for its first one, each time after twice as long: that disturbs
 * those who compute. */
static void drop(struct eng_member *m, uint64_t until_ns)
{
    m->not_before_ns = until_ns;
    m->drops++;
    m->seen_ns = 0;
    m->went = false;
}

/* The next time, and what it costs the one who did it. Who was lost in a step is let wait; between steps nobody knows when that was, and it
 * may have been started again since: it is asked at once, but not again and again. */
static void punish(struct eng_heal *h, bool in_step)
{
    uint64_t now = dl_now_ns();
    h->charged = true;
    if (h->faulty == h->how.n_workers) {
        h->unknowns++;
        return;
    }
    struct eng_member *m = &h->members[h->faulty];
    m->faults = now - m->fault_ns > h->forgiven_ns ? 1 : m->faults + 1;
    m->fault_ns = now;
    const uint64_t long_ns = h->forgiven_ns << DL_MIN(m->drops, MOST_DROPS);
    if (h->code == DL_EUNSUP) {
        drop(m, now + long_ns);
        return;
    }
    if (eng_heal_is_memory(h->code)) {
        eng_heal_halve(m);
        if (m->share == 0)
            drop(m, now + long_ns);
        else if (m->faults > 2 * LONGEST_LEAVE)
            m->not_before_ns = now + h->forgiven_ns;
        return;
    }
    if (h->code == DL_EPEER) /* it may come back with more memory */
        m->share = m->first_share;
    const unsigned free_ones = h->code == DL_EPEER && in_step ? 0 : 1;
    if (m->faults > free_ones)
        m->not_before_ns = now + (SECOND_NS << DL_MIN(m->faults - free_ones - 1, LONGEST_LEAVE));
}

/* May it be formed again without the one who failed, or with less for it? What is wrong from the start is for the user to see. */
static bool excusable(const struct eng_heal *h)
{
    if (h->faulty == h->how.n_workers)
        return h->unknowns < 2;
    if (h->stood || h->code == DL_EPEER)
        return true;
    return eng_heal_is_memory(h->code) ? !h->shares_given
                                       : h->code != DL_EUNSUP && h->code != DL_EINVAL && h->code != DL_EFORMAT;
}

/* The root's own device is of no use any more. The engine is in pieces, and has nothing on it. */
static bool replaces_device(dl_engine *e)
{
    const struct eng_heal *h = e->heal;
    dl_device *dev = e->nodes[0].dev;
    if (!h->how.replace || h->how.replace(h->how.ud, &dev))
        return false;
    e->nodes[0] = (struct eng_node){.dev = dev};
    return true;
}

bool eng_heal_again(dl_engine *e, int err, unsigned attempt)
{
    struct eng_heal *h = e->heal;
    if (h && !h->noted && (err == DL_EDEVICE || err == DL_ENOMEM) && attempt + 1 < MOST_ATTEMPTS &&
        replaces_device(e)) {
        tell(e, DL_HEALTH_HEALING);
        return true;
    }
    if (!h || !h->noted || err == DL_ECANCELED)
        return false;
    punish(h, true);
    if (excusable(h) && attempt + 1 < MOST_ATTEMPTS) {
        tell(e, DL_HEALTH_HEALING);
        return true;
    }
    dl_log(DL_LOG_ERROR, "%s; that is not the first time, this step is given up", h->fault);
    h->noted = false;
    h->unknowns = 0;
    tell(e, DL_HEALTH_DOWN);
    return false;
}

void eng_heal_between(dl_engine *e)
{
    struct eng_heal *h = e->heal;
    if (!h || !h->noted || h->charged)
        return;
    punish(h, false);
    tell(e, DL_HEALTH_HEALING);
}

/* --------------------------------------------------------------------------------------------------- forming */

static void choose(struct eng_heal *h)
{
    uint64_t now = dl_now_ns();
    for (uint32_t w = 0; w < h->how.n_workers; w++) {
        struct eng_member *m = &h->members[w];
        h->wanted[w] = now >= m->not_before_ns;
        if (h->wanted[w] && m->share == 0)
            m->share = m->first_share;
        m->tried_share = m->share;
    }
}

static void name_members(struct eng_heal *h, const dl_transport *t)
{
    for (uint32_t w = 0; w < h->how.n_workers; w++)
        h->members[w].is_in = false;
    for (int node = 1; node < dl_transport_n_nodes(t); node++) {
        struct eng_member *m = &h->members[h->who[node - 1]];
        struct dl_node_info info;
        char plain[32];
        dl_transport_node_info(t, node, &info);
        snprintf(plain, sizeof plain, "node %d", node);
        int n = snprintf(m->name, sizeof m->name, "node %u", h->who[node - 1] + 1);
        if (info.name[0] && strcmp(info.name, plain) != 0)
            snprintf(m->name + n, sizeof m->name - (size_t)n, " (%.100s)", info.name);
        m->is_in = true;
    }
}

/* What happened, and with whom it goes on: those who have all that they need for it. */
static void say(struct eng_heal *h)
{
    const uint32_t n = count_in(h), all = h->how.n_workers + 1;
    h->planned_ns = 0;
    if (h->noted)
        dl_log(h->stale ? DL_LOG_INFO : DL_LOG_WARN, "%s; going on with %u of %u nodes", h->fault, n, all);
    else if (!h->stood && n < all)
        dl_log(DL_LOG_WARN, "going on with %u of %u nodes; who is missing is taken in when it comes", n, all);
    h->noted = false;
    for (uint32_t w = 0; w < h->how.n_workers; w++) {
        struct eng_member *m = &h->members[w];
        if (h->stood && m->is_in && !m->was_in)
            dl_log(DL_LOG_WARN, "%s %s: going on with %u of %u nodes", m->name,
                   m->known || m->faults ? "is back" : "has come", n, all);
        m->was_in = m->is_in;
        m->known = m->known || m->is_in;
    }
}

void eng_heal_planned(dl_engine *e)
{
    if (e->heal)
        e->heal->planned_ns = dl_now_ns();
}

void eng_heal_loading(dl_engine *e)
{
    struct eng_heal *h = e->heal;
    if (h && h->stood && h->planned_ns && dl_now_ns() - h->planned_ns > LONG_NS)
        say(h);
}

/* Who lacked memory, went and is there again was started anew, or has done another root's work: now it may have more. */
static void look_for_change(struct eng_member *m, bool is_free, uint64_t now)
{
    m->went = m->went || (!is_free && m->seen_ns && now - m->seen_ns < SEEN_NS);
    if (m->went && is_free) {
        m->not_before_ns = now;
        m->went = false;
    }
    m->seen_ns = is_free ? now : 0;
}

static bool knows_back(const struct eng_heal *h, uint32_t w)
{
    struct eng_member *m = &h->members[w];
    const uint64_t now = dl_now_ns();
    if (m->is_in || !h->how.is_back || (now < m->not_before_ns && !m->drops))
        return false;
    const bool is_free = h->how.is_back(h->how.ud, w);
    if (m->drops)
        look_for_change(m, is_free, now);
    return is_free && now >= m->not_before_ns;
}

static bool anyone_back(const struct eng_heal *h)
{
    bool any = false;
    for (uint32_t w = 0; w < h->how.n_workers; w++)
        any = knows_back(h, w) || any;
    return any;
}

/* Those that are there cannot hold the model: is it worth waiting for the others? */
static bool wait_for_more(const dl_engine *e, uint64_t until)
{
    const struct eng_heal *h = e->heal;
    while (count_in(h) <= h->how.n_workers && dl_now_ns() < until && !eng_heal_stop(e)) {
        if (anyone_back(h))
            return true;
        dl_sleep_ns(LOOK_NS);
    }
    return false;
}

static int give_up(dl_engine *e, int err)
{
    struct eng_heal *h = e->heal;
    if (err == DL_ECANCELED) {
        if (h->noted && h->planned_ns) { /* who did not wait for the end is to know what for */
            dl_log(h->stale ? DL_LOG_INFO : DL_LOG_WARN, "%s", h->fault);
            h->noted = false;
        }
        tell(e, DL_HEALTH_DOWN);
        return err;
    }
    bool lost = h->stood && h->fault[0];
    char buf[300];
    const char *missing = eng_heal_missing(e, buf, sizeof buf);
    if (lost)
        dl_log(DL_LOG_ERROR, "%s; the %u of %u nodes that are left cannot go on: %s", h->fault, count_in(h),
               h->how.n_workers + 1, dl_err_text(err));
    else if (h->noted)
        dl_log(DL_LOG_ERROR, "%s%s%s", h->fault, *missing ? "; " : "", missing);
    for (uint32_t w = 0; lost && w < h->how.n_workers; w++) /* as the log now says */
        h->members[w].was_in = h->members[w].was_in && h->members[w].is_in;
    h->noted = false;
    h->down = true;
    tell(e, DL_HEALTH_DOWN);
    return lost ? DL_EPEER : err;
}

/* One attempt with those who can be had. */
static int form_once(dl_engine *e, bool all)
{
    struct eng_heal *h = e->heal;
    dl_transport *t = NULL;
    h->planned_ns = 0;
    choose(h);
    int err = h->how.connect(h->how.ud, h->wanted, all, h->who, &t);
    if (err)
        return err;
    for (int i = 1; i < dl_transport_n_nodes(t); i++)
        if (h->who[i - 1] >= h->how.n_workers || (uint32_t)dl_transport_n_nodes(t) > h->how.n_workers + 1) {
            dl_transport_close(&t);
            return dl_fail(DL_EINVAL, "engine: the cluster has a worker that there is not");
        }
    name_members(h, t);
    return eng_form(e, t);
}

static int form_again(dl_engine *e)
{
    struct eng_heal *h = e->heal;
    uint64_t begun = dl_now_ns();
    uint64_t until = begun + (h->down ? 0 : (uint64_t)h->how.patience_ms * 1000000u);
    for (unsigned round = 0;; round++) {
        int err = eng_heal_stop(e);
        if (!err)
            err = form_once(e, !h->stood && !round);
        if (!err)
            break;
        bool again = round < MOST_ROUNDS && err != DL_ECANCELED;
        if (again && h->noted && !h->charged) {
            punish(h, true);
            again = excusable(h);
        } else if (again && !h->stood && !round && h->how.some && (err == DL_EPEER || err == DL_ETIMEDOUT)) {
            continue; /* with those who are there */
        } else if (again && !(err == DL_EDEVICE && replaces_device(e))) {
            again = (h->stood || round) && wait_for_more(e, until);
            err = again ? err : eng_heal_stop(e) ? DL_ECANCELED : err;
        }
        if (!again)
            return give_up(e, err);
    }
    say(h);
    for (uint32_t w = 0; w < h->how.n_workers; w++)
        if (h->members[w].is_in) {
            h->members[w].drops = 0;
            h->members[w].refusal[0] = 0;
        }
    h->formed_ns = dl_now_ns();
    h->took_ns = h->formed_ns - begun;
    h->stood = true;
    h->down = false;
    if (count_in(h) > h->how.n_workers)
        h->fault[0] = 0;
    tell(e, count_in(h) > h->how.n_workers ? DL_HEALTH_READY : DL_HEALTH_DEGRADED);
    return DL_OK;
}

/* Those who are back are taken in, but not at every whim. */
static bool grows(const struct eng_heal *h)
{
    if (count_in(h) > h->how.n_workers)
        return false;
    uint64_t rest = DL_MAX(REST_NS, REST_TIMES * h->took_ns);
    return dl_now_ns() - h->formed_ns >= rest && anyone_back(h);
}

/* Somebody has gone since the last batch, while nothing was expected of him. */
static bool shrinks(dl_engine *e)
{
    if (!e->cluster || !eng_cluster_look(e->cluster))
        return false;
    eng_heal_between(e);
    return true;
}

static int ready(dl_engine *e, bool in_pause)
{
    struct eng_heal *h = e->heal;
    if (!h)
        return DL_OK;
    if (e->formed)
        h->unknowns = 0; /* the batch before went well */
    if (e->formed && !(in_pause && shrinks(e)) && !grows(h))
        return DL_OK;
    tell(e, DL_HEALTH_HEALING);
    eng_unform(e, DL_OK, "");
    int err = form_again(e);
    h->tried_ns = dl_now_ns();
    return err;
}

int eng_heal_ready(dl_engine *e)
{
    return ready(e, dl_now_ns() - e->batch_ns > PAUSE_NS);
}

int dl_engine_tend(dl_engine *e)
{
    const struct eng_heal *h = e->heal;
    if (h && h->down && dl_now_ns() - h->tried_ns < AGAIN_NS && !anyone_back(h))
        return DL_EPEER; /* as was said */
    return ready(e, true);
}

/* -------------------------------------------------------------------------------------------- create, destroy */

int eng_heal_create(dl_engine *e, const struct dl_cluster *how)
{
    const double *shares = e->opts.shares;
    struct eng_heal *h = e->heal = dl_calloc(1, sizeof *h);
    if (!h)
        return DL_ENOMEM;
    const uint32_t n = how->n_workers;
    h->how = *how;
    h->how.patience_ms = how->patience_ms ? how->patience_ms : DEFAULT_PATIENCE_MS;
    h->forgiven_ns = (uint64_t)(how->forgiven_ms ? how->forgiven_ms : DEFAULT_FORGIVEN_MS) * 1000000u;
    h->members = dl_calloc((size_t)n + 1, sizeof *h->members);
    h->wanted = dl_calloc((size_t)n + 1, sizeof *h->wanted);
    h->who = dl_calloc((size_t)n + 1, sizeof *h->who);
    if (!h->members || !h->wanted || !h->who)
        return DL_ENOMEM;
    h->shares_given = shares;
    h->root_share = shares ? shares[0] : 1;
    for (uint32_t w = 0; w < n; w++) {
        h->members[w].share = h->members[w].first_share = shares ? shares[w + 1] : 1;
        h->members[w].use = 1;
        const char *at = how->names ? how->names[w] : NULL;
        snprintf(h->members[w].name, sizeof h->members[w].name, at ? "node %u (%.100s)" : "node %u", w + 1, at);
    }
    return form_again(e);
}

void eng_heal_destroy(struct eng_heal **heal)
{
    struct eng_heal *h = *heal;
    *heal = NULL;
    if (!h)
        return;
    free(h->members);
    free(h->wanted);
    free(h->who);
    free(h);
}
