#!/bin/bash
# What tracing costs a guest. Compares `virt-bmap-rs trace` and the plugin with plain `nbdkit file`
# on the same image: bench-trace.sh [--write] [RUNS] [MIB] [BYTES]
#
#   file      nbdkit file
#   lines     trace, with a map of 66,425 lines, as long as the original's example of a Fedora guest
#   ranges    trace, with a map of 1,000,000 ranges of BYTES (4096), each in a different file
#   plugin    nbdkit with our plugin and the map of 66,425 lines; the thread that writes the log
#             shares nbdkit's processor
#
# Runs of the servers alternate. The fastest of RUNS (5) of each counts, since other work on the
# machine can only slow a run down. Each run reads MIB (128) from the first 512 MiB of an image,
# which are in memory. With one request at a time, client and server mostly wait to be woken. The
# time for this depends on whether they are on one processor or on two. So both cases are measured,
# with pinned processes. The script prints milliseconds as fio counts them, and by how many percent
# each server takes longer than `nbdkit file`. Then it prints the server's processor time for the
# same, with the time for the log. This depends less on other work on the machine.
#
# docs/trace.md has the tables too, between two comments. `make bench-trace` renews them.
#
# Needs nbdkit, fio and taskset, two processors, and an idle machine.
set -eu -o pipefail

cd "$(dirname "$0")/.."
write=
if [ "${1:-}" = --write ]; then
    write=$PWD/docs/trace.md
    shift
fi
runs=${1:-5}
mib=${2:-128}
bytes=${3:-4096}
servers=(file lines ranges plugin)
make --quiet build plugin
program=$PWD/target/release/virt-bmap-rs
put_table=$PWD/scripts/put-table.sh
plugin=$PWD/target/release/nbdkit-bmaplogger-plugin.so
directory=$(mktemp -d)
pids=()
stop() {
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" || :
    wait
    pids=()
}
trap 'stop; rm -rf "$directory"' EXIT
cd "$directory"

head -c 512M /dev/urandom >image.raw
truncate -s 4G image.raw
# Prints a map of COUNT ranges of BYTES bytes from the beginning of the disk, each in a different
# file. The rest of the disk is one more range, in no file.
map() {
    awk -v count="$1" -v bytes="$2" 'BEGIN {
        for (i = 0; i < count; i++) printf "1 %x %x f /dev/sda1 /usr/share/%d/%d\n", i * bytes, (i + 1) * bytes, i / 100, i
        printf "1 %x 100000000 v /dev/sda\n", count * bytes
    }'
}
map 66424 8082 >lines.bmap
map 999999 "$bytes" >ranges.bmap

# Starts the server $1 on processor $2, and writes down its URI.
start() {
    local uri=
    rm -f "$1.sock"
    : >"$1.err"
    case $1 in
        file) taskset -c "$2" nbdkit -f -r -U "$PWD/$1.sock" file image.raw 2>"$1.err" & ;;
        plugin) taskset -c "$2" nbdkit -f -r -U "$PWD/$1.sock" "$plugin" file=image.raw bmap=lines.bmap logfile=plugin.log 2>"$1.err" & ;;
        *) taskset -c "$2" "$program" trace image.raw --map "$1.bmap" -o "$1.log" 2>"$1.err" & ;;
    esac
    pids+=($!)
    for _ in $(seq 600); do
        case $1 in
            file | plugin) [ ! -S "$1.sock" ] || uri="nbd+unix:///?socket=$PWD/$1.sock" ;;
            *) uri=$(grep -m 1 '^nbd+unix:' "$1.err" || :) ;;
        esac
        [ -z "$uri" ] || { echo "$uri" >"$1.uri"; return 0; }
        sleep 0.05
    done
    echo "bench-trace: $1 does not come up:" >&2
    cat "$1.err" >&2
    exit 1
}

# Prints the processor time in milliseconds that the process $1 has used with all its threads.
used() {
    awk -v hertz="$(getconf CLK_TCK)" '{ print int(($14 + $15) * 1000 / hertz) }' "/proc/$1/stat"
}

# Runs the client with the server $1, whose process is $2. Appends the milliseconds and the
# processor time to the server's files.
client() {
    local server=$1 pid=$2 before
    shift 2
    before=$(used "$pid")
    taskset -c 0 fio --name=x --ioengine=nbd --uri="$(cat "$server.uri")" --size=512M --io_size="${mib}M" --randseed=1 \
        --output-format=terse --terse-version=3 "$@" | awk -F ';' 'NF > 9 { print $9 }' >>"$server.times"
    # The server writes the log a little later.
    sleep 0.2
    echo $(($(used "$pid") - before)) >>"$server.used"
}

# Prints a row of a table: the least figure of each server in its file *.$2, and by how much it
# exceeds that of the first server.
row() {
    local base least server
    base=$(sort -n "${servers[0]}.$2" | head -n 1)
    printf '| %s |' "$1"
    for server in "${servers[@]}"; do
        least=$(sort -n "$server.$2" | head -n 1)
        if [ "$server" = "${servers[0]}" ]; then
            printf ' %d |' "$least"
        else
            awk -v least="$least" -v base="$base" 'BEGIN { printf " %d (%+.0f %%) |", least, (least / base - 1) * 100 }'
        fi
    done
    echo
}

head_of() {
    echo "| $1 | nbdkit file | trace, 66,425 lines | trace, 1,000,000 ranges | plugin, 66,425 lines |"
    echo '|---|--:|--:|--:|--:|'
}

head -c 512M image.raw >/dev/null
head_of 'milliseconds' >times.table
head_of "milliseconds of the server's processor time" >used.table
for place in "on one processor:0" "on two processors:1"; do
    for server in "${servers[@]}"; do
        start "$server" "${place#*:}"
    done
    for name in "4 KiB random, one at a time" "4 KiB random, 32 at a time" "256 KiB sequential, 4 at a time"; do
        case $name in
            *"one at a time") how=(--rw=randread --bs=4k --iodepth=1) ;;
            *"32 at a time") how=(--rw=randread --bs=4k --iodepth=32) ;;
            # Large requests need a tenth of the time for the same bytes, so more bytes are read.
            *) how=(--rw=read --bs=256k --iodepth=4 --io_size="$((mib * 16))M") ;;
        esac
        rm -f ./*.times ./*.used
        for _ in $(seq "$runs"); do
            for number in "${!servers[@]}"; do
                client "${servers[number]}" "${pids[number]}" "${how[@]}"
            done
        done
        row "$name, ${place%:*}" times | tee -a times.table
        row "$name, ${place%:*}" used >>used.table
    done
    stop
    grep -h 'not in the log' ./*.err >&2 || :
done
echo
cat used.table
if [ -n "$write" ]; then
    { cat times.table; echo; cat used.table; } | "$put_table" "$write" bench-trace
fi
