#!/bin/bash
# Shows a part of a text map, and looks up an offset in it: show-map.sh MAP
set -eu -o pipefail

map=$1
echo
echo "$map: $(wc -l <"$map") lines; DISK START END TYPE DEVICE PATH, offsets in hex, END exclusive:"
grep -v '^#' "$map" | awk '$4 == "f" && ++n % 200 == 1 && n < 1200'

# Any text tool can look something up: it finds the objects with a range that contains one byte.
line=$(grep -v '^#' "$map" | awk '$4 == "f"' | sed -n '100p')
[ -n "$line" ] || exit 0
start=$(cut -d' ' -f2 <<<"$line")
end=$(cut -d' ' -f3 <<<"$line")
offset=$((0x$start + (0x$end - 0x$start) / 2))
printf '\nWhat does byte %d (%#x) of disk 1 belong to?\n' "$offset" "$offset"
grep " $start $end " "$map"
