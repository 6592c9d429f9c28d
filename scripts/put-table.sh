#!/bin/bash
# Replaces the text between two comments of a page with standard input:
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
