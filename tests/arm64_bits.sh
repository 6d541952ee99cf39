#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh tests/arm64_bits.sh X86 ARM
#
# Machines of both kinds may be nodes of one cluster, so the program for 64-bit ARM gives the very bits that the one for x86-64
# gives with AVX2: logits of the demo model and of the small models of the test data, with each set of fast kernels, and in a
# cluster of both. A story has the same words, too. X86 is the program of this machine; ARM is what runs the other one, on the CPU that $QEMU_CPU names.
set -u
x86=$1
arm=$2
data=${DLLAMA_TEST_DATA:-../shared}
tmp=$(mktemp -d) || exit 1
worker=
on_exit() {
    [ -z "$worker" ] || kill "$worker" 2>/dev/null
    rm -rf "$tmp"
}
trap on_exit EXIT
trap 'exit 130' INT TERM

fail() {
    echo "arm64_bits: $*"
    exit 1
}

# The sets of fast kernels that a program has on its CPU.
sets_of() { "$1" devices --json 2>/dev/null | sed -n 's/.*"features": *"ref \([^"]*\)".*/\1/p' | head -n 1; }

# logits FILE PROGRAM SET OPTIONS...: of a prompt in one batch, then of a few tokens one by one.
logits() {
    file=$1 program=$2 set=$3
    shift 3
    DLLAMA_CPU=$set "$program" run "$@" --prompt-ids 3,10,200,33,77,90,31,5,128,64,256,17 -n 6 --temp 0 --ids --quiet \
        --device cpu --threads 2 --dump-logits "$file" </dev/null >"$tmp/ids" 2>"$tmp/err" ||
        fail "$program ($set) run $*: $(cat "$tmp/err")"
    [ -s "$file" ] || fail "$program ($set) run $*: no logits"
}

compared=0
same() {
    logits "$tmp/want" "$x86" avx2 "$@"
    for isa in $arm_sets; do
        logits "$tmp/got" "$arm" "$isa" "$@"
        cmp -s "$tmp/want" "$tmp/got" ||
            fail "run $*: $isa and avx2 differ in $(cmp -l "$tmp/want" "$tmp/got" | wc -l) of $(wc -c <"$tmp/want") bytes"
        compared=$((compared + 1))
    done
}

# tell PROGRAM SET: a story of 190 tokens, which other tests compare with what llama2.c tells.
tell() {
    DLLAMA_CPU=$2 "$1" run "$data/models/stories260K.gguf" -p "Once upon a time" -n 190 --temp 0 --quiet --device cpu --threads 2 \
        </dev/null 2>"$tmp/err" || fail "$1 ($2) tells no story: $(cat "$tmp/err")"
}

case " $(sets_of "$x86") " in
*" avx2 "*) ;;
*)
    echo "SKIPPED PART: no AVX2 on this machine to compare ARM with"
    exit 0
    ;;
esac
arm_sets=$(sets_of "$arm")
[ -n "$arm_sets" ] || fail "$arm names no fast kernels"

same
for kv in f32 q80; do
    same --kv "$kv"
done
if [ -d "$data/refs" ]; then
    for model in "$data"/models/stories260K.gguf "$data"/refs/*.gguf; do
        same "$model"
    done
    story=$(tell "$x86" avx2)
    [ "${#story}" -gt 300 ] || fail "a story of ${#story} bytes"
    for isa in ref $arm_sets; do
        [ "$(tell "$arm" "$isa")" = "$story" ] || fail "$isa tells another story than avx2"
    done
else
    echo "SKIPPED PART: no models in $data"
fi

# Starts a worker; its address goes to $address.
start_worker() {
    rm -f "$tmp/worker"
    DLLAMA_CPU=$2 "$1" worker --listen 127.0.0.1:0 --device cpu --threads 1 --cache-size 0 --once </dev/null 2>"$tmp/worker" &
    worker=$!
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        address=$(sed -n 's/^worker: listening on \([^ ]*\) .*/\1/p' "$tmp/worker" 2>/dev/null)
        [ -z "$address" ] || return 0
        sleep 1
    done
    fail "$1 worker does not start: $(cat "$tmp/worker")"
}

# cluster FILE ROOT SET WORKER SET: logits of two nodes that share the demo model.
cluster() {
    start_worker "$4" "$5"
    logits "$1" "$2" "$3" --workers "$address" --split 1:1
    wait "$worker"
    worker=
}
last=${arm_sets##* }
cluster "$tmp/want2" "$x86" avx2 "$x86" avx2
cluster "$tmp/got" "$x86" avx2 "$arm" "$last"
cmp "$tmp/want2" "$tmp/got" || fail "a worker with $last gives other logits than one with avx2"
cluster "$tmp/got" "$arm" "$last" "$x86" avx2
cmp "$tmp/want2" "$tmp/got" || fail "a root with $last gives other logits than one with avx2"

echo "arm64_bits: $compared times the bits of avx2 with $arm_sets, twice in a cluster"
