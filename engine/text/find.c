/* SPDX-License-Identifier: MIT
 *
 * engine/text/find.c: the tokenizer file that lies beside a Distributed Llama model. The only place in engine/text that
 * lists a folder.
 */
#include "dl/text.h"

#include <dirent.h>
#include <string.h>

/* How many files in `folder` end in ".t"; *name is one of them. -1: the folder cannot be listed. */
static int count_t(const char *folder, struct dl_str *name)
{
    DIR *d = opendir(folder);
    if (!d)
        return -1;
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        size_t len = strlen(e->d_name);
        if (len < 3 || strcmp(e->d_name + len - 2, ".t"))
            continue;
        n++;
        name->len = 0;
        if (dl_str_add(name, e->d_name, len)) {
            n = -1;
            break;
        }
    }
    closedir(d);
    return n;
}

int dl_tokenizer_find(const char *model_path, struct dl_str *path)
{
    const char *slash = strrchr(model_path, '/'), *name = slash ? slash + 1 : model_path;
    const char *dot = strrchr(name, '.');
    size_t stem = dot && dot > name ? (size_t)(dot - model_path) : strlen(model_path);
    struct dl_str found = {0}, folder = {0}, only = {0};
    int err = dl_str_add(&found, model_path, stem);
    if (!err)
        err = dl_str_addz(&found, ".t");
    if (!err && !dl_path_exists(found.v)) {
        found.len = 0;
        err = dl_str_add(&folder, slash ? model_path : "./", slash ? (size_t)(slash - model_path) + 1 : 2);
        int n = err ? 0 : count_t(folder.v, &only);
        if (!err && n != 1)
            err = dl_fail(DL_EINVAL, "%s: %s; give the tokenizer with --tokenizer FILE.t", model_path,
                          n < 0    ? "its folder cannot be listed to look for a tokenizer"
                          : n == 0 ? "there is no tokenizer (.t) beside it"
                                   : "there are several tokenizers (.t) beside it, none of the model's name");
        if (!err)
            err = dl_str_add(&found, folder.v, slash ? folder.len : 0);
        if (!err)
            err = dl_str_add(&found, only.v, only.len);
    }
    if (!err) {
        path->len = 0;
        err = dl_str_add(path, found.v, found.len);
    }
    dl_str_finish(&found);
    dl_str_finish(&folder);
    dl_str_finish(&only);
    return err;
}
