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
/* A node is to get as much of the model as fits into so many bytes: less where it could not make room for what it was to have. */
uint64_t eng_heal_room(const dl_engine *e, uint32_t node, uint64_t memory);
/* Which node that is to the user: 0 the root. */
uint32_t eng_heal_number(const dl_engine *e, int node);

/* Somebody failed: the first to be named since the last time all was well is kept. node < 0: nobody knows who. DL_EPEER: it is lost. */
void eng_heal_fault(dl_engine *e, int node, int code, const char *phase, const char *why);
/* That was not in a step but between two: what eng_heal_ready will do about it. */
void eng_heal_between(dl_engine *e);
/* While the engine is formed: all whom it is formed with are there and have room for their shares. How it goes on is logged when it stands, or
 * by the other, called while weights are loaded, when that takes long. */
void eng_heal_planned(dl_engine *e);
void eng_heal_loading(dl_engine *e);
/* What a node's share needs of its free memory: where it does not fit, its next share is smaller. */
struct eng_memory;
void eng_heal_memory(dl_engine *e, int node, const struct eng_memory *needs);
/* A node that has no memory for any share at all: is it done without? What is so at the start is for the user, unless some nodes will do. If
 * so, it is to be blamed for it after eng_heal_no_room. */
bool eng_heal_does_without(const dl_engine *e);
void eng_heal_no_room(dl_engine *e, int node);
/* "node 2 (10.0.0.7:9990) is missing": the workers that the engine is being formed without; empty: none. */
const char *eng_heal_missing(const dl_engine *e, char *out, size_t cap);

/* While the engine is formed or sessions are evaluated again: does the caller want an end? Then DL_ECANCELED, not logged. */
int eng_heal_stop(const dl_engine *e);

/* Before a batch: the engine is whole, or is made so; and who is back is taken in. */
int eng_heal_ready(dl_engine *e);

/* A batch or what belongs to it ended in err, and the engine is in pieces: is it worth another attempt? If not, why is logged. */
bool eng_heal_again(dl_engine *e, int err, unsigned attempt);

#endif
