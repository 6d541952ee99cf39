/* SPDX-License-Identifier: MIT
 *
 * cli/template.c: which chat template a conversation goes through.
 */
#include "cli.h"

#include <string.h>

int cli_check_template(const struct cli_opts *o)
{
    if (!o->chat_template)
        return DL_OK;
    enum dl_chat_kind kind = dl_chat_by_name(o->chat_template);
    if (kind != DL_CHAT_NONE && kind < DL_CHAT_COUNT)
        return DL_OK;
    struct dl_str names = {0};
    for (int k = DL_CHAT_NONE + 1; k < DL_CHAT_COUNT; k++)
        (void)dl_str_addf(&names, " %s", dl_chat_name((enum dl_chat_kind)k));
    int err = cli_usage("--chat-template: '%s' is unknown, there are:%s", o->chat_template, names.v ? names.v : "");
    dl_str_finish(&names);
    return err;
}

int cli_find_template(const struct cli_opts *o, const struct cli_engine *e, enum dl_chat_kind *kind)
{
    const char *own = dl_tokenizer_info(e->tok)->chat_template;
    *kind = o->chat_template ? dl_chat_by_name(o->chat_template) : dl_chat_detect(own, strlen(own));
    if (o->raw || o->prompt_ids)
        *kind = DL_CHAT_NONE;
    if (*kind == DL_CHAT_NONE && (o->chat || o->system))
        return dl_fail(DL_EUNSUP, "%s: %s; force one with --chat-template NAME (dllama-vk run --help lists them)",
                       dl_model_name(e->model),
                       *own ? "its chat template is none that is known here" : "has no chat template");
    if (*kind == DL_CHAT_NONE && *own && !o->raw && !o->prompt_ids)
        dl_log(DL_LOG_WARN,
               "%s: its chat template is none that is known here, so the text is continued as it is; "
               "--chat-template NAME forces one",
               dl_model_name(e->model));
    return DL_OK;
}
