/* SPDX-License-Identifier: MIT
 *
 * engine/model/demo.h: what the two halves of the built-in demo model share: its text as tokens (demo_text.c), from which the
 * weights are made (demo.c).
 */
#ifndef ENG_DEMO_H
#define ENG_DEMO_H

#include "gguf_out.h"

enum {
    ENG_DEMO_UNK = 0,
    ENG_DEMO_BOS = 1,
    ENG_DEMO_EOS = 2,
    ENG_DEMO_MAX_PIECES = 1024,
    ENG_DEMO_MAX_TEXT = 255 /* places in the text: their numbers have 8 bits, and 0 means "nowhere" */
};

struct eng_demo_piece {
    char text[24];
    uint8_t kind;   /* tokenizer.ggml.token_type */
    uint8_t number; /* 1, 2, ... for the words of the text (and the end), 0 for strangers: all other pieces */
};

struct eng_demo_text {
    struct eng_demo_piece pieces[ENG_DEMO_MAX_PIECES];
    uint32_t n_pieces; /* a multiple of 8, so that the output matrix can be cut for 8 nodes */
    uint32_t ids[ENG_DEMO_MAX_TEXT + 1];
    uint32_t n_ids; /* tokens of the text; ids[n_ids] is EOS */
};

/* Cuts the text and makes its vocabulary. *out starts zeroed. Cannot fail: the text is ours. */
void eng_demo_text_make(struct eng_demo_text *out);

/* Adds the tokenizer.ggml.* keys. */
void eng_demo_text_write(const struct eng_demo_text *text, struct eng_gguf_out *o);

#endif
