/* SPDX-License-Identifier: MIT
 *
 * cli/server/request.c: see request.h. The first error sticks in the reader, so that the fields read as a list.
 */
#include "request.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A document of one request: whole numbers are read as reals, so that one of any size can be clamped instead of refused. */
#define LOAD_FLAGS ((size_t)JSON_DECODE_INT_AS_REAL)

struct reader {
    json_t *root;
    struct cli_req_error *e;
    int err;
};

int cli_req_refuse(struct cli_req_error *e, int status, const char *code, const char *param, const char *fmt, ...)
{
    va_list ap;
    *e = (struct cli_req_error){.status = status, .code = code};
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
    return DL_EINVAL;
}

/* A message may quote what a client sent, cut anywhere: jansson takes nothing but whole characters. */
static json_t *text_json(const char *text)
{
    json_t *v = json_string(text);
    if (v)
        return v;
    struct dl_str plain = {0};
    for (; *text; text++)
        (void)dl_str_add(&plain, (unsigned char)*text < 0x80 ? text : "?", 1);
    v = json_string(plain.v ? plain.v : "");
    dl_str_finish(&plain);
    return v;
}

json_t *cli_req_error_json(const struct cli_req_error *e)
{
    const char *type = e->status == 401   ? "authentication_error"
                       : e->status == 403 ? "permission_error"
                       : e->status == 429 ? "rate_limit_error"
                       : e->status >= 500 ? "server_error"
                                          : "invalid_request_error";
    return json_pack("{s:{s:o,s:s,s:o,s:s?}}", "error", "message", text_json(e->message), "type", type, "param",
                     *e->param ? text_json(e->param) : json_null(), "code", e->code);
}

static int no_memory(struct reader *r)
{
    cli_req_refuse(r->e, 500, NULL, NULL, "the server is out of memory");
    return r->err = DL_ENOMEM;
}

#define REFUSE(r, param, ...) ((r)->err = cli_req_refuse((r)->e, 400, NULL, param, __VA_ARGS__))

static const char *kind_of(const json_t *v)
{
    static const char *const names[] = {"an object", "a list",    "a string",  "a number",
                                        "a number",  "a boolean", "a boolean", "null"};
    return names[json_typeof(v)];
}

static int wrong_type(struct reader *r, const char *param, const char *want, const json_t *v)
{
    return REFUSE(r, param, "%s: must be %s, not %s", param, want, kind_of(v));
}

/* A field that is there and not null. */
static json_t *field(const struct reader *r, const json_t *object, const char *name)
{
    json_t *v = r->err ? NULL : json_object_get(object, name);
    return json_is_null(v) ? NULL : v;
}

static void read_bool(struct reader *r, const json_t *object, const char *name, const char *param, bool *out)
{
    const json_t *v = field(r, object, name);
    if (v && !json_is_boolean(v))
        wrong_type(r, param, "true or false", v);
    else if (v)
        *out = json_is_true(v);
}

/* Clamped into [low, high]. */
static void read_real(struct reader *r, const char *name, double low, double high, float *out)
{
    const json_t *v = field(r, r->root, name);
    if (v && !json_is_number(v))
        wrong_type(r, name, "a number", v);
    else if (v)
        *out = (float)fmin(fmax(json_number_value(v), low), high);
}

/* A whole number of any size. false: there is none, or it was refused. */
static bool whole(struct reader *r, const json_t *v, const char *param, double *out)
{
    if (!v)
        return false;
    if (!json_is_number(v)) {
        wrong_type(r, param, "a whole number", v);
        return false;
    }
    *out = json_number_value(v);
    if (*out == floor(*out))
        return true;
    REFUSE(r, param, "%s: must be a whole number, not %g", param, *out);
    return false;
}

static bool read_whole(struct reader *r, const char *name, double *out)
{
    return whole(r, field(r, r->root, name), name, out);
}

/* A token id, below the size of the vocabulary. */
static bool read_id(struct reader *r, const json_t *v, const char *param, uint32_t vocab, int32_t *out)
{
    double d;
    if (!whole(r, v, param, &d))
        return false;
    if (d < 0 || d >= (double)vocab) {
        REFUSE(r, param, "%s: %.0f is no token id of this model, which has %u", param, d, vocab);
        return false;
    }
    *out = (int32_t)d;
    return true;
}

static char *copy(struct reader *r, const char *text, size_t n)
{
    char *v = dl_calloc(n + 1, 1);
    if (!v) {
        no_memory(r);
        return NULL;
    }
    memcpy(v, text, n);
    return v;
}

/* ------------------------------------------------------------------------------------------------ messages */

/* "developer" is what newer clients call the system's role. */
static const char *role_of(const char *name)
{
    static const char *const roles[][2] = {
        {"system", "system"}, {"developer", "system"}, {"user", "user"}, {"assistant", "assistant"}};
    for (size_t i = 0; i < DL_COUNT_OF(roles); i++)
        if (!strcmp(name, roles[i][0]))
            return roles[i][1];
    return NULL;
}

/* Content as a list of parts: their texts one after the other. */
static char *read_parts(struct reader *r, const json_t *parts, size_t at)
{
    struct dl_str all = {0};
    char param[96];
    for (size_t i = 0; i < json_array_size(parts) && !r->err; i++) {
        const json_t *part = json_array_get(parts, i);
        snprintf(param, sizeof param, "messages[%zu].content[%zu]", at, i);
        if (!json_is_object(part)) {
            wrong_type(r, param, "an object", part);
            break;
        }
        const json_t *type = json_object_get(part, "type"), *text = json_object_get(part, "text");
        if (type && (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0)) {
            strcat(param, ".type"); /* fits: two numbers of 20 digits at most */
            REFUSE(r, param, "%s: only parts of type \"text\" can be used with this model", param);
        } else if (!json_is_string(text)) {
            strcat(param, ".text");
            REFUSE(r, param, "%s: must be a string", param);
        } else if (dl_str_add(&all, json_string_value(text), json_string_length(text))) {
            no_memory(r);
        }
    }
    char *v = r->err ? NULL : copy(r, all.v ? all.v : "", all.len);
    dl_str_finish(&all);
    return v;
}

static void read_message(struct reader *r, const json_t *m, size_t at, struct dl_chat_msg *out)
{
    char param[64];
    snprintf(param, sizeof param, "messages[%zu]", at);
    if (!json_is_object(m)) {
        wrong_type(r, param, "an object", m);
        return;
    }
    const json_t *role = json_object_get(m, "role"), *content = json_object_get(m, "content");
    snprintf(param, sizeof param, "messages[%zu].role", at);
    if (!json_is_string(role)) {
        REFUSE(r, param, "%s: must be a string", param);
        return;
    }
    out->role = role_of(json_string_value(role));
    if (!out->role) {
        REFUSE(r, param, "%s: '%.40s' is none of system, developer, user, assistant", param, json_string_value(role));
        return;
    }
    snprintf(param, sizeof param, "messages[%zu].content", at);
    if (json_is_string(content))
        out->content = copy(r, json_string_value(content), json_string_length(content));
    else if (json_is_array(content))
        out->content = read_parts(r, content, at);
    else if ((!content || json_is_null(content)) && !strcmp(out->role, "assistant"))
        out->content = copy(r, "", 0);
    else if (!content)
        REFUSE(r, param, "%s: is missing", param);
    else
        wrong_type(r, param, "a string or a list of parts", content);
}

static void read_messages(struct reader *r, struct cli_request *out)
{
    const json_t *list = field(r, r->root, "messages");
    if (r->err)
        return;
    if (!list) {
        REFUSE(r, "messages", "messages: is missing: give a list of {\"role\", \"content\"}");
    } else if (!json_is_array(list)) {
        wrong_type(r, "messages", "a list", list);
    } else if (!json_array_size(list)) {
        REFUSE(r, "messages", "messages: is empty: give at least one message");
    } else if (!(out->msgs = dl_calloc(json_array_size(list), sizeof *out->msgs))) {
        no_memory(r);
    } else {
        for (; out->n_msgs < json_array_size(list) && !r->err; out->n_msgs++)
            read_message(r, json_array_get(list, out->n_msgs), out->n_msgs, &out->msgs[out->n_msgs]);
    }
}

/* ------------------------------------------------------------------------------------------------- prompts */

static void read_ids(struct reader *r, const json_t *list, const char *param, uint32_t vocab, struct dl_tokens *out)
{
    for (size_t i = 0; i < json_array_size(list) && !r->err; i++) {
        int32_t id;
        if (read_id(r, json_array_get(list, i), param, vocab, &id) && dl_tokens_add(out, id))
            no_memory(r);
    }
}

static void read_prompt(struct reader *r, const json_t *v, const char *param, uint32_t vocab, struct cli_request *out)
{
    struct cli_req_prompt *p = &out->prompts[out->n_prompts++];
    if (json_is_string(v)) {
        p->n = json_string_length(v);
        p->text = copy(r, json_string_value(v), p->n);
    } else if (json_is_array(v)) {
        read_ids(r, v, param, vocab, &p->ids);
        if (!r->err && !p->ids.len)
            REFUSE(r, param, "%s: is an empty list of tokens", param);
    } else {
        wrong_type(r, param, "a string or a list of token ids", v);
    }
}

/* A string, a list of strings, a list of ids, or a list of such lists. */
static void read_prompts(struct reader *r, uint32_t vocab, struct cli_request *out)
{
    const json_t *v = field(r, r->root, "prompt");
    if (r->err)
        return;
    if (!v) {
        REFUSE(r, "prompt", "prompt: is missing");
        return;
    }
    bool many = json_is_array(v) && json_array_size(v) && !json_is_number(json_array_get(v, 0));
    size_t n = many ? json_array_size(v) : 1;
    if (n > CLI_REQ_MAX_CHOICES) {
        REFUSE(r, "prompt", "prompt: %zu prompts in one request, %u are possible", n, CLI_REQ_MAX_CHOICES);
        return;
    }
    out->prompts = dl_calloc(n, sizeof *out->prompts);
    if (!out->prompts) {
        no_memory(r);
        return;
    }
    for (size_t i = 0; i < n && !r->err; i++) {
        char param[32];
        snprintf(param, sizeof param, many ? "prompt[%zu]" : "prompt", i);
        read_prompt(r, many ? json_array_get(v, i) : v, param, vocab, out);
    }
}

/* --------------------------------------------------------------------------------------------- other fields */

static void read_stops(struct reader *r, struct cli_request *out)
{
    const json_t *v = field(r, r->root, "stop");
    if (!v)
        return;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > CLI_REQ_MAX_STOPS) {
        REFUSE(r, "stop", "stop: %zu strings, %u are possible", n, CLI_REQ_MAX_STOPS);
        return;
    }
    out->stops = dl_calloc(n + 1, sizeof *out->stops);
    if (!out->stops) {
        no_memory(r);
        return;
    }
    for (size_t i = 0; i < n && !r->err; i++) {
        const json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(s))
            wrong_type(r, "stop", "a string or a list of strings", s);
        else if (json_string_length(s) > CLI_REQ_MAX_STOP_BYTES)
            REFUSE(r, "stop", "stop: a string of %zu bytes, %u are possible", json_string_length(s),
                   CLI_REQ_MAX_STOP_BYTES);
        else if (json_string_length(s) &&
                 (out->stops[out->n_stops] = copy(r, json_string_value(s), json_string_length(s))))
            out->n_stops++;
    }
}

static void read_bias(struct reader *r, uint32_t vocab, struct cli_request *out)
{
    json_t *v = field(r, r->root, "logit_bias");
    if (!v)
        return;
    if (!json_is_object(v)) {
        wrong_type(r, "logit_bias", "an object of token ids and numbers", v);
        return;
    }
    if (json_object_size(v) > CLI_REQ_MAX_BIAS) {
        REFUSE(r, "logit_bias", "logit_bias: %zu entries, %u are possible", json_object_size(v), CLI_REQ_MAX_BIAS);
        return;
    }
    out->bias = dl_calloc(json_object_size(v) + 1, sizeof *out->bias);
    if (!out->bias) {
        no_memory(r);
        return;
    }
    const char *key;
    json_t *bias;
    json_object_foreach(v, key, bias)
    {
        char *end;
        unsigned long long id = *key >= '0' && *key <= '9' && strlen(key) < 12 ? strtoull(key, &end, 10) : ULLONG_MAX;
        if (id >= vocab || *end) {
            REFUSE(r, "logit_bias", "logit_bias: '%.40s' is no token id of this model, which has %u", key, vocab);
            return;
        }
        if (!json_is_number(bias)) {
            wrong_type(r, "logit_bias", "an object of token ids and numbers", bias);
            return;
        }
        out->bias[out->n_bias++] =
            (struct cli_req_bias){(int32_t)id, (float)fmin(fmax(json_number_value(bias), -100), 100)};
    }
}

static void read_count(struct reader *r, const char *name, uint32_t low, uint32_t high, uint32_t *out)
{
    double v;
    if (!read_whole(r, name, &v))
        return;
    if (v < low || v > high)
        REFUSE(r, name, "%s: %.0f is not from %u to %u", name, v, low, high);
    else
        *out = (uint32_t)v;
}

/* A chat asks with a boolean and a number, a completion with a number alone. */
static void read_logprobs(struct reader *r, struct cli_request *out)
{
    if (out->endpoint == CLI_ENDPOINT_COMPLETION) {
        out->logprobs = field(r, r->root, "logprobs") != NULL;
        read_count(r, "logprobs", 0, CLI_REQ_MAX_TOP_LOGPROBS, &out->top_logprobs);
        return;
    }
    read_bool(r, r->root, "logprobs", "logprobs", &out->logprobs);
    read_count(r, "top_logprobs", 0, CLI_REQ_MAX_TOP_LOGPROBS, &out->top_logprobs);
    if (!r->err && out->top_logprobs && !out->logprobs)
        REFUSE(r, "top_logprobs", "top_logprobs: needs \"logprobs\": true");
}

/* Newer clients say max_completion_tokens. Below zero means without a limit, as elsewhere. */
static void read_max_tokens(struct reader *r, struct cli_request *out)
{
    static const char *const names[] = {"max_tokens", "max_completion_tokens"};
    double v;
    for (size_t i = 0; i < DL_COUNT_OF(names); i++)
        if (read_whole(r, names[i], &v))
            out->max_tokens = v < 0 || v > 0x1p53 ? UINT64_MAX : (uint64_t)v;
}

static void read_format(struct reader *r, struct cli_request *out)
{
    const json_t *v = field(r, r->root, "response_format");
    if (!v)
        return;
    if (!json_is_object(v)) {
        wrong_type(r, "response_format", "an object", v);
        return;
    }
    const char *type = json_string_value(json_object_get(v, "type"));
    json_t *schema = json_object_get(json_object_get(v, "json_schema"), "schema");
    if (!type)
        REFUSE(r, "response_format.type", "response_format.type: must be text, json_object or json_schema");
    else if (!strcmp(type, "json_object"))
        out->format = CLI_FORMAT_JSON_OBJECT;
    else if (!strcmp(type, "json_schema") && json_is_object(schema))
        out->format = CLI_FORMAT_JSON_SCHEMA;
    else if (!strcmp(type, "json_schema"))
        REFUSE(r, "response_format.json_schema.schema", "response_format.json_schema.schema: must be an object");
    else if (strcmp(type, "text") != 0)
        REFUSE(r, "response_format.type", "response_format.type: '%.40s' is none of text, json_object, json_schema",
               type);
    if (out->format == CLI_FORMAT_JSON_SCHEMA)
        out->schema = json_incref(schema);
}

/* What cannot be ignored without giving something else than was asked for. */
static void read_refused(struct reader *r, const struct cli_request *out)
{
    const json_t *choice = field(r, r->root, "tool_choice"), *suffix = field(r, r->root, "suffix");
    if (json_is_object(choice) || (json_is_string(choice) && !strcmp(json_string_value(choice), "required")))
        REFUSE(r, "tool_choice", "tool_choice: tools are not supported here");
    if (!r->err && json_string_length(suffix))
        REFUSE(r, "suffix", "suffix: filling in before a suffix is not supported here");
    double best;
    if (read_whole(r, "best_of", &best) && best > out->n)
        REFUSE(r, "best_of", "best_of: more than n is not supported here");
}

static void read_sampling(struct reader *r, struct cli_request *out)
{
    read_real(r, "temperature", 0, 100, &out->temperature);
    read_real(r, "top_p", 0, 1, &out->top_p);
    read_real(r, "min_p", 0, 1, &out->min_p);
    read_real(r, "repeat_penalty", 0.1, 10, &out->repeat_penalty);
    read_real(r, "presence_penalty", -2, 2, &out->presence_penalty);
    read_real(r, "frequency_penalty", -2, 2, &out->frequency_penalty);
    double v;
    if (read_whole(r, "top_k", &v))
        out->top_k = v < 1 ? 0 : (uint32_t)fmin(v, 1 << 22);
    if (read_whole(r, "seed", &v)) {
        out->has_seed = true;
        out->seed = fabs(v) < 0x1p63 ? (uint64_t)(int64_t)v : 0;
    }
}

static void read_fields(struct reader *r, uint32_t vocab, struct cli_request *out)
{
    if (out->endpoint == CLI_ENDPOINT_CHAT)
        read_messages(r, out);
    else
        read_prompts(r, vocab, out);
    read_bool(r, r->root, "stream", "stream", &out->stream);
    const json_t *options = field(r, r->root, "stream_options");
    if (options && !json_is_object(options))
        wrong_type(r, "stream_options", "an object", options);
    read_bool(r, options, "include_usage", "stream_options.include_usage", &out->include_usage);
    if (out->endpoint == CLI_ENDPOINT_COMPLETION)
        read_bool(r, r->root, "echo", "echo", &out->echo);
    read_count(r, "n", 1, CLI_REQ_MAX_CHOICES, &out->n);
    if (!r->err && out->n * out->n_prompts > CLI_REQ_MAX_CHOICES)
        REFUSE(r, "n", "n: %u answers to each of %zu prompts are more than %u", out->n, out->n_prompts,
               CLI_REQ_MAX_CHOICES);
    read_max_tokens(r, out);
    read_sampling(r, out);
    read_stops(r, out);
    read_bias(r, vocab, out);
    read_logprobs(r, out);
    if (out->endpoint == CLI_ENDPOINT_CHAT || field(r, r->root, "response_format"))
        read_format(r, out);
    read_refused(r, out);
}

/* The document, which must be an object. */
static json_t *load(struct reader *r, const char *body, size_t n)
{
    json_error_t at;
    r->root = json_loadb(body ? body : "", n, LOAD_FLAGS, &at);
    if (!r->root)
        REFUSE(r, NULL, "the body is no JSON: %s at line %d, column %d", at.text, at.line, at.column);
    else if (!json_is_object(r->root))
        REFUSE(r, NULL, "the body must be a JSON object, not %s", kind_of(r->root));
    return r->root;
}

int cli_request_read(enum cli_endpoint endpoint, const char *body, size_t n, const struct cli_req_defaults *d,
                     struct cli_request *out, struct cli_req_error *error)
{
    struct reader r = {.e = error};
    *error = (struct cli_req_error){0};
    *out = (struct cli_request){.endpoint = endpoint,
                                .n = 1,
                                .max_tokens = UINT64_MAX,
                                .temperature = d->temperature,
                                .top_p = d->top_p,
                                .min_p = d->min_p,
                                .top_k = d->top_k,
                                .repeat_penalty = d->repeat_penalty};
    load(&r, body, n);
    if (!r.err)
        read_fields(&r, d->vocab, out);
    json_decref(r.root);
    return r.err;
}

void cli_request_finish(struct cli_request *r)
{
    for (size_t i = 0; i < r->n_msgs; i++)
        free((void *)(uintptr_t)r->msgs[i].content);
    for (size_t i = 0; i < r->n_prompts; i++) {
        free(r->prompts[i].text);
        dl_tokens_finish(&r->prompts[i].ids);
    }
    for (size_t i = 0; i < r->n_stops; i++)
        free(r->stops[i]);
    free(r->msgs);
    free(r->prompts);
    free(r->stops);
    free(r->bias);
    json_decref(r->schema);
    *r = (struct cli_request){0};
}

int cli_tokenize_read(const char *body, size_t n, struct cli_req_tokenize *out, struct cli_req_error *error)
{
    struct reader r = {.e = error};
    *error = (struct cli_req_error){0};
    *out = (struct cli_req_tokenize){.special = true};
    load(&r, body, n);
    const char *name = field(&r, r.root, "content") ? "content" : "prompt";
    const json_t *text = field(&r, r.root, name);
    if (!r.err && !text)
        REFUSE(&r, "content", "content: is missing: give the text");
    else if (!r.err && !json_is_string(text))
        wrong_type(&r, name, "a string", text);
    read_bool(&r, r.root, "add_special", "add_special", &out->bos);
    read_bool(&r, r.root, "parse_special", "parse_special", &out->special);
    if (!r.err) {
        out->n = json_string_length(text);
        out->text = copy(&r, json_string_value(text), out->n);
    }
    json_decref(r.root);
    return r.err;
}

int cli_detokenize_read(const char *body, size_t n, uint32_t vocab, struct dl_tokens *ids, struct cli_req_error *error)
{
    struct reader r = {.e = error};
    *error = (struct cli_req_error){0};
    load(&r, body, n);
    const json_t *list = field(&r, r.root, "tokens");
    if (!r.err && !list)
        REFUSE(&r, "tokens", "tokens: is missing: give a list of token ids");
    else if (!r.err && !json_is_array(list))
        wrong_type(&r, "tokens", "a list of token ids", list);
    if (!r.err)
        read_ids(&r, list, "tokens", vocab, ids);
    json_decref(r.root);
    return r.err;
}
