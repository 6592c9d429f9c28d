#!/bin/bash
# Installs the packages that virt-bmap-rs needs on Debian 12 or later, and on Ubuntu 22.04 or later:
# setup-debian.sh [--tests] [--check]
#
#   --tests   also install the programs that the tests need
#   --check   install nothing; print the missing packages, and exit with status 1 if there are any
#
# Installs as root, or through sudo. If nothing is missing it takes well under a second and needs no
# privileges, so that it can run before every build.
set -eu -o pipefail

# "a|b" is a package that has another name in some release.
#
# libguestfs-dev depends on the library, whose package is libguestfs0, or libguestfs0t64 since the
# change to 64 bits for times (Debian 13, Ubuntu 24.04).
build=(ca-certificates gcc libc6-dev libguestfs-dev make pkg-config)
run=(libguestfs-xfs "guestfish|libguestfs-tools" qemu-system-x86 qemu-utils)
# libguestfs builds the appliance from the programs of this machine. These mount filesystems in it.
filesystems=(btrfs-progs cryptsetup-bin dosfstools e2fsprogs exfatprogs f2fs-tools ldmtool lvm2 mdadm ntfs-3g xfsprogs)
tests=(busybox-static bzip2 chromium cpio debootstrap erofs-utils ewf-tools fdisk fio fonts-dejavu-core gawk gddrescue grub-common grub-pc-bin jfsutils jq kmod libguestfs-hfsplus libguestfs-jfs libguestfs-nilfs libnbd-bin libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu libxml2-utils lz4 makefs mount munge nbd-client nbdkit nilfs-tools openssh-server parallel procps python3-cryptography python3-libnbd python3-venv qemu-block-extra sleuthkit slurm-client slurmctld slurmd squashfs-tools tgt thin-provisioning-tools tmux udftools user-mode-linux util-linux valgrind xorriso xz-utils zstd)

check=
wanted=("${build[@]}" "${run[@]}" "${filesystems[@]}")
for argument; do
    case $argument in
        --tests) wanted+=("${tests[@]}") ;;
        --check) check=1 ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done

say() { echo "setup-debian: $*" >&2; }

command -v dpkg-query >/dev/null || { say "this is no Debian; needed here: ${wanted[*]}, and a Linux kernel in /boot"; exit 1; }

installed_version() { { dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$1" 2>/dev/null || :; } | sed -n 's/^installed //p'; }
candidate_version() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([^(]\)/\1/p'; }

# Prints the packages of `wanted` that are not installed, each by the first of its names that this
# release has.
missing_packages() {
    local names name chosen
    for names in "${wanted[@]}"; do
        chosen=
        for name in ${names//|/ }; do
            [ -z "$(installed_version "$name")" ] || continue 2
            [ -n "$chosen" ] || [ -z "$(candidate_version "$name")" ] || chosen=$name
        done
        echo "${chosen:-${names%%|*}}"
    done
}

# Takes packages of tests that this release does not have out of `wanted`.
drop_unknown_tests() {
    local name kept=() unknown=()
    for name in "${wanted[@]}"; do
        if [[ " ${tests[*]} " == *" $name "* ]] && [ -z "$(installed_version "$name")$(candidate_version "$name")" ]; then
            unknown+=("$name")
        else
            kept+=("$name")
        fi
    done
    [ ${#unknown[@]} -eq 0 ] || say "this release has no ${unknown[*]}: tests that need them are skipped"
    wanted=("${kept[@]}")
}

# The appliance boots a kernel of this machine. Any kernel with its modules is suitable.
has_kernel() {
    local kernel
    for kernel in /boot/vmlinuz-*; do
        [ -e "$kernel" ] && [ -d "/lib/modules/${kernel#/boot/vmlinuz-}" ] && return 0
    done
    return 1
}

# Debian calls the kernel by the architecture, Ubuntu calls it generic.
kernel_package() {
    local name
    name=linux-image-$(dpkg --print-architecture)
    [ -n "$(candidate_version "$name")" ] || [ -z "$(candidate_version linux-image-generic)" ] || name=linux-image-generic
    echo "$name"
}
install=()
plan() {
    mapfile -t install < <(missing_packages)
    has_kernel || install+=("$(kernel_package)")
}
plan

if [ -n "$check" ]; then
    [ ${#install[@]} -eq 0 ] || { say "missing: ${install[*]}"; exit 1; }
elif [ ${#install[@]} -gt 0 ]; then
    root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { say "run this as root, or install by hand: ${install[*]}"; exit 1; }
        root=(sudo)
    fi
    say "installing ${install[*]}"
    "${root[@]}" apt-get update -q || say "apt-get update failed; going on with the lists that are there"
    # Now the lists say which names there are.
    drop_unknown_tests
    plan

    # The installed qemu-utils may be newer than the qemu-system-x86 in the archive, in an image
    # that was made with another mirror. Then apt refuses the combination. Install the version of
    # the archive for both.
    utils=$(installed_version qemu-utils)
    system=$(candidate_version qemu-system-x86)
    if [[ " ${install[*]} " == *" qemu-system-x86 "* ]] && [ -n "$utils" ] && [ "$utils" != "$system" ]; then
        say "qemu-utils is $utils, qemu-system-x86 will be $system: installing that version of both"
        for package in qemu-utils qemu-system-common qemu-system-data qemu-block-extra; do
            old=$(installed_version "$package")
            # qemu-system-data lacks the binary rebuild's suffix, +bN.
            case $package in qemu-system-data) version=${system%+b[0-9]*} ;; *) version=$system ;; esac
            [ -z "$old" ] || [ "$old" = "$version" ] || install+=("$package=$version")
        done
        install=("${install[@]/%qemu-system-x86/qemu-system-x86=$system}")
    fi
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends --allow-downgrades "${install[@]}"
    plan
    [ ${#install[@]} -eq 0 ] || { say "still missing: ${install[*]}"; exit 1; }
fi

# On Ubuntu ordinary users cannot read kernels, and the appliance boots one of them.
readable=
for kernel in /boot/vmlinuz-* /lib/modules/*/vmlinuz; do
    [ -r "$kernel" ] && readable=1
done
if [ -z "$readable" ]; then
    say "no kernel in /boot can be read by this user, and the appliance boots one of them."
    say "Let everybody read them:  sudo chmod +r /boot/vmlinuz-*"
    exit 1
fi

if ! command -v cargo >/dev/null && ! [ -x "$HOME/.cargo/bin/cargo" ]; then
    say "no Rust toolchain: install 1.88 or later, for example with the installer of https://rustup.rs"
    exit 1
fi
