# SCRIPT DIR, with `kernel.sh` before it, makes DIR/kernel and DIR/initrd. This guest mounts its
# first disk, an ext4, and writes one file after the other, /f1, /f2, …, until it is stopped. When a
# file is on the disk, its console says so: `wrote 1`.
cp "$kernel" "$1/kernel"
tree=$1/root
mkdir -p "$tree"/{bin,dev,disk,proc,sys}
cp /bin/busybox "$tree/bin/"
modules "$tree" virtio_pci virtio_blk ext4

cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
. /load
mount -t ext4 /dev/vda /disk || poweroff -f
i=0
while :; do
    i=$((i + 1))
    yes "file $i" | head -c 20000 >/disk/f$i
    sync
    echo "wrote $i"
    usleep 200000
done
INIT
initrd "$tree" "$1/initrd"
rm -r "$tree"
