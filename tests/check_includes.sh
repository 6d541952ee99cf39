#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh tests/check_includes.sh [TOP]
#
# Holds every #include of the tree against the table of who may include what (CONTRIBUTING.md, "Layout"). What a folder may
# include is: the dl/ headers listed for it, headers of its own part, the C library, and the libraries listed for it. A
# header in quotes must exist where the part looks for it. Prints each offence as FILE:LINE and exits 1 when there is any.
set -u
cd "${1:-$(dirname "$0")/..}" || exit 1

files=$(find engine cpu transport shaders cli -name '*.[ch]' 2>/dev/null | sort)
[ -n "$files" ] || {
    echo "check_includes: no sources found" >&2
    exit 1
}
# shellcheck disable=SC2086
awk '
function words(list, set,    v, n, i) { n = split(list, v, " "); for (i = 1; i <= n; i++) set[v[i]] = 1 }
BEGIN {
    # C17, but for threads: those are allowed by folder.
    words("assert ctype errno fenv float inttypes limits locale math setjmp signal stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib string time wchar wctype", c)
    # The operating system: one file of the base library, and the folders that own threads, sockets or the terminal.
    words("unistd.h langinfo.h fcntl.h dirent.h poll.h sched.h termios.h strings.h malloc.h sys/mman.h sys/prctl.h sys/stat.h sys/statvfs.h sys/types.h sys/ioctl.h sys/resource.h sys/time.h sys/wait.h sys/socket.h", os)
    words("immintrin.h cpuid.h x86intrin.h arm_neon.h", simd)
    words("base quant op device", device_headers)
    words("base transport", transport_headers)
}
function part_of(file) {
    if (file ~ /^engine\/include\/dl\//) return "contracts"
    if (file ~ /^engine\/base\//) return "dl_base"
    if (file ~ /^engine\//) return "dl_engine"
    if (file ~ /^cpu\//) return "dl_cpu"
    if (file ~ /^shaders\//) return "dl_vulkan"
    if (file ~ /^transport\//) return "dl_transport"
    return "cli"
}
function exists(path,    line, r) { r = (getline line < path); close(path); return r >= 0 }
function may_system(part, file, h) {
    if (h ~ /\.h$/ && (substr(h, 1, length(h) - 2) in c)) return 1
    if (part == "contracts") return 0
    if (part == "dl_base") return (file ~ /\/os\.c$/ && (h in os)) || (h == "xxhash.h" && file ~ /\/base\.c$/)
    if (part == "dl_engine") return (h == "pcre2.h" && file ~ /^engine\/text\//) || (h == "dirent.h" && file ~ /^engine\/text\//) || (h == "xxhash.h" && file ~ /^engine\/run\/digest\.c$/)
    if (part == "dl_cpu") return h == "pthread.h" || (h in simd) || h == "unistd.h" || h == "sched.h" || (h == "sys/auxv.h" && file ~ /\/cpu_features\.c$/)
    if (part == "dl_transport") return h == "pthread.h" || h == "uv.h" || h ~ /^openssl\//
    if (part == "dl_vulkan") return h == "pthread.h" || h == "volk.h" || h ~ /^vulkan\// || h ~ /^glslang\//
    if (file ~ /^cli\/server\// && (h == "microhttpd.h" || h == "pthread.h" || h == "netdb.h" || h == "netinet/in.h")) return 1
    return (h in os) || h == "jansson.h" || h == "histedit.h" || h == "editline/readline.h"
}
function may_quote(part, dir, h,    name) {
    if (h ~ /^dl\//) {
        name = substr(h, 4, length(h) - 5)
        if (!exists("engine/include/" h)) return 0
        if (part == "dl_cpu" || part == "dl_vulkan") return name in device_headers
        if (part == "dl_transport") return name in transport_headers
        return 1
    }
    if (part == "contracts" || h ~ /\.c$/ || h ~ /\.\./) return 0
    if (exists(dir "/" h)) return 1
    if (part == "dl_engine") return exists("engine/" h) || exists("engine/base/" h) || exists("engine/model/" h) || exists("engine/text/" h) || exists("engine/run/" h)
    if (part == "cli") return exists("cli/" h)
    return 0
}
/^[ \t]*#[ \t]*include/ {
    seen++
    line = $0
    sub(/^[ \t]*#[ \t]*include[ \t]*/, "", line)
    part = part_of(FILENAME)
    dir = FILENAME
    sub(/\/[^\/]*$/, "", dir)
    if (match(line, /^<[^>]*>/)) ok = may_system(part, FILENAME, substr(line, 2, RLENGTH - 2))
    else if (match(line, /^"[^"]*"/)) ok = may_quote(part, dir, substr(line, 2, RLENGTH - 2))
    else ok = 0
    if (!ok) { printf "%s:%d: %s may not include %s\n", FILENAME, FNR, part, line; bad++ }
}
END {
    printf "check_includes: %d includes, %d not allowed\n", seen, bad
    exit bad > 0 || seen == 0
}' $files
