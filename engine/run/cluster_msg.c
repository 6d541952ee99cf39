/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster_msg.c: the messages of cluster_msg.h for joining, memory and weights. MODEL is in cluster_msg_model.c, batches and logits
 * are in cluster_msg_step.c.
 */
#include "cluster_msg.h"

#include <string.h>

#include "cluster_msg_in.h"

#define MAGIC 0x6b766c64u /* "dlvk" */

const char *eng_msg_name(unsigned type)
{
    static const char *const names[ENG_MSG_END] = {"?",     "HELLO",  "MODEL",   "MEMORY", "OFFER", "WANT",  "DATA",
                                                   "GOT",   "READY",  "STEP",    "LOGITS", "FETCH", "ERROR", "BYE",
                                                   "STATS", "COUNTS", "MEASURE", "RATE",   "LINK"};
    return names[type < ENG_MSG_END ? type : 0];
}

/* ------------------------------------------------------------------------------------------------- writing */

void eng_put_bytes(struct eng_out *o, const void *bytes, size_t n)
{
    if (!o->err)
        o->err = dl_str_add(&o->s, bytes, n);
}

void eng_out_begin(struct eng_out *o, enum eng_msg type)
{
    o->s.len = 0;
    o->err = DL_OK;
    eng_put_u8(o, (uint8_t)type);
}

void eng_out_finish(struct eng_out *o)
{
    dl_str_finish(&o->s);
    *o = (struct eng_out){0};
}

void eng_put_u8(struct eng_out *o, uint8_t v)
{
    eng_put_bytes(o, &v, 1);
}

void eng_put_u32(struct eng_out *o, uint32_t v)
{
    uint8_t b[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
    eng_put_bytes(o, b, sizeof b);
}

void eng_put_u64(struct eng_out *o, uint64_t v)
{
    eng_put_u32(o, (uint32_t)v);
    eng_put_u32(o, (uint32_t)(v >> 32));
}

void eng_put_f32(struct eng_out *o, float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    eng_put_u32(o, u);
}

void eng_put_f64(struct eng_out *o, double v)
{
    uint64_t u;
    memcpy(&u, &v, sizeof u);
    eng_put_u64(o, u);
}

void eng_put_text(struct eng_out *o, const char *text, size_t most)
{
    size_t n = strlen(text);
    n = DL_MIN(n, most);
    eng_put_u32(o, (uint32_t)n);
    eng_put_bytes(o, text, n);
}

/* ------------------------------------------------------------------------------------------------- reading */

struct eng_cursor eng_in_open(const struct eng_in *in)
{
    struct eng_cursor c = eng_cursor_make(in->bytes, in->n);
    (void)eng_read_u8(&c, "type");
    return c;
}

int eng_in_close(const struct eng_in *in, const struct eng_cursor *c)
{
    const char *name = eng_msg_name(eng_in_type(in));
    if (c->bad)
        return dl_fail(DL_EFORMAT, "%s: its %s message ends after %zu bytes, within: %s", in->who, name, c->size,
                       c->bad);
    if (eng_left(c))
        return dl_fail(DL_EFORMAT, "%s: its %s message has %zu bytes too many", in->who, name, eng_left(c));
    return DL_OK;
}

int eng_in_wrong(const struct eng_in *in, const char *what)
{
    return dl_fail(DL_EFORMAT, "%s: its %s message makes no sense: %s", in->who, eng_msg_name(eng_in_type(in)), what);
}

double eng_in_f64(struct eng_cursor *c, const char *what)
{
    uint64_t u = eng_read_u64(c, what);
    double v;
    memcpy(&v, &u, sizeof v);
    return v;
}

void eng_in_digest(struct eng_cursor *c, struct eng_digest *out)
{
    const uint8_t *p = eng_read_bytes(c, sizeof out->v, "digest");
    if (p)
        memcpy(out->v, p, sizeof out->v);
}

bool eng_in_text(struct eng_cursor *c, char *out, size_t cap, const char *what)
{
    uint32_t n = eng_read_u32(c, what);
    const uint8_t *p = n < cap ? eng_read_bytes(c, n, what) : NULL;
    if (p)
        memcpy(out, p, n);
    out[p ? n : 0] = 0;
    return n < cap && !(p && memchr(p, 0, n));
}

void eng_plain_write(struct eng_out *o, enum eng_msg type)
{
    eng_out_begin(o, type);
}

int eng_plain_read(const struct eng_in *in)
{
    struct eng_cursor c = eng_in_open(in);
    return eng_in_close(in, &c);
}

/* ------------------------------------------------------------------------------------------ HELLO and ERROR */

void eng_hello_write(struct eng_out *o, const struct eng_hello *h)
{
    eng_out_begin(o, ENG_MSG_HELLO);
    eng_put_u32(o, MAGIC);
    eng_put_u32(o, h->protocol);
    eng_put_text(o, h->build, sizeof h->build - 1);
    eng_put_text(o, h->about, sizeof h->about - 1);
}

/* Of another protocol only the first three fields are known, which never change. */
int eng_hello_read(const struct eng_in *in, struct eng_hello *out)
{
    *out = (struct eng_hello){0};
    struct eng_cursor c = eng_in_open(in);
    if (eng_read_u32(&c, "magic") != MAGIC)
        return dl_fail(DL_EFORMAT, "%s: does not speak the language of dllama-vk", in->who);
    out->protocol = eng_read_u32(&c, "protocol");
    bool ok = eng_in_text(&c, out->build, sizeof out->build, "build");
    if (ok && !c.bad && out->protocol != ENG_PROTOCOL)
        return DL_OK;
    ok = ok && eng_in_text(&c, out->about, sizeof out->about, "description");
    return ok ? eng_in_close(in, &c) : eng_in_wrong(in, "a text is too long");
}

void eng_error_write(struct eng_out *o, int code, const char *text)
{
    eng_out_begin(o, ENG_MSG_ERROR);
    eng_put_u32(o, (uint32_t)-code);
    eng_put_text(o, text, ENG_TEXT_MOST);
}

int eng_error_read(const struct eng_in *in, struct eng_error *out)
{
    *out = (struct eng_error){0};
    struct eng_cursor c = eng_in_open(in);
    uint32_t code = eng_read_u32(&c, "code");
    bool ok = eng_in_text(&c, out->text, sizeof out->text, "text");
    out->code = code >= 1 && code <= 11 ? -(int)code : DL_EPEER;
    return ok ? eng_in_close(in, &c) : eng_in_wrong(in, "its text is too long");
}
_Static_assert(DL_ELIMIT == -11, "the last code");

/* ------------------------------------------------------------------------------------------------- speed */

void eng_measure_write(struct eng_out *o, const struct eng_measure *m)
{
    eng_out_begin(o, ENG_MSG_MEASURE);
    eng_put_u32(o, m->dim);
    eng_put_u8(o, (uint8_t)m->weight);
    eng_put_u8(o, (uint8_t)(m->speed | m->link << 1));
}

int eng_measure_read(const struct eng_in *in, struct eng_measure *out)
{
    struct eng_cursor c = eng_in_open(in);
    *out = (struct eng_measure){.dim = eng_read_u32(&c, "width")};
    uint8_t weight = eng_read_u8(&c, "weight type"), what = eng_read_u8(&c, "what to measure");
    uint64_t row;
    if (!c.bad && (!out->dim || out->dim > DL_MAX_DIM || weight >= DL_WEIGHT_TYPES || what > 3 ||
                   !dl_row_bytes((enum dl_type)weight, out->dim, &row)))
        return eng_in_wrong(in, "it asks for what cannot be measured");
    out->weight = (enum dl_type)weight;
    out->speed = what & 1;
    out->link = what & 2;
    return eng_in_close(in, &c);
}

void eng_rate_write(struct eng_out *o, const struct eng_rate *r)
{
    eng_out_begin(o, ENG_MSG_RATE);
    eng_put_f64(o, r->rate.bytes_per_s);
    eng_put_f64(o, r->rate.op_ns);
    eng_put_f64(o, r->rate.submit_ns);
    eng_put_f64(o, r->rate.flops);
    eng_put_u64(o, r->memory);
    eng_put_u64(o, r->machine);
    eng_put_u8(o, r->host);
}

int eng_rate_read(const struct eng_in *in, bool speed, struct eng_rate *out)
{
    struct eng_cursor c = eng_in_open(in);
    double v[4];
    bool sensible = true;
    for (size_t i = 0; i < DL_COUNT_OF(v); i++) {
        v[i] = eng_in_f64(&c, "rates");
        sensible = sensible && v[i] >= 0 && v[i] < 1e18;
    }
    *out = (struct eng_rate){.rate = {v[0], v[1], v[2], v[3]},
                             .memory = eng_read_u64(&c, "memory"),
                             .machine = eng_read_u64(&c, "machine"),
                             .host = eng_read_u8(&c, "kind of memory") != 0};
    if (!c.bad && (!sensible || (v[0] > 0) != speed))
        return eng_in_wrong(in, "a rate is no sensible number");
    return eng_in_close(in, &c);
}

/* -------------------------------------------------------------------------------------- memory and weights */

void eng_memory_write(struct eng_out *o, const struct eng_memory *m)
{
    eng_out_begin(o, ENG_MSG_MEMORY);
    eng_put_u64(o, m->kv);
    eng_put_u64(o, m->act);
    eng_put_u64(o, m->copied);
    eng_put_u64(o, m->mapped);
    eng_put_u64(o, m->avail);
    eng_put_u8(o, m->fits);
    eng_put_bytes(o, m->plan.v, sizeof m->plan.v);
}

int eng_memory_read(const struct eng_in *in, struct eng_memory *out)
{
    struct eng_cursor c = eng_in_open(in);
    out->kv = eng_read_u64(&c, "KV cache");
    out->act = eng_read_u64(&c, "activations");
    out->copied = eng_read_u64(&c, "weights");
    out->mapped = eng_read_u64(&c, "weights");
    out->avail = eng_read_u64(&c, "free memory");
    out->fits = eng_read_u8(&c, "verdict") != 0;
    eng_in_digest(&c, &out->plan);
    return eng_in_close(in, &c);
}

#define OFFER_ENTRY (8u + ENG_DIGEST_BYTES)
#define OFFER_HEAD (1u + 4u + 4u)

void eng_offer_write(struct eng_out *o, uint32_t first, const struct eng_offer_entry *v, uint32_t n)
{
    eng_out_begin(o, ENG_MSG_OFFER);
    eng_put_u32(o, first);
    eng_put_u32(o, n);
    for (uint32_t i = 0; i < n; i++) {
        eng_put_u64(o, v[i].bytes);
        eng_put_bytes(o, v[i].digest.v, sizeof v[i].digest.v);
    }
}

int eng_offer_read(const struct eng_in *in, uint32_t want_first, uint32_t n_weights, uint32_t *n)
{
    struct eng_cursor c = eng_in_open(in);
    uint32_t first = eng_read_u32(&c, "first weight");
    *n = eng_read_u32(&c, "number of weights");
    if (!c.bad && (first != want_first || !*n || *n > ENG_OFFER_MOST || *n > n_weights - want_first))
        return eng_in_wrong(in, "it offers other weights than those that come next");
    (void)eng_read_bytes(&c, (uint64_t)*n * OFFER_ENTRY, "digests");
    return eng_in_close(in, &c);
}

struct eng_offer_entry eng_offer_get(const struct eng_in *in, uint32_t i)
{
    struct eng_cursor c = eng_cursor_make(in->bytes + OFFER_HEAD + (size_t)i * OFFER_ENTRY, OFFER_ENTRY);
    struct eng_offer_entry e = {.bytes = eng_read_u64(&c, "size")};
    eng_in_digest(&c, &e.digest);
    return e;
}

void eng_want_write(struct eng_out *o, const uint8_t *bits, uint32_t n_weights)
{
    eng_out_begin(o, ENG_MSG_WANT);
    eng_put_bytes(o, bits, (size_t)dl_div_up(n_weights, 8));
}

int eng_want_read(const struct eng_in *in, uint32_t n_weights, const uint8_t **bits)
{
    struct eng_cursor c = eng_in_open(in);
    size_t n = (size_t)dl_div_up(n_weights, 8);
    *bits = eng_read_bytes(&c, n, "wanted weights");
    int err = eng_in_close(in, &c);
    if (err)
        return err;
    bool any = false;
    for (size_t i = 0; i < n; i++)
        any = any || (*bits)[i];
    if (!any || (n_weights % 8 && (*bits)[n - 1] >> n_weights % 8))
        return eng_in_wrong(in, "it wants nothing, or what there is not");
    return DL_OK;
}

void eng_data_write(struct eng_out *o, uint32_t weight, uint64_t at, size_t n, uint8_t **room)
{
    static const uint8_t zeros[4096];
    eng_out_begin(o, ENG_MSG_DATA);
    eng_put_u32(o, weight);
    eng_put_u64(o, at);
    size_t head = o->s.len;
    for (size_t left = n; left; left -= DL_MIN(left, sizeof zeros))
        eng_put_bytes(o, zeros, DL_MIN(left, sizeof zeros));
    *room = o->err ? NULL : (uint8_t *)o->s.v + head;
}

int eng_data_read(const struct eng_in *in, struct eng_data *out)
{
    struct eng_cursor c = eng_in_open(in);
    out->weight = eng_read_u32(&c, "weight");
    out->at = eng_read_u64(&c, "place");
    out->n = eng_left(&c);
    if (!c.bad && (!out->n || out->n > ENG_CHUNK_MOST))
        return eng_in_wrong(in, "it carries too little or too much");
    out->bytes = eng_read_bytes(&c, out->n, "bytes");
    return eng_in_close(in, &c);
}

void eng_link_job_write(struct eng_out *o, const struct eng_link_job *j)
{
    eng_out_begin(o, ENG_MSG_LINK);
    eng_put_u8(o, (uint8_t)j->kind);
    eng_put_u32(o, j->rounds);
    eng_put_u64(o, j->bytes);
}

int eng_link_job_read(const struct eng_in *in, struct eng_link_job *out)
{
    struct eng_cursor c = eng_in_open(in);
    const uint8_t kind = eng_read_u8(&c, "kind");
    *out = (struct eng_link_job){.rounds = eng_read_u32(&c, "rounds")};
    out->bytes = eng_read_u64(&c, "bytes");
    uint64_t most = kind == ENG_LINK_TAKE || kind == ENG_LINK_GIVE ? ENG_CHUNK_MOST : ENG_LINK_BYTES_MOST;
    if (!c.bad && (kind >= ENG_LINK_KINDS || !out->rounds || out->rounds > ENG_LINK_ROUNDS_MOST || !out->bytes ||
                   out->bytes > most))
        return eng_in_wrong(in, "an exchange that is none");
    out->kind = (enum eng_link_kind)kind;
    return eng_in_close(in, &c);
}

void eng_got_write(struct eng_out *o, uint64_t total)
{
    eng_out_begin(o, ENG_MSG_GOT);
    eng_put_u64(o, total);
}

int eng_got_read(const struct eng_in *in, uint64_t *total)
{
    struct eng_cursor c = eng_in_open(in);
    *total = eng_read_u64(&c, "bytes");
    return eng_in_close(in, &c);
}
