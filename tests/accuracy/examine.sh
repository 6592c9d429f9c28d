# Run in an appliance, with the commands that open a guest's layers and a call of "examine" for each
# row behind it. Prints what must not change when free space is overwritten.
set -u
mkdir -p /mnt/look

# Prints what the checker of a filesystem says without changing it.
check() {
    case $1 in
        ext2 | ext3 | ext4) e2fsck -fn "$2" ;;
        xfs) xfs_repair -n "$2" ;;
        btrfs) btrfs check --readonly "$2" ;;
        ntfs) ntfsfix --no-action "$2" && ntfsresize --info --force --no-progress-bar "$2" ;;
        vfat) fsck.fat -n "$2" ;;
        exfat) fsck.exfat -n "$2" ;;
        f2fs) fsck.f2fs --dry-run "$2" ;;
        jfs) jfs_fsck -n "$2" ;;
        *) echo "no checker of $1" ;;
    esac
    echo "status $?"
}

# Examines a filesystem: the name of the row, then the arguments of mount.
examine() {
    local name=$1 device=${*: -1}
    shift
    echo "= $name"
    # Times, versions of programs, and the kernel's names of disks may differ.
    check "$(blkid -o value -s TYPE "$device")" "$(readlink -f "$device")" 2>&1 |
        sed '/started\|finished\| secs\|ersion\|^e2fsck [0-9]\|^fsck.fat [0-9]\|^ntfsresize v/d; s,/dev/[a-z0-9-]*,DEVICE,g'
    mount -o ro "$@" /mnt/look
    (cd /mnt/look && find . -type f -print0 | sort -z | xargs -0 sha256sum)
    umount /mnt/look
}

# Closes what the commands before have opened: an array, a cache or a pool that is not closed needs
# repair.
close_all() {
    vgchange -q -an >/dev/null 2>&1
    for name in $(dmsetup ls --target crypt | grep -v '^No devices' | cut -f1); do
        cryptsetup close "$name"
    done
    mdadm --stop --scan --quiet
    sync
}

