/* SPDX-License-Identifier: MIT
 *
 * engine/run/rates.c: see rates.h. A line per entry, newest first:
 *
 *   dllama-vk-rates-1 TIME BUILD DIM WEIGHT LATENCY BYTES_PER_S N, and N times: WHO BYTES_PER_S OP_NS SUBMIT_NS FLOPS
 *
 * BUILD and WHO are hashes of texts: a new version, whose kernels may be faster, measures anew.
 */
#include "rates.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MARK "dllama-vk-rates-1"
#define OLDEST_S (30 * 24 * 3600)
#define MOST_ENTRIES 32u
#define MOST_BYTES ((size_t)1 << 22)

static uint64_t hash_of(const char *text)
{
    return dl_hash(text, strlen(text), 0);
}

/* A line being read: words between blanks. */
struct words {
    const char *at, *end;
    bool bad;
};

static size_t word(struct words *w, char *out, size_t cap)
{
    while (w->at < w->end && *w->at == ' ')
        w->at++;
    size_t n = 0;
    while (w->at < w->end && *w->at != ' ') {
        if (n + 1 < cap)
            out[n] = *w->at;
        n++;
        w->at++;
    }
    w->bad = w->bad || !n || n >= cap;
    out[w->bad ? 0 : n] = 0;
    return n;
}

static uint64_t whole(struct words *w, int base)
{
    char text[32], *end;
    word(w, text, sizeof text);
    uint64_t v = strtoull(text, &end, base);
    w->bad = w->bad || *end;
    return v;
}

static double number(struct words *w)
{
    char text[40], *end;
    word(w, text, sizeof text);
    double v = strtod(text, &end);
    w->bad = w->bad || *end || !(v >= 0) || v > 1e18;
    return w->bad ? 0 : v;
}

struct head {
    uint64_t time, n;
    struct eng_link_rate link;
    bool ours; /* same build, width and type, and not too old */
};

static struct head read_head(struct words *w, const struct eng_rates_key *key)
{
    struct head h = {0};
    char mark[sizeof MARK + 1];
    word(w, mark, sizeof mark);
    h.time = whole(w, 10);
    uint64_t build = whole(w, 16), dim = whole(w, 10), weight = whole(w, 10), now = (uint64_t)time(NULL);
    h.link.speed.latency_ns = (uint64_t)number(w);
    h.link.speed.bytes_per_s = number(w);
    h.n = whole(w, 10);
    w->bad = w->bad || strcmp(mark, MARK) != 0 || h.n < 1 || h.n > ENG_MOST_NODES;
    h.link.n_nodes = (uint32_t)h.n;
    h.ours = !w->bad && build == hash_of(DL_VERSION) && dim == key->dim && weight == (uint64_t)key->weight &&
             h.time <= now + OLDEST_S && now < h.time + OLDEST_S;
    return h;
}

/* Reads the nodes behind a head; how many of key->who are among them. rates may be NULL. */
static uint32_t read_nodes(struct words *w, const struct eng_rates_key *key, uint64_t n, struct eng_rate *rates)
{
    uint32_t found = 0;
    for (uint64_t i = 0; i < n && !w->bad; i++) {
        uint64_t who = whole(w, 16);
        struct dl_device_rate r = {number(w), number(w), number(w), number(w)};
        w->bad = w->bad || !(r.bytes_per_s > 0);
        for (uint32_t k = 0; k < key->n && !w->bad; k++)
            if (hash_of(key->who[k]) == who) {
                found++;
                if (rates)
                    rates[k].rate = r;
            }
    }
    return w->bad ? 0 : found;
}

/* Calls line(ud, begin, end) for each line of the file until that says true. */
static bool each_line(const char *path, bool (*line)(void *ud, const char *begin, const char *end), void *ud)
{
    struct dl_map map;
    bool stop = false;
    if (!dl_map_try(path, &map))
        return false;
    const char *at = (const char *)map.data, *end = at + DL_MIN(map.size, MOST_BYTES);
    while (at < end && !stop) {
        const char *nl = memchr(at, '\n', (size_t)(end - at));
        if (!nl)
            break;
        stop = line(ud, at, nl);
        at = nl + 1;
    }
    dl_map_close(&map);
    return stop;
}

struct recall {
    const struct eng_rates_key *key;
    struct eng_rate *rates;
    struct eng_link_rate *link;
};

static bool recall_line(void *ud, const char *begin, const char *end)
{
    struct recall *r = ud;
    struct words w = {begin, end, false}, nodes;
    struct head h = read_head(&w, r->key);
    nodes = w;
    if (!h.ours || h.n > 2 * (uint64_t)r->key->n || read_nodes(&w, r->key, h.n, NULL) != r->key->n)
        return false;
    (void)read_nodes(&nodes, r->key, h.n, r->rates);
    *r->link = h.link;
    return true;
}

bool eng_rates_recall(const char *path, const struct eng_rates_key *key, struct eng_rate *rates,
                      struct eng_link_rate *link)
{
    struct recall r = {key, rates, link};
    for (uint32_t i = 0; i < key->n; i++) /* two that cannot be told apart would both be found where there is one */
        for (uint32_t k = 0; k < i; k++)
            if (!strcmp(key->who[i], key->who[k]))
                return false;
    return each_line(path, recall_line, &r);
}

struct keep {
    const struct eng_rates_key *key;
    struct dl_str *out;
    uint32_t n;
};

/* Everything but what the new entry replaces. */
static bool keep_line(void *ud, const char *begin, const char *end)
{
    struct keep *k = ud;
    struct words w = {begin, end, false};
    struct head h = read_head(&w, k->key);
    if (w.bad || (h.ours && h.n == k->key->n && read_nodes(&w, k->key, h.n, NULL) == k->key->n))
        return false;
    if (dl_str_add(k->out, begin, (size_t)(end - begin) + 1))
        return true;
    return ++k->n + 1 >= MOST_ENTRIES;
}

void eng_rates_remember(const char *path, const struct eng_rates_key *key, const struct eng_rate *rates,
                        const struct eng_link_rate *link)
{
    struct dl_str s = {0};
    struct keep k = {key, &s, 0};
    int err = dl_str_addf(&s, MARK " %" PRIu64 " %" PRIx64 " %u %d %" PRIu64 " %.6g %u", (uint64_t)time(NULL),
                          hash_of(DL_VERSION), key->dim, (int)key->weight, link->speed.latency_ns,
                          link->speed.bytes_per_s, key->n);
    for (uint32_t i = 0; i < key->n && !err; i++) {
        const struct dl_device_rate *r = &rates[i].rate;
        err = dl_str_addf(&s, " %" PRIx64 " %.6g %.6g %.6g %.6g", hash_of(key->who[i]), r->bytes_per_s, r->op_ns,
                          r->submit_ns, r->flops);
    }
    if (!err)
        err = dl_str_addz(&s, "\n");
    if (!err) {
        (void)each_line(path, keep_line, &k);
        (void)dl_file_replace(path, s.v, s.len);
    }
    dl_str_finish(&s);
}
