/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_template.c: any bytes as a chat template (dl_chat_detect), then cut at the byte 0xff into messages for the format
 * found and for one that the input names; the parts must cover the text. Then its stop
 * strings, in one piece and byte by byte.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "chat_render.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void quiet(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud, (void)level, (void)line;
}

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void render(enum dl_chat_kind kind, const struct eng_chat_style *style, const struct dl_chat_msg *msgs, size_t n,
                   bool add_answer)
{
    struct eng_chat_parts parts = {0};
    if (eng_chat_render(kind, style, msgs, n, add_answer, &parts) == DL_OK) {
        size_t at = 0;
        for (size_t i = 0; i < parts.len; i++) {
            check(parts.v[i].at == at && parts.v[i].n > 0);
            check(!i || parts.v[i].what != ENG_CHAT_PLAIN || parts.v[i - 1].what != ENG_CHAT_PLAIN);
            at += parts.v[i].n;
        }
        check(at == parts.text.len);
    }
    eng_chat_parts_finish(&parts);
}

static void stop(enum dl_chat_kind kind, const uint8_t *data, size_t size)
{
    struct dl_stops s = {0};
    struct dl_str whole = {0}, cut = {0};
    for (const char *const *p = dl_chat_stops(kind); *p; p++)
        check(dl_stops_add(&s, *p) == DL_OK);
    int found = dl_stops_push(&s, (const char *)data, size, &whole), again = 0;
    check(found >= 0 && (found || dl_stops_flush(&s, &whole) == DL_OK));
    for (size_t i = 0; i < size && !again; i++)
        check((again = dl_stops_push(&s, (const char *)data + i, 1, &cut)) >= 0);
    check(again || dl_stops_flush(&s, &cut) == DL_OK);
    check(found == again && whole.len == cut.len && (!cut.len || memcmp(whole.v, cut.v, cut.len) == 0));
    dl_str_finish(&whole);
    dl_str_finish(&cut);
    dl_stops_finish(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const roles[] = {"system", "user", "assistant", "user"};
    enum { MOST = 12 };
    struct dl_chat_msg msgs[MOST];
    size_t n = 0;
    if (!size)
        return 0;
    dl_log_set(quiet, NULL, DL_LOG_ERROR);
    /* A block of its own, so that a read past the end is seen; another with the messages, each ended by NUL. */
    char *exact = malloc(size), *text = calloc(size + 1, 1);
    check(exact && text);
    memcpy(exact, data, size);
    memcpy(text, data, size);
    enum dl_chat_kind found = dl_chat_detect(exact, size);
    check(found < DL_CHAT_COUNT && dl_chat_by_name(dl_chat_name(found)) == found);
    unsigned bits = data[size - 1];
    for (char *p = text, *end = text + size; p < end && n < MOST;) {
        char *stop_at = memchr(p, 0xff, (size_t)(end - p));
        if (stop_at)
            *stop_at = 0;
        /* Mostly an exchange that formats accept, now and then any role. */
        const char *role = bits & 1             ? roles[(uint8_t)*p % 4]
                           : n == 0 && bits & 2 ? "system"
                                                : roles[1 + (n + (bits >> 1)) % 2];
        msgs[n++] = (struct dl_chat_msg){role, p};
        p = stop_at ? stop_at + 1 : end;
    }
    struct eng_chat_style style = {bits & 4, bits & 8, bits & 16, bits & 32};
    render(found, &style, msgs, n, bits & 64);
    render((enum dl_chat_kind)(data[0] % (DL_CHAT_COUNT + 1)), &style, msgs, n, bits & 64);
    stop(found, data, size);
    free(exact);
    free(text);
    return 0;
}
