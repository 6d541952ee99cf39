/* SPDX-License-Identifier: MIT
 *
 * transport/addr.c: addr.h, for IPv4 and IPv6.
 */
#include "addr.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *tp_addr_split(const char *text, char host[TP_HOST_MOST + 1], char port[TP_PORT_MOST + 1])
{
    const char *colon = strrchr(text, ':');
    if (!colon)
        return "there is no port: write HOST:PORT";
    const char *from = text, *to = colon;
    if (*text == '[') {
        if (colon == text || colon[-1] != ']')
            return "write [IPV6]:PORT";
        from = text + 1;
        to = colon - 1;
    } else if (memchr(text, ':', (size_t)(colon - text))) {
        return "more than one colon: write [IPV6]:PORT";
    }
    if (to == from)
        return "there is no host: write HOST:PORT (0.0.0.0:PORT for all addresses of this machine)";
    if (to - from > TP_HOST_MOST)
        return "the host's name is too long";
    size_t n = strlen(colon + 1);
    if (!n || n > TP_PORT_MOST || strspn(colon + 1, "0123456789") != n || strtoul(colon + 1, NULL, 10) > 65535)
        return "the port is no number from 0 to 65535";
    memcpy(host, from, (size_t)(to - from));
    host[to - from] = 0;
    memcpy(port, colon + 1, n + 1);
    return NULL;
}

bool tp_addr_numeric(const char *host, const char *port, struct sockaddr_storage *out)
{
    int number = (int)strtoul(port, NULL, 10);
    memset(out, 0, sizeof *out);
    return !uv_ip4_addr(host, number, (struct sockaddr_in *)out) ||
           !uv_ip6_addr(host, number, (struct sockaddr_in6 *)out);
}

void tp_addr_text(const struct sockaddr *addr, char out[TP_ADDR_MOST + 1])
{
    char name[TP_ADDR_MOST - 8] = "?";
    if (addr->sa_family == AF_INET6)
        (void)uv_ip6_name((const struct sockaddr_in6 *)(const void *)addr, name, sizeof name);
    else if (addr->sa_family == AF_INET)
        (void)uv_ip4_name((const struct sockaddr_in *)(const void *)addr, name, sizeof name);
    snprintf(out, TP_ADDR_MOST + 1, addr->sa_family == AF_INET6 ? "[%s]:%u" : "%s:%u", name, tp_addr_port(addr));
}

bool tp_addr_is_loopback(const struct sockaddr *addr)
{
    if (addr->sa_family == AF_INET)
        return ((const uint8_t *)&((const struct sockaddr_in *)(const void *)addr)->sin_addr)[0] == 127;
    if (addr->sa_family != AF_INET6)
        return false;
    static const uint8_t mapped[13] = {[10] = 0xff, [11] = 0xff, [12] = 127}, one[16] = {[15] = 1};
    const struct in6_addr *a = &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr;
    return !memcmp(a, one, sizeof one) || !memcmp(a, mapped, sizeof mapped);
}

/* The port is at the same place in both. */
uint16_t tp_addr_port(const struct sockaddr *addr)
{
    return ntohs(addr->sa_family == AF_INET6 ? ((const struct sockaddr_in6 *)(const void *)addr)->sin6_port
                                             : ((const struct sockaddr_in *)(const void *)addr)->sin_port);
}

void tp_addr_set_port(struct sockaddr *addr, uint16_t port)
{
    if (addr->sa_family == AF_INET6)
        ((struct sockaddr_in6 *)(void *)addr)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)(void *)addr)->sin_port = htons(port);
}

unsigned tp_addr_list(const struct addrinfo *list, struct sockaddr_storage *out, unsigned most)
{
    unsigned n = 0;
    for (; list && n < most; list = list->ai_next) {
        if ((list->ai_family != AF_INET && list->ai_family != AF_INET6) || list->ai_addrlen > sizeof *out)
            continue;
        memset(&out[n], 0, sizeof *out);
        memcpy(&out[n], list->ai_addr, list->ai_addrlen);
        bool seen = false;
        for (unsigned i = 0; i < n; i++)
            seen |= !memcmp(&out[i], &out[n], sizeof *out);
        n += !seen;
    }
    return n;
}

bool tp_addr_local(const uv_tcp_t *tcp, struct sockaddr_storage *out)
{
    int len = sizeof *out;
    memset(out, 0, sizeof *out);
    return !uv_tcp_getsockname(tcp, (struct sockaddr *)out, &len);
}

bool tp_addr_far(const uv_tcp_t *tcp, struct sockaddr_storage *out)
{
    int len = sizeof *out;
    memset(out, 0, sizeof *out);
    return !uv_tcp_getpeername(tcp, (struct sockaddr *)out, &len);
}

bool tp_addr_is_near(const uv_tcp_t *tcp)
{
    struct sockaddr_storage here, there;
    if (!tp_addr_local(tcp, &here) || !tp_addr_far(tcp, &there))
        return false;
    if (here.ss_family == AF_INET6) /* what else is in there says nothing of the machine */
        return !memcmp(&((const struct sockaddr_in6 *)(const void *)&here)->sin6_addr,
                       &((const struct sockaddr_in6 *)(const void *)&there)->sin6_addr, sizeof(struct in6_addr));
    return here.ss_family == there.ss_family && !memcmp(&((const struct sockaddr_in *)(const void *)&here)->sin_addr,
                                                        &((const struct sockaddr_in *)(const void *)&there)->sin_addr,
                                                        sizeof(struct in_addr));
}

void tp_sock_quick_ack(const uv_tcp_t *tcp)
{
#ifdef TCP_QUICKACK
    uv_os_fd_t fd;
    int on = 1;
    if (!uv_fileno((const uv_handle_t *)tcp, &fd))
        (void)setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
#else
    (void)tcp;
#endif
}
