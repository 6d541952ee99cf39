/* SPDX-License-Identifier: MIT
 *
 * dl/model.h: model files (GGUF, Distributed Llama's .m, the built-in demo) behind one view: a header, tensors that
 * point into the mapping, and the plan that a node runs for a slice of them.
 */
#ifndef DL_MODEL_H
#define DL_MODEL_H

#include "dl/op.h"

/* Limits on what a file may claim; beyond them it is refused before anything is allocated. */
#define DL_MAX_LAYERS 1024u
#define DL_MAX_DIM (1u << 20)
#define DL_MAX_HEADS 4096u
#define DL_MAX_VOCAB (1u << 22)
#define DL_MAX_EXPERTS 4096u
#define DL_MAX_SEQ (1u << 24)

enum dl_arch { DL_ARCH_LLAMA, DL_ARCH_QWEN2, DL_ARCH_QWEN3, DL_ARCH_QWEN3_MOE, DL_ARCH_COUNT };
const char *dl_arch_name(enum dl_arch arch); /* "llama", "qwen2", "qwen3", "qwen3moe" */

enum dl_rope_scaling {
    DL_ROPE_SCALE_NONE,
    DL_ROPE_SCALE_LINEAR,  /* all frequencies divided by rope_factor */
    DL_ROPE_SCALE_LLAMA31, /* by wave length: rope_factor, rope_low_freq, rope_high_freq, rope_orig_ctx */
    DL_ROPE_SCALE_TABLE    /* frequency i divided by value i of the tensor DL_T_ROPE_FREQS */
};

struct dl_model_header {
    enum dl_arch arch;
    uint32_t dim;
    uint32_t hidden_dim; /* of the dense FFN; 0 for a pure MoE */
    uint32_t n_layers, n_heads, n_kv_heads, head_dim;
    uint32_t vocab;
    uint32_t max_seq;    /* context the model was trained for */
    uint32_t n_experts, n_experts_used, expert_dim; /* 0 for dense models */
    float norm_eps;
    enum dl_act_fn act;
    enum dl_rope_layout rope_layout;
    uint32_t n_rot; /* values of a head that rope turns, even, <= head_dim */
    double rope_theta;
    enum dl_rope_scaling rope_scaling;
    float rope_factor, rope_low_freq, rope_high_freq;
    uint32_t rope_orig_ctx;
    bool qkv_bias, qk_norm, tied; /* tied: the output matrix is the embedding table */
};

/* What a tensor is, across file formats. Those below the line exist once a layer. */
#define DL_TENSOR_MAP(X)                                                                           \
    X(EMBED, "token_embd.weight")        /* (vocab, dim) */                                        \
    X(OUTPUT_NORM, "output_norm.weight") /* (1, dim) */                                            \
    X(OUTPUT, "output.weight")           /* (vocab, dim); for tied models the embedding */         \
    X(ROPE_FREQS, "rope_freqs.weight")   /* (1, n_rot / 2), optional */                            \
    X(ATTN_NORM, "attn_norm.weight")     /* ------ (1, dim) */                                     \
    X(ATTN_Q, "attn_q.weight")           /* (n_heads * head_dim, dim) */                           \
    X(ATTN_K, "attn_k.weight")           /* (n_kv_heads * head_dim, dim) */                        \
    X(ATTN_V, "attn_v.weight")                                                                     \
    X(ATTN_Q_BIAS, "attn_q.bias") /* (1, n_heads * head_dim), where qkv_bias */                    \
    X(ATTN_K_BIAS, "attn_k.bias")                                                                  \
    X(ATTN_V_BIAS, "attn_v.bias")                                                                  \
    X(ATTN_Q_NORM, "attn_q_norm.weight") /* (1, head_dim), where qk_norm */                        \
    X(ATTN_K_NORM, "attn_k_norm.weight")                                                           \
    X(ATTN_OUT, "attn_output.weight") /* (dim, n_heads * head_dim) */                              \
    X(FFN_NORM, "ffn_norm.weight")    /* (1, dim) */                                               \
    X(FFN_GATE, "ffn_gate.weight")    /* (hidden_dim, dim) */                                      \
    X(FFN_UP, "ffn_up.weight")                                                                     \
    X(FFN_DOWN, "ffn_down.weight")             /* (dim, hidden_dim) */                             \
    X(MOE_ROUTER, "ffn_gate_inp.weight")       /* (n_experts, dim) */                              \
    X(MOE_GATE, "ffn_gate_exps.weight")        /* n_experts x (expert_dim, dim) */                 \
    X(MOE_UP, "ffn_up_exps.weight")                                                                \
    X(MOE_DOWN, "ffn_down_exps.weight")        /* n_experts x (dim, expert_dim) */

#define X(name, gguf) DL_T_##name,
enum dl_tensor_id { DL_TENSOR_MAP(X) DL_T_COUNT };
#undef X
const char *dl_tensor_name(enum dl_tensor_id id);
static inline bool dl_tensor_per_layer(enum dl_tensor_id id) { return id >= DL_T_ATTN_NORM; }

/* (rows, cols) values, row after row, at `data` (which points into the mapping and needs no alignment). An expert
 * tensor has n_experts such matrices, expert_bytes apart (else 1 and 0). */
struct dl_tensor {
    enum dl_type type;
    uint32_t rows, cols;
    const uint8_t *data;
    uint64_t row_bytes;
    uint32_t n_experts;
    uint64_t expert_bytes;
};

typedef struct dl_model dl_model;

/* Opens a .gguf (also the first of split files) or a .m: maps it, reads the header, checks that every tensor that the
 * architecture needs is there with the right shape and inside the file. DL_EIO, DL_EFORMAT, DL_EUNSUP (one line logged, naming
 * the file, the place and the way out). Nothing is allocated that is larger than 2 x the file. */
int dl_model_open(const char *path, dl_model **out);
/* The same from memory, which the caller keeps until dl_model_close. `name` for messages. */
int dl_model_open_mem(const void *bytes, size_t n, const char *name, dl_model **out);
/* A model of a well-known shape, by its name ("llama3.1-8b"), with n_layers layers (0: as published), Q40 matrices and f32 norms.
 * Its tensors have data NULL, and it takes next to no memory. With `weights` an engine computes with random numbers of a sensible size,
 * which every node makes for its slice: nothing is sent. DL_EINVAL for an unknown name (logged with those there are). */
int dl_model_open_shape(const char *name, uint32_t n_layers, bool weights, dl_model **out);
const char *dl_shape_name(uint32_t i); /* of the i-th shape; NULL beyond the last */
void dl_model_close(dl_model **model); /* nulls, accepts &NULL */

const struct dl_model_header *dl_model_header(const dl_model *model);
const char *dl_model_name(const dl_model *model);      /* general.name, else the file's name */
const char *dl_model_format(const dl_model *model);    /* "gguf v3", "distributed-llama .m" */
const char *dl_model_path(const dl_model *model);
uint64_t dl_model_file_bytes(const dl_model *model);   /* all parts of a split model */
uint64_t dl_model_weight_bytes(const dl_model *model); /* of the tensors */

/* layer is ignored for tensors that exist once. DL_EINVAL when the model has no such tensor (not logged); OUTPUT of a
 * tied model is EMBED. */
int dl_model_tensor(const dl_model *model, enum dl_tensor_id id, uint32_t layer, struct dl_tensor *out);

/* The pages under a tensor are no longer needed (its content was copied to a device). */
void dl_model_drop_pages(const dl_model *model, const struct dl_tensor *tensor);

/* Lists what the file says, for `inspect`: calls row(ud, "tensor", name, text) and row(ud, "meta", key, text) in file order;
 * long values are shortened. */
typedef void dl_model_row_fn(void *ud, const char *what, const char *name, const char *text);
int dl_model_list(const dl_model *model, dl_model_row_fn *row, void *ud);

/* cos, sin of every rope pair at one position, computed in double: out[2i], out[2i+1] for i < n_rot / 2. `factors` is the
 * DL_T_ROPE_FREQS tensor as f32 (n_rot / 2 values), or NULL.
 * Llama 3.1 scaling: wave length above orig/low is divided by factor, below orig/high kept, between interpolated
 * linearly in orig/wavelength (Meta's llama-models reference). */
void dl_rope_angles(const struct dl_model_header *h, const float *factors, uint32_t pos, float *out);

/* ------------------------------------------------------------------------------------------------- slices */

/* What one node owns of every layer. Ranges of all nodes of a cluster cover everything once, but for KV heads, which two
 * nodes share where the border between their query heads lies inside a group. */
struct dl_slice {
    uint32_t head0, n_heads;   /* query heads; n_heads may be 0 */
    uint32_t kv0, n_kv_heads;  /* the KV heads those need */
    uint32_t ffn0, n_ffn;      /* columns of the FFN (of every expert in a MoE) */
    uint32_t vocab0, n_vocab;  /* rows of the output matrix */
};

/* What slices are made of: query heads, columns of the FFN and rows of the output matrix that are never cut further. */
struct dl_slice_units {
    uint32_t head, ffn, vocab;
};
/* Those of DESIGN section 5 for n nodes: whole KV groups while n <= n_kv_heads, else single heads; FFN columns in blocks of
 * column_unit (32 where a matrix whose columns are cut is quantised, else 4), or 128 where there are many; vocabulary rows in eights.
 * Heads are as many as make whole blocks of column_unit. fine: single heads and column_unit columns in any case. DL_EINVAL
 * (logged). */
int dl_slice_units(const struct dl_model_header *h, uint32_t column_unit, uint32_t n, bool fine,
                   struct dl_slice_units *out);

/* Cuts a model into n slices proportional to weights[] (> 0; NULL: equal), in those units. Pure. */
int dl_slices_make(const struct dl_model_header *h, uint32_t column_unit, const double *weights, uint32_t n,
                   struct dl_slice *out);
/* Slices of heads[i], ffn[i] and vocab[i] units for node i, which add up to all there are (the last unit may be a broken one). Pure. */
void dl_slices_cut(const struct dl_model_header *h, const struct dl_slice_units *units, const uint32_t *heads,
                   const uint32_t *ffn, const uint32_t *vocab, uint32_t n, struct dl_slice *out);

/* Where a weight buffer of a plan comes from: rows [row0, row0 + rows) and cols [col0, col0 + cols) of a tensor (of each of
 * its experts). */
struct dl_weight {
    uint32_t buf; /* plan buffer */
    enum dl_tensor_id id;
    uint32_t layer;
    uint32_t row0, rows, col0, cols;
};

/* How the partial sums of several nodes become one: everyone sends all of its part to everyone, or everyone adds up a chunk of the columns
 * and sends the sum to everyone. The second has fewer bytes and one more round; models too narrow for it take the first. */
enum dl_sum_kind { DL_SUM_ONE_SHOT, DL_SUM_IN_TWO };

/* What users may ask for of that: all to all at once, the same in two halves of which one travels while the other is computed, in two
 * stages of fewer bytes (reduce-scatter and all-gather), or whichever is faster by the network as it was measured, at once where it
 * was not; halves only if all nodes are CPUs that were measured, too. The sums are the same on all nodes in any case, and in halves
 * the same as at once. */
enum dl_collective { DL_COLLECTIVE_AUTO, DL_COLLECTIVE_ONE_SHOT, DL_COLLECTIVE_HALVES, DL_COLLECTIVE_RS };

/* The type in which partial sums travel where `wire` (Q80, F16 or F32) was asked for. Instead of Q80 it is Q120 for models with experts, and F32 for
 * rows that are no whole blocks. A router may have two experts nearly tied: noise on the sums gives a token the other one, and that is no noise any more
 * but another function. The tie of refs/qwen3moe.gguf (test_cluster) fell for five of 19 clusters with Q80, for one in twenty with 10 bits, and for none
 * with less than 2.4 times the noise of Q120. */
enum dl_type dl_wire_type(const struct dl_model_header *h, enum dl_type wire);

/* The lanes that batches of up to max_tokens get on n nodes: two where each then has enough tokens for that to pay. */
uint32_t dl_plan_lanes(uint32_t n, uint32_t max_tokens);

/* Can its sums go in two stages over n nodes? Else the model is too narrow for that. */
bool dl_plan_in_two(const struct dl_model_header *h, uint32_t n_nodes);

/* Columns of a sum that go first where it goes in halves; 0: the model is too narrow for that. */
uint32_t dl_plan_half(const struct dl_model_header *h);

struct dl_plan_opts {
    uint32_t max_tokens, max_out;
    uint32_t kv_blocks;    /* KV blocks per layer */
    enum dl_type kv_type;  /* F16, F32 or Q80 */
    enum dl_type wire;     /* Q80, F16 or F32, see dl_wire_type */
    enum dl_sum_kind collective;
    bool halves; /* at once: the first half of a sum's columns travels while the second is computed; a single device per process */
    uint32_t lanes;        /* DL_PLAN_LANES: large batches overlap computing and exchanging, where there is more than one node; 0, 1: none does */
};

/* A plan with what the engine needs to feed it. */
struct dl_model_plan {
    struct dl_plan plan;
    struct dl_weight *weights;
    uint32_t n_weights;
    uint32_t embed_buf;  /* INPUT: F32 (max_tokens, dim), the embedding rows of the batch */
    uint32_t rope_buf;   /* INPUT: F32 (max_tokens, n_rot), dl_rope_angles per token */
    uint32_t logits_buf; /* OUTPUT: F32 (max_out, slice n_vocab) */
    char *names;         /* owns the op and buffer names */
};

/* What dl_plan_build needs to know of the tensors: their types. layer_type[l * DL_T_COUNT + id]. */
struct dl_tensor_types {
    enum dl_type output, *layer; /* layer: n_layers * DL_T_COUNT entries, for per-layer ids */
};
int dl_model_types(const dl_model *model, struct dl_tensor_types *out);
void dl_tensor_types_finish(struct dl_tensor_types *types);
/* The column_unit of slices: 32 where any matrix whose columns are cut is quantised, else 4. */
uint32_t dl_column_unit(const struct dl_model_header *h, const struct dl_tensor_types *types);

/* Builds the plan of node `node` of n_nodes with the given slices (n_nodes entries). Pure: every node builds its own, so
 * plans never cross the wire. The result has passed dl_plan_check. */
int dl_plan_build(const struct dl_model_header *h, const struct dl_tensor_types *types, const struct dl_slice *slices,
                  uint32_t node, uint32_t n_nodes, const struct dl_plan_opts *opts, struct dl_model_plan **out);
void dl_plan_destroy(struct dl_model_plan **plan); /* nulls, accepts &NULL */

/* A batch, as far as it matters for what has to be read: n_tokens tokens of n_seqs sequences, each with `context` positions after it, and n_out
 * wanted rows of logits. */
struct dl_batch_load {
    uint32_t n_tokens, n_out, n_seqs, context;
};
/* Bytes of weights and KV cache that a plan, or one op of it, reads for such a batch: each weight once (per lane), of experts as many as that many
 * tokens choose on average. Activations, which caches hold, do not count, nor do embedding rows. Pure. */
uint64_t dl_plan_read_bytes(const struct dl_plan *plan, const struct dl_batch_load *b);
uint64_t dl_op_read_bytes(const struct dl_plan *plan, const struct dl_op *op, const struct dl_batch_load *b);

/* -------------------------------------------------------------------------------------------- demo model */

/* The built-in model as a GGUF image with its vocabulary, constructed by code (engine/model/demo.c says how). The caller frees
 * *bytes with free(). Deterministic: the same bytes every time. */
int dl_demo_make(void **bytes, size_t *n);
const char *dl_demo_text(void);   /* the text that it recites */
const char *dl_demo_prompt(void); /* how that text begins: the default prompt */

#endif
