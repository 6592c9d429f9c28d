#!/bin/bash
# The tests of the matrix, in another release of Debian: inside.sh. Runs in a chroot (chroot.sh).
#
# Reads from /mnt/share: guest.raw and native.bmap (its map by this machine), tests (the paths of
# the test programs), guests (names of guests of tests/accuracy), images (disks of guests, each with
# its native.bmap), bcachefs.img. Writes there: result (a line "row<TAB>cell" for each row of the
# table) and logs.
set -u

share=/mnt/share
program=target/debug/virt-bmap-rs
export VIRT_BMAP_REQUIRE_TOOLS=1 VIRT_BMAP_WITHOUT_ORIGINAL=1
failed=0

cell() {
    printf '%s\t%s\n' "$1" "$2" >>"$share/result"
    echo "   $1: $2"
}

version() {
    dpkg-query -W -f '${Version}' "$1" 2>/dev/null
}

# The lines of a map without its header.
body() {
    grep -v '^#' "$1"
}

# How two maps differ, in a few words: how many lines of which device.
differences() {
    diff <(body "$1") <(body "$2") | sed -n 's/^[<>] //p' |
        awk '{ count[$5 " (" $4 ")"]++ } END { for (what in count) print count[what] " of " what }' | sort -k3 | paste -sd, | sed 's/,/, /g'
}

echo "== set-up"
SECONDS=0
if scripts/setup-debian.sh --tests >"$share/setup.log" 2>&1; then
    unknown=$(sed -n 's/.*this release has no \(.*\): tests.*/, without \1/p' "$share/setup.log" | head -n 1)
    cell "set-up" "all packages$unknown"
else
    tail -n 20 "$share/setup.log"
    cell "set-up" "**failed**"
    exit 1
fi
apt-get clean
kernels=(/lib/modules/*)
kernel=${kernels[-1]##*/}
read -r -a guests <"$share/guests"
library=$(dpkg-query -S /usr/lib/*/libguestfs.so.0 | sed 's/:.*//' | head -n 1)
# shellcheck source=/dev/null
cell "Debian" "$(. /etc/os-release && echo "${VERSION:-$PRETTY_NAME}")"
cell "libguestfs" "$(version "$library") (\`$library\`)"
cell "qemu" "$(version qemu-system-x86)"
cell "kernel" "$kernel"
cell "supermin" "$(version supermin)"
cell "\`guestfs_get_hv\` before launch" "$(guestfish get-hv 2>&1 | sed "s/.*libguestfs: error: //" | tail -n 1)"
cell "the same, backend libvirt" "$(LIBGUESTFS_BACKEND=libvirt guestfish get-hv 2>&1 | sed "s/.*libguestfs: error: //" | tail -n 1)"

echo "== main job"
main_job() {
    local name=$1 out=$share/$2
    shift 2
    if ! "$@" >"$out.log" 2>&1; then
        failed=1
        tail -n 20 "$out.log"
        cell "$name" "**failed**"
    elif cmp -s <(body "$share/native.bmap") <(body "$out"); then
        cell "$name" "the map of this machine, $(body "$out" | wc -l) lines"
    else
        failed=1
        cell "$name" "**differs**: $(differences "$share/native.bmap" "$out")"
    fi
}
main_job "main job, root" root.bmap "$program" "$share/guest.raw" -o "$share/root.bmap"
main_job "main job, libguestfs's appliance" stock.bmap "$program" --appliance stock "$share/guest.raw" -o "$share/stock.bmap"
main_job "main job, ordinary user without network" user.bmap scripts/matrix/user.sh "$share/guest.raw" "$share/user.bmap"

echo "== tests"
# tests ROW PROGRAM FILTER: runs the tests of a module.
run_tests() {
    local row=$1 log=$share/$2.log test
    test=$(grep "/$2-[0-9a-f]*$" "$share/tests")
    "$test" --test-threads=3 "$3" >"$log" 2>&1 || failed=1
    local count bad
    count=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 passed, \2 failed/p' "$log")
    bad=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log" | sort | paste -sd' ')
    cell "$row" "${count:-**not run**}${bad:+: \`$bad\`}"
}
run_tests "calls into libguestfs" quick libguestfs::
run_tests "which qemu" appliance qemu::
run_tests "bad input (\`failures bad_input\`)" failures bad_input::

echo "== accuracy"
accuracy=$(grep "/accuracy-[0-9a-f]*$" "$share/tests")
for guest in "${guests[@]}"; do
    log=$share/accuracy-$guest.log
    status=good
    "$accuracy" "$guest" >"$log" 2>&1 || { status=bad; failed=1; }
    # Rows of the first table have the number of wrong files in their sixth cell.
    summary=$(awk -F' *[|] *' '$3 ~ /^(agent|extents)$/ { rows++; files += $4; wrong += $7 }
        END { if (rows) print rows " rows, " files " files, " wrong " wrong" }' "$log")
    [ "$status" = good ] || summary="${summary:-not measured}; **not all numbers are as they must be**"
    cell "accuracy, guest \`$guest\`" "$summary"
done

echo "== maps of the same images"
for image in "$share"/images/*; do
    guest=${image##*/}
    out=$share/$guest.bmap
    "$program" -q --metadata "$image"/*.raw -o "$out" >"$out.log" 2>&1
    status=$?
    if [ -e "$out" ]; then
        differs=$(differences "$image/native.bmap" "$out")
        cell "same images, guest \`$guest\`" "${differs:-equal}, $(body "$out" | wc -l) lines, status $status"
    else
        failed=1
        cell "same images, guest \`$guest\`" "**no map**, status $status"
    fi
done

echo "== bcachefs"
if ! [ -e "$share/bcachefs.img" ]; then
    cell "bcachefs" "not run: no image (\`BCACHEFS\`)"
elif ! modinfo -k "$kernel" bcachefs >/dev/null 2>&1; then
    cell "bcachefs" "not run: the kernel has no driver"
else
    scripts/matrix/bcachefs.py "$program" "$share/bcachefs.img" >"$share/bcachefs.log" 2>&1 || failed=1
    cell "bcachefs" "$(tail -n 1 "$share/bcachefs.log")"
fi
exit "$failed"
