/* SPDX-License-Identifier: MIT
 *
 * engine/model/reader.h: what the model readers share: the inside of dl_model, the shape that each tensor must have, and the
 * checks of a header. model.c opens files and answers questions; model_gguf.c and model_dllama.c know one format each;
 * gguf_parts.c follows split GGUF files; shapes.c needs no file; model_list.c prints.
 */
#ifndef ENG_READER_H
#define ENG_READER_H

#include "dl/model.h"
#include "gguf.h"
#include "made.h"

/* One file: the model itself, or one part of a split GGUF model. */
struct eng_part {
    char *path;
    struct dl_map map;
    bool mapped;          /* else the bytes are the caller's */
    struct eng_gguf gguf; /* zero for .m */
};

/* Where things are in a .m: all layers are alike. */
struct eng_dllama {
    const uint8_t *header; /* n_pairs x (key, value) */
    uint32_t n_pairs;
    enum dl_type weight;
    uint64_t start[DL_T_COUNT]; /* from the start of the file; of per-layer tensors: that of layer 0 */
    uint64_t layer_bytes;
    uint64_t expert_bytes; /* gate, down and up of one expert */
};

/* Reads and checks everything (logged errors); finds a checked tensor. */
struct eng_reader {
    int (*read)(dl_model *m);
    int (*tensor)(const dl_model *m, enum dl_tensor_id id, uint32_t layer, struct dl_tensor *out);
    int (*list)(const dl_model *m, dl_model_row_fn *row, void *ud);
};
extern const struct eng_reader eng_reader_gguf, eng_reader_dllama;

struct dl_model {
    const struct eng_reader *reader;
    struct dl_model_header h;
    char *name;
    char format[32];
    struct eng_part *parts; /* the first is the file that was opened */
    size_t n_parts, cap_parts;
    struct eng_dllama dllama;
    struct eng_made *made; /* what weights are made up of where there is no file (shapes.c), else NULL */
    uint64_t weight_bytes;
};

/* The shape that this model's tensor must have; false where it has no such tensor. Of OUTPUT of a tied model: false. */
struct eng_shape {
    uint32_t rows, cols, n_experts; /* n_experts: 1 for all but expert tensors */
    bool vector;                    /* a norm or a bias: always float32 */
};
bool eng_model_shape(const struct dl_model_header *h, enum dl_tensor_id id, struct eng_shape *out);

/* Every number of the header against its limits and the others; `path` for the message. DL_EFORMAT, or DL_EUNSUP for numbers
 * beyond DL_MAX_*. */
int eng_model_check_header(const struct dl_model_header *h, const char *path);

/* Opens parts 2 .. n of a split GGUF model whose first part is parts[0]; nothing for a model in one file. */
int eng_gguf_open_parts(dl_model *m);

/* GGML's name of a tensor type, "type 99" for one that is not known (in buf). */
const char *eng_ggml_type_name(uint32_t type, char buf[24]);

const char *eng_dllama_key_name(int32_t key); /* "?" where unknown */

/* The tensors of one layer in the order of a .m; a model has those of them that eng_model_shape gives it. */
extern const enum dl_tensor_id eng_dllama_layer_order[];
extern const size_t eng_dllama_n_layer_order;

/* model_list.c */
int eng_list_gguf(const dl_model *m, dl_model_row_fn *row, void *ud);
int eng_list_dllama(const dl_model *m, dl_model_row_fn *row, void *ud);
/* Text of a file made fit for a terminal: \n, \t and \\ escaped, other control bytes '?', cut at a character after about
 * `most` bytes with "..." behind. */
int eng_list_text(struct dl_str *out, struct eng_span text, size_t most);

#endif
