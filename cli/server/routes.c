/* SPDX-License-Identifier: MIT
 *
 * cli/server/routes.c: what can be asked for by which path.
 */
#include "http.h"

#include <stdlib.h>
#include <string.h>

/* What is served; false, with a refusal, while there is nothing yet. */
static bool served_now(struct cli_http *h, struct cli_served *served, struct cli_req_error *error)
{
    struct cli_server *s = h->server;
    pthread_mutex_lock(&s->lock);
    *served = s->served;
    pthread_mutex_unlock(&s->lock);
    if (!served->tok)
        cli_req_refuse(error, 503, NULL, NULL, "the model is still being loaded: try again later");
    return served->tok != NULL;
}

static enum MHD_Result chat(struct cli_http *h, const char *path)
{
    (void)path;
    return cli_http_answer(h, CLI_ENDPOINT_CHAT);
}

static enum MHD_Result completion(struct cli_http *h, const char *path)
{
    (void)path;
    return cli_http_answer(h, CLI_ENDPOINT_COMPLETION);
}

static json_t *model_json(const struct cli_served *served)
{
    return json_pack("{s:s,s:s,s:I,s:s,s:{s:i,s:i}}", "id", served->name, "object", "model", "created",
                     (json_int_t)served->created, "owned_by", "dllama-vk", "meta", "n_ctx", (int)served->ctx, "n_vocab",
                     (int)served->defaults.vocab);
}

static enum MHD_Result models(struct cli_http *h, const char *path)
{
    struct cli_served served;
    struct cli_req_error error;
    const char *name = path + strlen("/v1/models");
    if (!served_now(h, &served, &error))
        return cli_http_error(h, &error);
    if (!*name)
        return cli_http_json(h, 200, json_pack("{s:s,s:[o]}", "object", "list", "data", model_json(&served)));
    if (!strcmp(name + 1, served.name))
        return cli_http_json(h, 200, model_json(&served));
    cli_req_refuse(&error, 404, "model_not_found", "model", "there is no model '%.100s' here, only '%.100s'", name + 1,
                   served.name);
    return cli_http_error(h, &error);
}

static enum MHD_Result health(struct cli_http *h, const char *path)
{
    (void)path;
    struct cli_server *s = h->server;
    pthread_mutex_lock(&s->lock);
    enum cli_server_state state = s->state;
    json_t *v = json_pack("{s:s}", "status", cli_server_state_name(state));
    if (state == CLI_SERVER_LOADING)
        json_object_set_new(v, "loading",
                            json_pack("{s:s,s:I,s:I}", "phase", s->load_phase, "done", (json_int_t)s->load_done,
                                      "total", (json_int_t)s->load_total));
    if (*s->why)
        json_object_set_new(v, "why", json_string(s->why));
    pthread_mutex_unlock(&s->lock);
    return cli_http_json(h, state == CLI_SERVER_READY ? 200 : 503, v);
}

static enum MHD_Result metrics(struct cli_http *h, const char *path)
{
    (void)path;
    struct dl_str text = {0};
    struct cli_server *s = h->server;
    pthread_mutex_lock(&s->lock);
    struct cli_metrics m = s->metrics;
    m.queued = s->n_queued;
    m.running = s->n_running;
    pthread_mutex_unlock(&s->lock);
    int err = cli_metrics_text(&m, &text);
    pthread_mutex_lock(&s->lock);
    if (!err)
        err = cli_metrics_nodes(s->nodes, s->n_nodes, &text);
    pthread_mutex_unlock(&s->lock);
    enum MHD_Result done =
        err ? MHD_NO : cli_http_bytes(h, 200, "text/plain; version=0.0.4; charset=utf-8", text.v, text.len);
    dl_str_finish(&text);
    return done;
}

static json_t *node_json(const struct dl_node_stats *n)
{
    const struct dl_engine_stats *e = &n->stats;
    return json_pack("{s:s,s:s,s:f,s:f,s:f,s:f,s:f,s:I,s:I}", "name", n->name, "device", n->device, "share", n->share,
                     "compute_ms", (double)e->compute_ns / 1e6, "exchange_ms", (double)e->exchange_ns / 1e6,
                     "exchange_hidden_ms", (double)e->exchange_hidden_ns / 1e6, "idle_ms", (double)e->idle_ns / 1e6,
                     "sent_bytes", (json_int_t)e->sent_bytes, "received_bytes", (json_int_t)e->received_bytes);
}

static enum MHD_Result cluster(struct cli_http *h, const char *path)
{
    (void)path;
    struct cli_server *s = h->server;
    pthread_mutex_lock(&s->lock);
    json_t *nodes = json_array();
    for (uint32_t i = 0; i < s->n_nodes; i++)
        json_array_append_new(nodes, node_json(&s->nodes[i]));
    json_t *v =
        json_pack("{s:s,s:s,s:s,s:i,s:i,s:i,s:I,s:I,s:i,s:o,s:{s:I,s:I,s:I}}", "state", cli_server_state_name(s->state),
                  "why", s->why, "model", s->served.name, "ctx", (int)s->served.ctx, "running", (int)s->n_running,
                  "queued", (int)s->n_queued, "prompt_tokens", (json_int_t)s->metrics.prompt_tokens, "generated_tokens",
                  (json_int_t)s->metrics.generated_tokens, "nodes_in_all", (int)s->n_all, "nodes", nodes, "memory",
                  "weight_bytes", (json_int_t)s->weight_bytes, "kv_bytes", (json_int_t)s->kv_bytes, "activation_bytes",
                  (json_int_t)s->act_bytes);
    pthread_mutex_unlock(&s->lock);
    return cli_http_json(h, 200, v);
}

static enum MHD_Result tokenize(struct cli_http *h, const char *path)
{
    (void)path;
    struct cli_served served;
    struct cli_req_error error;
    struct cli_req_tokenize req = {0};
    struct dl_tokens ids = {0};
    bool ok = served_now(h, &served, &error) && !cli_tokenize_read(h->body.v, h->body.len, &req, &error);
    unsigned flags = (req.bos ? DL_TOKENIZE_BOS : 0u) | (req.special ? DL_TOKENIZE_SPECIAL : 0u);
    if (ok && dl_tokenize(served.tok, req.text, req.n, flags, &ids))
        ok = cli_req_refuse(&error, 500, NULL, NULL, "the server is out of memory") == DL_OK;
    json_t *list = json_array();
    for (size_t i = 0; i < ids.len; i++)
        json_array_append_new(list, json_integer(ids.v[i]));
    free(req.text);
    json_t *v = json_pack("{s:o,s:I}", "tokens", list, "count", (json_int_t)ids.len);
    dl_tokens_finish(&ids);
    if (ok)
        return cli_http_json(h, 200, v);
    json_decref(v);
    return cli_http_error(h, &error);
}

static enum MHD_Result detokenize(struct cli_http *h, const char *path)
{
    (void)path;
    struct cli_served served;
    struct cli_req_error error;
    struct dl_tokens ids = {0};
    struct dl_str text = {0};
    bool ok = served_now(h, &served, &error) &&
              !cli_detokenize_read(h->body.v, h->body.len, served.defaults.vocab, &ids, &error);
    struct dl_decoder d; /* unlike dl_detokenize it makes whole characters of any bytes */
    int err = DL_OK;
    if (ok)
        dl_decoder_init(&d, served.tok, true);
    for (size_t i = 0; i < ids.len && ok && !err; i++)
        err = dl_decoder_push(&d, ids.v[i], &text);
    if (ok && !err)
        err = dl_decoder_flush(&d, &text);
    if (err)
        ok = cli_req_refuse(&error, 500, NULL, NULL, "the server is out of memory") == DL_OK;
    enum MHD_Result done = ok ? cli_http_json(h, 200, json_pack("{s:s%}", "content", text.v ? text.v : "", text.len))
                              : cli_http_error(h, &error);
    dl_str_finish(&text);
    dl_tokens_finish(&ids);
    return done;
}

/* What a browser asks before it lets a page of another site ask. */
static enum MHD_Result preflight(struct cli_http *h, const char *path)
{
    (void)path;
    struct MHD_Response *r = MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT);
    if (r) {
        MHD_add_response_header(r, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
        MHD_add_response_header(r, "Access-Control-Allow-Headers",
                                "Authorization, Content-Type, X-Requested-With, X-Stainless-OS, X-Stainless-Arch, "
                                "X-Stainless-Lang, X-Stainless-Runtime, X-Stainless-Runtime-Version, "
                                "X-Stainless-Package-Version, X-Stainless-Retry-Count, X-Stainless-Timeout");
        MHD_add_response_header(r, "Access-Control-Max-Age", "600");
    }
    return cli_http_response(h, 204, r);
}

static const struct route {
    const char *method, *path;
    bool below; /* also anything below the path */
    bool needs_key, answers;
    cli_http_handler *handler;
} routes[] = {
    {"POST", "/v1/chat/completions", false, true, true, chat},
    {"POST", "/v1/completions", false, true, true, completion},
    {"GET", "/v1/models", true, true, false, models},
    {"GET", "/v1/cluster", false, true, false, cluster},
    {"GET", "/health", false, false, false, health},
    {"GET", "/metrics", false, true, false, metrics},
    {"POST", "/tokenize", false, true, false, tokenize},
    {"POST", "/detokenize", false, true, false, detokenize},
    {"GET", "/", false, false, false, cli_http_page},
    {"GET", "/page", true, false, false, cli_http_page},
};

void cli_http_route(struct cli_http *h, const char *method, const char *path)
{
    const char *other = NULL;
    if (!strcmp(method, "OPTIONS") && cli_cors_origin(h->server, h->origin)) {
        h->route = preflight;
        return;
    }
    for (size_t i = 0; i < DL_COUNT_OF(routes); i++) {
        const struct route *r = &routes[i];
        size_t n = strlen(r->path);
        if (strncmp(path, r->path, n) != 0 || (path[n] && !(r->below && path[n] == '/' && path[n + 1])))
            continue;
        if (!strcmp(method, r->method) || (!strcmp(method, "HEAD") && !strcmp(r->method, "GET"))) {
            h->route = r->handler;
            h->needs_key = r->needs_key;
            h->answers = r->answers;
            return;
        }
        other = r->method;
    }
    if (other)
        cli_req_refuse(&h->refused, 405, NULL, NULL, "%.60s takes %s, not %.20s", path, other, method);
    else if (!strcmp(path, "/v1/embeddings"))
        cli_req_refuse(&h->refused, 404, NULL, NULL, "embeddings are not offered here: this server makes text only");
    else
        cli_req_refuse(&h->refused, 404, NULL, NULL, "there is nothing at %.100s", path);
}
