/* SPDX-License-Identifier: MIT
 *
 * cli/options.c: parses a command line by the table of options.h and writes --help from the same table. Knows nothing of what
 * options mean.
 */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dl/model.h"
#include "dl/text.h"

enum kind { FLAG, STR, LIST, UINT, SIZE, REAL };

static const struct option {
    char letter;
    const char *name, *arg;
    enum kind kind;
    size_t offset;
    double low, high;
    unsigned commands;
    const char *help;
} table[CLI_OPT_COUNT] = {
#define X(id, letter, text, arg, kind, field, low, high, commands, help) \
    {letter, text, arg, kind, offsetof(struct cli_opts, field), low, high, commands, help},
    CLI_OPTION_MAP(X)
#undef X
};

int cli_usage(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    dl_vlog(DL_LOG_ERROR, fmt, ap);
    va_end(ap);
    return CLI_USAGE;
}

bool cli_parse_uint(const char *text, bool size, uint64_t low, uint64_t high, uint64_t *out)
{
    if (*text < '0' || *text > '9')
        return false;
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno)
        return false;
    uint64_t n = v;
    static const char units[] = "KkMmGgTt";
    const char *unit = *end && size ? strchr(units, *end) : NULL;
    if (unit) {
        if (!dl_mul_u64(n, (uint64_t)1 << (10 * ((unit - units) / 2 + 1)), &n))
            return false;
        end++;
    }
    if (*end || n < low || n > high)
        return false;
    *out = n;
    return true;
}

/* `shown` is the option as it was typed. */
static int store(const struct option *opt, size_t id, const char *shown, const char *value, struct cli_opts *o)
{
    char *field = (char *)o + opt->offset;
    bool again = o->given >> id & 1;
    o->given |= (uint64_t)1 << id;
    switch (opt->kind) {
    case FLAG:
        *(bool *)field = true;
        return DL_OK;
    case STR:
        if (again)
            return cli_usage("%s: given twice", shown);
        *(const char **)field = value;
        return DL_OK;
    case LIST: {
        struct cli_list *list = (struct cli_list *)field;
        if (list->n == CLI_MAX_LIST)
            return cli_usage("%s: given more than %d times", shown, CLI_MAX_LIST);
        if (!*value)
            return cli_usage("%s: may not be empty", shown);
        list->v[list->n++] = value;
        return DL_OK;
    }
    case UINT:
    case SIZE: {
        /* A limit beyond what a double holds exactly means: any 64-bit number. */
        uint64_t high = opt->high > 0x1p53 ? UINT64_MAX : (uint64_t)opt->high;
        if (cli_parse_uint(value, opt->kind == SIZE, (uint64_t)opt->low, high, (uint64_t *)field))
            return DL_OK;
        return cli_usage("%s: '%s' is no whole number from %llu to %llu", shown, value, (unsigned long long)opt->low,
                         (unsigned long long)high);
    }
    case REAL: {
        char *end;
        double v = strtod(value, &end);
        if (end == value || *end || !isfinite(v) || v < opt->low || v > opt->high)
            return cli_usage("%s: '%s' is no number from %g to %g", shown, value, opt->low, opt->high);
        *(double *)field = v;
        return DL_OK;
    }
    }
    return DL_EINVAL;
}

static size_t find_long(const char *name, size_t n, unsigned command)
{
    for (size_t i = 0; i < CLI_OPT_COUNT; i++)
        if (table[i].commands & command && strlen(table[i].name) == n && !memcmp(table[i].name, name, n))
            return i;
    return CLI_OPT_COUNT;
}

static size_t find_letter(char letter, unsigned command)
{
    for (size_t i = 0; i < CLI_OPT_COUNT; i++)
        if (table[i].commands & command && letter && table[i].letter == letter)
            return i;
    return CLI_OPT_COUNT;
}

int cli_options_parse(const struct cli_command *c, int argc, char **argv, struct cli_opts *o)
{
    *o = (struct cli_opts){0};
    bool operands_only = false;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (operands_only || arg[0] != '-' || !arg[1]) {
            if (!*arg) /* a shell variable that is not set */
                return cli_usage("%s: an argument is empty, see dllama-vk %s --help", c->name, c->name);
            if (o->model || !*c->operand)
                return cli_usage("%s: one argument too many: '%s', see dllama-vk %s --help", c->name, arg, c->name);
            o->model = arg;
            continue;
        }
        if (!strcmp(arg, "--")) {
            operands_only = true;
            continue;
        }
        size_t id;
        const char *value = NULL;
        char shown[64];
        if (arg[1] == '-') {
            size_t n = strcspn(arg + 2, "=");
            id = find_long(arg + 2, n, c->bit);
            value = arg[2 + n] ? arg + 2 + n + 1 : NULL;
            snprintf(shown, sizeof shown, "%.*s", (int)DL_MIN(n + 2, sizeof shown - 1), arg);
        } else {
            id = find_letter(arg[1], c->bit);
            value = arg[2] ? arg + 2 : NULL;
            snprintf(shown, sizeof shown, "-%c", arg[1]);
        }
        if (id == CLI_OPT_COUNT || (arg[1] != '-' && value && !table[id].arg))
            return cli_usage("%s: unknown option of %s, see dllama-vk %s --help", arg[1] == '-' ? shown : arg, c->name,
                             c->name);
        if (!table[id].arg && value)
            return cli_usage("%s: takes no value", shown);
        if (table[id].arg && !value) {
            if (i + 1 == argc)
                return cli_usage("%s: needs a value (%s)", shown, table[id].arg);
            value = argv[++i];
        }
        int err = store(&table[id], id, shown, value, o);
        if (err)
            return err;
    }
    if (!o->model && *c->operand && *c->operand != '[' && !o->help)
        return cli_usage("%s: needs a %s, e.g. %s", c->name, c->operand, c->example);
    return DL_OK;
}

int cli_options_help(const struct cli_command *c, struct dl_str *out)
{
    int err = dl_str_addf(out, "usage: dllama-vk %s%s%s [options]\n%s\n\n", c->name, *c->operand ? " " : "", c->operand,
                          c->about);
    for (size_t i = 0; i < CLI_OPT_COUNT && !err; i++) {
        const struct option *opt = &table[i];
        if (!(opt->commands & c->bit))
            continue;
        char left[40];
        snprintf(left, sizeof left, "%c%c%c --%s%s%s", opt->letter ? '-' : ' ', opt->letter ? opt->letter : ' ',
                 opt->letter ? ',' : ' ', opt->name, opt->arg ? " " : "", opt->arg ? opt->arg : "");
        err = dl_str_addf(out, "  %-24s %s", left, opt->help);
        for (int k = DL_CHAT_NONE + 1; i == CLI_OPT_TEMPLATE && k < DL_CHAT_COUNT && !err; k++)
            err = dl_str_addf(out, "%s %s", k == DL_CHAT_DEEPSEEK ? "\n                          " : "",
                              dl_chat_name((enum dl_chat_kind)k));
        for (uint32_t k = 0; i == CLI_OPT_SHAPE && dl_shape_name(k) && !err; k++)
            err = dl_str_addf(out, "%s %s", k % 4 ? "" : "\n                          ", dl_shape_name(k));
        if (!err)
            err = dl_str_addz(out, "\n");
    }
    if (!err && c->notes)
        err = dl_str_addf(out, "\n%s\n", c->notes);
    return err ? err : dl_str_addf(out, "\nexample: %s\n", c->example);
}
