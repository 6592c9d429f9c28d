#!/bin/bash
# Checks whether the oldest compiler that Cargo.toml promises can build the workspace.
#
# If rustup has that compiler (rustup toolchain install VERSION), the script builds with it.
# Otherwise it checks the compiler version that every package in Cargo.lock states. This finds a
# dependency that has become too new.
set -eu -o pipefail

cd "$(dirname "$0")/.."
version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
toolchain=$({ rustup toolchain list 2>/dev/null || :; } | sed -n "s/^\(${version//./\\.}[-.][^ ]*\).*/\1/p" | head -n 1)

if [ -n "$toolchain" ]; then
    echo "building with $toolchain"
    # A build script builds the agent for musl if that target is installed.
    exec cargo "+$toolchain" check --workspace --locked --target-dir target/msrv
fi

echo "Rust $version is not installed: looking at what each package needs"
cargo metadata --locked --format-version 1 | python3 -c '
import json, sys

def number(version):
    return tuple(int(part) for part in (version.split("-")[0] + ".0.0").split(".")[:3])

ours = sys.argv[1]
packages = json.load(sys.stdin)["packages"]
told = [package for package in packages if package["rust_version"]]
newer = [package for package in told if number(package["rust_version"]) > number(ours)]
for package in newer:
    name = package["name"] + " " + package["version"]
    print(name, "needs Rust", package["rust_version"] + ";", "Cargo.toml says", ours, file=sys.stderr)
print(len(told), "of", len(packages), "packages say what they need")
sys.exit(1 if newer else 0)
' "$version"
