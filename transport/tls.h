/* SPDX-License-Identifier: MIT
 *
 * transport/tls.h: TLS 1.3 between two that share a key, and no certificates. Works on bytes in memory: what came from the socket
 * goes in, what is to be sent comes out. OpenSSL is used here (and for wiping keys) and nowhere else.
 *
 * The key is an external PSK with an ephemeral key exchange: both sides prove that they have it, traffic that was recorded
 * cannot be replayed (no early data), nor read later by who steals the key.
 */
#ifndef TP_TLS_H
#define TP_TLS_H

#include "dl/transport.h"

struct tp_tls_ctx;
struct tp_tls;

/* What connections with the same key share. It may go before they do, once they have shaken hands. */
int tp_tls_ctx_create(const struct dl_key *key, struct tp_tls_ctx **out);
void tp_tls_ctx_destroy(struct tp_tls_ctx **ctx);

/* NULL (logged) when memory is out. */
struct tp_tls *tp_tls_create(struct tp_tls_ctx *ctx, bool server);
void tp_tls_destroy(struct tp_tls **tls);

/* Bytes from the socket; all are taken. */
int tp_tls_put(struct tp_tls *tls, const uint8_t *bytes, size_t n);
/* Bytes for the socket, in the order they are to go; took: so many are away. */
size_t tp_tls_out(struct tp_tls *tls, const uint8_t **bytes);
void tp_tls_took(struct tp_tls *tls, size_t n);

/* Goes on as far as the bytes do that are there. 1: done; 0: more has to come; DL_EUNSUP (not logged) with *why in words. */
int tp_tls_handshake(struct tp_tls *tls, const char **why);
/* Plain bytes: how many, 0 when more has to come, < 0 (not logged) when the peer broke or ended the stream. */
int tp_tls_read(struct tp_tls *tls, uint8_t *p, size_t n);
/* Has anything been put that tp_tls_read could still take? If not, it would return 0, and that is much slower than asking. */
bool tp_tls_more(struct tp_tls *tls);
/* n > 0 bytes become records in tp_tls_out. */
int tp_tls_write(struct tp_tls *tls, const uint8_t *p, size_t n);

#endif
