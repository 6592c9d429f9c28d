"""The rows of answers, and the errors.

Each row is a named tuple: its fields have names, and it compares and prints as a tuple does.

Offsets and sizes are numbers of bytes. An ``end`` is the first byte after a range. Times are
nanoseconds since 1970 in UTC. What a map does not know is ``None``.

``type`` is the letter of an object: ``v`` disk, ``p`` partition, ``l`` logical volume, ``b`` other
block device, ``d`` directory, ``f`` file, ``s`` symbolic link, ``m`` metadata, ``u`` unused space.

Names in a guest are bytes. As ``str`` they are decoded like names of the system
(``surrogateescape``): ``name.encode("utf-8", "surrogateescape")`` returns the bytes. They are not
escaped, so a name may hold a line feed, or what controls a terminal; ``repr`` shows it safely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ._native import Rows


class Hit(NamedTuple):
    """An object that a byte belongs to. The fields are those of ``lookup --json``."""

    disk: int
    """Number of the disk, from 1."""
    offset: int
    """The offset on the disk, in bytes, that was asked for."""
    type: str
    """Letter of the object's type."""
    device: str
    """The device that the object is, or is on."""
    path: str | None
    """Its path from the root of its filesystem; ``None`` if it is a device."""
    file_offset: int | None
    """The byte's offset in the object, in bytes."""


class File(NamedTuple):
    """A file in a list, under the first of its names. The fields are those of ``list --json``."""

    type: str
    """Letter of the object's type."""
    device: str
    """The device that it is on."""
    path: str | None
    """Its path from the root of its filesystem."""
    names: int
    """Number of its names (hard links) among the selected ones."""
    inode: int | None
    """Number of its inode."""
    size: int | None
    """Its size in bytes, as ``stat`` gives it."""
    on_disk: int
    """Number of its bytes on all disks, each counted once."""
    shared: int
    """Number of its bytes on the disks that another file has, too."""
    pieces: int
    """Number of ranges that its bytes form; more than 1 for a fragmented file."""
    disk: int | None
    """Number of the disk with its first range."""
    start: int | None
    """Offset of that range on the disk, in bytes."""


class Share(NamedTuple):
    """A part of queried bytes, and what it belongs to.

    The fields are those of ``lookup --ranges --json``, without the percentage.
    """

    bytes: int
    """Number of bytes. A byte that several files share counts in each of them."""
    what: str
    """``object``; ``free``: on this device and in none of its files; ``unmapped``: in no object."""
    type: str | None
    """Letter of the object's type; ``None`` if the bytes are unmapped."""
    device: str | None
    """The device that the object is, or is on."""
    path: str | None
    """Its path from the root of its filesystem."""
    names: int | None
    """Number of the file's names (hard links) among those that have these bytes."""
    inode: int | None
    """Number of the file's inode."""


class Overlaps(NamedTuple):
    """Queried bytes, divided among the objects of a map."""

    shares: Rows[Share]
    """The parts, the largest first."""
    bytes: int
    """Number of queried bytes, each counted once."""
    in_objects: int
    """Number of them in files, directories and metadata."""
    free: int
    """Number of them elsewhere on a disk, partition or volume."""
    unmapped: int
    """Number of them in no object of the map."""


class Change(NamedTuple):
    """A difference between two maps. The fields are those of ``diff --json``."""

    change: str
    """``added``, ``removed``, ``renamed``, ``linked``, ``unlinked``, ``moved``, ``grown``,
    ``shrunk``."""
    type: str | None
    """Letter of the object's type."""
    device: str | None
    """The device that it is, or is on."""
    path: str | None
    """Its path in the new map."""
    old_path: str | None
    """Its path in the old map."""
    names: int
    """Number of the file's names that changed in the same way."""
    old_inode: int | None
    """Number of its inode in the old map."""
    new_inode: int | None
    """Number of its inode in the new map."""
    old_bytes: int
    """Its bytes on the disks in the old map."""
    new_bytes: int
    """Its bytes on the disks in the new map."""
    gained: int
    """Bytes of the disks that it has and did not have: at least these were written."""
    lost: int
    """Bytes of the disks that it had and no longer has."""
    new_size: int | None
    """Its size in bytes in the new map, as ``stat`` gives it."""


class Object(NamedTuple):
    """An object of a map and its attributes."""

    type: str
    """Letter of its type."""
    device: str
    """The device that it is, or is on."""
    path: str | None
    """Its path from the root of its filesystem; ``None`` if it is a device."""
    inode: int | None
    """Number of its inode."""
    size: int | None
    """Its size in bytes, as ``stat`` gives it."""
    allocated: int | None
    """Bytes that its filesystem has allocated for it."""
    links: int | None
    """Number of hard links."""
    mode: int | None
    """Type and permissions, as ``st_mode`` of Linux has them."""
    modified: int | None
    """When its data was last modified, in nanoseconds since 1970, UTC."""
    changed: int | None
    """When its inode was last changed, in nanoseconds since 1970, UTC."""
    marks: tuple[str, ...]
    """Its marks, such as ``sparse``; docs/formats.md lists them."""
    reparse: str | None
    """The tag of its reparse point (NTFS)."""


class Range(NamedTuple):
    """A range of a disk that belongs to an object."""

    disk: int
    """Number of the disk, from 1."""
    start: int
    """Its first byte on the disk."""
    end: int
    """The first byte after it."""
    file_offset: int | None
    """Offset of the range in the object, in bytes. Text maps have none."""
    copy: int
    """Number of the copy, as in a mirror: 0 is the first."""
    flags: tuple[str, ...]
    """``unwritten``, ``parity``, ``encoded``, ``inline``: how it is not plain data."""


class Image(NamedTuple):
    """A file of an image."""

    name: str
    """Its name, as the user or the image above it names it."""
    format: str
    """Its format, as qemu names it."""


class Disk(NamedTuple):
    """A disk of the guest."""

    number: int
    """Its number in the map, from 1."""
    size: int
    """Its size in bytes, as the guest sees it."""
    sector: int
    """Bytes in one of its sectors."""
    image: Image
    """The image that was mapped."""
    snapshot: str | None
    """The snapshot in the image that was mapped; ``None``: the present disk."""
    backing: tuple[Image, ...]
    """The images below, down to the base."""


class Balance(NamedTuple):
    """What the bytes are that a filesystem says are in use. All numbers are bytes."""

    used: int
    """Bytes in use: the sum of the next five."""
    files: int
    """In files."""
    directories: int
    """In directories."""
    metadata: int
    """In metadata and symbolic links."""
    superseded: int
    """In blocks that the filesystem keeps and nothing refers to."""
    unexplained: int
    """In none of these."""
    claimed_twice: int
    """Bytes with two owners that cannot share them."""
    claimed_free: int
    """Bytes of files and directories that the filesystem says are free."""


class Filesystem(NamedTuple):
    """A filesystem that was examined."""

    device: str
    """The device that it is on."""
    type: str
    """Its type, as ``blkid`` names it."""
    block_size: int | None
    """Bytes in one of its blocks."""
    size: int | None
    """Its size in bytes."""
    free: int | None
    """Number of free bytes."""
    free_mapped: int | None
    """Number of bytes that the map lists as unused."""
    directories: int
    """Number of directories."""
    files: int
    """Number of names of files."""
    balance: Balance | None
    """What its bytes in use are; ``None`` if it does not say which are."""


class MapWarning(NamedTuple):
    """Something that could not be examined, or that a reader of the map should know."""

    kind: str
    """The kind of the cause, as in docs/formats.md. Decide by it, never by the text."""
    incomplete: bool
    """Whether something is missing from the map."""
    device: str | None
    """The device that it is about."""
    path: str | None
    """The directory or file on that device."""
    image: str | None
    """The image that it is about."""
    data: dict[str, Any]
    """The data of the cause, as in docs/formats.md."""
    text: str
    """The warning in words, safe for a terminal."""


class RangeList(NamedTuple):
    """A list of ranges that another program wrote."""

    format: str
    """Its format: a word of ``lookup --from``."""
    rule: str
    """Which of its entries count, in words."""
    entries: int
    """Number of its entries."""
    counted: int
    """Number of its entries that count."""
    disk_size: int | None
    """Size in bytes of the disk that it is for, if its format covers a disk from end to end."""
    ranges: list[tuple[int, int]]
    """First byte, and first byte after, of each range: ascending, disjoint."""


class MapError(ValueError):
    """A file is not a map, or not a list of ranges, or is damaged."""

    def __init__(self, message: str, path: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        """The file."""
        self.line = line
        """Number of the wrong line, from 1, if one line is wrong."""
