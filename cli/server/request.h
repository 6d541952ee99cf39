/* SPDX-License-Identifier: MIT
 *
 * cli/server/request.h: what clients ask for, read from JSON. Strict about types (the error names the field), lenient about the rest: unknown
 * fields are ignored, null is as good as absent, numbers outside their range are clamped where a nearest value makes sense. Knows
 * nothing of HTTP, engines or tokenizers. Pure; any thread.
 */
#ifndef CLI_SERVER_REQUEST_H
#define CLI_SERVER_REQUEST_H

#include <jansson.h>

#include "dl/sampler.h"
#include "dl/text.h"

#define CLI_REQ_MAX_CHOICES 16u /* n, and n times the prompts of one request */
#define CLI_REQ_MAX_STOPS 16u
#define CLI_REQ_MAX_STOP_BYTES 256u
#define CLI_REQ_MAX_BIAS 4096u
#define CLI_REQ_MAX_TOP_LOGPROBS 20u

/* Why a request is refused. */
struct cli_req_error {
    int status;       /* of HTTP */
    const char *code; /* static, for programs: "context_length_exceeded"; or NULL */
    char param[128];  /* the field, "messages[2].content"; empty where it is none */
    char message[400];
};
/* Fills it in; param may be NULL. Returns DL_EINVAL. */
int cli_req_refuse(struct cli_req_error *e, int status, const char *code, const char *param, const char *fmt, ...)
    DL_PRINTF(5, 6);
/* {"error": {...}} with a new reference; NULL when memory is out. */
json_t *cli_req_error_json(const struct cli_req_error *e);

enum cli_endpoint { CLI_ENDPOINT_CHAT, CLI_ENDPOINT_COMPLETION };
enum cli_format { CLI_FORMAT_TEXT, CLI_FORMAT_JSON_OBJECT, CLI_FORMAT_JSON_SCHEMA };

/* A prompt of /v1/completions: text, or the tokens themselves. */
struct cli_req_prompt {
    char *text; /* owned; NULL: ids */
    size_t n;
    struct dl_tokens ids;
};

struct cli_req_bias {
    int32_t id;
    float bias;
};

/* What holds where a request does not say. */
struct cli_req_defaults {
    uint32_t vocab; /* token ids are below it */
    float temperature, top_p, min_p, repeat_penalty;
    uint32_t top_k;
};

struct cli_request {
    enum cli_endpoint endpoint;
    bool stream, include_usage, echo;
    struct dl_chat_msg *msgs; /* of a chat; the roles are static, the contents owned */
    size_t n_msgs;
    struct cli_req_prompt *prompts; /* of a completion, 1 to CLI_REQ_MAX_CHOICES */
    size_t n_prompts;
    uint32_t n;          /* answers per prompt */
    uint64_t max_tokens; /* UINT64_MAX: until the end */
    float temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k;
    bool has_seed;
    uint64_t seed;
    char **stops; /* owned */
    size_t n_stops;
    struct cli_req_bias *bias;
    size_t n_bias;
    bool logprobs;
    uint32_t top_logprobs;
    enum cli_format format;
    json_t *schema; /* of CLI_FORMAT_JSON_SCHEMA, owned */
};

/* 0, or DL_EINVAL with *error filled in; DL_ENOMEM likewise. *out is to be finished in any case. */
int cli_request_read(enum cli_endpoint endpoint, const char *body, size_t n, const struct cli_req_defaults *defaults,
                     struct cli_request *out, struct cli_req_error *error);
void cli_request_finish(struct cli_request *r);

/* Bodies of /tokenize and /detokenize. */
struct cli_req_tokenize {
    char *text; /* owned */
    size_t n;
    bool bos, special;
};
int cli_tokenize_read(const char *body, size_t n, struct cli_req_tokenize *out, struct cli_req_error *error);
/* Appends to ids. */
int cli_detokenize_read(const char *body, size_t n, uint32_t vocab, struct dl_tokens *ids, struct cli_req_error *error);

#endif
