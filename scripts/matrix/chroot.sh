#!/bin/bash
# Runs a command in another release of Debian, as root: chroot.sh SUITE DIRECTORY COMMAND...
#
# debootstrap makes the release in DIRECTORY if it is not there, from the mirror that this machine
# uses, with its certificates and its settings for downloads. In there are
#
#   - the tree's files that git knows, in a copy, and target/debug, read-only, at the same paths;
#   - the Rust toolchain, in /opt/rust;
#   - the directory SHARE (environment), as /mnt/share;
#   - /proc, /sys and /dev of this machine.
#
# The mounts are in a namespace of their own: whatever ends this script, nothing is left of them.
set -eu -o pipefail

[ $# -ge 3 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "chroot.sh: only root can make another release" >&2; exit 1; }
if [ -z "${IN_NAMESPACE:-}" ]; then
    IN_NAMESPACE=1 exec unshare --mount --propagation private -- "$0" "$@"
fi

suite=$1 directory=$(realpath -m "$2")
shift 2
tree=$(realpath "$(dirname "$0")/../..")

if [ ! -e "$directory/etc/debian_version" ] || [ -e "$directory/debootstrap" ]; then
    rm -rf --one-file-system "$directory"
    mkdir -p "$directory"
    # shellcheck disable=SC2016 # apt expands these
    mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' | sed -n '/^Debian /{s///p;q}')
    debootstrap --variant=minbase "$suite" "$directory" ${mirror:+"$mirror"} >"$directory.log" 2>&1 ||
        { tail -n 5 "$directory.log" >&2; exit 1; }
    rm -f "$directory.log"
    mkdir -p "$directory/etc/ssl/certs" "$directory/usr/local/share/ca-certificates"
    cp -L /etc/ssl/certs/ca-certificates.crt "$directory/etc/ssl/certs/" 2>/dev/null || :
    cp -rL /usr/local/share/ca-certificates/. "$directory/usr/local/share/ca-certificates/" 2>/dev/null || :
    apt-config dump --format '%F "%v";%n' Acquire | grep -v IndexTargets >"$directory/etc/apt/apt.conf.d/90host" || :
    # No services are started in there, and what is installed there need not survive a power cut.
    printf '#!/bin/sh\nexit 101\n' >"$directory/usr/sbin/policy-rc.d"
    chmod +x "$directory/usr/sbin/policy-rc.d"
    echo force-unsafe-io >"$directory/etc/dpkg/dpkg.cfg.d/90fast"
    printf 'path-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n' >>"$directory/etc/dpkg/dpkg.cfg.d/90fast"
fi
cp -L /etc/resolv.conf /etc/hosts "$directory/etc/" 2>/dev/null || :

# A root that is no mount point cannot have other namespaces of mounts in it.
mount --bind "$directory" "$directory"
mount -t proc proc "$directory/proc"
mount --rbind /sys "$directory/sys"
mount --rbind /dev "$directory/dev"
mount -t tmpfs -o mode=755 tmpfs "$directory/run"

mkdir -p "$directory/$tree/target/debug" "$directory/$tree/target/tmp" "$directory/$tree/target/fixtures" "$directory/opt/rust" "$directory/mnt/share"
git -C "$tree" ls-files -z --cached --others --exclude-standard | tar -C "$tree" --create --null --ignore-failed-read --files-from - | tar -C "$directory/$tree" --extract
if [ -d "$tree/target/debug" ]; then
    mount --bind -o ro "$tree/target/debug" "$directory/$tree/target/debug"
    # By this file the tests know where the build is.
    touch "$directory/$tree/target/.rustc_info.json"
fi
if rust=$(rustc --print sysroot 2>/dev/null); then
    mount --bind -o ro "$rust" "$directory/opt/rust"
fi
[ -z "${SHARE:-}" ] || mount --bind "$SHARE" "$directory/mnt/share"

# INITRD=No: the kernel needs no initial RAM filesystem, because supermin makes one.
# shellcheck disable=SC2016 # the inner shell expands this
exec chroot "$directory" /usr/bin/env -i \
    HOME=/root LANG=C.UTF-8 PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin INITRD=No \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg TREE="$tree" \
    /bin/sh -c 'cd "$TREE" && exec "$@"' sh "$@"
