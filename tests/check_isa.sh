#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh tests/check_isa.sh OBJDUMP LIBRARY...
#
# One binary runs on every x86-64: vector instructions beyond SSE2 (those with ymm or zmm registers, or VEX-coded v* forms)
# are found only in the files of their instruction set (avx*.c), which run behind the feature check; and what only AVX-512
# (zmm registers, masks, the upper sixteen) or VNNI has is not found in those of AVX2, nor the former in those of AVX-VNNI. One
# binary runs on every 64-bit ARM, likewise: dot products are found only in dotprod*.c.
set -u
objdump=$1
shift
for library in "$@"; do
    "$objdump" -d --no-show-raw-insn "$library"
done | awk '
/file format/ { object = $1; sub(/:$/, "", object); other = object !~ /(avx|dotprod)/; below = object ~ /avx(2|vnni)/; plain = object ~ /avx2/; objects++; if (!other) guarded++; format = $NF; next }
other && (/%[yz]mm/ || /^ *[0-9a-f]+:\t(v[a-z0-9]+ |vzero)/) && !(object in told) { print object ": " $0; told[object] = 1; bad++ }
below && (/%zmm/ || /%[xy]mm(1[6-9]|2[0-9]|3[01])/ || /%k[0-7]/ || (plain && /vpdp/)) && !(object in told) { print object ": " $0; told[object] = 1; bad++ }
object !~ /dotprod/ && format ~ /aarch64/ && /\t(su|us|[su])?(dot|mmla)\t/ && !(object in told) { print object ": " $0; told[object] = 1; bad++ }
END {
    if (format !~ /(x86-64|aarch64)/) { print "SKIPPED PART: check_isa knows x86-64 and 64-bit ARM"; exit 0 }
    printf "check_isa: %d objects, %d of them for one instruction set, %d offences\n", objects, guarded, bad
    exit bad > 0 || objects == 0
}'
