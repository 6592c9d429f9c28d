#!/bin/bash
# Tests the program in other releases of Debian, and writes the table of docs/compatibility.md:
# run.sh [SUITE...]
#
# Without names: bookworm, trixie and testing. The program and its tests are built once, on this
# machine, which must not be newer than the oldest release. Takes half an hour for each release, and
# 5 GB on disk for the one that is tested. CACHE=DIRECTORY keeps the releases there. GUESTS names
# the guests of tests/accuracy that each release makes and maps. IMAGES names guests whose images
# are made on this machine and mapped everywhere. BCACHEFS is an image of an empty bcachefs: no
# package of Debian makes one.
set -eu -o pipefail

cd "$(dirname "$0")/../.."
suites=("$@")
[ $# -gt 0 ] || suites=(bookworm trixie testing)
share=target/matrix/share
rm -rf "$share"
mkdir -p "$share"
cargo=${CARGO:-cargo}

echo "== building"
"$cargo" test --workspace --no-run --message-format=json --test quick --test appliance --test failures --test accuracy |
    jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable).executable' >"$share/tests"
echo "${GUESTS:-ext xfs foreign}" >"$share/guests"
read -r -a images <<<"${IMAGES:-ext xfs foreign optical lvm md}"
[ -z "${BCACHEFS:-}" ] || cp "$BCACHEFS" "$share/bcachefs.img"

echo "== the guest and its map by this machine"
[ -e target/matrix/guest.raw ] || scripts/make-demo-guest.sh target/matrix/guest.raw
cp --sparse=always target/matrix/guest.raw "$share/guest.raw"
target/debug/virt-bmap-rs -q --accel tcg "$share/guest.raw" -o "$share/native.bmap"

accuracy=$(grep '/accuracy-[0-9a-f]*$' "$share/tests")
for guest in "${images[@]}"; do
    echo "== the images of guest $guest and their map by this machine"
    mapfile -t disks < <("$accuracy" --make "$guest")
    mkdir -p "$share/images/$guest"
    # Links take no space. On another filesystem there are none.
    cp --link "${disks[@]}" "$share/images/$guest/" 2>/dev/null || cp --sparse=always "${disks[@]}" "$share/images/$guest/"
    target/debug/virt-bmap-rs -q --metadata --accel tcg "$share/images/$guest/"*.raw -o "$share/images/$guest/native.bmap" || [ $? = 3 ]
done

failed=0
for suite in "${suites[@]}"; do
    echo "== $suite"
    release=${CACHE:-target/matrix}/$suite
    rm -f "$share/result"
    SHARE=$share scripts/matrix/chroot.sh "$suite" "$release" scripts/matrix/inside.sh || failed=1
    [ ! -e "$share/result" ] || cp "$share/result" "target/matrix/result.$suite"
    mkdir -p "target/matrix/logs.$suite"
    cp "$share"/*.log "$share"/*.bmap "target/matrix/logs.$suite/" 2>/dev/null || :
    [ -n "${CACHE:-}" ] || rm -rf --one-file-system "$release"
done
rm -rf "$share"
scripts/matrix/table.sh | scripts/put-table.sh docs/compatibility.md matrix
exit "$failed"
