#!/bin/bash
# Checks the packages in target/packages, with the commands of docs/packages.md: test.sh [CHECK...]
#
#   contents    what is in them, what they require; lintian; checksums; the lists of crates
#   deb         a fresh Debian, in which `apt install` and one command map a guest
#   container   the root filesystem of the image, made as Containerfile makes it, and run as an
#               ordinary user, read-only, without network, kernel or supermin, with and without KVM
#
# Needs root, for chroots. MIRROR names a mirror of Debian, and SUITE its release. Everything is
# made below WORK (5 GB; default /var/tmp), and removed.
set -eu -o pipefail

cd "$(dirname "$0")/.."
packages=$PWD/target/packages
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
deb=virt-bmap-rs_$version-1_amd64.deb
plugin_deb=nbdkit-plugin-bmaplogger_$version-1_amd64.deb
rpm=virt-bmap-rs-$version-1.x86_64.rpm
plugin_rpm=nbdkit-bmaplogger-plugin-$version-1.x86_64.rpm
mirror=${MIRROR:-http://deb.debian.org/debian}
suite=${SUITE:-bookworm}

work=$(mktemp -d "${WORK:-/var/tmp}/virt-bmap-packages.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT

fail() {
    echo "test.sh: $*" >&2
    exit 1
}

# has TEXT WHAT...: each of WHAT is a whole line of TEXT.
has() {
    local text=$1 line
    shift
    for line; do
        grep -q -x -F -e "$line" <<<"$text" || fail "missing: $line"
    done
}

# The lines of a list separated by commas, without versions.
relations() { dpkg-deb --field "$1" "$2" | sed 's/, /\n/g; s/ ([^)]*)//g'; }

contents() {
    echo "== contents"
    cd "$packages"
    sha256sum --check --quiet SHA256SUMS
    local files programs name file
    lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$deb" "$plugin_deb"

    files=$(dpkg-deb --fsys-tarfile "$deb" | tar -t)
    has "$files" ./usr/bin/virt-bmap-rs ./usr/share/man/man1/virt-bmap-rs-lookup.1.gz \
        ./usr/share/bash-completion/completions/virt-bmap-rs ./usr/share/zsh/vendor-completions/_virt-bmap-rs \
        ./usr/share/fish/vendor_completions.d/virt-bmap-rs.fish ./usr/share/doc/virt-bmap-rs/copyright \
        ./usr/share/doc/virt-bmap-rs/changelog.gz ./usr/share/doc/virt-bmap-rs/changelog.Debian.gz \
        ./usr/share/doc/virt-bmap-rs/README.md ./usr/share/doc/virt-bmap-rs/docs/mapping.md
    # Those that dpkg-shlibdeps found show that it has run.
    has "$(relations "$deb" Depends)" libc6 libguestfs0 qemu-system-x86 qemu-utils supermin
    files=$(dpkg-deb --fsys-tarfile "$plugin_deb" | tar -t)
    has "$files" ./usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-bmaplogger-plugin.so
    has "$(relations "$plugin_deb" Depends)" libc6 nbdkit
    ! relations "$plugin_deb" Depends | grep guestfs || fail "the plugin needs libguestfs"

    rpm --checksig --nosignature "$rpm" "$plugin_rpm"
    files=$(rpm -qpl "$rpm")
    has "$files" /usr/bin/virt-bmap-rs /usr/share/man/man1/virt-bmap-rs-lookup.1.gz \
        /usr/share/zsh/site-functions/_virt-bmap-rs /usr/share/licenses/virt-bmap-rs/copyright
    has "$(rpm -qp --requires "$rpm")" 'libguestfs.so.0()(64bit)' 'libc.so.6()(64bit)' qemu-img supermin
    # It must not need the libraries of Debian's libguestfs.
    files=$(rpm -qp --requires "$rpm" "$plugin_rpm" | grep -o -E '^lib[a-z_]+' | sort -u | paste -s -d ' ')
    [ "$files" = "libc libgcc_s libguestfs libm" ] || fail "the RPM packages need $files"
    has "$(rpm -qpl "$plugin_rpm")" /usr/lib64/nbdkit/plugins/nbdkit-bmaplogger-plugin.so

    # Both kinds of packages hold the same programs, and these say nothing of where they were built.
    mkdir "$work"/{deb,rpm}
    for name in "$deb" "$plugin_deb"; do dpkg-deb --extract "$name" "$work/deb"; done
    # rpm2cpio ends with 1 where a package does not say how large its archive is, as these do not.
    for name in "$rpm" "$plugin_rpm"; do rpm2archive -n - <"$name" | tar -x -C "$work/rpm"; done
    programs=$(cd "$work" && find deb rpm -type f \( -name virt-bmap-rs -perm -100 -o -name '*.so' \) | sort)
    [ "$(wc -l <<<"$programs")" = 4 ] || fail "programs: $programs"
    for file in $programs; do
        for name in "${packages%/target/packages}" "${CARGO_HOME:-$HOME/.cargo}"; do
            ! grep -q -a -F -e "$name/" "$work/$file" || fail "$file names $name"
        done
        (cd "$work" && sha256sum "$file")
    done | cut -d ' ' -f 1 | sort | uniq -c | awk '$1 != 2 { exit 1 }' || fail "programs differ or name directories"
    [ "$("$work/rpm/usr/bin/virt-bmap-rs" --version)" = "virt-bmap-rs $version" ] || fail "--version"

    # The lists of crates, by another program that knows the schema.
    local python=$packages/../cyclonedx-venv/bin/python
    [ -x "$python" ] || python3 -m venv "${python%/bin/python}"
    "$python" -c 'import cyclonedx' 2>/dev/null ||
        "$python" -m pip install --quiet --disable-pip-version-check 'cyclonedx-python-lib[json-validation]==11.11.0'
    for file in virt-bmap-rs virt-bmap-agent nbdkit-bmaplogger-plugin; do
        "$python" - "$file-$version.cdx.json" <<'END'
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
text = open(sys.argv[1]).read()
error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
if error:
    sys.exit(f"{sys.argv[1]}: {error}")
if "/usr/src/virt-bmap-rs" not in text and "virt-bmap" in text.split('"components"')[1]:
    sys.exit(f"{sys.argv[1]}: no path of the workspace")
components = json.loads(text)["components"]
print(f"{sys.argv[1]}: {len(components)} crates, {sum('hashes' in it for it in components)} with hashes")
END
    done
    cd - >/dev/null
}

# bootstrap NAME: a minimal Debian in $work/NAME, unpacked once and copied.
bootstrap() {
    [ -d "$work/base" ] || debootstrap --variant=minbase "$suite" "$work/base" "$mirror" >"$work/log" 2>&1 ||
        { tail "$work/log" >&2; fail "debootstrap failed"; }
    cp -a --reflink=auto "$work/base" "$work/$1"
    cp /etc/resolv.conf /etc/hosts "$work/$1/etc/"
}

# inside NAME [--kvm] [--no-net] [--read-only] [--user UID] COMMAND...: in the root $work/NAME, in
# namespaces, with the devices that a container has. The user may use KVM, which need not work.
# /work is the guests' directory. If the rest is read-only, /tmp and /var/tmp are not, as in
# examples/kubernetes/fleet.yaml.
inside() {
    local root=$work/$1 kvm='' user=0:0 groups='' net=() read_only=''
    shift
    while :; do
        case $1 in
            --kvm) kvm=/dev/kvm groups=$(stat -c %g /dev/kvm 2>/dev/null || :) ;;
            --no-net) net=(--net) ;;
            --read-only) read_only=1 ;;
            --user) user=$2:$2; shift ;;
            *) break ;;
        esac
        shift
    done
    mkdir -p "$root/work"
    # shellcheck disable=SC2016  # the inner shell expands it
    ROOT=$root KVM=$kvm GROUPS_OF_USER=$groups READ_ONLY=$read_only GUESTS=$work/guests unshare --mount --pid --ipc --uts "${net[@]}" --fork bash -c '
        set -eu
        mount --bind "$ROOT" "$ROOT"
        mount -t tmpfs -o mode=755 dev "$ROOT/dev"
        for device in /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty $KVM; do
            [ -e $device ] || continue
            touch "$ROOT$device"
            mount --bind $device "$ROOT$device"
        done
        mkdir "$ROOT"/dev/{pts,shm}
        mount -t devpts -o newinstance,ptmxmode=666,mode=620 pts "$ROOT/dev/pts"
        mount -t tmpfs -o mode=1777 shm "$ROOT/dev/shm"
        ln -s pts/ptmx "$ROOT/dev/ptmx"
        ln -s /proc/self/fd "$ROOT/dev/fd"
        mount -t proc proc "$ROOT/proc"
        mount -t sysfs -o ro sysfs "$ROOT/sys"
        mount --bind "$GUESTS" "$ROOT/work"
        if [ -n "$READ_ONLY" ]; then
            mount -o remount,bind,ro "$ROOT"
            mount -t tmpfs -o mode=1777 tmp "$ROOT/tmp"
            mount -t tmpfs -o mode=1777 tmp "$ROOT/var/tmp"
        fi
        exec chroot --userspec="$0" --groups="$GROUPS_OF_USER" "$ROOT" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
    ' "$user" "$@"
}

# Makes a guest: an ext4 filesystem with a few files, on a whole disk.
make_guest() {
    [ -d "$work/guests" ] && return
    mkdir -p "$work"/files/etc "$work/guests"
    chmod 1777 "$work/guests"
    head -c 3000000 /dev/urandom >"$work/files/large"
    echo demo >"$work/files/etc/hostname"
    mke2fs -q -t ext4 -b 4096 -d "$work/files" "$work/guests/guest.raw" 64M
}

# check_map FILE: the map says of a file what debugfs says.
check_map() {
    local blocks first last
    blocks=$(debugfs -R 'blocks /large' "$work/guests/guest.raw" 2>/dev/null | tr ' ' '\n' | grep -v '^0\?$' | sort -n)
    first=$(head -n 1 <<<"$blocks")
    last=$(tail -n 1 <<<"$blocks")
    # One extent, so that its ends are those of the range.
    [ "$(wc -l <<<"$blocks")" = $((last - first + 1)) ] || fail "/large is in pieces"
    has "$(cat "$1")" "$(printf '1 %x %x f /dev/sda /large' $((first * 4096)) $(((last + 1) * 4096)))"
}

deb() {
    echo "== deb"
    make_guest
    bootstrap deb
    cp "$packages/$deb" "$packages/$plugin_deb" "$work/deb/root/"
    inside deb sh -c "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y /root/$deb" >"$work/log" 2>&1 ||
        { tail -n 30 "$work/log" >&2; fail "apt-get install failed"; }
    inside deb apt-get clean
    inside deb useradd --create-home --uid 1000 user
    echo "-- as an ordinary user: virt-bmap-rs guest.raw"
    inside deb --kvm --no-net --user 1000 HOME=/home/user sh -c 'cd /work && virt-bmap-rs guest.raw -o deb.bmap'
    check_map "$work/guests/deb.bmap"
    inside deb --user 1000 HOME=/home/user sh -c 'cd /work && virt-bmap-rs lookup deb.bmap 0x400 >/dev/null && test -e /usr/share/man/man1/virt-bmap-rs.1.gz'

    inside deb sh -c "DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends /root/$plugin_deb" >"$work/log" 2>&1 ||
        { tail -n 30 "$work/log" >&2; fail "apt-get install of the plugin failed"; }
    # shellcheck disable=SC2016  # nbdkit expands it
    inside deb --user 1000 nbdkit -r -U - bmaplogger file=/work/guest.raw bmap=/work/deb.bmap logfile=/work/plugin.log \
        --run 'qemu-img convert -f raw -O raw "$uri" /work/copy.raw'
    cmp "$work/guests/guest.raw" "$work/guests/copy.raw"
    grep -q /large "$work/guests/plugin.log" || fail "the plugin's log names no file"
    inside deb sh -c 'apt-get purge -q -y virt-bmap-rs nbdkit-plugin-bmaplogger' >/dev/null 2>&1
    # Nothing may be left of either package.
    local left
    left=$(find "$work/deb"/{etc,opt,usr,var} \( -name '*virt-bmap*' -o -name '*bmaplogger*' \))
    [ -z "$left" ] || fail "left after purge: $left"
    rm -rf --one-file-system "$work/deb"
}

container() {
    echo "== container"
    make_guest
    bootstrap container
    mkdir -p "$work/container/source"
    cp "$packages/$deb" packaging/container-root.sh "$work/container/source/"
    inside container sh /source/container-root.sh "/source/$deb" >"$work/log" 2>&1 ||
        { tail -n 30 "$work/log" >&2; fail "container-root.sh failed"; }
    rm -r "$work/container/source"
    du -sh --apparent-size "$work/container" "$work/container/opt" | sed "s,$work/,,"
    [ -z "$(ls "$work"/container/boot)" ] || fail "there is a kernel"
    # It must not be run: the appliance is there.
    printf '#!/bin/sh\ntouch /work/supermin-was-run\nexit 1\n' >"$work/container/usr/bin/supermin"

    local environment user kvm name
    mapfile -t environment < <(sed -n 's/^ENV //p' Containerfile)
    user=$(sed -n 's/^USER \([0-9]*\):.*/\1/p' Containerfile)
    inside container "${environment[@]}" virt-bmap-rs appliance status
    # 4711 is a user whom nobody has added, as with runAsUser or --user.
    for name in "$user" 4711; do
        for kvm in '' --kvm; do
            echo "-- user $name, ${kvm:-no /dev/kvm}"
            inside container ${kvm:+"$kvm"} --no-net --read-only --user "$name" "${environment[@]}" sh -c \
                "cd /work && virt-bmap-rs guest.raw -o container.$name$kvm.bmap"
            check_map "$work/guests/container.$name$kvm.bmap"
            cmp "$work/guests/container.$user.bmap" "$work/guests/container.$name$kvm.bmap"
        done
    done
    ! [ -e "$work/guests/deb.bmap" ] || cmp "$work/guests/deb.bmap" "$work/guests/container.$user.bmap"
    ! [ -e "$work/guests/supermin-was-run" ] || fail "supermin was run"
    rm -rf --one-file-system "$work/container"
}

[ $# -gt 0 ] || set -- contents deb container
for check; do
    case $check in
        contents) ;;
        deb | container) [ "$(id -u)" -eq 0 ] || fail "$check needs root" ;;
        *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
for check; do "$check"; done
echo "checked: $*"
