# The recipe of a guest with busybox only. The guest reads and writes files of known content,
# reports this on its serial console, and switches itself off.

# For each file that it reads, it prints the MD5.
mkdir -p "$root"/{bin,sbin,dev,proc,srv/read,srv/left,srv/work/tree/branch,var}
cp $busybox "$root/bin/busybox"
for number in 1 2 3 4 5 6; do
    { yes "file $number" || :; } 2>/dev/null | head -c $((number * 30000)) >"$root/srv/read/$number"
    cp "$root/srv/read/$number" "$root/srv/left/$number"
done
for name in over grown cut old doomed mode tree/branch/leaf; do
    { yes "$name" || :; } 2>/dev/null | head -c 50000 >"$root/srv/work/$name"
done
cat >"$root/sbin/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox echo "GUEST booted" >/dev/console
for number in 3 1 4 6; do
    /bin/busybox md5sum /srv/read/$number | /bin/busybox sed 's/^/GUEST read /' >/dev/console
done
/bin/busybox mount -o remount,rw /
echo "written by the guest" >/var/written
/bin/busybox cp /srv/read/1 /srv/left/2
/bin/busybox sync
/bin/busybox echo "GUEST wrote /srv/left/2" >/dev/console
/bin/busybox sleep 3
cd /srv/work
/bin/busybox mkdir made
echo "as well" >made/file
/bin/busybox dd if=/srv/read/6 of=over bs=4096 seek=2 count=3 conv=notrunc 2>/dev/null
/bin/busybox head -c 20000 /srv/read/6 >>grown
/bin/busybox truncate -s 1000 cut
/bin/busybox mv old new
/bin/busybox mv tree made/moved
/bin/busybox rm doomed
/bin/busybox chmod 600 mode
/bin/busybox ln mode hard
/bin/busybox sync
/bin/busybox echo "GUEST worked" >/dev/console
[ -b /dev/vdb ] && /bin/busybox sleep 3600
/bin/busybox mount -o remount,ro /
/bin/busybox echo "GUEST done" >/dev/console
/bin/busybox poweroff -f
INIT
chmod 755 "$root/sbin/init"

disk 24
md5sum "$root"/srv/read/* | sed 's,/[^ ]*/srv/,/srv/,' >"$dir/md5"
