# SCRIPT DIR, with `kernel.sh` before it, makes DIR/kernel and DIR/initrd. This guest has two
# processors. It attaches the NBD driver of Linux to 10.0.2.2 (the machine that runs qemu), port
# $nbd_port, with two connections. It reads, writes and trims, prints the MD5 of what it reads on
# its serial console, and switches itself off. It needs no root, no disk and no appliance.
cp "$kernel" "$1/kernel"
tree=$1/root
mkdir -p "$tree"/{bin,busybox,dev,proc,sys}

# The client is the usual nbd-client. The dd of busybox does not know O_DSYNC.
cp /bin/busybox "$tree/bin/"
for program in nbd-client dd blkdiscard; do
    path=$(PATH=$PATH:/usr/sbin:/sbin command -v $program)
    cp -L "$path" "$tree/bin/"
    ldd "$path" | grep -o '/[^ ]*' | while read -r library; do
        install -D "$library" "$tree$library"
    done
done

modules "$tree" virtio_pci virtio_net nbd

cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin:/busybox
/bin/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
end() { echo "GUEST $*"; poweroff -f; }
. /load
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0

# With its own timeout, the driver sends a request without an answer again over the other
# connection.
nbd-client 10.0.2.2 "$nbd_port" /dev/nbd0 -C 2 -t 10 || end "has no disk"
echo "GUEST disk $(blockdev --getsize64 /dev/nbd0) $(cat /sys/block/nbd0/queue/write_cache)"

# part FROM LENGTH [BLOCK]: reads bytes in units of BLOCK, past the cache of the guest.
part() { /bin/dd if=/dev/nbd0 bs="${3:-4096}" skip=$(($1)) count=$(($2)) iflag=direct,skip_bytes,count_bytes 2>/dev/null; }
tell() { echo "GUEST $1 $(md5sum | cut -d' ' -f1)"; }
{ part 0x201000 0x2000; part 0x400000 0x2000; } | tell second
# The driver gives each processor its own connection.
taskset -p 2 $$ >/dev/null
part 0x101000 0x80000 65536 >/half &
taskset -p 1 $$ >/dev/null
part 0x181000 0x80000 65536 >/rest
wait
cat /half /rest | tell first
# This read goes through the cache of the guest, which reads ahead.
dd if=/dev/nbd0 bs=1M count=8 2>/dev/null | tell disk-before

yes "written by the guest" | /bin/dd of=/dev/nbd0 bs=4096 seek=258 count=4 oflag=direct iflag=fullblock conv=fsync 2>/dev/null
yes "once for all" | /bin/dd of=/dev/nbd0 bs=4096 seek=1024 count=1 oflag=direct,dsync iflag=fullblock 2>/dev/null
blkdiscard -o $((513 * 4096)) -l 8192 /dev/nbd0 || echo "GUEST cannot discard"
blockdev --flushbufs /dev/nbd0
part 0 0x800000 1048576 | tell disk-after
# The data are the same after the driver was detached and attached again.
nbd-client -d /dev/nbd0
until [ ! -e /sys/block/nbd0/pid ]; do usleep 20000; done
nbd-client 10.0.2.2 "$nbd_port" /dev/nbd0 || end "has no disk again"
part 0 0x800000 1048576 | tell disk-again
nbd-client -d /dev/nbd0
end done
INIT
initrd "$tree" "$1/initrd"
rm -r "$tree"
