/* SPDX-License-Identifier: MIT
 *
 * transport/addr.h: addresses as text and as the system has them.
 */
#ifndef TP_ADDR_H
#define TP_ADDR_H

#include <uv.h>

#include "wire.h"

enum { TP_HOST_MOST = 255, TP_PORT_MOST = 5 };

/* "HOST:PORT", "[IPV6]:PORT". NULL, or what is wrong with it. */
const char *tp_addr_split(const char *text, char host[TP_HOST_MOST + 1], char port[TP_PORT_MOST + 1]);

/* Without asking anyone: false when the host is a name. */
bool tp_addr_numeric(const char *host, const char *port, struct sockaddr_storage *out);
void tp_addr_text(const struct sockaddr *addr, char out[TP_ADDR_MOST + 1]);
bool tp_addr_is_loopback(const struct sockaddr *addr);
uint16_t tp_addr_port(const struct sockaddr *addr);
void tp_addr_set_port(struct sockaddr *addr, uint16_t port);

/* The addresses in a result of uv_getaddrinfo, at most `most`, each once. */
unsigned tp_addr_list(const struct addrinfo *list, struct sockaddr_storage *out, unsigned most);

/* The local or the far end of a connected socket; false when there is none. */
bool tp_addr_local(const uv_tcp_t *tcp, struct sockaddr_storage *out);
bool tp_addr_far(const uv_tcp_t *tcp, struct sockaddr_storage *out);

/* Do both ends have the same address, whatever the ports? Then they are one machine. */
bool tp_addr_is_near(const uv_tcp_t *tcp);

/* Answers leave when data comes, not 40 ms later. The system forgets it: to be repeated after reads. */
void tp_sock_quick_ack(const uv_tcp_t *tcp);

#endif
