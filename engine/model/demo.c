/* SPDX-License-Identifier: MIT
 *
 * engine/model/demo.c: the built-in demo model. It is a true Llama network (two layers, 4-bit weights) whose weights were not
 * trained but are set here, one idea per matrix, so that it recites dl_demo_text. That makes it small, the same on every
 * machine, a test that any broken kernel fails, and a transformer that can be read. How it works:
 *
 * A token travels through the layers as 256 numbers. We use them as 8 lanes of 32 (one Q40 block each):
 *
 *   WORD   the number of this word           set by the embedding
 *   PREV   the number of the word before     set by layer 0's attention
 *   PLACE  where in the text we are          set by layer 0's FFN from WORD and PREV; 0, "nowhere", before
 *   HERE   PLACE again                       set by layer 1's attention
 *   NEXT   the number of the word to come    set by layer 1's FFN from HERE
 *   ONE    three lanes of ones, for constants: Llama has no biases
 *
 * A number is written in binary, with -1 and +1 as the digits: 8 bits, each repeated 4 times. Two such numbers are compared
 * by multiplying digit by digit and adding up: 8 (counting each bit once) if they are equal, at most 6 if not.
 *
 * Attention, layer 0: every position asks for the word before. RoPE turns pair i of q and of k by position * angle_i, so
 * that q.k depends only on the distance of the two positions: it is the sum over i of cos(distance * angle_i - lead_i)
 * where lead_i is the angle that k is ahead of q in our weights. All keys are one constant vector; the query is the same
 * vector turned back by lead_i = angle_i, so all cosines are 1 at distance 1 and nowhere else: softmax gives that one
 * position everything. Head h fetches bit h of the number (V copies it, the output matrix puts it into PREV): no head can
 * be missed. Two heads share a KV head, which therefore holds two bits, one in its even and one in its odd values.
 *
 * FFN, layer 0: one hidden unit for each place of the text, i.e. for each pair of neighbouring words. Its gate compares
 * WORD and PREV with its pair: +40 if both match in all bits, at most -24 else, and silu() makes that 40 and nothing. The
 * unit that fires adds the bits of its place to PLACE. Where no unit fires, PLACE stays 0. Words that occur twice have
 * two units; only PREV can tell which one is meant.
 *
 * Attention, layer 1: as before, but with lead 0: every position looks at itself and copies PLACE to HERE.
 * FFN, layer 1: one hidden unit for each place, 0 included; it writes the number of the word that comes there into NEXT.
 * The output matrix compares NEXT with the number of each word. Place 0 is followed by the first word, so that the model
 * starts its text where it does not know what to say.
 *
 * RMSNorm needs no thought: all lanes in use hold -1 and +1, so the mean square is a known constant, which the norm's own
 * weights undo. They also halve ONE, for no other reason than to make a norm without its weights fail.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "demo.h"
#include "dl/model.h"

enum {
    BITS = 8,
    COPIES = 4,
    LANE = BITS * COPIES, /* = DL_BLOCK */
    DIM = 8 * LANE,
    HIDDEN = 256,
    LAYERS = 2,
    HEADS = BITS,
    KV_HEADS = HEADS / 2,
    HEAD_DIM = DIM / HEADS,
    PAIRS = HEAD_DIM / 2,
    CONTEXT = 1024
};
_Static_assert(LANE == DL_BLOCK, "a lane is one block, so that it can have its own scale");
_Static_assert(HIDDEN > (int)ENG_DEMO_MAX_TEXT, "a unit for each place");

enum lane { WORD, PREV, PLACE, HERE, NEXT, ONE, N_LANES = 8 };
#define ONE_NORMED 0.5f /* value of lanes ONE after each norm */

/* angle_i = ROPE_BASE^(-i / PAIRS): with this base even the slowest pair tells neighbours apart, and the angles share no
 * period within the context. Cosines and sines of the angles in thousandths, a table so that no math library decides about our bytes. */
#define ROPE_BASE 10.0f
static const int angle_cos[PAIRS] = {540, 648, 732, 796, 846, 884, 912, 934, 950, 963, 972, 979, 984, 988, 991, 993};
static const int angle_sin[PAIRS] = {841, 762, 682, 605, 533, 468, 409, 357, 311, 270, 235, 204, 177, 153, 133, 115};

/* Scores peak at 2 PAIRS KEY QUERY / sqrt(HEAD_DIM) = 127; the next best position, beside the peak, has 15 less. */
#define KEY 4.5f
#define QUERY 5.0f

/* How much must match before a gate opens: of 16 for a pair of words, where the nearest wrong pair has 14, and of 8 for a
 * place, where the nearest wrong one has 6. As low as a margin to those allows, since what is above is the signal: rounding
 * noise in a match of 16 counts against 1.25. One head missing makes 15: a signal too weak for the next layer. */
#define NEED_PAIR 14.75f
#define NEED_PLACE 6.5f
#define SHARP 32.0f /* gate per unit of match, so that silu() is as good as a switch */

/* Logits: the next word gets LOGIT * (8 - 6.5), other words LOGIT * (6 - 6.5) or less, strangers less than those, but more
 * than any word gets if NEXT is empty: a network that has lost its way says <unk>. */
#define LOGIT 12.0f
#define NEED_WORD 6.5f
#define STRANGER (-3.5f)

/* -------------------------------------------------------------------------------------------- Q40 matrices */

struct matrix {
    uint32_t rows, cols;
    struct dl_q40 *blocks;
};

static int matrix_init(struct matrix *m, uint32_t rows, uint32_t cols)
{
    *m = (struct matrix){rows, cols, dl_calloc((size_t)rows * (cols / DL_BLOCK), sizeof(struct dl_q40))};
    if (!m->blocks)
        return DL_ENOMEM;
    for (size_t i = 0; i < (size_t)rows * (cols / DL_BLOCK); i++)
        memset(m->blocks[i].qs, 0x88, sizeof m->blocks[i].qs); /* 8 stands for 0 */
    return DL_OK;
}

/* m[row][col] = code * scale, code in -8 .. 7. A block has one scale: the last one given. */
static void set(struct matrix *m, uint32_t row, uint32_t col, int code, float scale)
{
    struct dl_q40 *b = &m->blocks[(size_t)row * (m->cols / DL_BLOCK) + col / DL_BLOCK];
    uint32_t j = col % DL_BLOCK, shift = j < 16 ? 0 : 4;
    unsigned nibble = (unsigned)(code + 8) << shift, keep = 0xf0u >> shift;
    b->qs[j % 16] = (uint8_t)((b->qs[j % 16] & keep) | nibble);
    b->d = dl_f32_to_f16(scale);
}

/* -1 or +1 for bit b of a number, times 4. Codes of 4 and powers of two as scales make weights exact. */
static int digit(uint32_t number, uint32_t b)
{
    return number >> b & 1 ? 4 : -4;
}

/* The row compares a lane with a number: it adds `gain` times the match, -8 .. 8. */
static void add_match(struct matrix *m, uint32_t row, enum lane lane, uint32_t number, float gain)
{
    for (uint32_t i = 0; i < LANE; i++)
        set(m, row, lane * LANE + i, digit(number, i / COPIES), gain / COPIES / 4);
}

/* The row adds a constant, spread over the lanes of ones. */
static void add_constant(struct matrix *m, uint32_t row, float value)
{
    float each = value / ((float)((N_LANES - ONE) * LANE) * ONE_NORMED);
    for (uint32_t i = ONE * LANE; i < DIM; i++)
        set(m, row, i, each < 0 ? -7 : 7, fabsf(each) / 7);
}

/* ------------------------------------------------------------------------------------- numbers of things */

/* Words and places are numbered through; times an odd number modulo 256, so that all 8 bits are in use, and 0 stays 0. */
static uint32_t word_code(uint32_t number)
{
    return number * 77 & 255;
}
static uint32_t place_code(uint32_t place)
{
    return place * 45 & 255;
}
/* Which hidden unit a place has: spread out, so that every part of the FFN that a device may hold has work to do. */
static uint32_t place_unit(uint32_t layer, uint32_t place)
{
    return place * (layer ? 53 : 37) % HIDDEN;
}

static uint32_t token_code(const struct eng_demo_text *t, uint32_t id)
{
    return word_code(t->pieces[id].number);
}

/* ------------------------------------------------------------------------------------------- the matrices */

static void fill_embedding(struct matrix *m, const struct eng_demo_text *t)
{
    for (uint32_t id = 0; id < t->n_pieces; id++)
        for (uint32_t i = 0; i < LANE; i++) {
            set(m, id, WORD * LANE + i, digit(token_code(t, id), i / COPIES), 0.25f);
            set(m, id, PLACE * LANE + i, digit(place_code(0), i / COPIES), 0.25f);
            for (uint32_t lane = ONE; lane < N_LANES; lane++)
                set(m, id, lane * LANE + i, 4, 0.25f);
        }
}

static void fill_query(struct matrix *m, bool look_back)
{
    for (uint32_t row = 0; row < m->rows; row += 2) {
        uint32_t pair = row % HEAD_DIM / 2;
        float c = look_back ? (float)angle_cos[pair] / 1000 : 1, s = look_back ? (float)angle_sin[pair] / 1000 : 0;
        add_constant(m, row, QUERY * (c + s)); /* (1, 1) turned back by the angle */
        add_constant(m, row + 1, QUERY * (c - s));
    }
}

static void fill_key(struct matrix *m)
{
    for (uint32_t row = 0; row < m->rows; row++)
        add_constant(m, row, KEY);
}

/* KV head g: even values are bit 2g, odd values bit 2g + 1 of the number in the lane. */
static void fill_value(struct matrix *m, enum lane from)
{
    for (uint32_t row = 0; row < m->rows; row++) {
        uint32_t bit = 2 * (row / HEAD_DIM) + row % 2;
        for (uint32_t c = 0; c < COPIES; c++)
            set(m, row, from * LANE + bit * COPIES + c, 4, 1.0f / COPIES / 4);
    }
}

/* Query head h knows bit h, in HEAD_DIM / 2 values; each copy in the lane is the mean of its share of them. */
static void fill_attn_out(struct matrix *m, enum lane to)
{
    uint32_t share = HEAD_DIM / 2 / COPIES;
    for (uint32_t i = 0; i < LANE; i++)
        for (uint32_t j = 0; j < share; j++) {
            uint32_t bit = i / COPIES, value = 2 * (j * COPIES + i % COPIES) + bit % 2;
            set(m, to * LANE + i, bit * HEAD_DIM + value, 4, 1.0f / (float)share / 4);
        }
}

/* gate * up of the unit that fires is 1; `up` looks at a lane, too, so that it cannot be left out either. */
static void fill_ffn_0(struct matrix *gate, struct matrix *up, struct matrix *down, const struct eng_demo_text *t)
{
    for (uint32_t place = 1; place <= t->n_ids; place++) {
        uint32_t unit = place_unit(0, place), word = token_code(t, t->ids[place - 1]);
        if (place == 1) { /* the first word tells the place alone, whatever came before */
            add_match(gate, unit, WORD, word, 2 * SHARP);
        } else {
            add_match(gate, unit, WORD, word, SHARP);
            add_match(gate, unit, PREV, token_code(t, t->ids[place - 2]), SHARP);
        }
        add_constant(gate, unit, -NEED_PAIR * SHARP);
        add_match(up, unit, WORD, word, 1 / ((2 * BITS - NEED_PAIR) * SHARP) / BITS);
        for (uint32_t i = 0; i < LANE; i++) /* from -1 to +1 where the bit is set; 0 elsewhere */
            set(down, PLACE * LANE + i, unit, (int)(place_code(place) >> i / COPIES & 1) * 4, 0.5f);
    }
}

static void fill_ffn_1(struct matrix *gate, struct matrix *up, struct matrix *down, const struct eng_demo_text *t)
{
    for (uint32_t place = 0; place <= t->n_ids; place++) {
        uint32_t unit = place_unit(1, place), next = token_code(t, t->ids[place]);
        add_match(gate, unit, HERE, place_code(place), SHARP);
        add_constant(gate, unit, -NEED_PLACE * SHARP);
        add_match(up, unit, PLACE, place_code(place), 1 / ((BITS - NEED_PLACE) * SHARP) / BITS);
        for (uint32_t i = 0; i < LANE; i++)
            set(down, NEXT * LANE + i, unit, digit(next, i / COPIES), 0.25f);
    }
}

static void fill_output(struct matrix *m, const struct eng_demo_text *t)
{
    for (uint32_t id = 0; id < t->n_pieces; id++) {
        if (t->pieces[id].number) {
            add_match(m, id, NEXT, token_code(t, id), LOGIT);
            add_constant(m, id, -NEED_WORD * LOGIT);
        } else {
            add_constant(m, id, STRANGER * LOGIT);
        }
    }
}

/* ---------------------------------------------------------------------------------------------- the file */

/* Undoes 1 / sqrt(mean square) of a vector with `filled` lanes of -1 and +1; ONE comes out as ONE_NORMED. */
static void write_norm(struct eng_gguf_out *o, const char *name, int filled)
{
    float w[DIM], rms = sqrtf((float)filled / (float)N_LANES);
    for (uint32_t i = 0; i < DIM; i++)
        w[i] = i < ONE * LANE ? rms : rms * ONE_NORMED;
    eng_gguf_out_vector(o, name, w, DIM);
}

static void write_matrix(struct eng_gguf_out *o, const char *name, const struct matrix *m)
{
    eng_gguf_out_q40(o, name, m->blocks, m->rows, m->cols);
}

static void write_header(struct eng_gguf_out *o, const struct eng_demo_text *t)
{
    eng_gguf_out_str(o, "general.architecture", "llama");
    eng_gguf_out_str(o, "general.name", "dllama-vk demo");
    eng_gguf_out_str(o, "general.description", "recites a short text; constructed by code, not trained");
    eng_gguf_out_str(o, "general.license", "mit");
    eng_gguf_out_u32(o, "general.file_type", 2); /* mostly Q4_0 */
    eng_gguf_out_u32(o, "general.quantization_version", 2);
    eng_gguf_out_u32(o, "llama.vocab_size", t->n_pieces);
    eng_gguf_out_u32(o, "llama.context_length", CONTEXT);
    eng_gguf_out_u32(o, "llama.embedding_length", DIM);
    eng_gguf_out_u32(o, "llama.block_count", LAYERS);
    eng_gguf_out_u32(o, "llama.feed_forward_length", HIDDEN);
    eng_gguf_out_u32(o, "llama.attention.head_count", HEADS);
    eng_gguf_out_u32(o, "llama.attention.head_count_kv", KV_HEADS);
    eng_gguf_out_f32(o, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    eng_gguf_out_u32(o, "llama.rope.dimension_count", HEAD_DIM);
    eng_gguf_out_f32(o, "llama.rope.freq_base", ROPE_BASE);
}

enum part { Q, K, V, O, GATE, UP, DOWN, N_PARTS };

static int write_layer(struct eng_gguf_out *o, uint32_t layer, const struct eng_demo_text *t)
{
    static const struct {
        const char *name;
        uint32_t rows, cols;
    } shape[N_PARTS] = {
        {"attn_q", DIM, DIM},
        {"attn_k", KV_HEADS * HEAD_DIM, DIM},
        {"attn_v", KV_HEADS * HEAD_DIM, DIM},
        {"attn_output", DIM, DIM},
        {"ffn_gate", HIDDEN, DIM},
        {"ffn_up", HIDDEN, DIM},
        {"ffn_down", DIM, HIDDEN},
    };
    struct matrix m[N_PARTS] = {{0}};
    char name[64];
    int err = DL_OK;
    for (int i = 0; i < N_PARTS && !err; i++)
        err = matrix_init(&m[i], shape[i].rows, shape[i].cols);
    if (!err) {
        fill_query(&m[Q], layer == 0);
        fill_key(&m[K]);
        fill_value(&m[V], layer == 0 ? WORD : PLACE);
        fill_attn_out(&m[O], layer == 0 ? PREV : HERE);
        (layer == 0 ? fill_ffn_0 : fill_ffn_1)(&m[GATE], &m[UP], &m[DOWN], t);

        /* The lanes in use before layer 0 are WORD, PLACE and three of ONE; each attention fills one more. */
        snprintf(name, sizeof name, "blk.%u.attn_norm.weight", (unsigned)layer);
        write_norm(o, name, 5 + (int)layer);
        snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", (unsigned)layer);
        write_norm(o, name, 6 + (int)layer);
        for (int i = 0; i < N_PARTS; i++) {
            snprintf(name, sizeof name, "blk.%u.%s.weight", (unsigned)layer, shape[i].name);
            write_matrix(o, name, &m[i]);
        }
    }
    for (int i = 0; i < N_PARTS; i++)
        free(m[i].blocks);
    return err;
}

/* The embedding or the output matrix: a row per token. */
static int write_table(struct eng_gguf_out *o, const char *name,
                       void (*fill)(struct matrix *, const struct eng_demo_text *), const struct eng_demo_text *t)
{
    struct matrix m;
    int err = matrix_init(&m, t->n_pieces, DIM);
    if (err)
        return err;
    fill(&m, t);
    write_matrix(o, name, &m);
    free(m.blocks);
    return DL_OK;
}

int dl_demo_make(void **bytes, size_t *n)
{
    struct eng_gguf_out o = {0};
    struct eng_demo_text *t = dl_xcalloc(1, sizeof *t);
    eng_demo_text_make(t);
    write_header(&o, t);
    eng_demo_text_write(t, &o);
    int err = write_table(&o, "token_embd.weight", fill_embedding, t);
    for (uint32_t layer = 0; layer < LAYERS && !err; layer++)
        err = write_layer(&o, layer, t);
    if (!err) {
        write_norm(&o, "output_norm.weight", N_LANES);
        err = write_table(&o, "output.weight", fill_output, t);
    }
    free(t);
    if (err)
        o.err = err;
    return eng_gguf_out_finish(&o, bytes, n);
}
