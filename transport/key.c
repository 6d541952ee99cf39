/* SPDX-License-Identifier: MIT
 *
 * transport/key.c: cluster keys and the files that hold them. Files go through libuv, so that this works wherever it does.
 */
#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>
#include <uv.h>

#include "dl/transport.h"

#define MARK "dllama-vk-key-1 "
enum { MARK_LEN = sizeof MARK - 1, KEY_LEN = 32, LINE_LEN = MARK_LEN + 2 * KEY_LEN + 1, FILE_MOST = 256 };

int dl_key_create(struct dl_key *out)
{
    int code = uv_random(NULL, NULL, out->bytes, sizeof out->bytes, 0, NULL);
    return code ? dl_fail(DL_EIO, "key: the system gives no random numbers: %s", uv_strerror(code)) : DL_OK;
}

void dl_key_forget(struct dl_key *key)
{
    OPENSSL_cleanse(key, sizeof *key);
}

static int64_t file_io(uv_fs_t *req, int64_t result)
{
    uv_fs_req_cleanup(req);
    return result;
}

static void file_close(uv_file file)
{
    uv_fs_t req;
    (void)file_io(&req, uv_fs_close(NULL, &req, file, NULL));
}

int dl_key_write(const char *path, const struct dl_key *key)
{
    static const char digits[] = "0123456789abcdef";
    char line[LINE_LEN + 1] = MARK;
    for (size_t i = 0; i < KEY_LEN; i++) {
        line[MARK_LEN + 2 * i] = digits[key->bytes[i] >> 4];
        line[MARK_LEN + 2 * i + 1] = digits[key->bytes[i] & 15];
    }
    line[LINE_LEN - 1] = '\n';
    uv_fs_t req;
    int64_t file =
        file_io(&req, uv_fs_open(NULL, &req, path, UV_FS_O_WRONLY | UV_FS_O_CREAT | UV_FS_O_EXCL, 0600, NULL));
    if (file == UV_EEXIST)
        return dl_fail(DL_EIO, "key: %s exists and is not replaced: name another file, or remove it first", path);
    if (file < 0)
        return dl_fail(DL_EIO, "key: cannot make %s: %s", path, uv_strerror((int)file));
    uv_buf_t buf = uv_buf_init(line, LINE_LEN);
    int64_t n = file_io(&req, uv_fs_write(NULL, &req, (uv_file)file, &buf, 1, 0, NULL));
    int64_t code = n == LINE_LEN ? file_io(&req, uv_fs_fsync(NULL, &req, (uv_file)file, NULL)) : n < 0 ? n : UV_ENOSPC;
    file_close((uv_file)file);
    OPENSSL_cleanse(line, sizeof line);
    if (code < 0) {
        (void)file_io(&req, uv_fs_unlink(NULL, &req, path, NULL));
        return dl_fail(DL_EIO, "key: cannot write %s: %s", path, uv_strerror((int)code));
    }
    return DL_OK;
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One line as above; nothing but white space after it. */
static bool parse(const char *text, size_t n, struct dl_key *out)
{
    if (n < LINE_LEN - 1 || memcmp(text, MARK, MARK_LEN) != 0)
        return false;
    for (size_t i = 0; i < KEY_LEN; i++) {
        int high = digit(text[MARK_LEN + 2 * i]), low = digit(text[MARK_LEN + 2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out->bytes[i] = (uint8_t)(high << 4 | low);
    }
    for (size_t i = LINE_LEN - 1; i < n; i++)
        if (!strchr(" \t\r\n", text[i]) || !text[i])
            return false;
    return true;
}

#ifndef _WIN32
/* A copy that systemd made for this service alone: access lists, which it sets there, look like rights of a group. */
static bool is_credential(const char *path)
{
    const char *folder = getenv("CREDENTIALS_DIRECTORY");
    size_t n = folder ? strlen(folder) : 0;
    return n && !strncmp(path, folder, n) && path[n] == '/';
}
#endif

int dl_key_read(const char *path, struct dl_key *out)
{
    uv_fs_t req;
    int64_t file = file_io(&req, uv_fs_open(NULL, &req, path, UV_FS_O_RDONLY, 0, NULL));
    if (file < 0)
        return dl_fail(DL_EIO,
                       "key: cannot read %s: %s: make one with `dllama-vk keygen %s`, or copy the cluster's here", path,
                       uv_strerror((int)file), path);
#ifndef _WIN32
    if (!uv_fs_fstat(NULL, &req, (uv_file)file, NULL) && (req.statbuf.st_mode & 077) && !is_credential(path))
        dl_log(DL_LOG_WARN, "key: other users may read or change %s: chmod 600 %s", path, path);
    uv_fs_req_cleanup(&req);
#endif
    char text[FILE_MOST];
    uv_buf_t buf = uv_buf_init(text, sizeof text);
    int64_t n = file_io(&req, uv_fs_read(NULL, &req, (uv_file)file, &buf, 1, 0, NULL));
    file_close((uv_file)file);
    if (n < 0)
        return dl_fail(DL_EIO, "key: cannot read %s: %s", path, uv_strerror((int)n));
    bool ok = n < FILE_MOST && parse(text, (size_t)n, out);
    OPENSSL_cleanse(text, sizeof text);
    if (ok)
        return DL_OK;
    dl_key_forget(out);
    return dl_fail(DL_EFORMAT,
                   "key: %s is no key file (\"" MARK "\" and 64 hexadecimal digits): make one with `dllama-vk keygen`",
                   path);
}
