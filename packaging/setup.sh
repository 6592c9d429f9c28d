#!/bin/bash
# Installs the Debian packages that building and checking packages needs: setup.sh [--tests]
#
# What compiling the program needs is installed by scripts/setup-debian.sh.
set -eu -o pipefail

wanted=(binutils dpkg-dev gzip jq rpm)
[ "${1-}" != --tests ] || wanted+=(debootstrap e2fsprogs lintian python3-venv util-linux)

missing=()
for package in "${wanted[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)
"${root[@]}" apt-get update -q
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
