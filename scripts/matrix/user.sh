#!/bin/bash
# Maps a guest as an ordinary user without network: user.sh IMAGE OUT. Only root can run it.
#
# The user owns nothing but a new directory, and finds out by himself whether KVM works.
set -eu -o pipefail

image=$(realpath "$1") out=$2
program=$(realpath "$(dirname "$0")/../../target/debug/virt-bmap-rs")
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
# The build directory may be closed to others.
cp "$program" "$home/virt-bmap-rs"
chmod 755 "$home/virt-bmap-rs"
cp --sparse=always "$image" "$home/guest.raw"
chown -R 65534:65534 "$home"
cd "$home"
env -u LIBGUESTFS_BACKEND -u LIBGUESTFS_BACKEND_SETTINGS HOME="$home" TMPDIR="$home" LIBGUESTFS_CACHEDIR="$home" \
    unshare --net setpriv --reuid=65534 --regid=65534 --clear-groups \
    ./virt-bmap-rs -q guest.raw -o guest.bmap
cp guest.bmap "$out"
