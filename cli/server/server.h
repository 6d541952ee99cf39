/* SPDX-License-Identifier: MIT
 *
 * cli/server/server.h: what the files of the server share. Two kinds of threads: those of libmicrohttpd read requests and write answers
 * (http.c, reply.c); the engine thread, which is the one that calls cli_server_run, owns the engine and all sequences (sched.c, seq.c). They
 * meet in jobs: what is marked "lock" is read and written with cli_server.lock held, what is marked "engine" belongs to the engine
 * thread, everything else does not change once the job is submitted.
 */
#ifndef CLI_SERVER_SERVER_H
#define CLI_SERVER_SERVER_H

#include <microhttpd.h>
#include <pthread.h>

#include "dl/sampler.h"
#include "dl/session.h"
#include "dl/text.h"
#include "grammar.h"
#include "metrics.h"
#include "request.h"

struct cli_engine;
struct cli_opts;
struct cli_server;
struct cli_job;
struct cli_socket;

/* ---------------------------------------------------------------------------------------------------- server */

/* What a server is started with. Strings outlive it. */
struct cli_server_opts {
    const char *listen;               /* HOST:PORT */
    const char *api_key;              /* NULL: none is needed */
    const char *cors;                 /* origins with commas between, or "*"; NULL: none */
    bool insecure;                    /* off-loopback without a key */
    uint32_t parallel;                /* sequences at once */
    uint32_t queue;                   /* jobs that may wait */
    struct cli_req_defaults defaults; /* but for the vocabulary */
};

enum cli_server_state {
    CLI_SERVER_LOADING,
    CLI_SERVER_READY,
    CLI_SERVER_HEALING,
    CLI_SERVER_FAILED,
    CLI_SERVER_STOPPING
};

/* What is served; set once, before the state becomes READY. */
struct cli_served {
    const dl_tokenizer *tok;
    enum dl_chat_kind kind; /* NONE: a base model */
    char name[128];         /* UTF-8 */
    char fingerprint[32];
    int64_t created; /* seconds since 1970 */
    uint32_t ctx;
    bool cluster; /* rows of logits have to travel */
    struct cli_req_defaults defaults;
};

struct cli_server {
    struct cli_server_opts opts;
    struct MHD_Daemon *daemon;
    int listen_fd;
    bool loopback;  /* nobody but this machine gets here */
    char host[256]; /* as in --listen */
    char url[300];
    int wake[2];         /* a byte in this pipe wakes the engine thread */
    uint64_t request_ns; /* a request may take so long to arrive */
    pthread_mutex_t lock;

    /* lock */
    enum cli_server_state state;
    char why[400]; /* of HEALING and FAILED: what is wrong */
    char load_phase[64];
    uint64_t load_done, load_total;
    struct cli_job *first, *last; /* the queue, oldest first */
    uint32_t n_queued, n_running;
    uint64_t next_id;
    size_t body_bytes; /* of requests that are being read */
    struct cli_metrics metrics;
    struct cli_served served;
    struct cli_socket *sockets;                 /* all that are open */
    struct dl_node_stats *nodes;                /* (n_nodes), owned: as they were a moment ago */
    uint32_t n_nodes, n_all;                    /* that compute, and when all are there */
    uint64_t weight_bytes, kv_bytes, act_bytes; /* of this node */

    /* engine */
    struct cli_engine *e;
    const struct cli_opts *load_opts;
};

/* Binds and starts to answer: 503 to what needs a model. Logged when it fails. */
int cli_server_open(struct cli_server *s, const struct cli_server_opts *opts);
/* The model is loaded: the requests that come from here on are taken. */
void cli_server_ready(struct cli_server *s, const struct cli_served *served);
/* A change of state with the reason. */
void cli_server_state(struct cli_server *s, enum cli_server_state state, const char *why);
/* Of its cluster, while it serves: whether steps can be done, and what is missing. Engine thread. */
void cli_server_health(struct cli_server *s, bool well, const char *why);
void cli_server_progress(void *server, const char *phase, uint64_t done, uint64_t total); /* a dl_progress_fn */
/* Asks what every node has done so far, for those who look at it. Engine thread. */
void cli_server_nodes(struct cli_server *s, struct cli_engine *e);
/* Serves until `stop` says so, then drains: jobs that run get a few seconds to end. Engine thread. */
int cli_server_run(struct cli_server *s, struct cli_engine *e, const struct cli_opts *load_opts, dl_stop_fn *stop);
void cli_server_close(struct cli_server *s); /* accepts one that is not open */

const char *cli_server_state_name(enum cli_server_state state);
void cli_server_wake(struct cli_server *s); /* any thread */

/* A dl_log_fn: between begin and end, errors of this thread go to `why` (the last one, cut to fit); into the log only with also_log:
 * what a client did wrong is the client's to read. */
void cli_capture_log(void *unused, enum dl_log_level level, const char *line);
void cli_capture_begin(char *why, size_t n, bool also_log);
void cli_capture_end(void);

/* ------------------------------------------------------------------------------------------------------ front */

/* Starts and ends the threads that answer. Logged when it fails. */
int cli_http_start(struct cli_server *s);
void cli_http_stop(struct cli_server *s);
/* Closes connections that have taken too long to say what they want. Engine thread, now and then. */
void cli_http_sweep(struct cli_server *s);
/* Whether any connection waits for the rest of an answer. */
bool cli_http_busy(struct cli_server *s);

/* Whether a request may be served that names this host; that comes from this origin; with this Authorization header. All may be
 * NULL: then the header is absent. */
bool cli_host_allowed(const struct cli_server *s, const char *host);
bool cli_origin_allowed(const struct cli_server *s, const char *host, const char *origin);
bool cli_key_allowed(const struct cli_server *s, const char *authorization);
/* What Access-Control-Allow-Origin is to say; NULL: nothing. */
const char *cli_cors_origin(const struct cli_server *s, const char *origin);

/* ------------------------------------------------------------------------------------------------------ jobs */

/* The likelihood of a token, for clients who ask. */
struct cli_logprob {
    int32_t id;
    float logprob;
    uint32_t n_top;
    struct {
        int32_t id;
        float logprob;
    } top[CLI_REQ_MAX_TOP_LOGPROBS];
};

struct cli_logprobs {
    struct cli_logprob *v;
    size_t len, cap;
};

enum cli_reason { CLI_REASON_NONE, CLI_REASON_STOP, CLI_REASON_LENGTH };

/* PREFILL: there are tokens to read before the next one can be made; DECODE: only the one that was made last. */
enum cli_seq_state { CLI_SEQ_NEW, CLI_SEQ_PREFILL, CLI_SEQ_DECODE, CLI_SEQ_DONE };

/* One answer. Engine. */
struct cli_seq {
    struct cli_job *job;
    uint32_t index;
    enum cli_seq_state state;
    enum cli_reason reason;
    struct dl_tokens tokens; /* the prompt, and what was made of it: the session gets to hold all of them */
    dl_session *session;     /* NULL while it is parked */
    struct dl_sampler sampler;
    struct dl_stops stops;
    struct dl_decoder decoder;
    struct cli_grammar_state form; /* how far it is, where a format is asked for */
    struct dl_tokens counted;      /* distinct tokens of the answer, and below how often: for penalties */
    struct dl_tokens counts;
    struct cli_logprob picked; /* the token that comes next, until it is taken */
    bool drawn;            /* but what was drawn for it did not fit the format: the next draw is among those that do */
    uint32_t misses, rows; /* tokens in turn that candidates did not settle; for how many more they are not asked for */
    uint64_t n_new, max_new;
    uint64_t last_ns;             /* when its last token came */
    struct dl_str text;           /* that no client has seen yet */
    struct cli_logprobs logprobs; /* likewise */
    uint64_t offset;              /* where in the text the next one of them begins */
    bool greeted;                 /* the first event of a chat is out */
    uint32_t reserve;             /* KV blocks that are kept for it, while it has a session */
    uint64_t began;               /* the how many-th it is of all */
    struct cli_seq *next;         /* in the list of those that are parked */
};

struct cli_job {
    struct cli_server *server;
    struct cli_request req;
    struct dl_tokens *prompts;  /* (n_prompts) */
    struct cli_grammar grammar; /* of answers that are held to a format */
    uint32_t n_prompts, n_seqs;
    uint64_t id, client; /* client: whose turn it is is decided by this */
    int64_t created;
    uint64_t queued_ns;

    /* lock */
    uint32_t refs;
    struct MHD_Connection *conn; /* NULL: the connection is done with it */
    int fd;
    bool suspended, gone, stalled; /* gone: the client left; stalled: it does not read, and its sequences wait */
    bool started, done, failed;
    struct cli_req_error error; /* of a failed one */
    struct dl_str out;          /* what the client is to get; of a stream in pieces */
    size_t out_at;              /* so much of it is gone */
    struct cli_job *next;       /* in the queue */

    /* engine */
    struct cli_seq *seqs;                  /* (n_seqs) */
    uint32_t n_admitted, n_active, n_done; /* answers that were begun, that are in work, that are finished */
    uint32_t passed;                       /* how often another one was begun because there was no room for this */
    uint64_t cached_tokens, new_tokens, first_ns;
};

/* A new job of one reference, without prompts. NULL when memory is out. Takes *req over. */
struct cli_job *cli_job_create(struct cli_server *s, struct cli_request *req);
/* Makes its tokens from the request. Refusals as by cli_request_read. */
int cli_job_tokenize(struct cli_job *job, const struct cli_served *served, struct cli_req_error *error);
void cli_job_unref(struct cli_job *job); /* lock */

/* Into the queue, with a reference of its own; refuses with 429 or 503. Lock. */
int cli_job_submit(struct cli_job *job, struct cli_req_error *error);
/* The connection goes on, if it waits. Lock. */
void cli_job_resume(struct cli_job *job);

/* --------------------------------------------------------------------------------------------- seq.c (engine) */

int cli_seq_init(struct cli_seq *s, struct cli_job *job, uint32_t index, const struct cli_served *served);
void cli_seq_finish(struct cli_seq *s); /* gives the session back; accepts one that is zero */
/* What it needs of its logits. */
void cli_seq_want(const struct cli_seq *s, const struct cli_served *served, struct dl_step_item *item);
/* Picks the next token from what a step gave. 1: that does not settle it, and it is to be called again with the row in full as
 * item->logits, which become scratch. */
int cli_seq_pick(struct cli_seq *s, const struct dl_step_item *item, const struct cli_served *served);
/* The token that was picked becomes part of the answer, which may be done then. */
int cli_seq_take(struct cli_seq *s, const struct cli_served *served);

/* --------------------------------------------------------------------------------------------- reply.c (engine) */

/* Appends what is new of a sequence, as server-sent events. */
int cli_reply_events(struct cli_job *job, struct cli_seq *s, const struct cli_served *served, struct dl_str *out);
/* The end of a stream. */
int cli_reply_end(struct cli_job *job, const struct cli_served *served, struct dl_str *out);
/* The whole answer in one. */
int cli_reply_whole(struct cli_job *job, const struct cli_served *served, struct dl_str *out);
/* An error within a stream. */
int cli_reply_error(const struct cli_req_error *error, struct dl_str *out);

#endif
