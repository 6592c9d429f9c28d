"""Which files did this backup change?

    python what_changed.py MAP CHANGED [DISK]

MAP is the map of the guest. CHANGED is either the list of the ranges that the backup holds, as
`qemu-img map --output=json increment.qcow2` or `nbdinfo --map=qemu:dirty-bitmap:NAME --json URI`
prints it, or the map of the guest at the time of the backup. DISK is the number of the disk that
the list is for.

Editors that know cells (Jupyter, VS Code, Spyder) run it cell by cell.
"""

# %% The map, and what has changed
import sys

import virt_bmap

map_path, changed_path = sys.argv[1:3]
disk = int(sys.argv[3]) if len(sys.argv) > 3 else 1
guest = virt_bmap.Map.open(map_path)
for warning in guest.warnings:
    if warning.incomplete:
        print("the map lacks something:", warning.text)

later = None
try:
    later = virt_bmap.Map.open(changed_path)
except virt_bmap.MapError:
    changed = virt_bmap.read_ranges(changed_path)
    print(f"{changed.counted} of {changed.entries} ranges count: {changed.rule}")

# %% A table with a row for each file
if later is None:
    found = guest.overlaps(changed, disk)
    print(f"{found.bytes} bytes, {found.in_objects} of them in files, directories and metadata")
    files = found.shares.to_pandas()
    files = files[files.type == "f"].rename(columns={"bytes": "written"})
    files["change"] = "written"
else:
    files = guest.diff(later).to_pandas()
    files = files[files.type == "f"].rename(columns={"gained": "written"})
    files["path"] = files.path.fillna(files.old_path)

# %% The files with the most bytes
largest = files.sort_values("written", ascending=False, kind="stable")
print(largest[["change", "written", "path"]].head(20).to_string(index=False))

# %% The same by directory: which parts of the system make backups large?
directories = files.path.str.extract(r"^((?:/[^/]+){1,2})/", expand=False).fillna("/")
print(files.groupby(directories).written.agg(["count", "sum"]).sort_values("sum").tail(20))
