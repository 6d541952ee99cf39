#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh tests/arm64_root.sh [DIR]
#
# Puts what the program links with on 64-bit ARM (the C library, libuv, OpenSSL, ...) into DIR (build/arm64-root), from the
# distribution that this machine runs. Root is not needed and nothing is installed: apt gets lists and packages of its own
# under DIR.apt, and the packages are only unpacked. Exits with 1, and a line that says why, where they cannot be had.
set -u
cd "$(dirname "$0")/.." || exit 1
. ./cli/packages.sh
dir=${1:-build/arm64-root}
packages="libc6-dev linux-libc-dev libcmocka-dev"
for package in $build_packages; do
    case $package in
    lib*-dev) packages="$packages $package" ;;
    esac
done

[ "$(cat "$dir/complete" 2>/dev/null)" != "$packages" ] || exit 0
command -v apt-get >/dev/null 2>&1 || {
    echo "arm64_root: no apt-get here"
    exit 1
}
apt=$dir.apt
rm -rf "$dir" "$apt"
mkdir -p "$dir" "$apt/state/lists/partial" "$apt/cache/archives/partial" || exit 1
: >"$apt/state/status"
apt=$(cd "$apt" && pwd)

# An apt for which this machine is an ARM one that has nothing installed yet.
arm64_apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User="$(id -un)" \
        -o Dir::State="$apt/state" -o Dir::State::status="$apt/state/status" -o Dir::Cache="$apt/cache" \
        -o Acquire::Languages=none -o Debug::NoLocking=1 "$@" >"$apt/log" 2>&1
}
if ! arm64_apt update; then
    echo "arm64_root: no lists of packages for arm64: $(tail -n 1 "$apt/log")"
    exit 1
fi
# shellcheck disable=SC2086
if ! arm64_apt install -y --no-install-recommends --download-only $packages; then
    echo "arm64_root: cannot get the packages for arm64: $(tail -n 1 "$apt/log")"
    exit 1
fi
for deb in "$apt"/cache/archives/*.deb; do
    dpkg-deb -x "$deb" "$dir" || exit 1
done
rm -rf "$apt"
# Links to absolute names would leave the folder.
find "$dir" -type l -lname '/*' | while read -r link; do
    depth=$(dirname "${link#"$dir"/}" | sed 's|[^/]*|..|g')
    ln -sfn "$depth$(readlink "$link")" "$link"
done
echo "$packages" >"$dir/complete"
