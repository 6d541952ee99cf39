/* SPDX-License-Identifier: MIT
 *
 * cli/main.c: dllama-vk: finds the command, sets up the log, turns what the command returns into the exit status: 0 done,
 * 1 failed, 2 wrong usage. The only file that may exit.
 */
#include "cli.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct cli_command commands[] = {
    {"run", "[MODEL]", CLI_RUN, "Generates text with a model; without MODEL, with the built-in demo model.",
     "dllama-vk run model.gguf -p \"Once upon a time\" -n 100 --temp 0",
     "MODEL is a .gguf (of a split one the first part) or a Distributed Llama .m.\n"
     "Without a prompt: an interactive chat on a terminal, else the prompt is read from stdin.\n"
     "A text that is continued is printed with its beginning; of a chat, the answer alone.\n"
     "With --workers this machine and the workers compute together: each holds a slice of every layer.",
     cli_cmd_run},
    {"serve", "[MODEL]", CLI_SERVE, "Serves a model to many at once: OpenAI's HTTP API.",
     "dllama-vk serve model.gguf --listen 127.0.0.1:8080",
     "Point any tool that speaks OpenAI's API at http://127.0.0.1:8080/v1. --temp and the like are for requests that "
     "do not say.\n"
     "Without MODEL, the built-in demo model is served. Ctrl-C or SIGTERM ends it, once running answers are done.",
     cli_cmd_serve},
    {"worker", "", CLI_WORKER, "Lends this machine's GPU or CPU to a root: whoever runs a model with --workers.",
     "dllama-vk worker --listen 0.0.0.0:9990 --key cluster.key",
     "Serves one root at a time, for ever; Ctrl-C or SIGTERM ends it. One worker computes with one device:\n"
     "start another one, on another port, for each further GPU.",
     cli_cmd_worker},
    {"keygen", "FILE", CLI_KEYGEN, "Makes the key that all nodes of a cluster share.", "dllama-vk keygen cluster.key",
     "Copy the file to every machine, readable for its user alone. Who has it may use the cluster.", cli_cmd_keygen},
    {"bench", "[MODEL]", CLI_BENCH, "Measures how fast a model is evaluated, and what share of the limit that is.",
     "dllama-vk bench --shape llama3.2-1b --depth 0,2K --json",
     "ppN: N tokens of a prompt; tgN: N tokens, one after the other. The median of the repetitions counts. The "
     "roofline is\n"
     "the speed times the bytes that this node has to read per token, by the read bandwidth of the same devices and\n"
     "threads, measured in between. With --workers, the other nodes make the weights of a --shape up themselves.\n"
     "More: dllama-vk bench ops --help, dllama-vk bench link --help",
     cli_cmd_bench},
    {"bench ops", "[MODEL]", CLI_BENCH_OPS, "Measures every kernel by itself, for slices of several sizes.",
     "dllama-vk bench ops --shape llama3.1-8b --device cpu,vulkan:0",
     "Each op of a layer and of the output, for 1, 8 and --batch tokens, with weights that no cache holds. The limit "
     "is the\n"
     "lesser of the read bandwidth and what the best matrix product reaches, both as measured; ops whose data caches\n"
     "hold have none.",
     cli_cmd_bench_ops},
    {"bench link", "[MODEL]", CLI_BENCH_LINK, "Measures the network between the nodes of a cluster.",
     "dllama-vk bench link --workers 192.168.1.5,192.168.1.6 --key cluster.key --shape llama3.1-8b",
     "Round trips to each worker, and each way of adding up a partial sum over all nodes, for one token and for "
     "--batch\n"
     "tokens of the model: the time it should take by the formulas, and the time it takes.",
     cli_cmd_bench_link},
    {"plan", "[MODEL]", CLI_PLAN, "Shows how a model would be shared, what fits where, and how fast it would be.",
     "dllama-vk plan --shape llama3.3-70b --nodes \"pc:400:24,old:40:32,nas:20:16\" --link 2.5gbe:0.3ms",
     "No weights are loaded. Without --workers and --nodes: for the devices of this machine. What is there is "
     "measured.\n"
     "GB/s: what a node reads while it decodes (`devices` says it for a CPU; of a GPU, 80 % of what its memory can);\n"
     "GiB: its free memory; GFLOP/s, for the speed of prompts, may be left out. PING is what `ping` says.\n"
     "What does not fit is refused with the numbers.",
     cli_cmd_plan},
    {"devices", "", CLI_DEVICES, "Shows what this machine can compute on.", "dllama-vk devices --json", NULL,
     cli_cmd_devices},
    {"inspect", "FILE", CLI_INSPECT, "Shows what is in a model or tokenizer file (.gguf, .m, .t).",
     "dllama-vk inspect model.gguf", NULL, cli_cmd_inspect},
    {"tokenize", "MODEL", CLI_TOKENIZE, "Turns text on stdin into token ids, or with --decode ids into text.",
     "echo -n \"Hello world\" | dllama-vk tokenize model.gguf",
     "MODEL is a .gguf, a .m with its .t, or a .t alone. The text is taken byte for byte.", cli_cmd_tokenize},
    {"perplexity", "MODEL", CLI_PERPLEXITY, "Measures how well a model predicts a text: exp of the mean nll per token.",
     "dllama-vk perplexity model.gguf -f wiki.txt --ctx 512 --json",
     "The text is cut into chunks of --ctx tokens (default 512); each begins with BOS where the model wants one.",
     cli_cmd_perplexity},
};

static const char environment[] = "environment:\n"
                                  "  DLLAMA_THREADS   threads of the CPU device\n"
                                  "  DLLAMA_CPU       most advanced CPU kernels to use: ref, avx2, avxvnni, avx512,\n"
                                  "                   on ARM neon, dotprod\n"
                                  "  DLLAMA_KEY_FILE  cluster key, as --key\n"
                                  "  DLLAMA_CACHE_DIR where compiled kernels and workers' weights are kept\n"
                                  "  NO_COLOR         no colours\n";

/* An error is exactly one line on stderr: "dllama-vk: <what>: <why>". */
static void log_line(void *ud, enum dl_log_level level, const char *line)
{
    const char *wipe = *(const bool *)ud ? "\r\033[K" : "";
    const char *kind = level == DL_LOG_ERROR ? "dllama-vk: " : level == DL_LOG_WARN ? "dllama-vk: warning: " : "";
    fprintf(stderr, "%s%s%s\n", wipe, kind, line);
}

/* Where the log goes when nobody redirects it. Set once by dispatch. */
static struct {
    enum dl_log_level most;
    bool wipe; /* a progress bar may stand on the line */
} log_state = {DL_LOG_WARN, false};

void cli_log_line(enum dl_log_level level, const char *line)
{
    log_line(&log_state.wipe, level, line);
}

void cli_log_to(dl_log_fn *fn, void *ud)
{
    dl_log_set(fn ? fn : log_line, fn ? ud : &log_state.wipe, log_state.most);
}

static int help_all(void)
{
    int err = cli_outf("usage: dllama-vk COMMAND [options]\nOne large language model, run across the machines you "
                       "already own.\n\n");
    for (size_t i = 0; i < DL_COUNT_OF(commands) && !err; i++)
        err = cli_outf("  %-10s %-8s %s\n", commands[i].name, commands[i].operand, commands[i].about);
    return err ? err
               : cli_outf("\n  --help     of every command lists its options\n  --version  prints the version\n\n%s\n"
                          "example: %s\n",
                          environment, commands[0].example);
}

static int help_one(const struct cli_command *c)
{
    struct dl_str text = {0};
    int err = cli_options_help(c, &text);
    if (!err)
        err = cli_out(text.v, text.len);
    dl_str_finish(&text);
    return err;
}

static const struct cli_command *find(const char *name)
{
    for (size_t i = 0; i < DL_COUNT_OF(commands); i++)
        if (!strcmp(commands[i].name, name))
            return &commands[i];
    return NULL;
}

/* "bench" and "ops": a command of two words. */
static const struct cli_command *find_sub(const char *name, const char *word)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < DL_COUNT_OF(commands); i++)
        if (!strncmp(commands[i].name, name, n) && commands[i].name[n] == ' ' &&
            !strcmp(commands[i].name + n + 1, word))
            return &commands[i];
    return NULL;
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2)
        return cli_usage("no command: e.g. dllama-vk run, see dllama-vk --help");
    const char *name = argv[1];
    bool help = !strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help");
    if (help && argc == 2)
        return help_all();
    if (!strcmp(name, "--version"))
        return cli_outf("dllama-vk %s\n", DL_VERSION);
    if (help)
        name = argv[2];
    const struct cli_command *c = find(name), *sub = argc > 2 + help ? find_sub(name, argv[2 + help]) : NULL;
    if (sub) {
        c = sub;
        argc--;
        argv++;
    }
    if (!c)
        return cli_usage("%s: unknown %s, see dllama-vk --help", name, *name == '-' ? "option" : "command");
    if (help)
        return help_one(c);
    struct cli_opts o;
    int err = cli_options_parse(c, argc - 2, argv + 2, &o);
    if (err)
        return err;
    if (o.help)
        return help_one(c);
    if (o.quiet && o.verbose)
        return cli_usage("%s: --quiet and --verbose exclude each other", c->name);
    log_state.wipe = !o.quiet && cli_is_screen(STDERR_FILENO);
    log_state.most = o.quiet ? DL_LOG_ERROR : o.verbose ? DL_LOG_INFO : DL_LOG_WARN;
    cli_log_to(NULL, NULL);
    return c->run(&o);
}

/* A standard stream that the caller closed (>&-) stays an error: what stands in for it can be written where that was read,
 * and the other way round. Without it the next file that is opened, say for --dump-logits, would take its number, and
 * the text go into that file. */
static void occupy_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            (void)!open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY); /* takes the lowest number, fd */
}

int main(int argc, char **argv)
{
    occupy_standard_streams();
    cli_log_to(NULL, NULL);
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is an error of write, and a quiet end */
    signal(SIGXFSZ, SIG_IGN); /* so is a file that may not grow further */
    int err = dispatch(argc, argv);
    if (!err)
        err = cli_out_flush();
    if (err == DL_ECANCELED)
        err = DL_OK;
    return err < 0 ? 1 : err == CLI_USAGE ? 2 : 0;
}
