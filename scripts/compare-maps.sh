#!/bin/bash
# Compares the maps that two builds of virt-bmap-rs make: compare-maps.sh OLD NEW IMAGE...
#
# OLD and NEW are programs. Each image is one guest; "a.raw,b.raw" is a guest with two disks. Each
# guest is mapped by both, with metadata, as JSON Lines and as text. All lines must be equal but the
# header: the first line of JSON Lines, and the lines of text that begin with #. Prints one line for
# each guest; ends with status 1 if any map differs, or if the exit statuses do.
set -eu -o pipefail

[ $# -ge 3 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
old=$(realpath "$1") new=$(realpath "$2")
shift 2
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

# map PROGRAM NAME DISKS...: maps a guest and prints the exit status.
map() {
    local program=$1 name=$2 status=0
    shift 2
    "$program" -q --metadata -o "$directory/$name.jsonl" -o "$directory/$name.bmap" "$@" \
        >/dev/null 2>"$directory/$name.log" || status=$?
    echo "$status"
}

differ=0
for guest; do
    IFS=, read -r -a disks <<<"$guest"
    rm -f "$directory"/*
    before=$(map "$old" old "${disks[@]}")
    after=$(map "$new" new "${disks[@]}")
    if [ "$before" != "$after" ]; then
        echo "DIFFERS  $guest: status $before before, $after after"
        differ=1
    elif [ ! -e "$directory/new.jsonl" ]; then
        echo "no map   $guest: status $after both times"
    elif cmp -s <(tail -n +2 "$directory/old.jsonl") <(tail -n +2 "$directory/new.jsonl") &&
        cmp -s <(grep -v '^#' "$directory/old.bmap") <(grep -v '^#' "$directory/new.bmap"); then
        echo "same     $guest: status $after, $(($(wc -l <"$directory/new.jsonl") - 1)) lines"
    else
        echo "DIFFERS  $guest"
        diff <(tail -n +2 "$directory/old.jsonl") <(tail -n +2 "$directory/new.jsonl") | head -20 | cut -c1-300 || :
        differ=1
    fi
done
exit "$differ"
