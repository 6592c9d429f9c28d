#!/bin/bash
# The first process of a guest of user-mode Linux: see usermode.sh.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TZ=UTC
mount -t proc proc /proc
mount -t sysfs sys /sys
# The rest of the tree is this machine's, and cannot be written to, except for one directory.
mount -t hostfs -o "$DIR" work "$DIR"
mount -t tmpfs run /run
mount -t tmpfs mnt /mnt
# /dev is already mounted. If it were this machine's, the guest would write to this machine's disks.
if ! grep -q '^devtmpfs /dev devtmpfs ' /proc/mounts || [ $$ -ne 1 ]; then
    echo "this is no guest"
    exit 1
fi
mkdir /run/lock
# The kernel runs modprobe when it needs a module.
mount --bind /usr/lib/uml/modules /lib/modules
modprobe virtio_blk
# Without this the device has no cache for the guest, and every write is a flush.
for disk in /sys/block/vd*; do
    echo 'write back' >"$disk/cache_type"
done
cd "$DIR"
bash ./work.sh
echo $? >status.new
mv status.new status
echo o >/proc/sysrq-trigger
sleep 60
