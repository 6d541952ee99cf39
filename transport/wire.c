/* SPDX-License-Identifier: MIT
 *
 * transport/wire.c: the byte forms of wire.h.
 */
#include "wire.h"

#include <stdlib.h>
#include <string.h>

#include "mailbox.h"

#define PREAMBLE_MAGIC 0x6b764c44u /* "DLvk" */
#define FRAME_MAGIC 0x31464c44u    /* "DLF1" */

static void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}
static void put32(uint8_t *p, uint32_t v)
{
    put16(p, (uint16_t)v);
    put16(p + 2, (uint16_t)(v >> 16));
}
static void put64(uint8_t *p, uint64_t v)
{
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}
static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}
static uint32_t get32(const uint8_t *p)
{
    return get16(p) | (uint32_t)get16(p + 2) << 16;
}
static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* ------------------------------------------------------------------------------------------------------ preamble */

void tp_preamble_put(uint8_t out[TP_PREAMBLE_BYTES], const struct tp_preamble *p)
{
    memset(out, 0, TP_PREAMBLE_BYTES);
    put32(out, PREAMBLE_MAGIC);
    put16(out + 4, p->protocol);
    out[6] = p->status;
    out[7] = p->security;
    out[8] = p->purpose;
    memcpy(out + 16, p->build, strlen(p->build));
}

bool tp_preamble_begins(const uint8_t *in, size_t n)
{
    uint8_t magic[4];
    put32(magic, PREAMBLE_MAGIC);
    return !memcmp(in, magic, DL_MIN(n, sizeof magic));
}

const char *tp_preamble_get(const uint8_t in[TP_PREAMBLE_BYTES], struct tp_preamble *p)
{
    if (!tp_preamble_begins(in, TP_PREAMBLE_BYTES))
        return "it does not speak this protocol";
    *p = (struct tp_preamble){.protocol = get16(in + 4), .status = in[6], .security = in[7], .purpose = in[8]};
    tp_text_get(in + 16, TP_BUILD_MOST, p->build, TP_BUILD_MOST);
    return p->status < TP_STATUS_COUNT ? NULL : "it answers what this version does not know";
}

/* ------------------------------------------------------------------------------------------------------ frames */

static uint32_t most_of(unsigned type)
{
    switch (type) {
    case TP_DATA:
        return DL_XFER_BYTES_MOST;
    case TP_MSG:
        return TP_MAILBOX_BYTES - sizeof(struct tp_msg);
    case TP_BROKEN:
    case TP_REFUSE:
    case TP_FAIL:
        return 512;
    case TP_HELLO:
        return 1024;
    case TP_JOIN:
        return TP_NODES_MOST * sizeof(struct tp_join_node) + 1024;
    default:
        return 0;
    }
}

void tp_frame_put(uint8_t out[TP_HEAD_BYTES], const struct tp_frame *f)
{
    put32(out, FRAME_MAGIC);
    out[4] = f->type;
    out[5] = f->flags;
    put16(out + 6, 0);
    put64(out + 8, f->seq);
    put32(out + 16, f->length);
}

const char *tp_frame_get(const uint8_t in[TP_HEAD_BYTES], struct tp_frame *f)
{
    *f = (struct tp_frame){.type = in[4], .flags = in[5], .seq = get64(in + 8), .length = get32(in + 16)};
    if (get32(in) != FRAME_MAGIC || get16(in + 6))
        return "it sends what is no frame";
    if (!f->type || f->type >= TP_TYPE_COUNT)
        return "it sends frames of an unknown type";
    if (f->length > most_of(f->type))
        return "it sends a frame that is too long";
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------ payloads */

/* Writing: the first failure sticks. */
struct pen {
    struct dl_str *out;
    int err;
};
static void write_bytes(struct pen *w, const void *p, size_t n)
{
    if (!w->err)
        w->err = dl_str_add(w->out, p, n);
}
static void write16(struct pen *w, uint16_t v)
{
    uint8_t b[2];
    put16(b, v);
    write_bytes(w, b, sizeof b);
}
static void write32(struct pen *w, uint32_t v)
{
    uint8_t b[4];
    put32(b, v);
    write_bytes(w, b, sizeof b);
}
static void write64(struct pen *w, uint64_t v)
{
    uint8_t b[8];
    put64(b, v);
    write_bytes(w, b, sizeof b);
}
static void write_text(struct pen *w, const char *text)
{
    size_t n = strlen(text);
    write16(w, (uint16_t)n);
    write_bytes(w, text, n);
}

/* Reading: `bad` sticks, and what is read then is zero. */
struct eye {
    const uint8_t *p;
    size_t n;
    bool bad;
};
static const uint8_t *look(struct eye *r, size_t n)
{
    static const uint8_t zeros[TP_ID_BYTES];
    r->bad = r->bad || n > r->n;
    if (r->bad)
        return n <= sizeof zeros ? zeros : NULL;
    const uint8_t *p = r->p;
    r->p += n;
    r->n -= n;
    return p;
}
static uint16_t read16(struct eye *r)
{
    return get16(look(r, 2));
}
static uint32_t read32(struct eye *r)
{
    return get32(look(r, 4));
}
static uint64_t read64(struct eye *r)
{
    return get64(look(r, 8));
}
static void read_text(struct eye *r, char *out, size_t most)
{
    size_t n = read16(r);
    const uint8_t *p = n <= most ? look(r, n) : NULL;
    r->bad = r->bad || !p;
    if (r->bad)
        n = 0;
    for (size_t i = 0; i < n; i++)
        out[i] = p[i] < 32 || p[i] == 127 ? '?' : (char)p[i];
    out[n] = 0;
}
static const char *read_end(const struct eye *r)
{
    return r->bad || r->n ? "it sends a message that is cut or too long" : NULL;
}

void tp_text_get(const uint8_t *in, size_t n, char *out, size_t most)
{
    size_t len = 0;
    for (; len < DL_MIN(n, most) && in[len]; len++)
        out[len] = in[len] < 32 || in[len] == 127 ? '?' : (char)in[len];
    out[len] = 0;
}

int tp_hello_put(struct dl_str *out, const struct tp_hello *h)
{
    struct pen w = {out, DL_OK};
    write16(&w, h->protocol);
    write16(&w, h->purpose);
    write16(&w, h->rank);
    write64(&w, h->features);
    write_bytes(&w, h->id, TP_ID_BYTES);
    write_text(&w, h->build);
    write_text(&w, h->about);
    return w.err;
}

const char *tp_hello_get(const uint8_t *in, size_t n, struct tp_hello *h)
{
    struct eye r = {in, n, false};
    memset(h, 0, sizeof *h);
    h->protocol = read16(&r);
    uint16_t purpose = read16(&r);
    h->rank = read16(&r);
    h->features = read64(&r);
    memcpy(h->id, look(&r, TP_ID_BYTES), TP_ID_BYTES);
    read_text(&r, h->build, TP_BUILD_MOST);
    read_text(&r, h->about, TP_ABOUT_MOST);
    if (!r.bad && (purpose < TP_FOR_ROOT || purpose > TP_FOR_LOOK))
        return "it says hello for no known purpose";
    h->purpose = (uint8_t)purpose;
    return read_end(&r);
}

int tp_join_put(struct dl_str *out, const struct tp_join *j)
{
    struct pen w = {out, DL_OK};
    write_bytes(&w, j->cluster, TP_ID_BYTES);
    write16(&w, j->rank);
    write16(&w, j->n_nodes);
    write32(&w, j->beat_ms);
    write32(&w, j->dead_ms);
    for (unsigned i = 0; i < j->n_nodes; i++) {
        const struct tp_join_node *node = &j->nodes[i];
        write64(&w, node->features);
        write_text(&w, node->name);
        write_text(&w, node->about);
        write_text(&w, node->addr);
    }
    return w.err;
}

static void read_node(struct eye *r, struct tp_join_node *node)
{
    node->features = read64(r);
    read_text(r, node->name, TP_NAME_MOST);
    read_text(r, node->about, TP_ABOUT_MOST);
    read_text(r, node->addr, TP_ADDR_MOST);
}

const char *tp_join_get(const uint8_t *in, size_t n, struct tp_join *j)
{
    struct eye r = {in, n, false};
    memset(j, 0, sizeof *j);
    memcpy(j->cluster, look(&r, TP_ID_BYTES), TP_ID_BYTES);
    j->rank = read16(&r);
    uint16_t n_nodes = read16(&r);
    j->beat_ms = read32(&r);
    j->dead_ms = read32(&r);
    if (!r.bad && (n_nodes < 2 || n_nodes > TP_NODES_MOST || !j->rank || j->rank >= n_nodes))
        return "it describes a cluster that cannot be";
    if (!r.bad && (j->beat_ms < 1 || j->beat_ms > 60000 || j->dead_ms <= j->beat_ms || j->dead_ms > 600000))
        return "it wants heartbeats that cannot be";
    struct eye nodes = r;
    for (unsigned i = 0; i < n_nodes && !r.bad; i++)
        read_node(&r, &(struct tp_join_node){0});
    const char *wrong = read_end(&r);
    if (wrong)
        return wrong;
    j->nodes = dl_calloc(n_nodes, sizeof *j->nodes);
    if (!j->nodes)
        return "no memory for its cluster";
    j->n_nodes = n_nodes;
    for (unsigned i = 0; i < n_nodes; i++)
        read_node(&nodes, &j->nodes[i]);
    return NULL;
}

void tp_join_finish(struct tp_join *j)
{
    free(j->nodes);
    j->nodes = NULL;
    j->n_nodes = 0;
}

int tp_broken_put(struct dl_str *out, const struct tp_broken *b)
{
    struct pen w = {out, DL_OK};
    write16(&w, b->node);
    write16(&w, b->by);
    write_text(&w, b->why);
    return w.err;
}

const char *tp_broken_get(const uint8_t *in, size_t n, struct tp_broken *b)
{
    struct eye r = {in, n, false};
    memset(b, 0, sizeof *b);
    b->node = read16(&r);
    b->by = read16(&r);
    read_text(&r, b->why, TP_WHY_MOST);
    return read_end(&r);
}
