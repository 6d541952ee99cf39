/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_chat.c: the interactive chat on a pseudo-terminal: a person types, looks, interrupts and leaves.
 */
#define _XOPEN_SOURCE 700 /* pseudo-terminals */
#include "e2e.h"

#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>

#define STORIES "models/stories260K.gguf"

struct tty {
    pid_t pid;
    int fd;
    char *seen;     /* everything since the start */
    size_t n, from; /* expect() looks behind `from` */
    char home[64];
    int slave;           /* kept open, so that the terminal outlives the process */
    struct termios left; /* how the process left it */
};

static const char *home_below = ""; /* HOME is this below the test's folder */

static int open_pair(int *slave)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(master >= 0 && !grantpt(master) && !unlockpt(master));
    *slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    assert_true(*slave >= 0);
    struct winsize size = {.ws_row = 40, .ws_col = 200};
    ioctl(*slave, TIOCSWINSZ, &size);
    return master;
}

static void tty_start(struct tty *t, const char *const *argv)
{
    *t = (struct tty){.seen = calloc(1, 1)};
    snprintf(t->home, sizeof t->home, "/tmp/dllama-home-XXXXXX");
    assert_non_null(mkdtemp(t->home));
    char *args[32] = {(char *)(uintptr_t)e2e_bin()};
    for (size_t i = 0; argv[i]; i++)
        args[i + 1] = (char *)(uintptr_t)argv[i];
    int slave;
    t->fd = open_pair(&slave);
    t->slave = dup(slave);
    fflush(NULL);
    t->pid = fork();
    assert_true(t->pid >= 0);
    if (!t->pid) {
        setsid();
        ioctl(slave, TIOCSCTTY, 0);
        for (int i = 0; i < 3; i++)
            dup2(slave, i);
        for (int i = 3; i < 64; i++)
            close(i);
        setenv("TERM", "xterm", 1);
        char home[128];
        snprintf(home, sizeof home, "%s%s", t->home, home_below);
        setenv("HOME", home, 1);
        unsetenv("XDG_STATE_HOME");
        setenv("LC_ALL", "C", 1);
        execv(args[0], args);
        _exit(127);
    }
    close(slave);
}

/* Waits until `text` has come; what comes behind it is left for the next call. */
static void expect(struct tty *t, const char *text)
{
    uint64_t end = dl_now_ns() + (uint64_t)120000 * 1000000u;
    for (;;) {
        char *hit = strstr(t->seen + t->from, text);
        if (hit) {
            t->from = (size_t)(hit - t->seen) + strlen(text);
            return;
        }
        struct pollfd p = {.fd = t->fd, .events = POLLIN};
        bool ready = poll(&p, 1, 500) > 0;
        t->seen = realloc(t->seen, t->n + 4097);
        assert_non_null(t->seen);
        ssize_t got = ready ? read(t->fd, t->seen + t->n, 4096) : 0;
        for (size_t i = 0, to = t->n; got > 0 && i < (size_t)got; i++) { /* without zero bytes, for strstr */
            char c = t->seen[to + i];
            if (c)
                t->seen[t->n++] = c;
        }
        t->seen[t->n] = 0;
        if ((ready && got <= 0) || dl_now_ns() > end) {
            kill(t->pid, SIGKILL);
            fail_msg("'%s' did not come; the screen: %s", text, t->seen + t->from);
        }
    }
}

static void type(struct tty *t, const char *keys)
{
    assert_int_equal(write(t->fd, keys, strlen(keys)), strlen(keys));
}

static int tty_end(struct tty *t)
{
    char buf[4096];
    int status;
    uint64_t end = dl_now_ns() + (uint64_t)120000 * 1000000u;
    while (!waitpid(t->pid, &status, WNOHANG)) {
        struct pollfd p = {.fd = t->fd, .events = POLLIN};
        if (poll(&p, 1, 20) > 0 && read(t->fd, buf, sizeof buf) < 0)
            usleep(10000);
        if (dl_now_ns() > end)
            kill(t->pid, SIGKILL);
    }
    tcgetattr(t->slave, &t->left);
    close(t->fd);
    close(t->slave);
    return WIFEXITED(status) ? WEXITSTATUS(status) : E2E_SIGNALLED + WTERMSIG(status);
}

static void tty_clean(struct tty *t)
{
    static const char *const below[] = {"/.local/state/dllama-vk/history", "/.local/state/dllama-vk", "/.local/state",
                                        "/.local", ""};
    for (size_t i = 0; i < DL_COUNT_OF(below); i++) {
        char path[128];
        snprintf(path, sizeof path, "%s%s", t->home, below[i]);
        remove(path);
    }
    free(t->seen);
}

static void test_conversation(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct tty t;
    tty_start(&t, (const char *const[]){"run", gguf, "--chat-template", "llama2", "-n", "10", "--temp", "0", NULL});
    expect(&t, "/help shows the commands");
    expect(&t, "> ");
    type(&t, "Tell me a stroy\x7f\x7f\x7f"
             "ory\r"); /* line editing */
    expect(&t, "ory"); /* between the redrawing of the line */
    expect(&t, "\n");
    expect(&t, "> "); /* an answer came between */
    type(&t, "/stats\r");
    expect(&t, "2 messages");
    expect(&t, "10 generated");
    expect(&t, "> ");
    type(&t, "/reset\r");
    expect(&t, "forgotten");
    expect(&t, "> ");
    type(&t, "/stats\r");
    expect(&t, "context: 0 of");
    expect(&t, "0 messages");
    expect(&t, "> ");
    type(&t, "/frob\r");
    expect(&t, "no command");
    expect(&t, "> ");
    type(&t, "/help\r");
    expect(&t, "/quit");
    expect(&t, "> ");
    type(&t, "\x10\x10\x10\x10\x10\x10"); /* Ctrl-P: back to the message */
    expect(&t, "Tell me a story");
    type(&t, "\x15/quit\r");
    assert_int_equal(tty_end(&t), 0);
    /* The history is there for the next time, for this user only. */
    char path[128];
    snprintf(path, sizeof path, "%s/.local/state/dllama-vk/history", t.home);
    size_t n;
    char *history = e2e_slurp(path, &n);
    E2E_HAS(history, "story");
    free(history);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    tty_clean(&t);
}

static void test_interrupts(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct tty t;
    tty_start(&t, (const char *const[]){"run", gguf, "--temp", "1", "--top-p", "1", "--ctx", "100000", NULL});
    expect(&t, "base model");
    expect(&t, "> ");
    type(&t, "Once\r");
    expect(&t, "Once");
    expect(&t, "Once"); /* the text begins with what was typed */
    usleep(300000);
    type(&t, "\x03");
    expect(&t, "> ");
    type(&t, "/stats\r");
    expect(&t, "finish: cancelled");
    expect(&t, "> ");
    type(&t, "half a line\x03"); /* drops the line */
    expect(&t, "Ctrl-C again");
    expect(&t, "> ");
    type(&t, "/stats\r");
    expect(&t, "memory: ");
    expect(&t, "> ");
    type(&t, "\x03"); /* the count began anew */
    expect(&t, "Ctrl-C again");
    expect(&t, "> ");
    type(&t, "\x03");
    assert_int_equal(tty_end(&t), 0);
    tty_clean(&t);
}

static void test_lines(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct tty t;
    tty_start(&t, (const char *const[]){"run", gguf, "--temp", "0", "-n", "1", NULL});
    expect(&t, "> ");
    type(&t, "One \\\r");
    expect(&t, "... ");
    type(&t, "two\r");
    expect(&t, "\nOne \r\ntwo"); /* the base model's text begins with both */
    expect(&t, "> ");
    type(&t, "\"\"\"\r");
    expect(&t, "... ");
    type(&t, "three\r");
    expect(&t, "... ");
    type(&t, "four\"\"\"\r");
    expect(&t, "\nthree\r\nfour");
    expect(&t, "> ");
    type(&t, "caf\xc3\xa9\r"); /* UTF-8, in the C locale too */
    expect(&t, "\ncaf\xc3\xa9");
    expect(&t, "> ");
    type(&t, "\x04"); /* Ctrl-D */
    assert_int_equal(tty_end(&t), 0);
    tty_clean(&t);
}

/* The line editor has the terminal in raw mode: whoever kills the process gets the terminal back as it was. */
static void test_killed(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
#ifdef __SANITIZE_THREAD__
    fputs("SKIPPED PART: ThreadSanitizer holds signals back, so nobody is killed at the prompt\n", stderr);
    skip();
#endif
    static const int signals[] = {SIGTERM, SIGHUP};
    for (size_t i = 0; i < 2; i++) {
        struct tty t;
        struct termios raw;
        tty_start(&t, (const char *const[]){"run", gguf, NULL});
        expect(&t, "> ");
        assert_int_equal(tcgetattr(t.slave, &raw), 0);
        assert_false(raw.c_lflag & ICANON);
        kill(t.pid, signals[i]);
        assert_int_equal(tty_end(&t), E2E_SIGNALLED + signals[i]);
        assert_true(t.left.c_lflag & ICANON && t.left.c_lflag & ECHO);
        tty_clean(&t);
    }
}

/* A home that is not there is not made for the history's sake. */
static void test_no_home(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct tty t;
    char home[80];
    tty_start(&t, (const char *const[]){"run", gguf, "--temp", "0", "-n", "1", "--raw", NULL});
    snprintf(home, sizeof home, "%s/.local", t.home);
    expect(&t, "> ");
    type(&t, "/quit\r");
    assert_int_equal(tty_end(&t), 0);
    assert_int_equal(access(home, F_OK), 0);
    tty_clean(&t);
    home_below = "/missing";
    tty_start(&t, (const char *const[]){"run", gguf, "--temp", "0", "-n", "1", "--raw", NULL});
    home_below = "";
    snprintf(home, sizeof home, "%s/missing", t.home);
    expect(&t, "> ");
    type(&t, "Once\r");
    expect(&t, "> ");
    type(&t, "/quit\r");
    assert_int_equal(tty_end(&t), 0);
    assert_int_not_equal(access(home, F_OK), 0);
    tty_clean(&t);
}

/* What a model says does not drive the terminal: byte tokens of ESC, BEL and C1 CSI are left out, text stays. */
static void test_control_characters(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    /* Byte b is token 3 + b. */
    static const char ids[] = "68 30 94 10 197 158 69 12 70";
    struct e2e r;
    E2E(&r, "tokenize", gguf, "--decode", "-p", ids);
    E2E_STATUS(&r, 0);
    assert_string_equal(r.out, "A\x1b[\x07\xc2\x9b"
                               "B\tC"); /* not on a terminal: exactly */
    e2e_free(&r);
    struct tty t;
    tty_start(&t, (const char *const[]){"tokenize", gguf, "--decode", "-p", ids, NULL});
    expect(&t, "C");
    assert_int_equal(tty_end(&t), 0);
    assert_string_equal(t.seen, "A[B\tC");
    tty_clean(&t);
}

/* A GPU that is lost in the middle of an answer: one line says so, the chat goes on with the CPU. */
static void test_lost_gpu(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    NEED_GPU();
    struct tty t;
    setenv("DLLAMA_VK_LOSE_AFTER", "5", 1);
    tty_start(&t, (const char *const[]){"run", gguf, "--device", "vulkan:0", "--raw", "-n", "20", "--temp", "0", NULL});
    unsetenv("DLLAMA_VK_LOSE_AFTER");
    expect(&t, "> ");
    type(&t, "Once upon a time\r");
    expect(&t, "the device was lost");
    expect(&t, "going on with cpu");
    expect(&t, "> ");
    type(&t, "Once upon a time\r");
    expect(&t, "Once upon a time, there was a little girl named");
    expect(&t, "> ");
    type(&t, "\x04");
    assert_int_equal(tty_end(&t), 0);
    tty_clean(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversation), cmocka_unit_test(test_interrupts),
        cmocka_unit_test(test_lines),        cmocka_unit_test(test_control_characters),
        cmocka_unit_test(test_lost_gpu),     cmocka_unit_test(test_killed),
        cmocka_unit_test(test_no_home),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
