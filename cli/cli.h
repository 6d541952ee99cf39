/* SPDX-License-Identifier: MIT
 *
 * cli/cli.h: what the files of the command line share. One process runs one command on one thread; a command returns 0, a
 * negative dl_err (exit status 1) or CLI_USAGE (exit status 2), with exactly one line logged by whoever noticed.
 * Results go to stdout through cli_out only; everything else is a log line or goes to stderr.
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdio.h>

#include "dl/sampler.h"
#include "dl/session.h"
#include "dl/text.h"
#include "options.h"

int cli_cmd_run(const struct cli_opts *o);
int cli_cmd_tokenize(const struct cli_opts *o);
int cli_cmd_inspect(const struct cli_opts *o);
int cli_cmd_devices(const struct cli_opts *o);
int cli_cmd_perplexity(const struct cli_opts *o);
int cli_cmd_bench(const struct cli_opts *o);
int cli_cmd_bench_ops(const struct cli_opts *o);
int cli_cmd_bench_link(const struct cli_opts *o);
int cli_cmd_worker(const struct cli_opts *o);
int cli_cmd_keygen(const struct cli_opts *o);
int cli_cmd_serve(const struct cli_opts *o);
int cli_cmd_plan(const struct cli_opts *o);

/* Sends log lines elsewhere for a while (NULL: back to stderr). Only while no other thread runs. */
void cli_log_to(dl_log_fn *fn, void *ud);
/* What a sink that was put in its place may do with a line: stderr, in the usual form. Any thread. */
void cli_log_line(enum dl_log_level level, const char *line);

/* ------------------------------------------------------------------------------------------------- out.c */

/* Writes to stdout (buffered). Text of models and files is not trusted: on a terminal, control characters other than
 * newline and tab are left out. DL_EIO (logged), or DL_ECANCELED when the reader went away: then the command ends
 * quietly. */
int cli_out(const char *bytes, size_t n);
int cli_outf(const char *fmt, ...) DL_PRINTF(1, 2);
int cli_out_flush(void);

/* Appends n bytes without their control characters, for text that goes to a terminal. */
int cli_plain(struct dl_str *out, const char *bytes, size_t n);

/* "4.6 GiB" */
const char *cli_size(char text[32], uint64_t bytes);

/* ------------------------------------------------------------------------------------------- interrupt.c */

/* Ctrl-C. Between begin and end the first one only raises a flag, a second one kills the process as usual. With wake_fd
 * >= 0 none kills, nor does SIGTERM or SIGHUP: each is a byte, its number, written to that (non-blocking) pipe. That is for a
 * prompt, which has the terminal to put in order first. Not nested. */
void cli_interrupt_begin(int wake_fd);
/* The same for a service: SIGTERM counts as Ctrl-C. */
void cli_interrupt_begin_service(void);
void cli_interrupt_end(void);
bool cli_interrupted(void *unused); /* a dl_stop_fn */

/* -------------------------------------------------------------------------------------------- progress.c */

/* Whether fd is a terminal that understands more than lines of text. */
bool cli_is_screen(int fd);

#define CLI_BARS 24

/* Progress bars on stderr, where that is a terminal and not --quiet. The cursor waits at the beginning of the first one. */
struct cli_progress {
    bool on, shown;
    uint64_t next_ns;
    struct {
        uint64_t from_ns, from; /* when a node's bar began, and where */
    } nodes[CLI_BARS];
};
void cli_progress_init(struct cli_progress *p, const struct cli_opts *o);
void cli_progress(void *ud, const char *phase, uint64_t done, uint64_t total); /* a dl_progress_fn */
void cli_progress_nodes(void *ud, const struct dl_sending *nodes, uint32_t n); /* a dl_sending_fn: a bar each */
void cli_progress_clear(struct cli_progress *p);

/* ----------------------------------------------------------------------------------------------- input.c */

/* Appends a whole file ("-": stdin), at most 1 GiB. DL_EIO, DL_ELIMIT. */
int cli_read_file(const char *path, struct dl_str *out);
/* Appends ids separated by spaces, commas or line ends. DL_EINVAL (logged, naming `what`). */
int cli_read_ids(const char *what, const char *text, size_t n, struct dl_tokens *out);

/* --------------------------------------------------------------------------------------------- cluster.c */

#define CLI_PORT "9990"
#define CLI_MAX_WORKERS 255

/* --workers. Zero-initialised is none; the texts are owned. */
struct cli_workers {
    char *v[CLI_MAX_WORKERS];
    uint32_t n;
};
/* CLI_USAGE also for options that need --workers. */
int cli_workers_parse(const struct cli_opts *o, struct cli_workers *w);
void cli_workers_finish(struct cli_workers *w);

/* The key of --key or $DLLAMA_KEY_FILE. *has: there is one; the caller forgets it. */
int cli_key(const struct cli_opts *o, struct dl_key *key, bool *has);
/* How this process takes part in a cluster: build, key (which outlives *out), what it says of itself. about: a buffer that outlives *out. */
#define CLI_ABOUT 192
void cli_tcp_opts(const struct cli_opts *o, const struct dl_key *key, const dl_device *dev, char about[CLI_ABOUT],
                  struct dl_tcp_opts *out);
/* The root's way to its workers, for dl_engine_opts.cluster, and a watch on those that are missing. Ctrl-C ends its waiting. A GPU in *dev
 * that is lost is closed, and the CPU takes its place. o, w and dev outlive it; closed after the engine. */
struct cli_cluster;
int cli_cluster_open(const struct cli_opts *o, const struct cli_workers *w, dl_device **dev, struct cli_cluster **out);
/* Before the engine is made: workers that are not there may come later. Who refuses this root is an error as ever. */
void cli_cluster_some(struct cli_cluster *c);
/* Hears of all changes to its health. Before the engine is made. */
void cli_cluster_tell(struct cli_cluster *c, void (*changed)(void *ud, const struct dl_engine_health *now), void *ud);
const struct dl_cluster *cli_cluster_how(const struct cli_cluster *c);
void cli_cluster_close(struct cli_cluster **c); /* nulls, accepts &NULL */
/* --wire; q80 in a cluster, f32 in one machine, where nothing travels that would be worth rounding. */
int cli_wire(const struct cli_opts *o, bool cluster, enum dl_type *out);
int cli_collective(const struct cli_opts *o, enum dl_collective *out);
const char *cli_collective_name(enum dl_collective c); /* as --collective calls it */

/* ------------------------------------------------------------------------------------------------ load.c */

#define CLI_MAX_DEVICES 16

/* What a command computes with. Zero-initialised is empty. A command that opens the model or the devices itself does so before cli_load. */
struct cli_engine {
    void *demo; /* the demo model's bytes, else NULL */
    dl_model *model;
    dl_tokenizer *tok;
    dl_device *devices[CLI_MAX_DEVICES];
    uint32_t n_devices;
    struct cli_workers workers;  /* the rest of the cluster */
    struct cli_cluster *cluster; /* the way to them; NULL without */
    bool some_workers;           /* those that are there when it is made will do; set before cli_load */
    void (*changed)(void *ud, const struct dl_engine_health *now); /* of a cluster; set before cli_load, may be NULL */
    void *changed_ud;
    uint32_t max_sessions;       /* at once, each with a full context; set before loading, 0: one */
    dl_progress_fn *progress;    /* hears of it besides the bar on stderr; likewise, may be NULL */
    void *progress_ud;
    dl_engine *engine;
    char rates[512]; /* the file in which measured speeds are kept */
    struct dl_engine_info info;
    uint64_t load_ns;
};

enum cli_file { CLI_FILE_OTHER, CLI_FILE_GGUF, CLI_FILE_M, CLI_FILE_T };
enum cli_file cli_file_kind(const char *path); /* by its first bytes; OTHER also when it cannot be read */

/* The tokenizer of --tokenizer, or that which belongs to `model` (a .gguf, .m or .t). */
int cli_load_tokenizer(const char *model, const char *tokenizer, dl_tokenizer **out);
/* Opens the devices of --device into e; `auto` leaves its place NULL until the model is known. */
int cli_load_devices(const struct cli_opts *o, struct cli_engine *e);
/* An option whose value is the name of one of these types. */
#define CLI_TYPES 3
int cli_type(const char *option, const char *text, const enum dl_type types[CLI_TYPES], enum dl_type *out);
/* --kv; f16 without. */
int cli_kv_type(const struct cli_opts *o, enum dl_type *out);
/* --split into n shares; *out NULL where it says auto, or is not there. */
int cli_shares(const struct cli_opts *o, uint32_t n, double *v, const double **out);
/* Opens what `auto` left. e->model may be NULL: the fastest device then, for any model. */
int cli_choose_devices(const struct cli_opts *o, struct cli_engine *e);
/* Everything: model (the demo without one), tokenizer, devices, engine. ctx: where --ctx is not given and the model knows
 * as many, 0: the engine's default; max_out 0: likewise. */
int cli_load(const struct cli_opts *o, uint32_t ctx, uint32_t max_out, struct cli_engine *e);
/* In the place of a GPU that failed, which is closed, and logged. DL_EDEVICE (not logged) when it is none. */
int cli_cpu_instead(const struct cli_opts *o, dl_device **dev);
/* After a GPU failed: the same model and context on the CPU, in place; sessions are destroyed before. DL_EDEVICE when there was
 * no GPU, and in a cluster, which does that by itself. */
int cli_fall_back(const struct cli_opts *o, struct cli_engine *e);
void cli_unload(struct cli_engine *e);

/* -------------------------------------------------------------------------------------------- template.c */

/* --chat-template names one that there is; else CLI_USAGE. */
int cli_check_template(const struct cli_opts *o);
/* The template to answer with, NONE to continue the text as it is. */
int cli_find_template(const struct cli_opts *o, const struct cli_engine *e, enum dl_chat_kind *kind);

/* -------------------------------------------------------------------------------------------- generate.c */

enum cli_show { CLI_SHOW_NOTHING, CLI_SHOW_TEXT, CLI_SHOW_IDS };
enum cli_finish { CLI_FINISH_STOP, CLI_FINISH_LENGTH, CLI_FINISH_CANCELLED };

/* One answer. The first part is set by the caller, the second is the result; cli_gen_finish frees it. */
struct cli_gen {
    struct cli_engine *e;
    dl_session *session;
    struct dl_sampler *sampler;
    struct dl_stops *stops; /* reset by cli_generate */
    uint64_t max_new;       /* tokens at most */
    bool at_start;          /* the answer begins a text: SPM's added space is taken off */
    enum cli_show show;
    FILE *dump;      /* logits, or NULL */
    bool want_nodes; /* statistics */
    const char *dump_name;
    const struct cli_opts *fall_back; /* a GPU that fails is replaced by the CPU, and the answer goes on; NULL: it fails */

    struct dl_tokens so_far; /* all that the session has, or should have */
    struct dl_str text;
    uint64_t n_prompt, n_evaluated; /* evaluated: without the prefix that the session held already */
    uint64_t n_new, n_steps;        /* tokens of the answer; decode steps that were evaluated */
    uint64_t prefill_ns, decode_ns, ttft_ns;
    struct dl_node_stats *nodes; /* (n_nodes): of the decode steps, per node; none where a node was lost at the end */
    uint32_t n_nodes;
    enum cli_finish finish;
    bool context_full;
};

/* Evaluates the prompt and generates until a stop, a limit or Ctrl-C; none of them is an error. Text goes to stdout as it is
 * made. */
int cli_generate(struct cli_gen *g, const int32_t *prompt, size_t n);
void cli_gen_finish(struct cli_gen *g);
const char *cli_finish_name(enum cli_finish finish);
double cli_per_second(uint64_t n, uint64_t ns);
/* One line about the last answer on stderr. */
void cli_gen_summary(const struct cli_gen *g);
/* And a table of its nodes. */
void cli_gen_table(const struct cli_gen *g);

/* --------------------------------------------------------------------------------------- chat.c, prompt.c */

/* The interactive chat. kind NONE: a base model, each line is a text to be continued. g: as for cli_generate. */
int cli_chat(const struct cli_opts *o, enum dl_chat_kind kind, struct cli_gen *g);

typedef struct cli_prompt cli_prompt;
enum cli_line { CLI_LINE, CLI_LINE_INTERRUPT, CLI_LINE_END };

/* Line editing with a history that is kept in the user's state folder. NULL (logged) when the terminal cannot be used. */
cli_prompt *cli_prompt_open(void);
/* One message: a line, or several (a line that ends in a backslash goes on; lines between two """ belong together). `out` is
 * replaced. Errors are negative. */
int cli_prompt_read(cli_prompt *p, struct dl_str *out);
void cli_prompt_close(cli_prompt **p);

#endif
