#!/bin/bash
# The shortest test of another release of Debian: check-release.sh SUITE
#
# A small guest with ext4, LVM and XFS is mapped on this machine and, by the same program, in a
# fresh Debian of that release with its own libguestfs, qemu and kernel. Both maps must be equal,
# but for their header. CACHE=DIRECTORY keeps that Debian there for the next run.
set -eu -o pipefail

suite=$1
cd "$(dirname "$0")/../.."
program=target/debug/virt-bmap-rs
[ -x "$program" ] || { echo "check-release: there is no $program; make check-trixie builds it" >&2; exit 1; }
mkdir -p target/matrix
release=${CACHE:-target/matrix}/$suite
share=target/matrix/share
rm -rf "$share"
mkdir -p "$share"
[ -n "${CACHE:-}" ] || trap 'rm -rf --one-file-system "$release"' EXIT

# Downloading and unpacking leave the processor idle for a while.
native() {
    [ -e target/matrix/guest.raw ] || scripts/make-demo-guest.sh target/matrix/guest.raw >/dev/null
    "$program" -q --accel tcg target/matrix/guest.raw -o "$share/native.bmap"
}
native &
native=$!
SECONDS=0
scripts/matrix/chroot.sh "$suite" "$release" scripts/setup-debian.sh >"$share/setup.log" 2>&1 ||
    { tail -n 20 "$share/setup.log" >&2; echo "check-release: scripts/setup-debian.sh failed on $suite" >&2; exit 1; }
echo "$suite: installed after $SECONDS s"
wait "$native"
cp --reflink=auto --sparse=always target/matrix/guest.raw "$share/guest.raw"
SHARE=$share scripts/matrix/chroot.sh "$suite" "$release" scripts/matrix/user.sh /mnt/share/guest.raw /mnt/share/other.bmap
grep -v '^#' "$share/native.bmap" >"$share/native"
grep -v '^#' "$share/other.bmap" >"$share/other"
if ! diff "$share/native" "$share/other" >"$share/differs"; then
    head -n 20 "$share/differs" >&2
    echo "check-release: the map made on $suite differs from the one made here" >&2
    exit 1
fi
echo "$suite: the same map, $(wc -l <"$share/other") lines, after $SECONDS s"
rm -rf "$share"
