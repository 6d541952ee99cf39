/* SPDX-License-Identifier: MIT
 *
 * transport/tls.c: tls.h on OpenSSL. Both ends of a connection are buffers here, behind a BIO of our own: that of OpenSSL clears its memory
 * each time it is empty, all that it ever held, which after a large frame takes longer than to encrypt a small one.
 */
#include "tls.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>

struct tp_tls_ctx {
    SSL_CTX *ssl;
    struct dl_key key;
};

/* Bytes v[at .. len). */
struct bytes {
    uint8_t *v;
    size_t at, len, cap;
};

struct tp_tls {
    SSL *ssl;
    BIO_METHOD *method;
    struct bytes in, out; /* from the socket; for it */
};

/* The PSK's name on the wire. It tells nothing of the key. */
static const unsigned char identity[] = "dllama-vk-1";

/* The key in the form in which OpenSSL takes it. It goes with any cipher that hashes with SHA-256: both that we offer do. */
static SSL_SESSION *session_of(SSL *ssl)
{
    const struct tp_tls_ctx *ctx = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    static const unsigned char aes_128_gcm_sha256[] = {0x13, 0x01};
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, aes_128_gcm_sha256);
    SSL_SESSION *s = SSL_SESSION_new();
    if (s && cipher && SSL_SESSION_set1_master_key(s, ctx->key.bytes, sizeof ctx->key.bytes) &&
        SSL_SESSION_set_cipher(s, cipher) && SSL_SESSION_set_protocol_version(s, TLS1_3_VERSION))
        return s;
    SSL_SESSION_free(s);
    return NULL;
}

static int use_key(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len, SSL_SESSION **out)
{
    *out = NULL;
    if (md && EVP_MD_get_type(md) != NID_sha256)
        return 1; /* a second try with another hash: without a key, so it fails */
    *out = session_of(ssl);
    *id = identity;
    *id_len = sizeof identity - 1;
    return *out != NULL;
}

static int find_key(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **out)
{
    *out = NULL;
    if (id_len != sizeof identity - 1 || memcmp(id, identity, id_len) != 0)
        return 1;
    *out = session_of(ssl);
    return *out != NULL;
}

/* How long this machine takes for some records. */
static uint64_t cost(const EVP_CIPHER *cipher)
{
    unsigned char key[32] = {1}, iv[12] = {2}, data[4096] = {3}, sealed[sizeof data + 32];
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    uint64_t least = UINT64_MAX;
    for (unsigned i = 0; c && i < 8; i++) {
        uint64_t t0 = dl_now_ns();
        int n;
        if (!EVP_EncryptInit_ex(c, cipher, NULL, key, iv) || !EVP_EncryptUpdate(c, sealed, &n, data, sizeof data))
            break;
        least = DL_MIN(least, dl_now_ns() - t0);
    }
    EVP_CIPHER_CTX_free(c);
    return least;
}

int tp_tls_ctx_create(const struct dl_key *key, struct tp_tls_ctx **out)
{
    struct tp_tls_ctx *ctx = dl_xcalloc(1, sizeof *ctx);
    ctx->key = *key;
    ctx->ssl = SSL_CTX_new(TLS_method());
    /* Small boards lack AES instructions. The side that is slow at AES decides, whichever it is. */
    bool chacha = cost(EVP_chacha20_poly1305()) < cost(EVP_aes_128_gcm());
    const char *ciphers = chacha ? "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"
                                 : "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
    if (!ctx->ssl || !SSL_CTX_set_min_proto_version(ctx->ssl, TLS1_3_VERSION) ||
        !SSL_CTX_set_num_tickets(ctx->ssl, 0) || !SSL_CTX_set_ciphersuites(ctx->ssl, ciphers) ||
        !SSL_CTX_set_app_data(ctx->ssl, ctx)) {
        char text[200];
        ERR_error_string_n(ERR_get_error(), text, sizeof text);
        ERR_clear_error();
        tp_tls_ctx_destroy(&ctx);
        return dl_fail(DL_EUNSUP, "tls: this system's OpenSSL cannot do TLS 1.3 with a shared key: %s", text);
    }
    SSL_CTX_set_options(ctx->ssl, SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    SSL_CTX_set_session_cache_mode(ctx->ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ctx->ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_psk_use_session_callback(ctx->ssl, use_key);
    SSL_CTX_set_psk_find_session_callback(ctx->ssl, find_key);
    *out = ctx;
    return DL_OK;
}

void tp_tls_ctx_destroy(struct tp_tls_ctx **ctx)
{
    if (!*ctx)
        return;
    SSL_CTX_free((*ctx)->ssl);
    dl_key_forget(&(*ctx)->key);
    free(*ctx);
    *ctx = NULL;
}

/* ------------------------------------------------------------------------------------------------------ both ends */

static int bytes_add(struct bytes *b, const void *v, size_t n)
{
    if (b->at == b->len)
        b->at = b->len = 0;
    if (b->at && b->len + n > b->cap) {
        memmove(b->v, b->v + b->at, b->len - b->at);
        b->len -= b->at;
        b->at = 0;
    }
    void *grown = b->v;
    int err = dl_grow(&grown, &b->cap, b->len + n, 1);
    b->v = grown;
    if (!err && n)
        memcpy(b->v + b->len, v, n);
    b->len += err ? 0 : n;
    return err;
}

static int bio_read(BIO *bio, char *to, int most)
{
    struct bytes *b = &((struct tp_tls *)BIO_get_data(bio))->in;
    const size_t n = DL_MIN(b->len - b->at, most > 0 ? (size_t)most : 0);
    BIO_clear_retry_flags(bio);
    if (!n) {
        BIO_set_retry_read(bio);
        return -1;
    }
    memcpy(to, b->v + b->at, n);
    b->at += n;
    return (int)n;
}

static int bio_write(BIO *bio, const char *from, int n)
{
    struct tp_tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    return n >= 0 && !bytes_add(&tls->out, from, (size_t)n) ? n : -1;
}

static long bio_ctrl(BIO *bio, int what, long n, void *p)
{
    (void)bio, (void)n, (void)p;
    return what == BIO_CTRL_FLUSH;
}

static BIO *bio_create(struct tp_tls *tls)
{
    tls->method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "dllama-vk link");
    if (!tls->method || !BIO_meth_set_read(tls->method, bio_read) || !BIO_meth_set_write(tls->method, bio_write) ||
        !BIO_meth_set_ctrl(tls->method, bio_ctrl))
        return NULL;
    BIO *bio = BIO_new(tls->method);
    if (bio) {
        BIO_set_data(bio, tls);
        BIO_set_init(bio, 1);
    }
    return bio;
}

struct tp_tls *tp_tls_create(struct tp_tls_ctx *ctx, bool server)
{
    struct tp_tls *t = dl_xcalloc(1, sizeof *t);
    t->ssl = SSL_new(ctx->ssl);
    BIO *bio = t->ssl ? bio_create(t) : NULL;
    if (!bio) {
        tp_tls_destroy(&t);
        ERR_clear_error();
        (void)dl_fail(DL_ENOMEM, "tls: out of memory");
        return NULL;
    }
    SSL_set_bio(t->ssl, bio, bio);
    if (server) {
        SSL_set_accept_state(t->ssl);
    } else {
        SSL_set_connect_state(t->ssl);
        SSL_set_verify(t->ssl, SSL_VERIFY_PEER, NULL); /* a certificate instead of the key is refused */
    }
    return t;
}

void tp_tls_destroy(struct tp_tls **tls)
{
    struct tp_tls *t = *tls;
    if (!t)
        return;
    *tls = NULL;
    SSL_free(t->ssl); /* and its BIO, which still takes the method */
    BIO_meth_free(t->method);
    free(t->in.v);
    free(t->out.v);
    free(t);
}

int tp_tls_put(struct tp_tls *tls, const uint8_t *bytes, size_t n)
{
    return bytes_add(&tls->in, bytes, n);
}

size_t tp_tls_out(struct tp_tls *tls, const uint8_t **bytes)
{
    *bytes = tls->out.v ? tls->out.v + tls->out.at : NULL;
    return tls->out.len - tls->out.at;
}

void tp_tls_took(struct tp_tls *tls, size_t n)
{
    tls->out.at += n;
}

/* ------------------------------------------------------------------------------------------------------ TLS */

/* Why the handshake failed, in words that help. */
static const char *reason(const struct tp_tls *tls)
{
    int code = ERR_GET_REASON(ERR_peek_last_error());
    ERR_clear_error();
    if (code == SSL_R_BINDER_DOES_NOT_VERIFY || code == SSL_R_BAD_PSK)
        return "it has another key";
    if (!SSL_is_server(tls->ssl) && code > SSL_AD_REASON_OFFSET)
        return "it refused this side's key: both need the same key file";
    if (SSL_is_server(tls->ssl) && (code == SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM || code == SSL_R_NO_SHARED_CIPHER))
        return "it does not have the key";
    return "it does not speak TLS 1.3 with a shared key";
}

int tp_tls_handshake(struct tp_tls *tls, const char **why)
{
    ERR_clear_error();
    int r = SSL_do_handshake(tls->ssl);
    if (r == 1) {
        /* That is what OpenSSL says of a session that began with the PSK. */
        if (SSL_session_reused(tls->ssl))
            return 1;
        *why = "it does not have the key";
        return DL_EUNSUP;
    }
    if (SSL_get_error(tls->ssl, r) == SSL_ERROR_WANT_READ)
        return 0;
    *why = reason(tls);
    return DL_EUNSUP;
}

int tp_tls_read(struct tp_tls *tls, uint8_t *p, size_t n)
{
    ERR_clear_error();
    int r = SSL_read(tls->ssl, p, (int)DL_MIN(n, (size_t)INT_MAX));
    if (r > 0)
        return r;
    r = SSL_get_error(tls->ssl, r) == SSL_ERROR_WANT_READ ? 0 : DL_EFORMAT;
    ERR_clear_error();
    return r;
}

bool tp_tls_more(struct tp_tls *tls)
{
    return tls->in.at < tls->in.len || SSL_pending(tls->ssl) > 0;
}

int tp_tls_write(struct tp_tls *tls, const uint8_t *p, size_t n)
{
    while (n) {
        ERR_clear_error();
        int part = SSL_write(tls->ssl, p, (int)DL_MIN(n, (size_t)INT_MAX));
        if (part <= 0) {
            ERR_clear_error();
            return dl_fail(DL_ENOMEM, "tls: cannot encrypt %zu bytes", n);
        }
        p += part;
        n -= (size_t)part;
    }
    return DL_OK;
}
