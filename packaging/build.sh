#!/bin/bash
# Builds packages in target/packages: build.sh STEP...
#
#   deb    the Debian packages of the program and of the plugin for nbdkit
#   rpm    the same as RPM packages
#   sbom   the crates of each program, as CycloneDX
#   sums   what they were built with, and SHA256SUMS of all files there
#
# The same commit built with the same compilers gives the same bytes, wherever the sources are:
# packaging/reproduce.sh compares. TOOLS names the directory with cargo-deb, cargo-generate-rpm and
# cargo-cyclonedx.
set -eu -o pipefail

cd "$(dirname "$0")/.."
root=$PWD
packages=target/packages
stage=$packages/stage
tools=${TOOLS:-$root/target/packaging-tools/bin}
cargo=${CARGO:-cargo}
target=x86_64-unknown-linux-gnu
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"$/\1/p' Cargo.toml)

umask 022
export LC_ALL=C.UTF-8 TZ=UTC
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

[ "$($cargo -vV | sed -n 's/^host: //p')" = $target ] || { echo "$0: packages are built for $target only" >&2; exit 1; }

# Builds the program and the plugin, in a target directory of their own: other flags than those of
# `make build` would otherwise have cargo compile everything again, each time.
compile() {
    # The sources of the crates must be there, since their directory is renamed in the programs.
    "$cargo" fetch --quiet --locked
    local renames=() rust=() c=() sources rename
    renames+=("$root=/usr/src/virt-bmap-rs")
    # Others, of other registries, would change the flags, and all be compiled again.
    for sources in $("$cargo" metadata --locked --offline --format-version 1 |
        jq -r '.packages[] | select(.source) | .manifest_path | split("/")[:-2] | join("/")' | sort -u); do
        renames+=("$sources=/usr/src/crates")
    done
    renames+=("$(rustc --print sysroot)/lib/rustlib/src/rust=/usr/src/rust")
    for rename in "${renames[@]}"; do
        rust+=("--remap-path-prefix=$rename")
        c+=("-ffile-prefix-map=$rename")
    done
    # Line tables would fill a package of debug symbols. There is none: backtraces have names of
    # functions only where the program is built by hand.
    env CARGO_ENCODED_RUSTFLAGS="$(IFS=$'\x1f'; echo "${rust[*]}")" CFLAGS="${c[*]}" CARGO_INCREMENTAL=0 \
        CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=symbols \
        "$cargo" build --release --locked --target-dir "$packages/build" -p virt-bmap-rs -p virt-bmap-nbdkit
}

# changelog NAME: the package's changelog in Debian's format. It is about the package; that of the
# program is beside it.
changelog() {
    printf '%s (%s-1) unstable; urgency=medium\n\n' "$1" "$version"
    printf '  * Package of version %s. See changelog.gz for what it brings.\n\n' "$version"
    printf ' -- %s  %s\n' "$(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)" "$(date -R -d "@$SOURCE_DATE_EPOCH")"
}

# Puts all files into $stage, for both kinds of packages. Their places in the packages are in
# Cargo.toml and plugin/Cargo.toml.
staged=
stage() {
    [ -z "$staged" ] || return 0
    staged=1
    compile
    rm -rf "$stage"
    mkdir -p "$stage"/{man,completions,program,plugin,licences,doc/examples}
    cp "$packages/build/release/virt-bmap-rs" "$stage/program/"
    cp "$packages/build/release/libnbdkit_bmaplogger_plugin.so" "$stage/plugin/nbdkit-bmaplogger-plugin.so"
    "$stage/program/virt-bmap-rs" generate man "$stage/man"
    gzip -9n "$stage"/man/*.1
    local shell
    for shell in bash zsh fish; do
        "$stage/program/virt-bmap-rs" generate completions $shell >"$stage/completions/$shell"
    done
    packaging/copyright.sh virt-bmap-rs virt-bmap-agent >"$stage/program/copyright"
    packaging/copyright.sh virt-bmap-nbdkit >"$stage/plugin/copyright"
    changelog virt-bmap-rs >"$stage/program/changelog.Debian"
    changelog nbdkit-plugin-bmaplogger >"$stage/plugin/changelog.Debian"
    gzip -9n <CHANGELOG.md >"$stage/changelog.gz"
    cp -r README.md docs "$stage/doc/"
    cp -r examples/{kubernetes,slurm} "$stage/doc/examples/"
    cp -r packaging/lintian-overrides "$stage/lintian"
    # RPM packages carry the texts that the copyright file does not repeat.
    cp LICENSE-APACHE "$stage/licences/Apache-2.0"
    cp /usr/share/common-licenses/LGPL-2 "$stage/licences/"
    # cargo-generate-rpm keeps times before SOURCE_DATE_EPOCH.
    find "$stage" -exec touch --no-dereference -d "@$SOURCE_DATE_EPOCH" {} +
}

deb() {
    stage
    rm -f "$packages"/*.deb
    local package
    for package in virt-bmap-rs virt-bmap-nbdkit; do
        # Without --quiet, it warns that it will not build what is in target/packages.
        "$tools/cargo-deb" --quiet --package "$package" --no-build --no-strip --locked --offline --output "$packages/"
    done
}

rpm() {
    stage
    rm -f "$packages"/*.rpm
    # With ldd, the other way to find requirements, the package would need all that Debian's
    # libguestfs is linked with.
    "$tools/cargo-generate-rpm" generate-rpm --auto-req find-requires --output "$packages/"
    "$tools/cargo-generate-rpm" generate-rpm --package plugin --auto-req find-requires --output "$packages/"
}

# cargo-cyclonedx writes beside each Cargo.toml, for each program and library of the workspace.
sbom() {
    rm -f "$packages"/*.cdx.json
    "$tools/cargo-cyclonedx" cyclonedx -qq --format json --spec-version 1.5 --describe binaries --target $target
    local file name
    for name in virt-bmap-rs virt-bmap-agent nbdkit_bmaplogger_plugin; do
        file=$(find . -path ./target -prune -o -name "${name}_*.cdx.json" -print)
        sed "s,path+file://$root,path+file:///usr/src/virt-bmap-rs,g" "$file" >"$packages/${name//_/-}-$version.cdx.json"
    done
    find . -path ./target -prune -o -name '*.cdx.json' -exec rm {} +
}

sums() {
    {
        echo "commit: $(git rev-parse HEAD)$([ -z "$(git status --porcelain)" ] || echo ', with changes')"
        echo "SOURCE_DATE_EPOCH: $SOURCE_DATE_EPOCH"
        rustc -V
        gcc --version | head -n 1
        ld --version | head -n 1
        dpkg-query -W -f '${Package} ${Version}\n' libc6-dev libguestfs-dev
        "$tools/cargo-deb" --version
        "$tools/cargo-generate-rpm" --version
        "$tools/cargo-cyclonedx" cyclonedx --version
    } >"$packages/BUILDINFO"
    (cd "$packages" && sha256sum -- *.deb *.rpm *.cdx.json BUILDINFO >SHA256SUMS && cat SHA256SUMS)
}

[ $# -gt 0 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
for step; do
    case $step in
        deb | rpm | sbom | sums) mkdir -p "$packages"; "$step" ;;
        *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
