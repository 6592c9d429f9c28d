# The recipe of a guest with systemd of Debian. From the start of systemd on, a program prints on
# the second serial port which files are opened, executed and read. The guest switches itself off
# when the boot is complete.

# Debian has merged these directories into /usr.
for name in bin sbin lib lib64; do
    mkdir -p "$root/usr/$name"
    ln -s "usr/$name" "$root/$name"
done
mkdir -p "$root"/{dev,etc/systemd/system/multi-user.target.wants,proc,sys,run,tmp,var}

# The packages and their dependencies, from the package sources of this machine.
mkdir -p "$work/debs/partial"
touch "$work/status"
apt-get -qq -y --no-install-recommends --download-only -o Debug::NoLocking=1 -o Dir::State::status="$work/status" \
    -o Dir::Cache::archives="$work/debs" install systemd udev kmod >/dev/null
for deb in "$work"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --exclude='./usr/share/*' -C "$root"
done
cp $busybox "$root/usr/bin/busybox"
cc -O2 -static -Wall -o "$root/usr/sbin/opens" "$dir/opens.c"

echo 'root:x:0:0:root:/:/bin/busybox' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
cat >"$root/usr/sbin/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox stty -F /dev/ttyS1 raw
/sbin/opens / /dev/opens-has-begun >/dev/ttyS1 &
until [ -e /dev/opens-has-begun ]; do /bin/busybox usleep 10000; done
exec /lib/systemd/systemd
INIT
chmod 755 "$root/usr/sbin/init"
for number in 1 2 3; do
    { yes "file $number" || :; } 2>/dev/null | head -c $((number * 100000)) >"$root/etc/guest-$number"
done
cat >"$root/etc/systemd/system/guest.service" <<'UNIT'
[Unit]
Description=What the guest is there for
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/busybox md5sum /etc/guest-3 /etc/guest-1
ExecStart=/bin/busybox sleep 1
ExecStart=/bin/busybox sh -c "echo GUEST is up >/dev/ttyS0"
ExecStart=/bin/busybox poweroff -f
[Install]
WantedBy=multi-user.target
UNIT
ln -s ../guest.service "$root/etc/systemd/system/multi-user.target.wants/guest.service"
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"

disk $(($(du -sm "$root" | cut -f1) * 5 / 4 + 16))
