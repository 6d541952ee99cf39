#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh tests/check_isa.sh OBJDUMP LIBRARY...
#
# One binary runs on every x86-64: vector instructions beyond SSE2 (those with ymm or zmm registers, or VEX-coded v* forms)
# are found only in the files of their instruction set (avx*.c), which run behind the feature check.
set -u
objdump=$1
shift
for library in "$@"; do
    "$objdump" -d --no-show-raw-insn "$library"
done | awk '
/file format/ { object = $1; sub(/:$/, "", object); other = object !~ /avx/; objects++; if (!other) guarded++; format = $NF; next }
other && (/%[yz]mm/ || /^ *[0-9a-f]+:\t(v[a-z0-9]+ |vzero)/) && !(object in told) { print object ": " $0; told[object] = 1; bad++ }
END {
    if (format !~ /x86-64/) { print "SKIPPED PART: check_isa looks at x86-64 code only"; exit 0 }
    printf "check_isa: %d objects, %d of them for one instruction set, %d offences\n", objects, guarded, bad
    exit bad > 0 || objects == 0
}'
