#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh tests/run.sh [quick]
#
# Installs what is missing (Debian 12+, Ubuntu 22.04+; root or sudo), builds, and runs every test:
#   release   all tests, with the checks of includes, symbols, headers and style
#   arm64     the ops, whole models and the bits of both, cross-compiled for 64-bit ARM and run under qemu
#   asan      all tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   tsan      the tests that use threads (ctest label `threads`) under ThreadSanitizer
#   fuzz      each fuzz target for FUZZ_SECONDS (default 30), from its corpus
# `quick` stops after release. Stops at the first failure; the last line on stdout is always "N passed, N failed". Build
# folders (build/PRESET) are kept and reused. Tests that need data or tools which are not here say so and are listed.
set -u
cd "$(dirname "$0")/.." || exit 1
me=run.sh
. ./cli/packages.sh

passed=0
failed=0
tmp=
on_exit() {
    [ -z "$tmp" ] || rm -rf "$tmp"
    printf '%d passed, %d failed\n' "$passed" "$failed"
}
trap on_exit EXIT
trap 'exit 130' INT TERM
on_fail() { [ "$failed" -gt 0 ] || failed=1; }

quick=
case "${1-}" in
"") ;;
quick) quick=1 ;;
*)
    echo "usage: sh tests/run.sh [quick]" >&2
    trap - EXIT
    exit 2
    ;;
esac

# Sanitizers of older compilers do not cope with the wide address randomisation of newer kernels.
steady=
if setarch "$(uname -m)" -R true 2>/dev/null; then
    steady="setarch $(uname -m) -R"
fi

# test_preset NAME WRAPPER [ctest options]: adds to passed and failed, shows which parts were skipped.
test_preset() {
    preset=$1
    wrapper=$2
    shift 2
    step "test $preset"
    log=build/$preset/test.log
    # shellcheck disable=SC2086
    $wrapper ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j "$(build_jobs)" "$@" >"$log" 2>&1
    status=$?
    # "97% tests passed, 2 tests failed out of 70"
    bad=$(sed -n 's/.*tests passed, \([0-9]*\) tests failed out of .*/\1/p' "$log")
    all=$(sed -n 's/.*tests passed, [0-9]* tests failed out of \([0-9]*\).*/\1/p' "$log")
    passed=$((passed + ${all:-0} - ${bad:-0}))
    failed=$((failed + ${bad:-0}))
    if [ "$status" != 0 ]; then
        cat "$log" >&2
        fail "test $preset"
    fi
    printf '   %s of %s passed in %s s\n' "$((all - bad))" "$all" "$(sed -n 's/^Total Test time (real) = *\([0-9.]*\).*/\1/p' "$log")"
    skips=$(grep -ac '^\[  SKIPPED \] [A-Za-z0-9_]*$' "build/$preset/Testing/Temporary/LastTest.log")
    if [ "$skips" -gt 0 ]; then
        printf '   %s cases in them skipped, because:\n' "$((skips / 2))" # cmocka names each twice
        grep -ahoE 'SKIPPED PART: .*' "build/$preset/Testing/Temporary/LastTest.log" | sort -u | sed 's/^/   /'
    fi
}

# shellcheck disable=SC2086
need_packages $build_packages libcmocka-dev python3
# shellcheck disable=SC2086
want_packages $vulkan_packages mesa-vulkan-drivers vulkan-validationlayers spirv-tools glslang-tools
want_packages iproute2
# For the tests of the server: OpenAI's client, and a browser with what drives it. Without Node.js, a browser, or a network, those tests
# say that they are skipped.
if command -v npm >/dev/null 2>&1; then
    command -v google-chrome >/dev/null 2>&1 || want_packages chromium
    if [ ! -d build/node/node_modules/openai ] || [ ! -d build/node/node_modules/playwright-core ]; then
        step "install OpenAI's client and playwright-core (build/node)"
        mkdir -p build/node
        cp tests/node/package.json tests/node/package-lock.json build/node/
        (cd build/node && npm ci --ignore-scripts --no-audit --no-fund >npm.log 2>&1) || step "going on without them: see build/node/npm.log"
    fi
fi
build_preset release -DDL_TESTS=ON
test_preset release ""
[ -z "$quick" ] || exit 0

# 64-bit ARM under an emulator: as a Raspberry Pi 4 (plain NEON), and as a Raspberry Pi 5 (dot products).
arm64_tests="test_ops test_ops_attention test_quant test_cpu_device"
arm64_missing() {
    for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
        command -v "$tool" >/dev/null 2>&1 || {
            echo "there is no $tool"
            return 0
        }
    done
    ! sh tests/arm64_root.sh
}
if [ "$(uname -m)" = x86_64 ]; then
    want_packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
    if why=$(arm64_missing); then
        step "test arm64"
        printf '   SKIPPED PART: nothing runs as on ARM: %s\n' "$why"
    else
        # shellcheck disable=SC2086
        build_preset arm64 -DDL_TESTS=ON -- dllama-vk $arm64_tests
        for cpu in cortex-a72 cortex-a76; do
            step "arm64: as a $cpu"
            test_preset arm64 "env QEMU_CPU=$cpu" -R "^(arm64_bits|$(echo "$arm64_tests" | tr ' ' '|'))\$"
        done
    fi
fi

build_preset asan
test_preset asan "$steady" -LE lint
build_preset tsan
test_preset tsan "$steady" -L threads

# Fuzzing takes clang and its runtime. Where that lies is for each release to say (libclang-rt-14-dev in Debian 12, part of
# clang's own packages in Ubuntu 22.04), so the question is whether it links.
fuzzer_links() {
    echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n); int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return n > 9 ? *d * 0 : 0; }' |
        clang -x c - -fsanitize=fuzzer,address,undefined -o "$tmp/links" >/dev/null 2>&1
}
tmp=$(mktemp -d) || fail "mktemp"
need_packages clang
command -v clang >/dev/null 2>&1 || fail "fuzz" "clang is not installed"
if ! fuzzer_links; then
    need_packages "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
    fuzzer_links || fail "link a fuzz target" "clang's sanitizer runtime is missing"
fi
build_preset fuzz
seconds=${FUZZ_SECONDS:-30}
for source in tests/fuzz/fuzz_*.c; do
    [ -f "$source" ] || fail "fuzz" "no targets in tests/fuzz"
    target=$(basename "$source" .c)
    step "fuzz $target for $seconds s"
    mkdir -p "$tmp/$target" build/fuzz/found
    # Findings go to the copy: the corpus in the tree only changes by a commit.
    for corpus in "tests/fuzz/corpus/$target" "tests/fuzz/corpus/${target#fuzz_}"; do
        [ ! -d "$corpus" ] || cp -R "$corpus/." "$tmp/$target/"
    done
    if ! $steady "build/fuzz/tests/$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=5 -print_final_stats=1 \
        -artifact_prefix="build/fuzz/found/$target-" "$tmp/$target" >"build/fuzz/$target.log" 2>&1; then
        tail -n 60 "build/fuzz/$target.log" >&2
        failed=$((failed + 1))
        fail "fuzz $target" "the input is in build/fuzz/found, the log is build/fuzz/$target.log"
    fi
    printf '   %s inputs\n' "$(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz/$target.log")"
    passed=$((passed + 1))
done
