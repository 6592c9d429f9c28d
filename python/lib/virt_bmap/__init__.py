"""Block maps of virtual machines: which file every byte of a disk belongs to.

>>> import virt_bmap
>>> guest = virt_bmap.Map.open("guest.bmap")                   # doctest: +SKIP
>>> guest.at(1, 0x100a10)[0].path                              # doctest: +SKIP
'/etc/fstab'

A map is made by the program virt-bmap-rs. This module reads maps; it needs neither that program
nor libguestfs, except for :func:`map_image`, which runs it.

Offsets and sizes are numbers of bytes, and the ends of ranges are exclusive.
"""

from ._native import Map, Rows, __version__, escape, read_ranges, unescape
from ._run import MapImageError, map_image
from ._types import (
    Balance,
    Change,
    Disk,
    File,
    Filesystem,
    Hit,
    Image,
    MapError,
    MapWarning,
    Object,
    Overlaps,
    Range,
    RangeList,
    Share,
)

__all__ = [
    "Balance",
    "Change",
    "Disk",
    "File",
    "Filesystem",
    "Hit",
    "Image",
    "Map",
    "MapError",
    "MapImageError",
    "MapWarning",
    "Object",
    "Overlaps",
    "Range",
    "RangeList",
    "Rows",
    "Share",
    "__version__",
    "escape",
    "map_image",
    "read_ranges",
    "unescape",
]
