#!/bin/bash
# Builds the packages of the last commit again, from a clone in another directory, with another home
# of Cargo, umask, time zone and language, and compares them with those in target/packages.
#
# Prints the files that differ, and ends with status 1 if there are any. Takes as long as a build.
# docs/packages.md says what the packages are made of.
set -eu -o pipefail

cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain)" ] || { echo "$0: the tree has changes that are in no commit" >&2; exit 1; }
first=$PWD/target/packages
tools=${TOOLS:-$PWD/target/packaging-tools/bin}
[ -e "$first/SHA256SUMS" ] || { echo "$0: run 'make packages' first" >&2; exit 1; }
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    work=$(realpath "$1")
else
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/reproduce.XXXXXX")
    trap 'rm -rf "$work"' EXIT
fi

if [ -d "$work/clone" ]; then
    git -C "$work/clone" pull --quiet --ff-only
else
    git clone --quiet --no-hardlinks . "$work/clone"
    # The crates that were fetched already need not be fetched again.
    mkdir -p "$work/cargo/registry"
    cp -r "${CARGO_HOME:-$HOME/.cargo}"/registry/{cache,index} "$work/cargo/registry/"
fi
(
    umask 077
    cd "$work/clone"
    CARGO_HOME=$work/cargo TOOLS=$tools TZ=Asia/Kathmandu LC_ALL=C packaging/build.sh deb rpm sbom sums >/dev/null
)
second=$work/clone/target/packages
if (cd "$second" && sha256sum --check --quiet "$first/SHA256SUMS"); then
    echo "the same: $(cut -d ' ' -f 3 "$first/SHA256SUMS" | paste -s -d ' ')"
    exit 0
fi
# Which files in the packages differ.
for package in "$first"/*.deb; do
    for side in "$first" "$second"; do
        rm -rf "$work/unpacked"
        dpkg-deb --raw-extract "$side/${package##*/}" "$work/unpacked"
        (cd "$work/unpacked" && find . -type f -exec sha256sum {} + | sort -k 2) >"$work/sums.${side//\//_}"
    done
    diff "$work/sums.${first//\//_}" "$work/sums.${second//\//_}" || echo "$(basename "$package") differs"
done
exit 1
