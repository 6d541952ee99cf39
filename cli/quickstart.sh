#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh cli/quickstart.sh
#
# From a bare Debian 12+ or Ubuntu 22.04+ machine (root, or a user with sudo) to text from a model: installs the packages
# that building takes, builds, runs the built-in demo model, alone and then on a cluster of three processes on this machine, and says
# what to try next. What is already there is left alone, so running it again is cheap.
set -u
cd "$(dirname "$0")/.." || exit 1
me=quickstart.sh
. ./cli/packages.sh

# shellcheck disable=SC2086
need_packages $build_packages
# shellcheck disable=SC2086
want_packages $vulkan_packages
build_preset release -DDL_TESTS=OFF

bin=build/release/dllama-vk
step "run the built-in demo model: $bin run"
"$bin" run </dev/null || fail "run the demo model"

# A cluster in small: two workers and a root, with a key that lasts as long as they do.
tmp=$(mktemp -d) || fail "mktemp"
workers=
stop_workers() {
    # shellcheck disable=SC2086
    [ -z "$workers" ] || { kill $workers && wait $workers; } 2>/dev/null
    workers=
    rm -rf "$tmp"
}
on_fail() { cat "$tmp"/worker*.log >&2 2>/dev/null; }
trap stop_workers EXIT
trap 'exit 130' INT TERM

step "the same model on three nodes of this machine: keygen, two workers on free ports, and a root"
"$bin" keygen "$tmp/cluster.key" --quiet || fail "make a key"
for i in 1 2; do
    "$bin" worker --listen 127.0.0.1:0 --key "$tmp/cluster.key" --device cpu --threads 1 --cache-size 0 \
        </dev/null 2>"$tmp/worker$i.log" &
    workers="$workers $!"
done
# The address that the worker in the log listens on, once it does; it has ten seconds.
address() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        at=$(sed -n 's/^worker: listening on \([^ ]*\) .*/\1/p' "$1")
        [ -z "$at" ] || break
        sleep 1
    done
    echo "$at"
}
one=$(address "$tmp/worker1.log") two=$(address "$tmp/worker2.log")
if [ -z "$one" ] || [ -z "$two" ]; then
    fail "start the workers"
fi
echo "   $bin run --workers $one,$two --split 1:1:1 --key cluster.key"
"$bin" run --workers "$one,$two" --split 1:1:1 --key "$tmp/cluster.key" --device cpu --threads 1 </dev/null ||
    fail "run the demo model on three nodes"
stop_workers

cat <<END

== done. Try next:
  $bin run MODEL.gguf -p "Once upon a time"   # a real model, GGUF or .m
  $bin run MODEL.gguf                         # chat with it
  $bin devices                                # what this machine computes on
  $bin keygen cluster.key                     # several machines: README, "A cluster in five minutes"
  $bin --help
END
