/* SPDX-License-Identifier: MIT
 *
 * engine/text/chat_render.h: a conversation as text in parts, before anyone turns it into tokens. Internal to engine/text.
 */
#ifndef ENG_CHAT_RENDER_H
#define ENG_CHAT_RENDER_H

#include "dl/text.h"

enum eng_chat_what {
    ENG_CHAT_PLAIN, /* text of a message or of the template: never becomes a control token */
    ENG_CHAT_MARK,  /* the name of one of the template's own marks */
    ENG_CHAT_BOS,   /* the text is what people are shown; which token it is, the tokenizer knows */
    ENG_CHAT_EOS
};

struct eng_chat_part {
    enum eng_chat_what what;
    size_t at, n; /* bytes of `text` */
};

/* Zero-initialised is empty. Plain parts never touch: neighbours are one part, so that they are tokenized together. */
struct eng_chat_parts {
    struct dl_str text;
    struct eng_chat_part *v;
    size_t len, cap;
};

/* What depends on the vocabulary. Zero is the form that people are shown. */
struct eng_chat_style {
    bool inst_is_token;    /* Mistral v3 and later: [INST] is a control token, its spacing differs */
    bool inst_no_space;    /* ... and nothing is between a mark and its text */
    bool system_is_token;  /* Mistral v7 and later: [SYSTEM_PROMPT] */
    bool marks_eat_spaces; /* Phi-3's own tokenizer: a mark swallows the white space after it */
};

/* Appends the parts of a conversation; errors as dl_chat_tokens. The BOS in front of everything is left to the tokenizer. */
int eng_chat_render(enum dl_chat_kind kind, const struct eng_chat_style *style, const struct dl_chat_msg *msgs,
                    size_t n, bool add_answer, struct eng_chat_parts *out);
void eng_chat_parts_finish(struct eng_chat_parts *parts);

#endif
