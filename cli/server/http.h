/* SPDX-License-Identifier: MIT
 *
 * cli/server/http.h: one request on its way, between the front (http.c) and what it can be about (routes.c). Belongs to the thread
 * that libmicrohttpd reads its connection with.
 */
#ifndef CLI_SERVER_HTTP_H
#define CLI_SERVER_HTTP_H

#include <netinet/in.h>
#include <signal.h>

#include "server.h"

struct cli_http;
typedef enum MHD_Result cli_http_handler(struct cli_http *h, const char *path);

struct cli_http {
    struct cli_server *server;
    struct MHD_Connection *conn;
    const char *origin; /* the header, or NULL */
    cli_http_handler *route;
    bool needs_key, answers; /* answers: it asks the model for something, which is counted */
    bool too_long;
    struct cli_req_error refused; /* status 0: it is not */
    struct dl_str body;
    size_t received, counted;
    struct cli_job *job; /* one reference */
};

/* Finds the route: sets the handler, or a refusal with 404 or 405. */
void cli_http_route(struct cli_http *h, const char *method, const char *path);

/* Answers; adds the headers that all have, takes the response over. NULL: out of memory. */
enum MHD_Result cli_http_response(struct cli_http *h, int status, struct MHD_Response *response);
/* Answers, copying. json: takes v over. */
enum MHD_Result cli_http_bytes(struct cli_http *h, int status, const char *type, const char *bytes, size_t n);
enum MHD_Result cli_http_json(struct cli_http *h, int status, json_t *v);
enum MHD_Result cli_http_error(struct cli_http *h, const struct cli_req_error *e);
/* Makes a job of the body, and passes on what comes of it. */
enum MHD_Result cli_http_answer(struct cli_http *h, enum cli_endpoint endpoint);
/* The web page: "/", and the files below "/page/". */
cli_http_handler cli_http_page;

#endif
