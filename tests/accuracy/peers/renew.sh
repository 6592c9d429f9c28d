#!/bin/bash
# Makes the NTFS in this directory again, and records what map_extents of dfImageTools says of it:
# tests/accuracy/peers/renew.sh VERSION
#
# Needs guestfish, zstd and python3 with venv. Nothing else needs to run again afterwards: the tests
# read both files.
set -eu -o pipefail
cd "$(dirname "$0")"
version=$1
staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT

# What a volume of Windows has: named streams of a file and of a directory, files with reparse
# points (CompactOS, OneDrive), holes, compressed files, a file in pieces, hard links. The contents
# are single letters, so that the image compresses.
cat > "$staging/fill.sh" <<'FILL'
cd "$1"
data() { head -c "$2" /dev/zero | tr '\0' "${1:0:1}" > "$1"; }
stream() { setfattr -n "user.$2" -v "0s$(head -c "$3" /dev/zero | tr '\0' s | base64 -w0)" "$1"; }
reparse() { setfattr -n system.ntfs_reparse_data -v "$2" "$1"; }
data plain 30000
mkdir many compressed
for i in $(seq 1 150); do echo "$i" > "many/a rather long name of file number $i"; done
for i in $(seq 1 25); do data "$i-between" 3000; head -c 15000 /dev/zero >> pieces; done
rm *-between
stream pieces big 60000
stream pieces small 20
stream many onDir 30000
data linked 5000
stream linked extra 9000
for i in $(seq 1 9); do ln linked "a long name of the file with many names $i"; done
truncate -s 3000000 sparse
printf middle | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none
truncate -s 500000 hole
setfattr -n system.ntfs_attrib_be -v 0x00000810 compressed
data compressed/file 400000
truncate -s 300000 wof.exe
stream wof.exe WofCompressedData 50000
reparse wof.exe 0x170000801000000001000000020000000100000000000000
data onedrive 40000
reparse onedrive 0x1a000090040000000a0b0c0d
data gone 20000
sync
rm gone
FILL
guestfish <<GUESTFISH
disk-create $staging/ntfs.img raw 12M
add $staging/ntfs.img format:raw
run
debug sh 'mkntfs -q -Q -F -c 4096 -s 512 -p 0 -H 0 -S 0 /dev/sda >&2'
mount-options compression /dev/sda /
upload $staging/fill.sh /fill.sh
debug sh 'bash -e /sysroot/fill.sh /sysroot >&2'
umount-all
GUESTFISH
python3 -m venv "$staging/venv"
"$staging/venv/bin/pip" install --quiet "dfimagetools==$version"
zstd -q -f -19 "$staging/ntfs.img" -o ntfs.img.zst
{ echo "# map_extents of dfimagetools $version"; "$staging/venv/bin/map_extents" "$staging/ntfs.img"; } > map_extents.txt
