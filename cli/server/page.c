/* SPDX-License-Identifier: MIT
 *
 * cli/server/page.c: answers with the files of the web page. They say nothing of the model and need no key; what the page then asks for does.
 */
#include "page.h"

#include <string.h>

#include "http.h"

/* The page may load its own files and ask its own server, nothing else: were a model's text ever taken for HTML, no script in it
 * would run, and nothing would leave. */
#define POLICY                                                                                            \
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " \
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

static const struct cli_page_file *find(const char *path)
{
    for (size_t i = 0; i < cli_page_n_files; i++)
        if (!strcmp(path, cli_page_files[i].path))
            return &cli_page_files[i];
    return NULL;
}

enum MHD_Result cli_http_page(struct cli_http *h, const char *path)
{
    const struct cli_page_file *file = find(path);
    if (!file) {
        struct cli_req_error error;
        cli_req_refuse(&error, 404, NULL, NULL, "there is nothing at %.100s", path);
        return cli_http_error(h, &error);
    }
    const char *known = MHD_lookup_connection_value(h->conn, MHD_HEADER_KIND, "If-None-Match");
    bool same = known && strstr(known, file->etag) != NULL;
    struct MHD_Response *r =
        MHD_create_response_from_buffer(same ? 0 : file->n, (void *)(uintptr_t)file->bytes, MHD_RESPMEM_PERSISTENT);
    if (r) {
        MHD_add_response_header(r, "Content-Type", file->type);
        MHD_add_response_header(r, "Content-Security-Policy", POLICY);
        MHD_add_response_header(r, "Referrer-Policy", "no-referrer");
        MHD_add_response_header(r, "Cross-Origin-Opener-Policy", "same-origin");
        MHD_add_response_header(r, "ETag", file->etag);
        MHD_add_response_header(r, "Cache-Control", "no-cache"); /* kept, but asked about each time */
    }
    return cli_http_response(h, same ? 304 : 200, r);
}
