#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh cli/quickstart.sh
#
# From a bare Debian 12+ or Ubuntu 22.04+ machine (root, or a user with sudo) to text from a model: installs the packages
# that building takes, builds, runs the built-in demo model, and says what to try next. What is already there is left alone,
# so running it again is cheap.
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

cat <<END

== done. Try next:
  $bin run MODEL.gguf -p "Once upon a time"   # a real model, GGUF or .m
  $bin run MODEL.gguf                         # chat with it
  $bin devices                                # what this machine computes on
  $bin --help
END
