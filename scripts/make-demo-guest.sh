#!/bin/bash
# Makes the disk of a small guest to try virt-bmap-rs on: make-demo-guest.sh OUT.raw
#
# The disk has a GPT, /boot on ext4, and a volume group with an ext4 and an xfs volume. They are
# filled with files of this machine's /usr. Needs guestfish, but neither root nor KVM. Takes half a
# minute under emulation.
set -eu -o pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 OUT.raw" >&2
    exit 2
fi
for tool in guestfish tar; do
    command -v "$tool" >/dev/null || { echo "$0: $tool is not installed: run scripts/setup.sh" >&2; exit 1; }
done

out=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/demo-guest.XXXXXX")
trap 'rm -rf "$work"' EXIT

# An existing /dev/kvm may not work. Emulation always works.
export LIBGUESTFS_BACKEND=${LIBGUESTFS_BACKEND-direct}
export LIBGUESTFS_BACKEND_SETTINGS=${LIBGUESTFS_BACKEND_SETTINGS-force_tcg}

# pack ARCHIVE COUNT DIRECTORY...: the first COUNT readable small files below the directories.
pack() {
    local archive=$1 count=$2
    shift 2
    { find "$@" -type f -size -2048 -readable -print0 2>/dev/null || true; } | sort -z | head -z -n "$count" >"$work/list" || true
    tar --create --file "$archive" --null --owner=0 --group=0 --transform 's,^/,,' --absolute-names --files-from "$work/list"
}
pack "$work/root.tar" 600 /usr/lib/python3 /usr/share/perl /usr/share/perl5 /usr/share/doc
pack "$work/home.tar" 300 /usr/include /usr/share/misc /usr/share/common-licenses /usr/lib/x86_64-linux-gnu
head -c 6000000 /dev/urandom >"$work/vmlinuz"

guestfish <<EOF
disk-create $work/guest.raw raw 900M
add $work/guest.raw format:raw
run
part-init /dev/sda gpt
part-add /dev/sda p 2048 133119
part-add /dev/sda p 133120 -2048
pvcreate /dev/sda2
vgcreate guest /dev/sda2
lvcreate root guest 200
lvcreate home guest 400
mkfs ext4 /dev/sda1 label:boot
mkfs ext4 /dev/guest/root label:root
mkfs xfs /dev/guest/home label:home
mount /dev/guest/root /
mkdir /boot
mkdir /home
mount /dev/sda1 /boot
mount /dev/guest/home /home
upload $work/vmlinuz /boot/vmlinuz
tar-in $work/root.tar /
tar-in $work/home.tar /home
mkdir-p /etc
write /etc/hostname "demo\n"
umount-all
shutdown
EOF
mv "$work/guest.raw" "$out"
echo "$out: a guest with /boot on ext4 and the volumes /dev/guest/root (ext4) and /dev/guest/home (xfs)"
