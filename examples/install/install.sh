#!/bin/sh
# Installs a program whose static calls go straight to the variant for this machine.
#
#     install.sh [--cpuinfo FILE] BUILT INSTALLED
#
# FILE says what the machine can: /proc/cpuinfo, unless the program is installed for another machine.
set -eu

staticcall=${STATICCALL:-staticcall}
cpuinfo=/proc/cpuinfo
if [ "${1-}" = --cpuinfo ]; then
    cpuinfo=$2
    shift 2
fi
if [ $# -ne 2 ]; then
    echo "usage: install.sh [--cpuinfo FILE] BUILT INSTALLED" >&2
    exit 2
fi

variant=sum_plain
if grep -q '^flags.*[[:space:]]avx2\([[:space:]]\|$\)' "$cpuinfo"; then
    variant=sum_avx2
fi

# What appears at INSTALLED was proved, and appears at once; `verify` proves it again, by whoever wants to know.
mkdir -p "$(dirname "$2")"
"$staticcall" patch --quiet "$1" --set "sum=$variant" --bind -o "$2"
"$staticcall" verify --quiet "$1" "$2"
echo "$2: $variant"
