#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh tests/check_style.sh [TOP]
#
# What clang-format does not look at: an SPDX line in the first two lines of every source, no tabs, no trailing white space, no
# carriage returns, a newline at the end, and no file over 600 lines that is not argued for in tests/long_files.txt
# (lines "PATH: reason"; an entry that is no longer needed is an error too).
set -u
cd "${1:-$(dirname "$0")/..}" || exit 1

{
    find engine cpu transport shaders cli tests -type f \
        \( -name '*.[ch]' -o -name '*.sh' -o -name '*.py' -o -name '*.comp' -o -name '*.glsl' -o -name '*.mjs' -o -name '*.js' -o -name '*.css' -o -name '*.html' -o -name CMakeLists.txt \) 2>/dev/null
    for file in CMakeLists.txt CMakePresets.json README.md CONTRIBUTING.md; do
        [ ! -f "$file" ] || echo "$file"
    done
} | sort >"${TMPDIR:-/tmp}/check_style.$$"
trap 'rm -f "${TMPDIR:-/tmp}/check_style.$$"' EXIT

# shellcheck disable=SC2046
awk '
function say(text) { printf "%s:%d: %s\n", FILENAME, FNR, text; bad++ }
function close_file() {
    if (!file) return
    if (needs_spdx && !spdx) { printf "%s:1: no SPDX-License-Identifier line\n", file; bad++ }
    if (lines > 600 && !(file in allowed)) { printf "%s: %d lines; split it, or argue for it in tests/long_files.txt\n", file, lines; bad++ }
    if (lines <= 600 && (file in allowed)) { printf "tests/long_files.txt: %s has %d lines and needs no entry\n", file, lines; bad++ }
    delete allowed[file]
}
FILENAME == "tests/long_files.txt" {
    if ($0 ~ /^[ \t]*(#|$)/) next
    if ($0 !~ /^[^:]+: [^ ]/ || length($0) - index($0, ":") < 12) { say("wants \"PATH: reason\""); next }
    allowed[substr($0, 1, index($0, ":") - 1)] = 1
    next
}
FNR == 1 { close_file(); file = FILENAME; spdx = 0; files++; needs_spdx = file ~ /\.(c|h|sh|py|comp|glsl|mjs|js|css|html)$/ }
{ lines = FNR }
FNR <= 2 && /SPDX-License-Identifier: MIT/ { spdx = 1 }
/\t/ { say("tab") }
/\r$/ { say("carriage return") }
/[ \t]$/ { say("trailing white space") }
END {
    close_file()
    for (file in allowed) { printf "tests/long_files.txt: no such file %s\n", file; bad++ }
    printf "check_style: %d files, %d offences\n", files, bad
    exit bad > 0 || files == 0
}' tests/long_files.txt $(cat "${TMPDIR:-/tmp}/check_style.$$")
bad=$?
# shellcheck disable=SC2013
for file in $(cat "${TMPDIR:-/tmp}/check_style.$$"); do
    if [ -n "$(tail -c 1 "$file")" ]; then
        echo "$file: no newline at the end"
        bad=1
    fi
done
exit $bad
