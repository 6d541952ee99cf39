/* SPDX-License-Identifier: MIT
 *
 * cli/prompt.c: the line editor of the chat: libedit with a bounded history file, messages of several lines, and Ctrl-C that
 * drops the line instead of the process. Knows nothing of models.
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#define HISTORY_LINES 1000
#define QUOTES "\"\"\""

struct cli_prompt {
    EditLine *el;
    History *history;
    char *history_path; /* NULL: not kept */
    int wake[2];        /* Ctrl-C writes, the reader polls */
    bool more;          /* inside a message of several lines */
    bool interrupted;
    int deadly; /* a signal that ends the process, once the terminal is as it was */
    bool ended;
};

static char *prompt_text(EditLine *el)
{
    static char first[] = "> ", next[] = "... ";
    struct cli_prompt *p = NULL;
    el_get(el, EL_CLIENTDATA, &p);
    return p && p->more ? next : first;
}

/* libedit's own reader goes on reading after an interrupted call, so Ctrl-C would not get through. */
static int read_char(EditLine *el, wchar_t *out)
{
    struct cli_prompt *p = NULL;
    el_get(el, EL_CLIENTDATA, &p);
    mbstate_t state = {0};
    for (;;) {
        struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = p->wake[0], .events = POLLIN}};
        if (poll(fds, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            return -1;
        }
        char c;
        if (fds[1].revents) {
            while (read(p->wake[0], &c, 1) == 1)
                if (c != SIGINT)
                    p->deadly = c;
            p->interrupted = true;
            errno = EINTR;
            return -1;
        }
        ssize_t n = read(STDIN_FILENO, &c, 1);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            return (int)n;
        size_t used = mbrtowc(out, &c, 1, &state);
        if (used == (size_t)-2)
            continue; /* inside a character */
        if (used == (size_t)-1) {
            state = (mbstate_t){0};
            continue; /* no text: the byte is dropped */
        }
        return 1;
    }
}

/* Creates the folders of a path, private to the user. */
static bool make_folders(char *path)
{
    for (char *p = path + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = 0;
        bool ok = !mkdir(path, 0700) || errno == EEXIST;
        *p = '/';
        if (!ok)
            return false;
    }
    return true;
}

/* $XDG_STATE_HOME/dllama-vk/history or what takes its place; NULL when there is no home. */
static char *history_file(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = dl_home();
    struct dl_str path = {0};
    int err = DL_EINVAL;
    if (state && *state == '/')
        err = dl_str_addf(&path, "%s/dllama-vk/history", state);
    else if (home)
#ifdef __APPLE__
        err = dl_str_addf(&path, "%s/Library/Application Support/dllama-vk/history", home);
#else
        err = dl_str_addf(&path, "%s/.local/state/dllama-vk/history", home);
#endif
    if (!err && make_folders(path.v)) {
        int fd = open(path.v, O_RDWR | O_CREAT | O_CLOEXEC, 0600); /* messages are private */
        if (fd >= 0) {
            close(fd);
            return path.v;
        }
    }
    dl_str_finish(&path);
    return NULL;
}

cli_prompt *cli_prompt_open(void)
{
    /* Only the kind of characters; numbers stay as C writes them. */
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        setlocale(LC_CTYPE, "C.UTF-8");
    struct cli_prompt *p = dl_xcalloc(1, sizeof *p);
    HistEvent ev;
    if (pipe(p->wake)) {
        dl_log(DL_LOG_ERROR, "chat: cannot make a pipe: %s", strerror(errno));
        free(p);
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        fcntl(p->wake[i], F_SETFL, O_NONBLOCK);
        fcntl(p->wake[i], F_SETFD, FD_CLOEXEC);
    }
    p->history = history_init();
    p->el = el_init("dllama-vk", stdin, stdout, stderr);
    if (!p->history || !p->el) {
        dl_log(DL_LOG_ERROR, "chat: this terminal cannot be used (TERM=%s); give a prompt with -p TEXT",
               getenv("TERM") ? getenv("TERM") : "");
        cli_prompt_close(&p);
        return NULL;
    }
    history(p->history, &ev, H_SETSIZE, HISTORY_LINES);
    history(p->history, &ev, H_SETUNIQUE, 1);
    p->history_path = history_file();
    if (p->history_path)
        history(p->history, &ev, H_LOAD, p->history_path); /* an empty or damaged file: no history */
    el_set(p->el, EL_CLIENTDATA, p);
    el_set(p->el, EL_PROMPT, prompt_text);
    el_set(p->el, EL_EDITOR, "emacs");
    el_set(p->el, EL_SIGNAL, 0);
    el_set(p->el, EL_HIST, history, p->history);
    el_set(p->el, EL_GETCFN, read_char);
    el_set(p->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    return p;
}

void cli_prompt_close(cli_prompt **pp)
{
    struct cli_prompt *p = *pp;
    if (!p)
        return;
    if (p->el)
        el_end(p->el);
    if (p->history)
        history_end(p->history);
    close(p->wake[0]);
    close(p->wake[1]);
    free(p->history_path);
    free(p);
    *pp = NULL;
}

/* One line without its end; CLI_LINE and so on. */
static int read_line(struct cli_prompt *p, struct dl_str *line)
{
    int n = 0;
    p->interrupted = false;
    el_resize(p->el); /* the window may have changed while the model was talking */
    cli_interrupt_begin(p->wake[1]);
    el_set(p->el, EL_PREP_TERM, 1); /* before the prompt is seen: a Ctrl-D that comes early is lost in line mode */
    const char *s = el_gets(p->el, &n);
    cli_interrupt_end();
    if (p->deadly)
        raise(p->deadly);
    if (p->interrupted)
        return CLI_LINE_INTERRUPT;
    if (!s || n <= 0)
        return CLI_LINE_END;
    size_t len = strlen(s);
    p->ended = len && s[len - 1] != '\n'; /* Ctrl-D behind a text */
    while (len && (s[len - 1] == '\n' || s[len - 1] == '\r'))
        len--;
    line->len = 0;
    int err = dl_str_add(line, s, len);
    if (!err && len) {
        HistEvent ev;
        history(p->history, &ev, H_ENTER, line->v);
        if (p->history_path) /* now and not at the end: the process may be killed in an answer */
            history(p->history, &ev, H_SAVE, p->history_path);
    }
    return err ? err : CLI_LINE;
}

int cli_prompt_read(cli_prompt *p, struct dl_str *out)
{
    struct dl_str line = {0};
    bool quoted = false;
    out->len = 0;
    p->more = false;
    int what = dl_str_add(out, "", 0);
    while (what >= 0) {
        what = p->ended ? CLI_LINE_END : read_line(p, &line);
        if (what != CLI_LINE)
            break;
        const char *text = line.v;
        size_t n = line.len;
        bool more = false;
        if (quoted) {
            const char *end = strstr(text, QUOTES);
            if (end)
                n = (size_t)(end - text);
            more = quoted = !end;
            if (end && !n && out->len) { /* the closing quotes stand alone: the line end before them belongs to them */
                out->v[--out->len] = 0;
            }
        } else if (!out->len && !strncmp(text, QUOTES, strlen(QUOTES))) {
            text += strlen(QUOTES);
            n -= strlen(QUOTES);
            const char *end = strstr(text, QUOTES);
            if (end)
                n = (size_t)(end - text);
            more = quoted = !end;
            if (quoted && !n) {
                p->more = true;
                continue;
            }
        } else if (n && text[n - 1] == '\\') {
            n--;
            more = true;
        }
        int err = dl_str_add(out, text, n);
        if (!err && more)
            err = dl_str_add(out, "\n", 1);
        if (err)
            what = err;
        p->more = more;
        if (!more)
            break;
    }
    p->more = false;
    dl_str_finish(&line);
    /* The end of the input inside a message: what is there counts, the next read says that it was the end. */
    if (what == CLI_LINE_END && out->len) {
        p->ended = true;
        what = CLI_LINE;
    }
    return what;
}
