/* SPDX-License-Identifier: MIT
 *
 * cli/keygen.c: `keygen`: a new cluster key in a new file.
 */
#include "cli.h"

#include <jansson.h>
#include <stdlib.h>

int cli_cmd_keygen(const struct cli_opts *o)
{
    struct dl_key key;
    int err = dl_key_create(&key);
    if (!err)
        err = dl_key_write(o->model, &key);
    dl_key_forget(&key);
    if (err)
        return err;
    if (!o->quiet)
        fprintf(stderr, "%s holds a new key. Copy it to every machine of the cluster, and give each --key.\n",
                o->model);
    if (!o->json)
        return DL_OK;
    json_t *all = json_pack("{s:s}", "file", o->model);
    char *line = all ? json_dumps(all, JSON_COMPACT) : NULL;
    err = line ? cli_outf("%s\n", line) : dl_fail(DL_ENOMEM, "keygen: cannot write the result as JSON");
    free(line);
    json_decref(all);
    return err;
}
