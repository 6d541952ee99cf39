/* SPDX-License-Identifier: MIT
 *
 * engine/model/demo_text.c: the text that the demo model recites, and a SentencePiece-style vocabulary in which each of its words
 * and punctuation marks is one token.
 *
 * Such a vocabulary is a list of pieces with scores. The tokenizer starts from single characters and keeps joining the
 * neighbours whose joined text is a piece, best score first. "▁" stands for a space, also for the one it puts in front
 * of the text. So that "▁one" can be reached, "▁", "▁o" and "▁on" must be pieces, too. All pieces but the punctuation
 * are such beginnings of words: joining can only ever extend a word from its left end, and the order does not matter.
 */
#include <stdio.h>
#include <string.h>

#include "demo.h"
#include "dl/model.h"
#include "gguf.h"

/* Rules, which tests/test_demo.c checks: no two words follow each other twice (so that two words tell the place); the
 * first word occurs once; some words have several followers (so that one word does not tell the place). */
static const char text[] =
    "One model runs across the machines you already own. Each machine keeps a slice of every layer and computes it on "
    "its "
    "graphics card through Vulkan, or on the CPU. The machines send each other small packets of numbers over the "
    "network, "
    "so a big model fits where no single machine could hold it. Your words stay at home, and nobody else reads them. "
    "What "
    "you see here comes from a tiny demo network that was made by code, not trained: one layer looks back at the word "
    "before and finds the place, the next layer knows which word follows. If you can read this to the end, your "
    "machine "
    "does its maths right. Now give it a real model and ask it something.";

const char *dl_demo_text(void)
{
    return text;
}
const char *dl_demo_prompt(void)
{
    return "One model runs";
}

#define SPACE "\xe2\x96\x81" /* U+2581, SentencePiece's space */

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, UNUSED = 5, BYTE = 6 };

/* The id of a piece, which is added if it is new. */
static uint32_t piece(struct eng_demo_text *t, const char *s, size_t n, uint8_t kind)
{
    for (uint32_t i = 0; i < t->n_pieces; i++)
        if (strlen(t->pieces[i].text) == n && memcmp(t->pieces[i].text, s, n) == 0)
            return i;
    struct eng_demo_piece *p = &t->pieces[t->n_pieces];
    memcpy(p->text, s, n);
    p->kind = kind;
    return t->n_pieces++;
}

static void add_token(struct eng_demo_text *t, uint32_t id, uint8_t *n_words)
{
    if (t->pieces[id].number == 0)
        t->pieces[id].number = ++*n_words;
    t->ids[t->n_ids++] = id;
}

void eng_demo_text_make(struct eng_demo_text *t)
{
    char s[32];
    piece(t, "<unk>", 5, UNKNOWN);
    piece(t, "<s>", 3, CONTROL);
    piece(t, "</s>", 4, CONTROL);
    for (unsigned b = 0; b < 256; b++) /* for what has no piece of its own */
        piece(t, s, (size_t)snprintf(s, sizeof s, "<0x%02X>", b), BYTE);
    piece(t, SPACE, strlen(SPACE), NORMAL);

    uint8_t n_words = 0;
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, " ,.:");
        int full = snprintf(s, sizeof s, SPACE "%.*s", (int)n, p);
        uint32_t id = 0;
        for (size_t k = strlen(SPACE) + 1; k <= (size_t)full; k++)
            id = piece(t, s, k, NORMAL);
        add_token(t, id, &n_words);
        for (p += n; *p && *p != ' '; p++)
            add_token(t, piece(t, p, 1, NORMAL), &n_words);
        p += *p == ' ';
    }
    t->pieces[ENG_DEMO_EOS].number = ++n_words;
    t->ids[t->n_ids] = ENG_DEMO_EOS;
    while (t->n_pieces % 8)
        piece(t, s, (size_t)snprintf(s, sizeof s, "<unused%u>", (unsigned)(t->n_pieces % 8)), UNUSED);
}

void eng_demo_text_write(const struct eng_demo_text *t, struct eng_gguf_out *o)
{
    eng_gguf_out_str(o, "tokenizer.ggml.model", "llama");
    eng_gguf_out_array(o, "tokenizer.ggml.tokens", ENG_GGUF_STR, t->n_pieces);
    for (uint32_t i = 0; i < t->n_pieces; i++)
        eng_gguf_out_item_str(o, t->pieces[i].text);
    eng_gguf_out_array(o, "tokenizer.ggml.scores", ENG_GGUF_F32, t->n_pieces);
    for (uint32_t i = 0; i < t->n_pieces; i++)
        eng_gguf_out_item_f32(o, t->pieces[i].kind == NORMAL ? (float)strlen(t->pieces[i].text) : 0.0f);
    eng_gguf_out_array(o, "tokenizer.ggml.token_type", ENG_GGUF_I32, t->n_pieces);
    for (uint32_t i = 0; i < t->n_pieces; i++)
        eng_gguf_out_item_i32(o, t->pieces[i].kind);
    eng_gguf_out_u32(o, "tokenizer.ggml.unknown_token_id", ENG_DEMO_UNK);
    eng_gguf_out_u32(o, "tokenizer.ggml.bos_token_id", ENG_DEMO_BOS);
    eng_gguf_out_u32(o, "tokenizer.ggml.eos_token_id", ENG_DEMO_EOS);
    eng_gguf_out_bool(o, "tokenizer.ggml.add_bos_token", true);
    eng_gguf_out_bool(o, "tokenizer.ggml.add_eos_token", false);
    eng_gguf_out_bool(o, "tokenizer.ggml.add_space_prefix", true);
}
