#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh tests/check_headers.sh CC [TOP]
#
# Every header compiles alone as C17: none leans on what its includer happened to include before. CC is the C compiler.
set -u
cc=$1
cd "${2:-$(dirname "$0")/..}" || exit 1

bad=0
n=0
for header in $(find engine cpu transport shaders cli tests -name '*.h' 2>/dev/null | sort); do
    isa=
    case $header in
    cpu/avx2*)
        case $("$cc" -dumpmachine) in
        x86_64*) isa="-mavx2 -mfma -mf16c" ;;
        *) continue ;;
        esac
        ;;
    cpu/neon*)
        case $("$cc" -dumpmachine) in
        aarch64*) ;;
        *) continue ;;
        esac
        ;;
    shaders/vulkan/*)
        if ! echo '#include <volk.h>' | "$cc" -fsyntax-only -x c - 2>/dev/null; then
            echo "SKIPPED PART: $header: volk is not installed"
            continue
        fi
        ;;
    esac
    n=$((n + 1))
    # shellcheck disable=SC2086
    printf '#include "%s"\n' "$header" |
        "$cc" $isa -std=c17 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -Wall -Wextra -Wstrict-prototypes -Werror -fsyntax-only \
            -iquote . -Iengine/include -iquote engine/base -iquote engine/model -iquote engine/text -iquote engine/run -iquote shaders/vulkan -iquote cli -iquote tests -x c - || {
        echo "$header does not compile alone"
        bad=1
    }
done
echo "check_headers: $n headers"
[ "$n" -gt 0 ] || bad=1
exit $bad
