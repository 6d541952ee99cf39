/* SPDX-License-Identifier: MIT
 *
 * engine/run/heal_share.c: how much of the model a worker is to have that turned out to lack memory: less and less, until it fits, or nothing.
 * What else follows from that is heal.c's business.
 */
#include "cluster.h"
#include "heal_state.h"

#define LEAST_SHARE 0.01 /* of what the others have, or of its first one: below, a worker is of no use */
#define ROOMY 1.1        /* a part of the memory stays free */

const double *eng_heal_shares(const dl_engine *e, double *out)
{
    const struct eng_heal *h = e->heal;
    out[0] = h->root_share;
    for (uint32_t i = 1; i < e->n_slices; i++)
        out[i] = h->members[h->who[i - 1]].share;
    return out;
}

uint64_t eng_heal_room(const dl_engine *e, uint32_t node, uint64_t memory)
{
    const struct eng_heal *h = e->heal;
    if (!h || !node || !memory)
        return memory;
    struct eng_member *m = &h->members[h->who[node - 1]];
    m->room = memory;
    return m->share < 1 ? DL_MAX(1, (uint64_t)((double)memory * m->share)) : memory;
}

void eng_heal_memory(dl_engine *e, int node, const struct eng_memory *needs)
{
    struct eng_heal *h = e->heal;
    const double avail = dl_gib(needs->avail), act = dl_gib(needs->act);
    const double need = dl_gib(needs->kv) + act + dl_gib(needs->copied);
    if (!h || node < 1 || !(need > 0) || (h->shares_given && !h->stood))
        return;
    struct eng_member *m = &h->members[h->who[node - 1]];
    if (m->share == m->first_share) {
        m->use = m->room ? DL_MIN(need / dl_gib(m->room), 1.0) : 1;
        m->least = m->room ? act / dl_gib(m->room) : 0;
    }
    if (needs->fits)
        return;
    double sum = h->root_share, others;
    for (uint32_t i = 1; i < e->n_slices; i++)
        sum += h->members[h->who[i - 1]].share;
    others = sum - m->share;
    /* Some of what it needs does not depend on its share, so that this may have to be done again. */
    double part = m->share / sum * DL_MAX(avail, 0.0) / need * 0.95;
    m->share = part < 1 ? DL_MIN(m->share, part / (1 - part) * others) : m->share;
    if (m->share < LEAST_SHARE * others)
        m->share = 0;
}

bool eng_heal_does_without(const dl_engine *e)
{
    return e->heal && (e->heal->stood || e->heal->how.some);
}

void eng_heal_no_room(dl_engine *e, int node)
{
    e->heal->members[e->heal->who[node - 1]].share = 0;
}

void eng_heal_halve(struct eng_member *m)
{
    if (m->share != m->tried_share) /* it said how much it lacks */
        return;
    const double least = m->least * ROOMY, most = m->use * m->first_share - least;
    const double rest = (DL_MIN(m->share, m->use * m->first_share) - least) / 2;
    m->share = rest > 0 && rest >= LEAST_SHARE * most ? least + rest : 0;
}
