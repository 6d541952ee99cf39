/* SPDX-License-Identifier: MIT
 *
 * cli/server/job.c: from a request to a job in the queue.
 */
#include "schema.h"
#include "server.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXACT_BYTES \
    ((size_t)256 << 10) /* of a prompt: its tokens are counted even if they are too many: it takes milliseconds */

struct cli_job *cli_job_create(struct cli_server *s, struct cli_request *req)
{
    struct cli_job *job = dl_calloc(1, sizeof *job);
    if (!job)
        return NULL;
    uint32_t n_prompts = req->endpoint == CLI_ENDPOINT_CHAT ? 1 : (uint32_t)req->n_prompts;
    *job = (struct cli_job){.server = s, .req = *req, .refs = 1, .fd = -1, .n_seqs = n_prompts * req->n};
    *req = (struct cli_request){0};
    job->prompts = dl_calloc(n_prompts, sizeof *job->prompts);
    job->seqs = dl_calloc(job->n_seqs, sizeof *job->seqs);
    job->created = (int64_t)time(NULL);
    if (!job->prompts || !job->seqs) {
        cli_job_unref(job);
        return NULL;
    }
    job->n_prompts = n_prompts;
    return job;
}

void cli_job_unref(struct cli_job *job)
{
    if (--job->refs)
        return;
    for (uint32_t i = 0; i < job->n_prompts; i++)
        dl_tokens_finish(&job->prompts[i]);
    cli_request_finish(&job->req);
    cli_grammar_finish(&job->grammar);
    dl_str_finish(&job->out);
    free(job->prompts);
    free(job->seqs);
    free(job);
}

/* A base model has no roles: what was said so far is one text, which it continues. */
static int join_messages(const struct cli_job *job, const struct cli_served *served, struct dl_tokens *out)
{
    struct dl_str all = {0};
    int err = DL_OK;
    for (size_t i = 0; i < job->req.n_msgs && !err; i++) {
        if (i)
            err = dl_str_addz(&all, "\n");
        if (!err)
            err = dl_str_addz(&all, job->req.msgs[i].content);
    }
    if (!err)
        err = dl_tokenize(served->tok, all.v ? all.v : "", all.len, DL_TOKENIZE_BOS, out);
    dl_str_finish(&all);
    return err;
}

static int tokenize_one(const struct cli_job *job, uint32_t i, const struct cli_served *served, struct dl_tokens *out)
{
    const struct cli_request *r = &job->req;
    if (r->endpoint == CLI_ENDPOINT_CHAT)
        return served->kind == DL_CHAT_NONE ? join_messages(job, served, out)
                                            : dl_chat_tokens(served->tok, served->kind, r->msgs, r->n_msgs, true, out);
    const struct cli_req_prompt *p = &r->prompts[i];
    return p->text ? dl_tokenize(served->tok, p->text, p->n, DL_TOKENIZE_BOS | DL_TOKENIZE_SPECIAL, out)
                   : dl_tokens_append(out, p->ids.v, p->ids.len);
}

/* Of text alone. */
static size_t bytes_of(const struct cli_request *r, uint32_t i)
{
    if (r->endpoint != CLI_ENDPOINT_CHAT)
        return r->prompts[i].text ? r->prompts[i].n : 0;
    size_t n = 0;
    for (size_t k = 0; k < r->n_msgs; k++)
        n += strlen(r->msgs[k].content);
    return n;
}

/* The grammar of what is asked for. */
static int read_format(struct cli_job *job, struct cli_req_error *error)
{
    char why[200];
    if (job->req.format == CLI_FORMAT_TEXT)
        return DL_OK;
    int err = cli_schema_grammar(job->req.schema, &job->grammar, why, sizeof why);
    if (err == DL_ENOMEM)
        return cli_req_refuse(error, 500, NULL, NULL, "the server is out of memory");
    return err ? cli_req_refuse(error, 400, NULL, "response_format.json_schema.schema",
                                "response_format.json_schema.schema: %s", why)
               : DL_OK;
}

static int too_long(const struct cli_served *served, const char *param, const char *at_least, size_t n,
                    struct cli_req_error *error)
{
    return cli_req_refuse(error, 400, "context_length_exceeded", param,
                          "%s: %s%zu tokens do not fit the context of %u tokens: shorten them, or start the server "
                          "with a larger --ctx",
                          param, at_least, n, served->ctx);
}

int cli_job_tokenize(struct cli_job *job, const struct cli_served *served, struct cli_req_error *error)
{
    const char *param = job->req.endpoint == CLI_ENDPOINT_CHAT ? "messages" : "prompt";
    char why[sizeof error->message];
    for (uint32_t i = 0; i < job->n_prompts; i++) {
        struct dl_tokens *t = &job->prompts[i];
        t->most = bytes_of(&job->req, i) > EXACT_BYTES ? served->ctx : 0;
        cli_capture_begin(why, sizeof why, false);
        int err = tokenize_one(job, i, served, t);
        cli_capture_end();
        if ((!err && t->len > served->ctx) || (err == DL_ELIMIT && t->least > served->ctx))
            return too_long(served, param, err ? "at least " : "", err ? t->least : t->len, error);
        if (err == DL_ENOMEM)
            return cli_req_refuse(error, 500, NULL, NULL, "the server is out of memory");
        if (err)
            return cli_req_refuse(error, 400, NULL, param, "%s", why);
        if (!t->len)
            return cli_req_refuse(error, 400, NULL, param, "%s: is empty, and this model has no token to begin with",
                                  param);
    }
    return read_format(job, error);
}

int cli_job_submit(struct cli_job *job, struct cli_req_error *error)
{
    struct cli_server *s = job->server;
    if (s->state != CLI_SERVER_READY && s->state != CLI_SERVER_HEALING) /* those who come meanwhile see a pause */
        return cli_req_refuse(error, 503, NULL, NULL, "the server is not ready (%s)%s%.200s",
                              cli_server_state_name(s->state), *s->why ? ": " : "", s->why);
    if (s->n_queued + s->n_running >= s->opts.queue + s->opts.parallel)
        return cli_req_refuse(error, 429, NULL, NULL,
                              "%u requests wait already, as many as the queue takes: try again later", s->n_queued);
    job->refs++;
    job->id = ++s->next_id;
    job->queued_ns = dl_now_ns();
    if (s->last)
        s->last->next = job;
    else
        s->first = job;
    s->last = job;
    s->n_queued++;
    cli_server_wake(s);
    return DL_OK;
}

void cli_job_resume(struct cli_job *job)
{
    if (!job->suspended)
        return;
    job->suspended = false;
    MHD_resume_connection(job->conn);
}
