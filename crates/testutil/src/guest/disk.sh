# What guests that boot from a disk have in common. `kernel.sh` precedes this script. A recipe
# follows, which makes a root directory and then calls `disk`. All three run as one script: SCRIPT
# DIR makes DIR/boot.raw, a disk that boots with BIOS and GRUB. It needs no root, no mounting and no
# appliance.
#
#   sector 0        boot code, partition table (MBR)
#   sectors 1…      GRUB's core image
#   partition 1     ext4: /vmlinuz, /initrd.img, /grub/grub.cfg
#   partition 2     ext4: the root
dir=$1
out=$dir/boot.raw
work=$(mktemp -d "${TMPDIR:-/tmp}/bootable.XXXXXX")
trap 'rm -rf "$work"' EXIT
export SOURCE_DATE_EPOCH=1700000000 E2FSPROGS_FAKE_TIME=1700000000
grub=/usr/lib/grub/i386-pc
busybox=/bin/busybox

# The initrd: busybox, and the modules that it needs for an ext4 filesystem on a virtio disk.
tree=$work/initrd
mkdir -p "$tree"/{bin,dev,proc,sys,root} "$work/boot/grub"
cp $busybox "$tree/bin/busybox"
modules "$tree" virtio_pci virtio_blk ext4
cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
. /load
until [ -b /dev/vda2 ]; do usleep 20000; done
mount -t ext4 -o ro /dev/vda2 /root
mount -o move /dev /root/dev
mount -o move /proc /root/proc
exec switch_root /root /sbin/init
INIT
initrd "$tree" "$work/boot/initrd.img"
cp "$kernel" "$work/boot/vmlinuz"
cat >"$work/boot/grub/grub.cfg" <<'GRUB'
set root=(hd0,msdos1)
linux /vmlinuz console=ttyS0 quiet no_timer_check cryptomgr.notests edd=off
initrd /initrd.img
boot
GRUB

root=$work/root
mkdir -p "$root"

# Makes the disk. MIB is the size of the root filesystem.
disk() { # MIB
    local boot_start=2048 boot_sectors=$((48 * 2048)) root_sectors=$(($1 * 2048)) root_start
    root_start=$((boot_start + boot_sectors))
    truncate -s $(((root_start + root_sectors) * 512)) "$out"
    /sbin/sfdisk -q "$out" <<PARTITIONS
label: dos
label-id: 0xb00710ad
start=$boot_start,size=$boot_sectors,type=83,bootable
start=$root_start,size=$root_sectors,type=83
PARTITIONS
    filesystem boot $boot_start $boot_sectors "$work/boot"
    filesystem root $root_start $root_sectors "$root"
    grub-mkimage -O i386-pc -d $grub -p '(hd0,msdos1)/grub' -o "$work/core.img" \
        biosdisk part_msdos ext2 normal linux configfile
    dd if=$grub/boot.img of="$out" bs=440 count=1 conv=notrunc status=none
    dd if="$work/core.img" of="$out" bs=512 seek=1 conv=notrunc status=none
    stat -c %s "$work/core.img" >"$dir/core-bytes"
}

filesystem() { # LABEL START SECTORS TREE
    find "$4" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    /sbin/mke2fs -q -F -t ext4 -b 4096 -L "$1" -d "$4" \
        -E "offset=$(($2 * 512)),root_owner=0:0,nodiscard,lazy_itable_init=0,lazy_journal_init=0" "$out" "$(($3 / 2))k"
}
