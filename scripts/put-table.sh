#!/bin/bash
# Puts what is on standard input into a page, in place of what stands there between two comments:
#
#     scripts/put-table.sh PAGE NAME        <!-- begin NAME --> ... <!-- end NAME -->
#
# benches/common/page.rs does the same for benchmarks in Rust.
set -eu

page=$1 name=$2
new=$(mktemp)
trap 'rm -f "$new"' EXIT
{
    sed "/^<!-- begin $name -->\$/q" "$page"
    echo
    cat
    echo
    sed -n "/^<!-- end $name -->\$/,\$p" "$page"
} >"$new"
cat "$new" >"$page"
