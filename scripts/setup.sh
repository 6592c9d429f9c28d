#!/bin/bash
# Installs what virt-bmap-rs needs, or says what to install: setup.sh [--tests] [--check]
#
#   --tests   also what the tests need; only on Debian and its relatives
#   --check   install nothing; exit with status 1 if something is missing
#
# Debian and its relatives have setup-debian.sh. On Fedora, RHEL, openSUSE and Arch, this script
# looks for the programs and prints the command that installs them; it has not been run there.
# OS_RELEASE names another file than /etc/os-release.
set -eu -o pipefail

case " $* " in *" -h "* | *" --help "*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac

release=${OS_RELEASE:-/etc/os-release}
# ID is this system, ID_LIKE the systems that it is made from (os-release(5)).
# shellcheck source=/dev/null
like=$(. "$release" 2>/dev/null && echo "${ID:-} ${ID_LIKE:-}")
common=(gcc make cryptsetup dosfstools e2fsprogs lvm2 mdadm xfsprogs)
case " $like " in
    *" debian "* | *" ubuntu "*) exec "$(dirname "$0")/setup-debian.sh" "$@" ;;
    *" rhel "* | *" centos "*)
        # EPEL has exfatprogs and ntfs-3g.
        command="dnf install --enablerepo=crb ${common[*]} kernel libguestfs-devel libguestfs-xfs pkgconf-pkg-config qemu-img qemu-kvm"
        ;;
    *" fedora "*)
        command="dnf install ${common[*]} btrfs-progs exfatprogs f2fs-tools kernel libguestfs-devel libguestfs-xfs libldm ntfs-3g pkgconf-pkg-config qemu-img qemu-kvm"
        ;;
    *" suse "* | *" opensuse "*)
        command="zypper install ${common[*]} btrfsprogs exfatprogs f2fs-tools kernel-default libguestfs-devel ntfs-3g pkg-config qemu-tools qemu-x86"
        ;;
    *" arch "*)
        command="pacman -S --needed ${common[*]} btrfs-progs exfatprogs f2fs-tools libguestfs libldm linux ntfs-3g pkgconf qemu-base qemu-img"
        ;;
    *) command= ;;
esac

missing=()
for program in cc make pkg-config qemu-img qemu-nbd supermin; do
    command -v "$program" >/dev/null || missing+=("$program")
done
command -v "qemu-system-$(uname -m)" >/dev/null || [ -x /usr/libexec/qemu-kvm ] || missing+=(qemu)
pkg-config --exists libguestfs 2>/dev/null || missing+=("libguestfs with its header")
kernels=$(compgen -G '/boot/vmlinuz-*' || compgen -G '/lib/modules/*/vmlinuz' || :)
[ -n "$kernels" ] || missing+=("a Linux kernel")
command -v cargo >/dev/null || [ -x "$HOME/.cargo/bin/cargo" ] || missing+=("Rust 1.88 or later (https://rustup.rs)")
[ ${#missing[@]} -gt 0 ] || exit 0

printf 'setup: missing: %s\n' "${missing[@]}" >&2
if [ -n "$command" ]; then
    echo "setup: install what is needed, as root:  $command" >&2
else
    echo "setup: this system is not known here; docs/compatibility.md has the packages of others" >&2
fi
exit 1
