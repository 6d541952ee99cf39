/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster_msg_in.h: what the files that read messages share: from a message to a cursor, and the one line when it is wrong.
 */
#ifndef ENG_CLUSTER_MSG_IN_H
#define ENG_CLUSTER_MSG_IN_H

#include "cluster_msg.h"

/* Behind the type. */
struct eng_cursor eng_in_open(const struct eng_in *in);
/* All there, and nothing left: DL_OK, else DL_EFORMAT (logged). */
int eng_in_close(const struct eng_in *in, const struct eng_cursor *c);
/* DL_EFORMAT, logged. */
int eng_in_wrong(const struct eng_in *in, const char *what);

double eng_in_f64(struct eng_cursor *c, const char *what);
void eng_in_digest(struct eng_cursor *c, struct eng_digest *out);
/* Into out, at most cap - 1 bytes; false where it is longer or holds a NUL. */
bool eng_in_text(struct eng_cursor *c, char *out, size_t cap, const char *what);

#endif
