# SPDX-License-Identifier: MIT
#
# shellcheck shell=sh disable=SC2034,SC2154
#
# Sourced by cli/quickstart.sh and tests/run.sh: messages, Debian packages, building a preset. The caller sets `me` (its
# name, for messages) and has changed to the top of the source tree.
#
#   step TEXT              says what happens next
#   fail WHAT [WHY]        one line on stderr, exit 1 (calls on_fail first where the caller has defined one)
#   need_packages P...     installs those Debian packages that are missing; asks nothing where none is
#   want_packages P...     the same for what the build can do without
#   build_preset NAME [OPTIONS] [-- TARGETS]   configures with OPTIONS and builds incrementally, TARGETS or everything; the
#                          log is shown only when that fails

step() { printf '== %s\n' "$*"; }

fail() {
    what=$1
    if type on_fail >/dev/null 2>&1; then on_fail; fi
    printf '%s: %s: failed%s\n' "$me" "$what" "${2:+ ($2)}" >&2
    exit 1
}

# Runs a command as root: directly, or through sudo, which may ask for a password only on a terminal.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif ! command -v sudo >/dev/null 2>&1; then
        return 1
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

is_installed() { dpkg -s "$1" 2>/dev/null | grep -q '^Status: install ok installed'; }

need_packages() {
    if ! command -v dpkg >/dev/null 2>&1; then
        step "no dpkg on this system: going on with what is installed (Debian's names: $*)"
        return 0
    fi
    missing=
    for package in "$@"; do
        is_installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    step "install$missing"
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null 2>&1; then
        fail "install" "needs root or sudo; as root: apt-get install$missing"
    fi
    as_root apt-get update -qq || fail "apt-get update" "no network, no permission, or apt is busy"
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
        fail "install$missing" "see the lines above"
}

# need_packages, or nothing but a word where they cannot be had: no root, no network, or a release without one of them.
want_packages() {
    command -v apt-cache >/dev/null 2>&1 || return 0
    missing=
    for package in "$@"; do
        is_installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    if ! as_root true 2>/dev/null; then
        step "going on without$missing: installing needs root or sudo"
        return 0
    fi
    if ! ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1 && ! as_root apt-get update -qq; then
        step "going on without$missing: apt-get update failed"
        return 0
    fi
    for package in $missing; do
        if ! apt-cache show "$package" >/dev/null 2>&1; then
            step "going on without$missing: this release has no $package"
            return 0
        fi
    done
    need_packages "$@"
}

# What building the program takes, without tests.
build_packages="build-essential cmake ninja-build pkg-config libpcre2-dev libedit-dev libjansson-dev libmicrohttpd-dev libuv1-dev libssl-dev libxxhash-dev"
# What the Vulkan device takes on top of that.
vulkan_packages="libvulkan-dev libvulkan-volk-dev glslang-dev"

# How many compilers at once: one per processor, but no more than one per half GiB of memory.
build_jobs() {
    jobs=$(nproc 2>/dev/null || echo 1)
    kib=$(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null)
    if [ -n "$kib" ] && [ "$((kib / 524288))" -lt "$jobs" ]; then
        jobs=$((kib / 524288))
    fi
    [ "$jobs" -ge 1 ] || jobs=1
    echo "$jobs"
}

build_preset() {
    preset=$1
    options=
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        options="$options $1"
        shift
    done
    [ $# = 0 ] || shift
    step "build $preset (build/$preset)"
    mkdir -p "build/$preset"
    # shellcheck disable=SC2086
    cmake --preset "$preset" $options >"build/$preset/configure.log" 2>&1 || {
        cat "build/$preset/configure.log" >&2
        fail "configure $preset"
    }
    cmake --build "build/$preset" -j "$(build_jobs)" ${1:+--target "$@"} >"build/$preset/build.log" 2>&1 || {
        grep -vE '^\[[0-9]+/[0-9]+\] (Building|Linking)' "build/$preset/build.log" >&2
        fail "build $preset"
    }
}
