#!/bin/bash
# What tracing costs a guest: `virt-bmap-rs trace` and the plugin beside plain `nbdkit file`, on the same image:
# bench-trace.sh [--write] [RUNS] [MIB] [BYTES]
#
#   file      nbdkit file
#   lines     trace, with a map of 66,425 lines, which is how long the original's example of a Fedora guest is
#   ranges    trace, with a map of 1,000,000 ranges of BYTES (4096): every block is another file's
#   plugin    nbdkit with our plugin and the map of 66,425 lines; the thread that writes the log shares nbdkit's processor
#
# Runs alternate, and the fastest of RUNS (5) of each counts: what else a machine does can only slow a run down. Each
# reads MIB (128) of the first 512 MiB of an image, which are in memory. With one request at a time all is waiting to be woken,
# which depends on whether client and server are on one processor or on two: so both are measured, pinned. Printed
# are milliseconds as fio counts them, and by how many percent each takes longer than `nbdkit file`; then the server's
# processor time for the same, that for the log included, which depends less on what else the machine does.
#
# The tables are in docs/trace.md, too, between two comments there: `make bench-trace` renews them.
#
# Needs nbdkit, fio and taskset, two processors, and nothing else to do.
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
# COUNT ranges of BYTES bytes, each a file's, from the disk's beginning; the rest, a range more, is nobody's.
map() {
    awk -v count="$1" -v bytes="$2" 'BEGIN {
        for (i = 0; i < count; i++) printf "1 %x %x f /dev/sda1 /usr/share/%d/%d\n", i * bytes, (i + 1) * bytes, i / 100, i
        printf "1 %x 100000000 v /dev/sda\n", count * bytes
    }'
}
map 66424 8082 >lines.bmap
map 999999 "$bytes" >ranges.bmap

# Starts the server $1 on processor $2, and notes its URI.
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

# Milliseconds of processor time that the process $1 has used, with all of its threads.
used() {
    awk -v hertz="$(getconf CLK_TCK)" '{ print int(($14 + $15) * 1000 / hertz) }' "/proc/$1/stat"
}

# Runs the client with the server $1, whose process is $2: adds milliseconds and processor time to its files.
client() {
    local server=$1 pid=$2 before
    shift 2
    before=$(used "$pid")
    taskset -c 0 fio --name=x --ioengine=nbd --uri="$(cat "$server.uri")" --size=512M --io_size="${mib}M" --randseed=1 \
        --output-format=terse --terse-version=3 "$@" | awk -F ';' 'NF > 9 { print $9 }' >>"$server.times"
    # The log is written a little later.
    sleep 0.2
    echo $(($(used "$pid") - before)) >>"$server.used"
}

# A table's row: the least of each server's figures in files *.$2, and by how much they are more than the first's.
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
            # As many bytes take a tenth of the time in large requests.
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
