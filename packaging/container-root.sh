#!/bin/sh
# Makes a Debian system into that of the image: container-root.sh PACKAGE.deb
#
# Containerfile runs it while the image is built. packaging/test.sh runs it in a chroot, so that the
# image can be tested where there is no registry of images.
set -eu

package=$1
appliance=/opt/virt-bmap-rs/appliance
export DEBIAN_FRONTEND=noninteractive

apt-get update -q
# What the package recommends is a kernel, and libguestfs-xfs.
apt-get install -q -y --no-install-recommends "$package" libguestfs-xfs libnbd-bin

# The kernel is needed only until the appliance is built. Installing its package would run hooks and
# bring programs that the image has no use for, so it is unpacked.
work=$(mktemp -d)
kernel=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: //p')
(cd "$work" && apt-get download -q -o APT::Sandbox::User=root "$kernel")
dpkg-deb --extract "$work"/*.deb "$work"
version=$(ls "$work/lib/modules")
depmod --basedir "$work" "$version"
# supermin looks at the owner and mode of this directory.
mkdir -p /lib/modules "${appliance%/*}"
SUPERMIN_KERNEL=$work/boot/vmlinuz-$version SUPERMIN_MODULES=$work/lib/modules/$version \
    virt-bmap-rs appliance build --output "$appliance"

# The appliance's disk is sparse, and layers of an image are not: it would take 4 GB on each
# machine. What the appliance writes there while it runs is next to nothing.
e2fsck -fy "$appliance/root" >/dev/null || [ $? -le 1 ]
resize2fs -M "$appliance/root" 2>/dev/null
resize2fs "$appliance/root" "$(($(stat -c %s "$appliance/root") / 1048576 + 128))M" 2>/dev/null

rm -rf "$work" /lib/modules /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb
