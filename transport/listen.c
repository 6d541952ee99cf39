/* SPDX-License-Identifier: MIT
 *
 * transport/listen.c: a worker's listener: takes connections from whoever comes, lets in who shows that he belongs here within the time he
 * has, and survives everybody else. Strangers cost it one of 64 places, some KiB, and at most a line a second in the log.
 */
#include "listen.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tp_listen_say(dl_tcp_listener *l, const char *fmt, ...)
{
    uint64_t now = dl_now_ns();
    if (l->said_ns && now - l->said_ns < 1000000000u) {
        l->kept_back++;
        return;
    }
    char text[512], more[48] = "";
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (l->kept_back)
        snprintf(more, sizeof more, " (and %u more since the last such line)", l->kept_back);
    l->said_ns = now;
    l->kept_back = 0;
    dl_log(DL_LOG_WARN, "worker: %s%s", text, more);
}

/* ------------------------------------------------------------------------------------------------------ guests */

static void guest_unlist(struct tp_guest *g)
{
    for (struct tp_guest **p = &g->l->guests; *p; p = &(*p)->next)
        if (*p == g) {
            *p = g->next;
            g->l->n_guests--;
            return;
        }
}

static void guest_free(struct tp_guest *g)
{
    if (g->text != g->small)
        free(g->text);
    free(g);
}

void tp_guest_forget(struct tp_guest *g)
{
    guest_unlist(g);
    g->l->n_open--;
    guest_free(g);
}

static void put_text(struct tp_guest *g, uint8_t type, uint8_t flags, const void *text, size_t n)
{
    if (tp_link_put_copy(g->link, &(struct tp_frame){.type = type, .flags = flags, .length = (uint32_t)n}, text))
        tp_link_flush(g->link);
}

void tp_guest_answer(struct tp_guest *g)
{
    const struct tp_conf *conf = &g->l->conf;
    struct tp_hello h = {.purpose = TP_ANSWER, .protocol = TP_PROTOCOL, .features = conf->features};
    memcpy(h.id, g->l->id, sizeof h.id);
    memcpy(h.build, conf->build, sizeof h.build);
    memcpy(h.about, conf->about, sizeof h.about);
    struct dl_str text = {0};
    if (!tp_hello_put(&text, &h))
        put_text(g, TP_HELLO, 0, text.v, text.len);
    dl_str_finish(&text);
}

/* `why` is for the peer; it ends up in the log on both sides. */
void tp_guest_refuse(struct tp_guest *g, enum tp_refusal code, const char *why)
{
    tp_listen_say(g->l, "%s is refused: told it that %s", g->link->name, why);
    put_text(g, TP_REFUSE, (uint8_t)code, why, strlen(why));
    if (g->link)
        tp_link_close(g->link);
}

static enum tp_status guest_asked(struct tp_link *link)
{
    const dl_tcp_listener *l = ((struct tp_guest *)link->ud)->l;
    bool welcome = link->purpose == TP_FOR_MESH ? l->state == TP_JOINING && l->t : l->state == TP_FREE;
    return welcome ? TP_WELCOME : TP_BUSY;
}

static void guest_open(struct tp_link *link)
{
    (void)link; /* the first word is the dialer's */
}

static int guest_begin(struct tp_link *link, const struct tp_frame *f, void **dest)
{
    struct tp_guest *g = link->ud;
    bool expected = g->looks ? false : g->is_root ? f->type == TP_JOIN || f->type == TP_PING : f->type == TP_HELLO;
    if (!expected) {
        tp_link_fail(link, DL_EFORMAT, "it sends what does not belong here");
        return DL_EFORMAT;
    }
    g->text = g->small;
    if (f->length > sizeof g->small && !(g->text = dl_calloc(1, f->length))) {
        tp_link_fail(link, DL_ENOMEM, "no memory for its message of %u bytes", f->length);
        return DL_ENOMEM;
    }
    *dest = g->text;
    return DL_OK;
}

static void got_hello(struct tp_guest *g, const struct tp_hello *h)
{
    dl_tcp_listener *l = g->l;
    char why[200];
    if (h->protocol != TP_PROTOCOL || strcmp(h->build, l->conf.build) != 0) {
        snprintf(why, sizeof why,
                 "it is build %s (protocol %u), this side build %s (protocol %u): install the same version",
                 l->conf.build, TP_PROTOCOL, h->build, h->protocol);
        tp_guest_refuse(g, TP_NO_BUILD, why);
    } else if (h->purpose == TP_FOR_MESH) {
        tp_join_mesh(l, g, h);
    } else if (h->purpose == TP_FOR_LOOK && l->state == TP_FREE) {
        g->looks = true;
        tp_guest_answer(g);
    } else if (h->purpose != TP_FOR_ROOT || l->state != TP_FREE || !tp_join_clean(l)) {
        tp_guest_refuse(g, TP_NO_BUSY, "it is busy: it works for another root");
    } else {
        l->state = TP_JOINING;
        l->root = g;
        g->is_root = true;
        tp_guest_answer(g);
    }
}

static int guest_end(struct tp_link *link, const struct tp_frame *f)
{
    struct tp_guest *g = link->ud;
    dl_tcp_listener *l = g->l;
    if (f->type == TP_HELLO) {
        struct tp_hello h;
        const char *wrong = tp_hello_get(g->text, f->length, &h);
        if (wrong)
            tp_link_fail(link, DL_EFORMAT, "%s", wrong);
        else
            got_hello(g, &h);
    } else if (f->type == TP_JOIN) {
        tp_join_begin(l, g, g->text, f->length);
    }
    return link->state == TP_CLOSING ? DL_ECANCELED : DL_OK;
}

static void guest_sent(struct tp_link *link, uint64_t token, bool ok)
{
    (void)link, (void)token, (void)ok;
}

static void guest_lost(struct tp_link *link, int err, const char *why)
{
    struct tp_guest *g = link->ud;
    dl_tcp_listener *l = g->l;
    if (l->root == g) {
        tp_listen_say(l, "the root at %s went away before its cluster stood: %s", link->name, why);
        tp_join_abort(l);
    } else if (g->looks || link->purpose == TP_FOR_LOOK || (err == DL_EPEER && !link->n_greeting)) {
        dl_log(DL_LOG_DEBUG, "worker: %s connected and wanted nothing: %s", link->name, why);
    } else {
        tp_listen_say(l, "%s is refused: %s", link->name, why);
    }
}

static void guest_gone(struct tp_link *link)
{
    struct tp_guest *g = link->ud;
    guest_unlist(g);
    g->l->n_open--;
    if (g->l->root == g)
        g->l->root = NULL;
    guest_free(g);
}

static const struct tp_link_fns guest_fns = {
    .asked = guest_asked,
    .open = guest_open,
    .begin = guest_begin,
    .end = guest_end,
    .sent = guest_sent,
    .lost = guest_lost,
    .gone = guest_gone,
};

/* ------------------------------------------------------------------------------------------------------ the door */

static void tick(uv_timer_t *timer)
{
    dl_tcp_listener *l = timer->data;
    uint64_t now = dl_now_ns();
    for (struct tp_guest *g = l->guests, *next; g; g = next) {
        next = g->next;
        const uint64_t limit = (uint64_t)l->conf.handshake_ms * 1000000;
        /* A root that waits for other workers shows that it is still there. */
        uint64_t deadline = g->is_root ? g->link->heard_ns + limit : g->link->deadline_ns;
        if (now > deadline && g->link->state != TP_CLOSING)
            tp_link_fail(g->link, DL_ETIMEDOUT, "it is silent: not enough said within %u ms", l->conf.handshake_ms);
    }
    tp_join_tick(l, now);
    if (!l->guests && !l->mesh && (l->state == TP_FREE || l->state == TP_TAKEN) && l->ticking) {
        uv_timer_stop(&l->tick);
        l->ticking = false;
    }
}

/* Who came first has had the most time to show who he is. */
static void make_room(dl_tcp_listener *l)
{
    for (struct tp_guest *g = l->guests; g && l->n_guests >= TP_GUESTS_MOST; g = g->next)
        if (!g->is_root && g->link->state != TP_CLOSING) {
            tp_link_fail(g->link, DL_ELIMIT, "too many strangers at once");
            return;
        }
}

static void somebody(uv_stream_t *server, int status)
{
    dl_tcp_listener *l = server->data;
    if (status < 0) {
        tp_listen_say(l, "a connection cannot be taken: %s", uv_strerror(status));
        return;
    }
    if (l->closing)
        return;
    make_room(l);
    struct tp_guest *g = dl_calloc(1, sizeof *g);
    struct tp_link *link = g ? tp_link_create(l->loop, &l->conf, "somebody", &guest_fns, g) : NULL;
    if (!link) {
        free(g);
        return;
    }
    g->l = l;
    g->link = link;
    g->text = g->small;
    struct tp_guest **last = &l->guests;
    while (*last)
        last = &(*last)->next;
    *last = g;
    l->n_guests++;
    l->n_open++;
    struct sockaddr_storage far;
    int code = uv_accept(server, (uv_stream_t *)&link->tcp);
    if (code) {
        tp_link_fail(link, DL_EIO, "it cannot be taken: %s", uv_strerror(code));
        return;
    }
    if (tp_addr_far(&link->tcp, &far))
        tp_addr_text((const struct sockaddr *)&far, link->name);
    if (!l->ticking)
        (void)tp_timer_start(l->loop, &l->tick, tick, 50);
    l->ticking = true;
    tp_link_accepted(link);
}

static void handle_closed(uv_handle_t *handle)
{
    ((dl_tcp_listener *)handle->data)->n_open--;
}

/* ------------------------------------------------------------------------------------------------------ open and close */

static int listen_on(dl_tcp_listener *l, const char *address, struct sockaddr *addr)
{
    uv_tcp_t *server = &l->servers[l->n_servers];
    int code = uv_tcp_init(tp_loop_uv(l->loop), server);
    if (!code) {
        server->data = l;
        l->n_servers++;
        l->n_open++;
        if (l->n_servers > 1 && !tp_addr_port(addr)) { /* all addresses of a name get the port that the first one got */
            struct sockaddr_storage first;
            if (tp_addr_local(&l->servers[0], &first))
                tp_addr_set_port(addr, tp_addr_port((const struct sockaddr *)&first));
        }
        code = uv_tcp_bind(server, addr, 0);
    }
    if (!code)
        code = uv_listen((uv_stream_t *)server, 128, somebody);
    if (code)
        return dl_fail(DL_EIO, "worker: cannot listen on %s: %s", address, uv_strerror(code));
    struct sockaddr_storage got;
    if (l->n_servers == 1 && tp_addr_local(server, &got))
        tp_addr_text((const struct sockaddr *)&got, l->address);
    return DL_OK;
}

static int check_public(const dl_tcp_listener *l, const char *address, const struct sockaddr *addr)
{
    if (l->conf.tls || l->conf.insecure || tp_addr_is_loopback(addr))
        return DL_OK;
    return dl_fail(
        DL_EINVAL,
        "worker: other machines reach %s and there is no key: make one with `dllama-vk keygen FILE`, copy it to all "
        "nodes and give them --key FILE, or --insecure where the network is trusted",
        address);
}

static int open_sockets(dl_tcp_listener *l, const char *address)
{
    char host[TP_HOST_MOST + 1], port[TP_PORT_MOST + 1];
    const char *wrong = tp_addr_split(address, host, port);
    if (wrong)
        return dl_fail(DL_EINVAL, "worker: cannot listen on \"%s\": %s", address, wrong);
    struct sockaddr_storage addrs[TP_ADDRS_MOST];
    unsigned n = 1;
    if (!tp_addr_numeric(host, port, &addrs[0])) {
        uv_getaddrinfo_t req;
        const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
        int code = uv_getaddrinfo(tp_loop_uv(l->loop), &req, NULL, host, port, &hints);
        if (code)
            return dl_fail(DL_EIO, "worker: cannot listen on %s: %s", address, uv_strerror(code));
        n = tp_addr_list(req.addrinfo, addrs, TP_ADDRS_MOST);
        uv_freeaddrinfo(req.addrinfo);
    }
    int err = n ? DL_OK : dl_fail(DL_EIO, "worker: cannot listen on %s: the name has no address", address);
    for (unsigned i = 0; i < n && !err; i++)
        err = check_public(l, address, (const struct sockaddr *)&addrs[i]);
    for (unsigned i = 0; i < n && !err; i++)
        err = listen_on(l, address, (struct sockaddr *)&addrs[i]);
    return err;
}

int dl_tcp_listen(const char *address, const struct dl_tcp_opts *opts, dl_tcp_listener **out)
{
    *out = NULL;
    dl_tcp_listener *l = dl_xcalloc(1, sizeof *l);
    pthread_mutex_init(&l->lock, NULL);
    tp_cond_init(&l->changed);
    int err = tp_conf_init(&l->conf, opts);
    if (!err && uv_random(NULL, NULL, l->id, sizeof l->id, 0, NULL))
        memset(l->id, 0, sizeof l->id); /* a restart may be overlooked then: no reason not to work */
    if (!err)
        err = tp_loop_create(l->conf.spin_us, &l->loop);
    if (!err) {
        tp_loop_enter(l->loop);
        (void)uv_timer_init(tp_loop_uv(l->loop), &l->tick);
        l->tick.data = l;
        l->n_open++;
        err = open_sockets(l, address);
        tp_loop_leave(l->loop);
    }
    if (err)
        dl_tcp_listener_close(&l);
    *out = l;
    return err;
}

const char *dl_tcp_listener_address(const dl_tcp_listener *l)
{
    return l->address;
}

int dl_tcp_accept(dl_tcp_listener *l, uint64_t timeout_ns, dl_transport **out)
{
    *out = NULL;
    const uint64_t deadline = tp_later(dl_now_ns(), timeout_ns);
    pthread_mutex_lock(&l->lock);
    while (!l->formed && dl_now_ns() < deadline)
        tp_cond_wait_until(&l->changed, &l->lock, deadline);
    struct tp_tcp *t = l->formed;
    l->formed = NULL;
    pthread_mutex_unlock(&l->lock);
    if (!t)
        return DL_ETIMEDOUT;
    *out = &t->base;
    return DL_OK;
}

void dl_tcp_listener_shut(dl_tcp_listener *l)
{
    tp_loop_enter(l->loop);
    for (unsigned i = 0; i < l->n_servers && !l->closing; i++)
        uv_close((uv_handle_t *)&l->servers[i], handle_closed);
    l->closing = true;
    tp_loop_leave(l->loop);
}

static void empty(dl_tcp_listener *l)
{
    tp_loop_enter(l->loop);
    tp_join_abort(l);
    for (struct tp_guest *g = l->guests; g; g = g->next)
        tp_link_close(g->link);
    while (l->state == TP_LEAVING || l->guests || l->mesh) {
        tp_loop_turn(l->loop, false);
        tp_join_tick(l, dl_now_ns());
    }
    uv_close((uv_handle_t *)&l->tick, handle_closed);
    while (l->n_open)
        tp_loop_turn(l->loop, true);
    tp_loop_leave(l->loop);
}

void dl_tcp_listener_close(dl_tcp_listener **listener)
{
    dl_tcp_listener *l = *listener;
    *listener = NULL;
    if (!l)
        return;
    dl_transport *unclaimed = NULL;
    if (l->loop)
        dl_tcp_listener_shut(l);
    (void)dl_tcp_accept(l, 0, &unclaimed);
    dl_transport_close(&unclaimed);
    if (l->loop)
        empty(l);
    tp_loop_destroy(&l->loop);
    tp_conf_finish(&l->conf);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    free(l);
}
