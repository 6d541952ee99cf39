/* SPDX-License-Identifier: MIT
 *
 * cli/options.h: the command line as one table. A row of CLI_OPTION_MAP makes the option known to the parser, to --help
 * and to the test that compares the two; a row of the command table in main.c makes a command. Names are the contract
 * of the project's users: rows are added, never renamed.
 */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdio.h>

#include "dl/device.h"
#include "dl/model.h"

/* What a command returns besides 0 and negative dl_err codes: the command line was wrong, one line was logged. */
#define CLI_USAGE 1

/* Which commands take an option. */
enum {
    CLI_RUN = 1,
    CLI_TOKENIZE = 2,
    CLI_INSPECT = 4,
    CLI_DEVICES = 8,
    CLI_PERPLEXITY = 16,
    CLI_WORKER = 32,
    CLI_KEYGEN = 64,
    CLI_PLAN = 512,
    CLI_SERVE = 4096,
    CLI_BENCH = 1024,
    CLI_BENCH_OPS = 2048,
    CLI_BENCH_LINK = 8192,
    CLI_ALL = 16383,
    CLI_COMPUTE = CLI_RUN | CLI_PERPLEXITY | CLI_BENCH | CLI_SERVE | CLI_PLAN,
    CLI_ANSWER = CLI_RUN | CLI_SERVE,
    CLI_BENCHES = CLI_BENCH | CLI_BENCH_OPS | CLI_BENCH_LINK,
    CLI_SHAPING = CLI_BENCHES | CLI_PLAN,
    CLI_ROOT = CLI_COMPUTE | CLI_BENCH_LINK,
    CLI_CLUSTER = CLI_COMPUTE | CLI_WORKER,
    CLI_LOCAL = CLI_CLUSTER | CLI_DEVICES | CLI_BENCH_OPS,
    CLI_TEXT = CLI_RUN | CLI_TOKENIZE
};

/* FLAG: bool. STR: const char *. LIST: struct cli_list. UINT: uint64_t, SIZE: the same, "4K", "2G" understood. REAL: double.
 * X(name, letter, long name, argument, kind, field, lowest, highest, commands, help) */
#define CLI_OPTION_MAP(X)                                                                                            \
    X(PROMPT, 'p', "prompt", "TEXT", STR, prompt, 0, 0, CLI_TEXT, "the prompt")                                      \
    X(FILE, 'f', "file", "FILE", STR, file, 0, 0, CLI_TEXT | CLI_PERPLEXITY, "read the text from FILE (-: stdin)")   \
    X(PROMPT_IDS, 0, "prompt-ids", "1,5,9", STR, prompt_ids, 0, 0, CLI_RUN, "token ids as the prompt, no BOS added") \
    X(N, 'n', "tokens", "N", UINT, n, 0, 1u << 30, CLI_RUN, "tokens to generate at most")                            \
    X(TOKENIZER, 0, "tokenizer", "FILE", STR, tokenizer, 0, 0, CLI_TEXT | CLI_PERPLEXITY | CLI_INSPECT | CLI_SERVE,  \
      "tokenizer (.t or .gguf) to use; for a .m the .t beside it is found")                                          \
    X(CHAT, 0, "chat", NULL, FLAG, chat, 0, 0, CLI_RUN, "use the chat template (default where there is one)")        \
    X(RAW, 0, "raw", NULL, FLAG, raw, 0, 0, CLI_RUN, "continue the text as it is, without a chat template")          \
    X(SYSTEM, 0, "system", "TEXT", STR, system, 0, 0, CLI_RUN, "system message of the chat")                         \
    X(TEMPLATE, 0, "chat-template", "NAME", STR, chat_template, 0, 0, CLI_ANSWER, "force a chat template:")          \
    X(STOP, 0, "stop", "TEXT", LIST, stop, 0, 0, CLI_RUN, "end the answer before TEXT (repeatable)")                 \
    X(TEMP, 0, "temp", "T", REAL, temp, 0, 100, CLI_ANSWER, "temperature, 0 = greedy (default 0.7, of serve 1)")     \
    X(TOP_P, 0, "top-p", "P", REAL, top_p, 0, 1, CLI_ANSWER,                                                         \
      "fewest tokens that reach P, 1 = off (default 0.9, of serve 1)")                                               \
    X(TOP_K, 0, "top-k", "K", UINT, top_k, 0, 1u << 22, CLI_ANSWER, "the K likeliest tokens, 0 = off (default)")     \
    X(MIN_P, 0, "min-p", "P", REAL, min_p, 0, 1, CLI_ANSWER,                                                         \
      "drop tokens below P x the likeliest, 0 = off (default)")                                                      \
    X(PENALTY, 0, "repeat-penalty", "R", REAL, repeat_penalty, 0.1, 10, CLI_ANSWER,                                  \
      "against repetition, 1 = off (default)")                                                                       \
    X(SEED, 0, "seed", "S", UINT, seed, 0, 1.8e19, CLI_RUN, "same seed, same text (default: from the clock)")        \
    X(CTX, 0, "ctx", "N", SIZE, ctx, 1, 1u << 24, CLI_COMPUTE,                                                       \
      "context in tokens (default: the model's, at most 8192)")                                                      \
    X(BATCH, 0, "batch", "N", UINT, batch, 1, 65536, CLI_COMPUTE | CLI_BENCHES,                                      \
      "largest prefill batch (default 128)")                                                                         \
    X(THREADS, 0, "threads", "N", UINT, threads, 1, DL_CPU_MAX_THREADS, CLI_LOCAL,                                   \
      "threads of the CPU device (default: one per processor)")                                                      \
    X(DEVICE, 0, "device", "LIST", STR, device, 0, 0, CLI_LOCAL,                                                     \
      "devices to use, e.g. auto, cpu, vulkan:1 (default auto)")                                                     \
    X(SPLIT, 0, "split", "W0:W1", STR, split, 0, 0, CLI_COMPUTE,                                                     \
      "share of the model per device, in a cluster per node, root first (default auto)")                             \
    X(KV, 0, "kv", "TYPE", STR, kv, 0, 0, CLI_COMPUTE | CLI_BENCH_OPS,                                               \
      "type of the KV cache: f16 (default), q80, f32")                                                               \
    X(WORKERS, 0, "workers", "HOST:PORT,...", STR, workers, 0, 0, CLI_ROOT,                                          \
      "machines to compute with, `dllama-vk worker` runs on each (default port 9990)")                               \
    X(WIRE, 0, "wire", "TYPE", STR, wire, 0, 0, CLI_ROOT,                                                            \
      "precision between nodes: q80 (default; finer for models with experts), f16, f32; between devices f32")        \
    X(COLLECTIVE, 0, "collective", "KIND", STR, collective, 0, 0, CLI_COMPUTE,                                       \
      "sums of all nodes: oneshot, halves (one is sent while the other is computed), rs (fewer bytes), auto")         \
    X(LISTEN, 0, "listen", "HOST:PORT", STR, listen, 0, 0, CLI_WORKER | CLI_SERVE,                                   \
      "where to listen (default 127.0.0.1, port 9990, of serve 8080; 0.0.0.0:PORT: on every network)")               \
    X(KEY, 0, "key", "FILE", STR, key, 0, 0, CLI_CLUSTER | CLI_BENCH_LINK,                                           \
      "cluster key, the same on all nodes (see keygen)")                                                             \
    X(INSECURE, 0, "insecure", NULL, FLAG, insecure, 0, 0, CLI_CLUSTER | CLI_BENCH_LINK,                             \
      "go without a key beyond this machine: whoever reaches the port may use and read all")                         \
    X(API_KEY, 0, "api-key", "KEY|FILE", STR, api_key, 0, 0, CLI_SERVE,                                              \
      "what clients have to know: the key, or a file that begins with it")                                           \
    X(QUEUE, 0, "queue", "N", UINT, queue, 0, 65536, CLI_SERVE, "requests that may wait (default 64)")               \
    X(KV_SIZE, 0, "kv-size", "N", SIZE, kv_size, 1, 1u << 30, CLI_SERVE,                                             \
      "tokens that the context of all answers holds together (default: of each its own)")                            \
    X(CORS, 0, "cors", "ORIGIN", STR, cors, 0, 0, CLI_SERVE,                                                         \
      "web pages of other sites that may ask: https://a.example,http://b or * (default none)")                       \
    X(LOCAL, 0, "model", "FILE", STR, local, 0, 0, CLI_WORKER,                                                       \
      "a local copy of the root's model: nothing has to be sent")                                                    \
    X(CACHE_SIZE, 0, "cache-size", "SIZE", SIZE, cache_size, 0, 1.8e19, CLI_WORKER,                                  \
      "weights to keep on disk for the next start, 0: none (default 32G, half of the free disk)")                    \
    X(ONCE, 0, "once", NULL, FLAG, once, 0, 0, CLI_WORKER, "end after one root")                                     \
    X(IDS, 0, "ids", NULL, FLAG, ids, 0, 0, CLI_RUN, "print token ids instead of text")                              \
    X(DUMP, 0, "dump-logits", "FILE", STR, dump_logits, 0, 0, CLI_RUN,                                               \
      "write logits as raw f32: last prompt position, then each token")                                              \
    X(NO_BOS, 0, "no-bos", NULL, FLAG, no_bos, 0, 0, CLI_TOKENIZE, "do not put BOS first")                           \
    X(NO_SPECIAL, 0, "no-special", NULL, FLAG, no_special, 0, 0, CLI_TOKENIZE, "special tokens are plain text")      \
    X(DECODE, 0, "decode", NULL, FLAG, decode, 0, 0, CLI_TOKENIZE, "ids on stdin (or -p, -f) to text")               \
    X(SHAPE, 0, "shape", "NAME", STR, shape, 0, 0, CLI_SHAPING, "a model with made-up weights, instead of a file:")  \
    X(LAYERS, 0, "layers", "N", UINT, layers, 1, DL_MAX_LAYERS, CLI_SHAPING, "cuts the --shape to N layers")         \
    X(PP, 0, "pp", "N", UINT, pp, 0, 1u << 20, CLI_BENCH, "prompt tokens to measure, 0: none (default 288)")         \
    X(TG, 0, "tg", "N", UINT, tg, 0, 1u << 20, CLI_BENCH, "tokens to decode, 0: none (default 48)")                  \
    X(REPS, 0, "reps", "N", UINT, reps, 1, 100, CLI_BENCHES, "repetitions, beside one that warms up (default 5)")    \
    X(DEPTH, 0, "depth", "N,...", STR, depth, 0, 0, CLI_BENCH | CLI_BENCH_OPS,                                       \
      "tokens in the context before, e.g. 0,2K,4K (default 0; of ops 512)")                                          \
    X(PARALLEL, 0, "parallel", "N", UINT, parallel, 1, 256, CLI_BENCH | CLI_SERVE,                                   \
      "sequences at once (default 1, of serve 4), each may fill the context")                                        \
    X(NODES, 0, "nodes", "LIST", STR, nodes, 0, 0, CLI_BENCH | CLI_BENCH_OPS | CLI_PLAN,                             \
      "bench: node counts, e.g. 1,2,4 (default: all --workers; of ops 1,2,4,8)"                                      \
      "\n                           plan: a cluster as name:GB/s:GiB[:GFLOP/s],... root first")                      \
    X(LINK, 0, "link", "SPEED:PING", STR, link, 0, 0, CLI_PLAN,                                                      \
      "network of --nodes: 1gbe, 10gbe, 940mbit; PING there and back (default 1gbe:0.2ms)")                          \
    X(COMPARE, 0, "compare", "OLD.json", STR, compare, 0, 0, CLI_BENCHES,                                            \
      "adds how much faster this is than what an earlier --json printed")                                            \
    X(PLOT, 0, "plot", "FILE.svg", STR, plot, 0, 0, CLI_BENCH, "draws the speeds over --depth or --nodes")           \
    X(JSON, 0, "json", NULL, FLAG, json, 0, 0, CLI_ALL, "one JSON object per result line on stdout")                 \
    X(QUIET, 0, "quiet", NULL, FLAG, quiet, 0, 0, CLI_ALL, "only errors on stderr")                                  \
    X(VERBOSE, 0, "verbose", NULL, FLAG, verbose, 0, 0, CLI_ALL, "say more on stderr (inspect: list everything)")    \
    X(HELP, 'h', "help", NULL, FLAG, help, 0, 0, CLI_ALL, "this text")

#define X(name, letter, text, arg, kind, field, low, high, commands, help) CLI_OPT_##name,
enum cli_option_id { CLI_OPTION_MAP(X) CLI_OPT_COUNT };
#undef X
_Static_assert(CLI_OPT_COUNT <= 64, "cli_opts.given is 64 bits");

#define CLI_MAX_LIST 32
struct cli_list {
    const char *v[CLI_MAX_LIST];
    uint32_t n;
};

/* Strings point into argv. A field means something only when its option was given, else it is zero. */
struct cli_opts {
    const char *model; /* the operand: MODEL or FILE; NULL when absent */
    const char *prompt, *file, *prompt_ids, *tokenizer, *system, *chat_template, *device, *split, *kv, *dump_logits;
    const char *workers, *wire, *collective, *listen, *key, *local, *shape, *depth, *nodes, *compare, *plot, *link, *api_key,
        *cors;
    struct cli_list stop;
    uint64_t n, top_k, seed, ctx, batch, threads, cache_size, layers, pp, tg, reps, parallel, queue, kv_size;
    double temp, top_p, min_p, repeat_penalty;
    bool chat, raw, ids, no_bos, no_special, decode, insecure, once, json, quiet, verbose, help;
    uint64_t given; /* bit i: option i stands on the command line */
};
static inline bool cli_given(const struct cli_opts *o, enum cli_option_id id)
{
    return o->given >> id & 1;
}

struct cli_command {
    const char *name, *operand; /* "[MODEL]", "FILE", ""; without brackets it is needed */
    unsigned bit;
    const char *about, *example, *notes; /* notes may be NULL */
    int (*run)(const struct cli_opts *o);
};

/* Reads argv[0 .. argc) (without the command's name). 0, or CLI_USAGE with one line logged. */
int cli_options_parse(const struct cli_command *c, int argc, char **argv, struct cli_opts *o);

/* Appends the help of one command. DL_ENOMEM. */
int cli_options_help(const struct cli_command *c, struct dl_str *out);

/* Reads a whole number, or with `size` also one with a suffix K, M, G or T (powers of 1024). false: it is none, or outside
 * [low, high]. */
bool cli_parse_uint(const char *text, bool size, uint64_t low, uint64_t high, uint64_t *out);

/* Logs one line about a wrong command line and returns CLI_USAGE. */
int cli_usage(const char *fmt, ...) DL_PRINTF(1, 2);

#endif
