/* SPDX-License-Identifier: MIT
 *
 * engine/run/rates.h: what was measured of clusters, in a small file of the root's. Starting again with the same nodes then measures
 * nothing and, more important, gives the same slices, which the workers still have.
 */
#ifndef ENG_RATES_H
#define ENG_RATES_H

#include "cluster_msg.h"

/* Who was measured, and with what: the texts tell nodes apart, the root is the first. */
struct eng_rates_key {
    uint32_t dim;
    enum dl_type weight;
    const char *const *who; /* (n) */
    uint32_t n;
};

struct eng_link_rate {
    struct dl_link_speed speed;
    uint32_t n_nodes; /* among how many */
};

/* The newest entry that has all of these nodes, and not many more: rates[i].rate is filled in. false: there is none of the last 30 days. What
 * makes no sense in the file is passed over. */
bool eng_rates_recall(const char *path, const struct eng_rates_key *key, struct eng_rate *rates,
                      struct eng_link_rate *link);

/* Adds an entry, in place of an older one of the same nodes. When it cannot be written, that is all right. */
void eng_rates_remember(const char *path, const struct eng_rates_key *key, const struct eng_rate *rates,
                        const struct eng_link_rate *link);

#endif
