#!/bin/bash
# Compares our NBD server with `nbdkit file` on the same raw image, client by client: bench-nbd.sh [RUNS]
#
# Needs nbdkit, fio, nbdcopy and qemu-img, and nothing else to do. Runs alternate; the medians of the
# elapsed times are printed, and nbdkit's divided by ours: more than 1 is in our favour.
set -eu -o pipefail

cd "$(dirname "$0")/.."
runs=${1:-5}
cargo build --release --quiet --example serve_file
directory=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$directory"' EXIT
image=$directory/image.raw
head -c 512M /dev/urandom >"$image"

# Starts the server `$1` and waits for its socket.
start() {
    socket=$directory/$1.sock
    uri="nbd+unix:///?socket=$socket"
    rm -f "$socket"
    case $1 in
        ours) target/release/examples/serve_file -q "$image" "$socket" & ;;
        nbdkit) nbdkit -f -U "$socket" file "$image" & ;;
    esac
    server=$!
    for _ in $(seq 100); do
        [ ! -S "$socket" ] || return 0
        sleep 0.05
    done
    echo "$1 does not come up" >&2
    exit 1
}

stop() {
    kill "$server"
    wait "$server" || :
    server=
}

fio_reads() {
    fio --name=x --ioengine=nbd --uri="$uri" --rw=randread --bs=4k --iodepth="$1" --io_size=128M --size=512M --randseed=1
}

client() {
    case $1 in
        "fio, 4 KiB random, one at a time") fio_reads 1 ;;
        "fio, 4 KiB random, 32 at a time") fio_reads 32 ;;
        "qemu-img bench, 4 KiB, one at a time") qemu-img bench -f raw -d 1 -c 40000 -s 4096 -S 1052672 "$uri" ;;
        "qemu-img bench, 4 KiB, 32 at a time") qemu-img bench -f raw -d 32 -c 100000 -s 4096 -S 1052672 "$uri" ;;
        "nbdcopy") nbdcopy "$uri" null: ;;
        "qemu-img convert") qemu-img convert -n -f raw -O raw "$uri" null-co:// ;;
    esac >/dev/null
}

median() { sort -n | sed -n "$(((runs + 1) / 2))p"; }

cat "$image" >/dev/null
printf '%-40s %8s %8s %8s\n' client ours nbdkit ratio
for name in "fio, 4 KiB random, one at a time" "fio, 4 KiB random, 32 at a time" \
    "qemu-img bench, 4 KiB, one at a time" "qemu-img bench, 4 KiB, 32 at a time" nbdcopy "qemu-img convert"; do
    for _ in $(seq "$runs"); do
        for which in ours nbdkit; do
            start "$which"
            began=$EPOCHREALTIME
            client "$name"
            ended=$EPOCHREALTIME
            stop
            echo $((${ended/./} - ${began/./})) >>"$directory/$which.times"
        done
    done
    ours=$(median <"$directory/ours.times")
    theirs=$(median <"$directory/nbdkit.times")
    rm "$directory"/*.times
    awk -v n="$name" -v o="$ours" -v t="$theirs" 'BEGIN { printf "%-40s %7.2fs %7.2fs %8.2f\n", n, o / 1e6, t / 1e6, t / o }'
done
