#!/bin/bash
# How many instructions the map's code takes, counted by valgrind's callgrind: `make instructions`.
#
#     scripts/instructions.sh [--write] [RANGES]
#
# If others use the machine too, the time says little about a change of a few percent. The number
# of instructions is the same each time, except for a few thousand. The script makes up maps with
# RANGES ranges (66,425 by default), and lets the program read, write and query them.
#
# docs/performance.md has the table too, between two comments. --write renews it. To see where the
# instructions go, keep callgrind's files with VIRT_BMAP_CALLGRIND=DIRECTORY and use
# callgrind_annotate.
#
# Needs valgrind.
set -eu -o pipefail

cd "$(dirname "$0")/.."
write=
if [ "${1:-}" = --write ]; then
    write=$PWD/docs/performance.md
    shift
fi
ranges=${1:-66425}
program=$PWD/target/release/virt-bmap-rs
put_table=$PWD/scripts/put-table.sh
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
kept=${VIRT_BMAP_CALLGRIND:-$directory}
mkdir -p "$kept"
kept=$(realpath "$kept")
cd "$directory"

# A made-up map of files with four ranges each, on one partition of a disk.
awk -v ranges="$ranges" 'BEGIN {
    print "1 0 100000 v /dev/sda"
    for (n = 0; n < ranges; n++) {
        file = n % int(ranges / 4 + 1)
        start = 1048576 + n * 8192
        printf "1 %x %x f /dev/sda1 /usr/share/directory%d/file%d\n", start, start + 4096, file % 997, file
        for (end = start + 4096; end <= start + 8192; end += 4096)
            printf "1 %x %x p /dev/sda1\n1 %x %x v /dev/sda\n", end - 4096, end, end - 4096, end
    }
}' >made-up.bmap
# The text as the program itself writes it.
"$program" convert made-up.bmap map.bmap
"$program" convert map.bmap map.jsonl
awk -v ranges="$ranges" 'BEGIN { for (n = 0; n < ranges; n += 7) print 1048576 + n * 8192, 4096 }' >list

count() {
    local name=$1
    shift
    valgrind --tool=callgrind --callgrind-out-file="$kept/callgrind.$name" "$program" "$@" >/dev/null 2>said || {
        cat said >&2
        exit 1
    }
    awk '$1 == "summary:" { print $2 }' "$kept/callgrind.$name"
}

{
    echo '| command | instructions | per range |'
    echo '|---|--:|--:|'
    while read -r name words; do
        # shellcheck disable=SC2086 # they are words
        count "$name" $words | awk -v ranges="$ranges" -v words="$words" \
            '{ printf "| `%s` | %.1f million | %.0f |\n", words, $1 / 1e6, $1 / ranges }'
    done <<'COMMANDS'
text convert map.bmap out.bmap
json convert map.jsonl out.jsonl
csv convert map.bmap out.csv
lookup lookup map.bmap --ranges list --csv
COMMANDS
} >table
cat table
[ -z "$write" ] || "$put_table" "$write" instructions <table
