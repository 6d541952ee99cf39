/* SPDX-License-Identifier: MIT
 *
 * dl/text.h: text to tokens and back, chat templates, stop strings. Nothing here knows of devices or sessions. A
 * tokenizer is immutable after it is opened: any thread may use it, also several at once.
 */
#ifndef DL_TEXT_H
#define DL_TEXT_H

#include "dl/base.h"

typedef struct dl_tokenizer dl_tokenizer;

/* From a .gguf (its tokenizer.ggml.* keys; tensors need not be there) or a Distributed Llama .t. DL_EIO, DL_EFORMAT,
 * DL_EUNSUP (one line logged, e.g. naming the pre-tokenizer that is not known). */
int dl_tokenizer_open(const char *path, dl_tokenizer **out);
/* The same from memory, which may be freed afterwards. `name` for messages. */
int dl_tokenizer_open_mem(const void *bytes, size_t n, const char *name, dl_tokenizer **out);
void dl_tokenizer_close(dl_tokenizer **tok); /* nulls, accepts &NULL */

/* The .t that belongs to a .m: `stem.t` beside it, else the only .t in its folder. DL_EINVAL (logged, with the fix) when
 * there is none or no single one. */
int dl_tokenizer_find(const char *model_path, struct dl_str *path);

enum { DL_TOK_NONE = -1 };

struct dl_tokenizer_info {
    const char *kind;          /* "spm", "bpe" */
    const char *pre;           /* "llama3", "gpt-2", ...; "" for spm */
    uint32_t vocab;
    int32_t bos, eos, pad;     /* DL_TOK_NONE where there is none */
    bool add_bos, add_eos, add_space_prefix;
    const char *chat_template; /* the model's own template text; "" where there is none */
};
const struct dl_tokenizer_info *dl_tokenizer_info(const dl_tokenizer *tok);

enum dl_tokenize_flags {
    DL_TOKENIZE_BOS = 1,    /* put BOS first where the model wants one (info.add_bos) */
    DL_TOKENIZE_SPECIAL = 2 /* text such as <|eot_id|> becomes the special token of that name */
};

/* Appends the ids of n bytes of text. Text need not be valid UTF-8: whatever is not goes through byte tokens. Without the
 * BOS flag, nothing is added in front. Allocates; DL_ENOMEM. Where out->most is set: DL_ELIMIT, without a look at more of the
 * text than it takes to see that it does not fit. */
int dl_tokenize(const dl_tokenizer *tok, const char *text, size_t n, unsigned flags, struct dl_tokens *out);

/* The bytes that a token stands for; *n = 0 for control tokens and for ids outside the vocabulary. Not NUL-terminated,
 * may end inside a character. SentencePiece's leading space is there as ' '. */
const char *dl_token_bytes(const dl_tokenizer *tok, int32_t id, size_t *n);
/* The name of a token ("<|eot_id|>", "<0x0A>", " the"), control tokens included: as in the file, but with GPT-2's byte
 * alphabet and SentencePiece's U+2581 undone; never NULL. */
const char *dl_token_text(const dl_tokenizer *tok, int32_t id, size_t *n);
bool dl_token_is_control(const dl_tokenizer *tok, int32_t id);
/* Ends an answer: EOS, EOT and the like. */
bool dl_token_is_eog(const dl_tokenizer *tok, int32_t id);
/* The id of a control or user-defined token by its name, DL_TOK_NONE if there is none. */
int32_t dl_token_by_text(const dl_tokenizer *tok, const char *text);

/* All ids back to bytes, exactly; the space that dl_tokenize put in front of an SPM text (add_space_prefix) is taken
 * away again. */
int dl_detokenize(const dl_tokenizer *tok, const int32_t *ids, size_t n, struct dl_str *out);

/* Streaming decode: appends only whole characters and holds the start of an unfinished one back; bytes that can no
 * longer become valid UTF-8 come out as U+FFFD. */
struct dl_decoder {
    const dl_tokenizer *tok;
    bool strip_space; /* the next byte, if a space, is SPM's added one */
    uint8_t n_held;
    char held[4];
};
void dl_decoder_init(struct dl_decoder *d, const dl_tokenizer *tok, bool at_start);
int dl_decoder_push(struct dl_decoder *d, int32_t id, struct dl_str *out);
int dl_decoder_flush(struct dl_decoder *d, struct dl_str *out); /* what is held becomes U+FFFD */

/* ----------------------------------------------------------------------------------------- stop strings */

/* Finds stop strings that may be spread over many pieces. Text goes in as it is made; what can no longer be part of a
 * stop string comes out. */
struct dl_stops {
    char **v; /* owned */
    size_t n;
    struct dl_str held;
};
int dl_stops_add(struct dl_stops *s, const char *text); /* copies; empty strings are refused (DL_EINVAL) */
/* Appends to `out`; returns 1 when a stop string was found (it and all after it is dropped), 0 otherwise, or an error. */
int dl_stops_push(struct dl_stops *s, const char *text, size_t n, struct dl_str *out);
int dl_stops_flush(struct dl_stops *s, struct dl_str *out); /* the end: what is held comes out */
void dl_stops_reset(struct dl_stops *s);                    /* for the next answer: forgets what is held */
void dl_stops_finish(struct dl_stops *s);

/* ---------------------------------------------------------------------------------------- chat templates */

#define DL_CHAT_MAP(X)                                                                             \
    X(NONE, "none")                                                                                \
    X(LLAMA2, "llama2")                                                                            \
    X(LLAMA3, "llama3")                                                                            \
    X(CHATML, "chatml")                                                                            \
    X(MISTRAL, "mistral")                                                                          \
    X(DEEPSEEK, "deepseek")                                                                        \
    X(DEEPSEEK3, "deepseek3")                                                                      \
    X(GEMMA, "gemma")                                                                              \
    X(PHI3, "phi3")                                                                                \
    X(PHI4, "phi4")                                                                                \
    X(ZEPHYR, "zephyr")

#define X(name, text) DL_CHAT_##name,
enum dl_chat_kind { DL_CHAT_MAP(X) DL_CHAT_COUNT };
#undef X
const char *dl_chat_name(enum dl_chat_kind kind);
enum dl_chat_kind dl_chat_by_name(const char *name); /* DL_CHAT_COUNT when unknown */

/* Recognises a template by its own text (Jinja source); DL_CHAT_NONE when none fits. Any bytes, any length. */
enum dl_chat_kind dl_chat_detect(const char *template_text, size_t n);

struct dl_chat_msg {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
};

/* Appends the tokens of a conversation. Only the template's own marks become special tokens; the messages' text never does,
 * so a user cannot forge a turn (where a model's marks are no tokens but text, as Llama 2's [INST], that is not possible).
 * add_answer: ends with the opening of the assistant's turn. BOS is put first where the model wants one. DL_EINVAL (logged) for
 * no messages, an unknown role or an order that the template cannot express. */
int dl_chat_tokens(const dl_tokenizer *tok, enum dl_chat_kind kind, const struct dl_chat_msg *msgs, size_t n,
                   bool add_answer, struct dl_tokens *out);
/* The same as text, for people (inspect, tests): without the BOS in front, with EOS by its usual name. */
int dl_chat_text(enum dl_chat_kind kind, const struct dl_chat_msg *msgs, size_t n, bool add_answer, struct dl_str *out);

/* Strings that end an answer in this format, NULL-terminated list, static. They stop models whose end-of-turn is no single
 * token; control tokens are caught by dl_token_is_eog first. */
const char *const *dl_chat_stops(enum dl_chat_kind kind);

#endif
