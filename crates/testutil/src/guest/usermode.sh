#!/bin/bash
# Runs a guest of user-mode Linux on the disks of a trace or on raw images:
#
#     usermode.sh DIR DISKS
#     usermode.sh DIR IMAGE...
#
# `trace --run` starts the former and sets $uri, $uri2, … and $unixsocket. qemu-storage-daemon is
# the NBD client, and gives the disks to the guest as /dev/vda, /dev/vdb, … through virtio. The
# guest's root is that of this machine, read-only except for DIR. It executes DIR/work.sh there. Its
# output is DIR/console.
#
# The exit status is that of work.sh; 9 if the guest did not get that far. If DIR/kill-at exists,
# the guest is killed as soon as the console has the words in it, and the exit status is 5.
set -eu
dir=$1
shift
if [[ $1 == /* ]]; then
    disks=$#
else
    disks=$1
fi
cd "$dir"
blocks=() drives=()
for ((number = 1; number <= disks; number++)); do
    if [[ $1 == /* ]]; then
        source="driver=file,filename=${!number}"
    else
        name=uri$number
        ((number > 1)) || name=uri
        export=${!name#*:///}
        source="driver=nbd,server.type=unix,server.path=$unixsocket,export=${export%%\?*}"
    fi
    blocks+=(--blockdev "$source,node-name=d$number,discard=unmap")
    blocks+=(--export "vhost-user-blk,id=e$number,node-name=d$number,addr.type=unix,addr.path=d$number.sock,writable=on")
    drives+=("virtio_uml.device=$dir/d$number.sock:2")
done
# A program that waits for the end of this script's output must not wait for these two.
qemu-storage-daemon "${blocks[@]}" </dev/null >storage 2>&1 &
storage=$!
guest=
stop() {
    # The guest consists of several processes of one group.
    [ -z "$guest" ] || kill -KILL -- "-$guest" 2>/dev/null || :
    kill -KILL "$storage" 2>/dev/null || :
    wait 2>/dev/null || :
    rm -f d*.sock
}
trap stop EXIT
trap 'exit 9' TERM INT HUP
for ((number = 1; number <= disks; number++)); do
    until [ -S "d$number.sock" ]; do
        kill -0 "$storage" || { cat storage >&2; exit 9; }
        sleep 0.02
    done
done

rm -f status
setsid linux.uml mem=256M "uml_dir=$dir/uml" root=/dev/root rootfstype=hostfs ro "init=$dir/init.sh" quiet \
    con=null con0=null,fd:1 ssl=null "${drives[@]}" "DIR=$dir" </dev/null >console 2>&1 &
guest=$!
while kill -0 "$guest" 2>/dev/null; do
    if [ -e kill-at ] && grep -qF -f kill-at console; then
        exit 5
    fi
    sleep 0.02
done
[ -s status ] || { tail -n 30 console >&2; exit 9; }
exit "$(cat status)"
