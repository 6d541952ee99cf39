/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_request.c: bodies of requests, of every endpoint that reads one, and the schemas within them.
 */
#include <stdlib.h>
#include <string.h>

#include "request.h"
#include "schema.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const struct cli_req_defaults defaults = {.vocab = 512, .temperature = 1, .top_p = 1, .repeat_penalty = 1};
    if (!n)
        return 0;
    const char *body = (const char *)data + 1;
    struct cli_req_error e;
    int err;
    n--;
    if (data[0] % 4 < 2) {
        struct cli_request r;
        err = cli_request_read(data[0] % 4 ? CLI_ENDPOINT_CHAT : CLI_ENDPOINT_COMPLETION, body, n, &defaults, &r, &e);
        if (!err &&
            (r.n * (r.n_prompts ? r.n_prompts : 1) > CLI_REQ_MAX_CHOICES || !(r.temperature >= 0) || !(r.top_p <= 1)))
            abort();
        if (!err && r.format != CLI_FORMAT_TEXT) {
            struct cli_grammar g;
            char why[200];
            int bad = cli_schema_grammar(r.schema, &g, why, sizeof why);
            if (!bad != !*why)
                abort();
            cli_grammar_finish(&g);
        }
        cli_request_finish(&r);
    } else if (data[0] % 4 == 2) {
        struct cli_req_tokenize t;
        err = cli_tokenize_read(body, n, &t, &e);
        free(t.text);
    } else {
        struct dl_tokens ids = {0};
        err = cli_detokenize_read(body, n, defaults.vocab, &ids, &e);
        for (size_t i = 0; i < ids.len; i++)
            if (ids.v[i] < 0 || ids.v[i] >= 512)
                abort();
        dl_tokens_finish(&ids);
    }
    json_t *shown = err ? cli_req_error_json(&e) : NULL;
    if (err && (!shown || !e.status || !*e.message))
        abort();
    json_decref(shown);
    return 0;
}
