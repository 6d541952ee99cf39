/* SPDX-License-Identifier: MIT
 *
 * engine/model/gguf_parts.c: GGUF models in several files, NAME-00001-of-0000N.gguf. The first part has the metadata; each part has
 * its own list of tensors, with offsets into itself. A split model is opened by its first part's name.
 */
#include "reader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARTS 99999u /* what five digits can count */
#define SUFFIX_BYTES 20  /* "-00001-of-00003.gguf" */

static int part_numbers(const struct eng_gguf *g, uint64_t *no, uint64_t *count)
{
    *no = 0;
    *count = 1;
    bool ok = !eng_gguf_find(g, "split.count") || eng_gguf_u64(g, "split.count", count);
    if (ok && *count > 1)
        ok = eng_gguf_u64(g, "split.no", no) && *no < *count && *count <= MAX_PARTS;
    return ok ? DL_OK : dl_fail(DL_EFORMAT, "%s: its split.* keys make no sense", g->name);
}

/* The path of part `no` (from 0), made from that of the first; NULL (logged) when that is not named like one. */
static char *part_path(const char *first, uint64_t no, uint64_t count)
{
    char want[SUFFIX_BYTES + 16];
    size_t n = strlen(first);
    snprintf(want, sizeof want, "-%05u-of-%05u.gguf", 1u, (unsigned)count);
    if (n < SUFFIX_BYTES || strcmp(first + n - SUFFIX_BYTES, want) != 0) {
        dl_fail(DL_EUNSUP, "%s: the first of %u parts must be named NAME%s, with the others beside it", first,
                (unsigned)count, want);
        return NULL;
    }
    char *path = dl_xstrdup(first);
    snprintf(path + n - SUFFIX_BYTES, SUFFIX_BYTES + 1, "-%05u-of-%05u.gguf", (unsigned)no + 1, (unsigned)count);
    return path;
}

static int open_part(dl_model *m, uint64_t no, uint64_t count)
{
    void *v = m->parts;
    int err = dl_grow(&v, &m->cap_parts, m->n_parts + 1, sizeof *m->parts);
    m->parts = v;
    if (err)
        return err;
    struct eng_part part = {.path = part_path(m->parts[0].path, no, count)};
    if (!part.path)
        return DL_EUNSUP;
    if (dl_path_exists(part.path))
        err = dl_map_open(part.path, &part.map);
    else
        err = dl_fail(DL_EIO, "%s: part %u of %u of this model is missing: put it beside the first one", part.path,
                      (unsigned)no + 1, (unsigned)count);
    part.mapped = !err;
    if (!err)
        err = eng_gguf_parse(part.map.data, part.map.size, part.path, &part.gguf);
    uint64_t its_no, its_count;
    if (!err)
        err = part_numbers(&part.gguf, &its_no, &its_count);
    if (!err && (its_no != no || its_count != count))
        err = dl_fail(DL_EFORMAT, "%s: says that it is part %u of %u", part.path, (unsigned)its_no + 1,
                      (unsigned)its_count);
    m->parts[m->n_parts++] = part; /* closed with the model, also after an error */
    return err;
}

int eng_gguf_open_parts(dl_model *m)
{
    uint64_t no, count, n_tensors = 0, want;
    const struct eng_gguf *g = &m->parts[0].gguf;
    int err = part_numbers(g, &no, &count);
    if (err || count <= 1)
        return err;
    if (!m->parts[0].mapped)
        return dl_fail(DL_EUNSUP, "%s: one part of a split model: open it from a file, with the others beside it",
                       g->name);
    if (no != 0)
        return dl_fail(DL_EUNSUP, "%s: part %u of %u of a split model: open the first one (-00001-of-%05u.gguf)",
                       g->name, (unsigned)no + 1, (unsigned)count, (unsigned)count);
    for (uint64_t i = 1; i < count && !err; i++)
        err = open_part(m, i, count);
    if (err)
        return err;
    for (size_t i = 0; i < m->n_parts; i++)
        n_tensors += m->parts[i].gguf.n_tensors;
    g = &m->parts[0].gguf; /* the array has moved */
    if (eng_gguf_u64(g, "split.tensors.count", &want) && want != n_tensors)
        return dl_fail(DL_EFORMAT, "%s: the %u parts hold %llu tensors, not %llu: they do not belong together", g->name,
                       (unsigned)count, (unsigned long long)n_tensors, (unsigned long long)want);
    return DL_OK;
}
