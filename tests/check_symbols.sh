#!/bin/sh
# SPDX-License-Identifier: MIT
#
# usage: sh tests/check_symbols.sh NM TOP NAME=FILE[,FILE...]...
#
# Every global symbol that a part defines has the part's prefix, so that a name says where to look; every dl_ symbol is also
# declared in engine/include/dl. NAME is a part of the table below, FILE its static library or object files; NM is the nm to use.
set -u
nm=$1
top=$2
shift 2

bad=0
for pair in "$@"; do
    part=${pair%%=*}
    case $part in
    dl_base | dl_engine) prefix='^(dl_|eng_)' ;;
    dl_cpu) prefix='^(dl_cpu_|cpu_)' ;;
    dl_transport) prefix='^(dl_transport_|dl_loopback_|dl_tcp_|dl_key_|tp_)' ;;
    dl_vulkan) prefix='^(dl_vulkan_|vk_)' ;;
    cli) prefix='^(cli_|main$)' ;;
    *)
        echo "check_symbols: no rule for $part" >&2
        exit 1
        ;;
    esac
    # shellcheck disable=SC2046
    symbols=$("$nm" -g --defined-only $(echo "${pair#*=}" | tr ',' ' ') | awk 'NF == 3 { print $3 }' | sort -u)
    if [ -z "$symbols" ]; then
        echo "check_symbols: $part: nothing defined, or nm failed"
        bad=1
        continue
    fi
    for symbol in $(echo "$symbols" | grep -vE "$prefix"); do
        echo "$part: global symbol $symbol has not the prefix $prefix"
        bad=1
    done
    for symbol in $(echo "$symbols" | grep '^dl_'); do
        grep -qw "$symbol" "$top"/engine/include/dl/*.h || {
            echo "$part: $symbol is not declared in engine/include/dl"
            bad=1
        }
    done
    echo "check_symbols: $part: $(echo "$symbols" | wc -l) global symbols"
done
exit $bad
