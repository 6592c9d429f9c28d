#!/bin/bash
# Prints the table of docs/compatibility.md from the results of run.sh: a column for each release, a
# row for each name that occurs in a result.
set -eu -o pipefail

cd "$(dirname "$0")/../../target/matrix"
results=()
for suite in bookworm trixie testing; do
    [ ! -e "result.$suite" ] || results+=("result.$suite")
done
awk -F'\t' '
    FNR == 1 { suite = FILENAME; sub(/^result\./, "", suite); suites[++columns] = suite }
    { if (!($1 in known)) { known[$1] = 1; rows[++count] = $1 } cells[$1, suite] = $2 }
    END {
        line = "| |"; rule = "|---|"
        for (c = 1; c <= columns; c++) { line = line " " suites[c] " |"; rule = rule "---|" }
        print line; print rule
        for (r = 1; r <= count; r++) {
            line = "| " rows[r] " |"
            for (c = 1; c <= columns; c++) line = line " " ((rows[r], suites[c]) in cells ? cells[rows[r], suites[c]] : "not run") " |"
            print line
        }
    }' "${results[@]}"
