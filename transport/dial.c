/* SPDX-License-Identifier: MIT
 *
 * transport/dial.c: see dial.h.
 */
#include "dial.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Asking for a name cannot be taken back: it lives until it is answered, whoever is still interested. */
struct tp_lookup {
    uv_getaddrinfo_t req;
    struct tp_loop *loop;
    struct tp_dial *d; /* NULL: nobody is */
};

static void attempt(struct tp_dial *d);

static void dial_connected(struct tp_link *l)
{
    struct tp_dial *d = l->ud;
    d->link = NULL;
    d->n_open--;
    d->connected(d, l);
}

static void dial_lost(struct tp_link *l, int err, const char *why)
{
    struct tp_dial *d = l->ud;
    if (d->link != l)
        return;
    d->link = NULL;
    if (++d->at < d->n_addrs)
        attempt(d);
    else
        d->failed(d, err, why);
}

static void dial_gone(struct tp_link *l)
{
    struct tp_dial *d = l->ud;
    d->n_open--;
}

static const struct tp_link_fns fns = {.connected = dial_connected, .lost = dial_lost, .gone = dial_gone};

static void attempt(struct tp_dial *d)
{
    d->link = tp_link_create(d->loop, d->conf, d->target, &fns, d);
    if (!d->link) {
        d->failed(d, DL_ENOMEM, "out of memory or descriptors");
        return;
    }
    d->n_open++;
    d->link->purpose = d->purpose;
    /* An address that does not answer leaves time for the others. */
    d->deadline_ns = dl_now_ns() + (uint64_t)d->conf->handshake_ms * 1000000 / (d->n_addrs - d->at);
    tp_link_dial(d->link, (const struct sockaddr *)&d->addrs[d->at]);
}

static void start(struct tp_dial *d)
{
    for (unsigned i = 0; i < d->n_addrs; i++)
        if (!d->conf->tls && !d->conf->insecure && !tp_addr_is_loopback((const struct sockaddr *)&d->addrs[i])) {
            d->failed(
                d, DL_EINVAL,
                "it is another machine and there is no key: make one with `dllama-vk keygen FILE`, copy it to all "
                "nodes and give them --key FILE, or --insecure where the network is trusted");
            return;
        }
    d->at = 0;
    if (d->n_addrs)
        attempt(d);
    else
        d->failed(d, DL_EPEER, "its name has no address");
}

static void looked_up(uv_getaddrinfo_t *req, int status, struct addrinfo *list)
{
    struct tp_lookup *lookup = req->data;
    struct tp_dial *d = lookup->d;
    tp_loop_lookup(lookup->loop, -1);
    if (d) {
        d->lookup = NULL;
        if (status) {
            char why[200];
            snprintf(why, sizeof why, "its name cannot be looked up: %s", uv_strerror(status));
            d->failed(d, DL_EPEER, why);
        } else {
            d->n_addrs = tp_addr_list(list, d->addrs, TP_ADDRS_MOST);
            start(d);
        }
    }
    uv_freeaddrinfo(list);
    free(lookup);
}

void tp_dial_start(struct tp_dial *d)
{
    char host[TP_HOST_MOST + 1], port[TP_PORT_MOST + 1];
    const char *wrong = tp_addr_split(d->target, host, port);
    if (wrong) {
        d->failed(d, DL_EINVAL, wrong);
        return;
    }
    if (tp_addr_numeric(host, port, &d->addrs[0])) {
        d->n_addrs = 1;
        start(d);
        return;
    }
    struct tp_lookup *lookup = dl_xcalloc(1, sizeof *lookup);
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    lookup->loop = d->loop;
    lookup->d = d;
    lookup->req.data = lookup;
    d->deadline_ns = dl_now_ns() + (uint64_t)d->conf->handshake_ms * 1000000;
    int code = uv_getaddrinfo(tp_loop_uv(d->loop), &lookup->req, looked_up, host, port, &hints);
    if (code) {
        free(lookup);
        d->failed(d, DL_EPEER, uv_strerror(code));
        return;
    }
    tp_loop_lookup(d->loop, 1);
    d->lookup = lookup;
}

void tp_dial_tick(struct tp_dial *d, uint64_t now)
{
    if (now < d->deadline_ns)
        return;
    if (d->link)
        tp_link_fail(d->link, DL_ETIMEDOUT, "no answer");
    else if (d->lookup) {
        tp_dial_stop(d);
        d->failed(d, DL_ETIMEDOUT, "nobody could say in time what address its name has");
    }
}

void tp_dial_stop(struct tp_dial *d)
{
    struct tp_link *l = d->link;
    d->link = NULL;
    if (l)
        tp_link_close(l);
    if (d->lookup)
        d->lookup->d = NULL;
    d->lookup = NULL;
}

void tp_dial_hello(struct tp_link *l, const struct tp_conf *conf, struct tp_hello *h)
{
    h->protocol = TP_PROTOCOL;
    h->features = conf->features;
    memcpy(h->build, conf->build, sizeof h->build);
    memcpy(h->about, conf->about, sizeof h->about);
    struct dl_str text = {0};
    if (!tp_hello_put(&text, h) &&
        tp_link_put_copy(l, &(struct tp_frame){.type = TP_HELLO, .length = (uint32_t)text.len}, text.v))
        tp_link_flush(l);
    dl_str_finish(&text);
}
