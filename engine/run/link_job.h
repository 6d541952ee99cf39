/* SPDX-License-Identifier: MIT
 *
 * engine/run/link_job.h: exchanges that only measure the network: what a root and its workers do together in a LINK message's time. Both
 * sides are in link_job.c.
 */
#ifndef ENG_LINK_JOB_H
#define ENG_LINK_JOB_H

#include "link.h"
#include "worker.h"

/* Does the collective of the job job->rounds times, as all other nodes do now; ns (rounds), or NULL: how long each took here. */
int eng_link_job_run(dl_transport *t, const struct eng_link_job *job, uint64_t *ns);

/* A worker's answer to a LINK message. */
int eng_link_job_serve(struct eng_worker *w, const struct eng_in *in);

#endif
