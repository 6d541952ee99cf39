/* SPDX-License-Identifier: MIT
 *
 * engine/run/heal.h: an engine that outlives its nodes: who of the workers is part of it, who failed last and why, and how it is formed
 * again. Belongs to the engine thread. Files that notice failures say so here (eng_heal_fault) and end the cluster; what follows from
 * it is decided in heal.c alone.
 */
#ifndef ENG_HEAL_H
#define ENG_HEAL_H

#include "engine.h"

/* Sets e->heal up and forms the engine for the first time. */
int eng_heal_create(dl_engine *e, const struct dl_cluster *how);
void eng_heal_destroy(struct eng_heal **heal);

/* The shares of the nodes that are there: out (n_slices), which it returns. */
const double *eng_heal_shares(const dl_engine *e, double *out);
/* Which node that is to the user: 0 the root. */
uint32_t eng_heal_number(const dl_engine *e, int node);

/* Somebody failed: the first to be named since the last time all was well is kept. node < 0: nobody knows who. DL_EPEER: it is lost. */
void eng_heal_fault(dl_engine *e, int node, int code, const char *phase, const char *why);
/* That was not in a step but between two: what eng_heal_ready will do about it. */
void eng_heal_between(dl_engine *e);
/* While the engine is formed: all whom it is formed with are there and have room for their shares, so that the log can say how it goes on. */
void eng_heal_planned(dl_engine *e);
/* A node that has not memory enough: its next share is smaller. */
void eng_heal_memory(dl_engine *e, int node, double need, double avail);

/* While the engine is formed or sessions are evaluated again: does the caller want an end? Then DL_ECANCELED, not logged. */
int eng_heal_stop(const dl_engine *e);

/* Before a batch: the engine is whole, or is made so; and who is back is taken in. */
int eng_heal_ready(dl_engine *e);

/* A batch or what belongs to it ended in err, and the engine is in pieces: is it worth another attempt? If not, why is logged. */
bool eng_heal_again(dl_engine *e, int err, unsigned attempt);

#endif
