#!/bin/bash
# What all emulated guests have in common: this machine's kernel, and functions that make an initrd
# with the modules that a guest needs. The rest of a script follows.
set -eu -o pipefail
export LC_ALL=C TZ=UTC
kernel=
for candidate in /boot/vmlinuz-*; do
    [ -d "/lib/modules/${candidate#/boot/vmlinuz-}" ] && kernel=$candidate
done

# Puts modules and their dependencies into TREE/modules. TREE/load loads them.
modules() { # TREE MODULE...
    local tree=$1 module
    shift
    mkdir -p "$tree/modules"
    for module; do
        /sbin/modprobe -S "${kernel#/boot/vmlinuz-}" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
        cp "$module" "$tree/modules/"
        echo "insmod /modules/${module##*/}"
    done >"$tree/load"
}

# Makes an initrd from a tree that has an `init`.
initrd() { # TREE OUT
    chmod 755 "$1/init"
    (cd "$1" && find . | sort | cpio -o -H newc --owner=0:0 --quiet) | gzip -n -1 >"$2"
}
