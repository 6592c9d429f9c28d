#!/bin/bash
# Prints the copyright file of a package with these programs: copyright.sh CRATE...
#
# The programs hold code of many crates. For each of them it lists the licence and who holds the
# copyright. Where a crate offers the Apache License, that one is chosen, since its text is on every
# Debian system. The text of every other licence follows at the end, each once.
set -eu -o pipefail

cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
target=x86_64-unknown-linux-gnu

select=()
for crate; do
    select+=(-p "$crate")
done

# name version licence authors repository directory
declare -A crates
while IFS= read -r line; do
    IFS='|' read -r name version _ <<<"$line"
    crates["$name $version"]=$line
done < <("$cargo" metadata --locked --offline --format-version 1 --filter-platform $target |
    jq -r '.packages[] | [.name, .version, .license // "", (.authors | join(", ")), .repository // "",
                          (.manifest_path | rtrimstr("/Cargo.toml"))] | join("|")')

cat <<END
Source: https://github.com/virt-bmap-rs/virt-bmap-rs

virt-bmap-rs is licensed under MIT or the Apache License 2.0, at your option.

$(cat LICENSE-MIT)

On Debian systems, the text of the Apache License 2.0 is in
/usr/share/common-licenses/Apache-2.0.

The programs in this package hold code of the Rust standard library (copyright: the Rust Project
contributors, MIT or Apache License 2.0) and of the crates below.

END

# notices DIRECTORY: the files with licences and notices. zstd's C library may be used under the GPL
# instead of the licence of BSD, which is chosen here.
notices() {
    find "$1" -maxdepth 2 -type f \( -iname 'licen[sc]e*' -o -iname 'copying*' -o -iname 'copyright*' \
        -o -iname 'notice*' -o -iname 'unlicense*' \) ! -name '*.rs' ! -path '*/zstd/COPYING' | sort
}

texts=$(mktemp -d)
trap 'rm -rf "$texts"' EXIT
while read -r name version; do
    IFS='|' read -r _ _ licence authors repository directory <<<"${crates["$name ${version#v}"]}"
    case $directory in "$PWD" | "$PWD"/*) continue ;; esac
    if [ "$name" = guestfs ]; then
        # Its Cargo.toml names a file that is not in the package. deny.toml has the reason.
        licence="LGPL-2.0-or-later (on Debian systems in /usr/share/common-licenses/LGPL-2)"
    fi
    [ -n "$licence" ] || { echo "$0: $name states no licence" >&2; exit 1; }
    mapfile -t files < <(notices "$directory")
    echo "$name ${version#v}: $licence"
    [ -z "$repository" ] || echo "  $repository"
    holders=$([ ${#files[@]} -eq 0 ] || sed -n -E 's/^[[:space:]]*(Copyright .*[0-9(©].*)$/\1/p' "${files[@]}" |
        grep -v -i -E '\[yyyy\]|\{yyyy\}|copyright (owner|notice|holder|license)' | sort -u || :)
    holders=${holders:-Copyright: ${authors:-the authors of $name}}
    echo "  ${holders//$'\n'/$'\n'  }"
    for file in "${files[@]}"; do
        # The Apache License itself is not repeated. A crate that offers it needs no other text, but
        # its notices, and the licences of C libraries that it brings in a directory.
        if grep -q 'TERMS AND CONDITIONS FOR USE, REPRODUCTION' "$file"; then continue; fi
        if [[ $licence == *Apache-2.0* && ${file%/*} = "$directory" && ${file##*/} != NOTICE* ]]; then continue; fi
        digest=$(tr -s '[:space:]' ' ' <"$file" | sha256sum | cut -c 1-64)
        [ -e "$texts/$digest" ] || cp "$file" "$texts/$digest"
        echo "$name ${version#v}" >>"$texts/$digest.crates"
    done
done < <("$cargo" tree --locked --offline --edges normal,no-proc-macro --target $target "${select[@]}" \
    --prefix none --format '{p}' | awk 'NF { print $1, $2 }' | sort -u)

for crates in "$texts"/*.crates; do
    printf '\n%s\n%s:\n\n' "----------------------------------------" "$(sort -u "$crates" | paste -s -d ',' | sed 's/,/, /g')"
    tr -d '\r' <"${crates%.crates}"
done
