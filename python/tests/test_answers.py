"""The answers are those of the program."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import virt_bmap
from conftest import ROOT, as_json, ask, json_lines, name_in_json, run
from virt_bmap import Map

QUESTIONS = ROOT / "tests" / "questions"
FORMATS = ROOT / "tests" / "formats"
MAPS = [
    QUESTIONS / "guest.bmap",
    QUESTIONS / "later.bmap",
    FORMATS / "sample.bmap",
    FORMATS / "sample.csv",
    FORMATS / "sample.jsonl",
    FORMATS / "version-1" / "sample.jsonl",
    FORMATS / "version-1" / "guest.jsonl",
]


def check_at(path: Path, disk: int, offsets: list[int]) -> None:
    rows = ask("lookup", path, *(f"{disk}:{offset}" for offset in offsets))["rows"]
    expected = [row for row in rows if row["type"] != "unmapped"]
    guest = Map.open(path)
    assert [as_json(hit) for offset in offsets for hit in guest.at(disk, offset)] == expected


def check_files(path: Path, *globs: str, types: str = "f") -> None:
    answer = ask("list", path, *globs, "--type", types)
    files = Map.open(path).files(globs or None, types=types)
    assert [as_json(file) for file in files] == answer["rows"]
    assert len(files) == answer["summary"]["found"]
    assert sum(file.on_disk for file in files) == answer["summary"]["on_disk"]


def check_overlaps(path: Path, disk: int, ranges: list[tuple[int, int]]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lines:
        lines.writelines(f"{start} {end - start}\n" for start, end in ranges)
        lines.flush()
        listed = Path(lines.name)
        answer = ask("lookup", path, "--ranges", listed, "--from", "plain", "--disk", str(disk))
    found = Map.open(path).overlaps(ranges, disk)
    for row in answer["rows"]:
        del row["percent"]
    assert [as_json(share) for share in found.shares] == answer["rows"]
    for field in ("bytes", "in_objects", "free", "unmapped"):
        assert getattr(found, field) == answer["summary"][field]


def check_ranges(path: Path) -> None:
    """The ranges of each object, joined, are those of `list --ranges`."""
    guest = Map.open(path)
    for file in guest.objects("fds"):
        assert file.path is not None
        covered: dict[int, set[tuple[int, int]]] = {}
        for piece in guest.ranges(file.path, device=file.device, type=file.type):
            covered.setdefault(piece.disk, set()).add((piece.start, piece.end))
        pattern = "".join(f"[{c}]" if c in "*?[{" else c for c in file.path)
        if not pattern.isascii() or set(pattern) & set("\\!]}^\n\r"):
            continue
        selected = ("--type", file.type, "--device", file.device, "--ranges")
        printed = run("list", *selected, "--", path, pattern)
        expected: dict[int, set[tuple[int, int]]] = {}
        disk = 0
        for line in printed.decode().splitlines():
            if line.startswith("# disk "):
                disk = int(line.removeprefix("# disk "))
            else:
                start, length = map(int, line.split())
                expected.setdefault(disk, set()).add((start, start + length))
        assert {disk: joined(ranges) for disk, ranges in covered.items()} == {
            disk: joined(ranges) for disk, ranges in expected.items()
        }


def joined(ranges: set[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def check_diff(old: Path, new: Path) -> None:
    answer = ask("diff", old, new)
    changes = Map.open(old).diff(Map.open(new))
    assert [as_json(change) for change in changes] == answer["rows"]


@pytest.mark.parametrize("path", MAPS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_answers_are_those_of_the_program(path: Path) -> None:
    guest = Map.open(path)
    edges = sorted(
        {edge for piece in all_ranges(guest) for edge in (piece.start, piece.end - 1, piece.end)}
    )
    for disk in {piece.disk for piece in all_ranges(guest)}:
        size = max(piece.end for piece in all_ranges(guest) if piece.disk == disk)
        inside = [edge for edge in edges if edge < size]
        check_at(path, disk, inside)
        check_overlaps(path, disk, [(edge, min(edge + 1000, size)) for edge in inside])
    for types in ("f", "d", "fdsm", "vplbu"):
        check_files(path, types=types)
    check_files(path, "/etc/**", "/boot/*")
    check_ranges(path)


def all_ranges(guest: Map) -> list[virt_bmap.Range]:
    ranges: list[virt_bmap.Range] = []
    for it in guest.objects():
        ranges.extend(guest.ranges(it.path, device=it.device, type=it.type))
    assert len(ranges) == guest.range_count
    return ranges


@pytest.mark.parametrize("old", MAPS[:3], ids=lambda path: path.name)
@pytest.mark.parametrize("new", MAPS, ids=lambda path: path.name)
def test_differences_are_those_of_the_program(old: Path, new: Path) -> None:
    check_diff(old, new)
    check_diff(new, old)


#: Names as a hostile guest has them.
HOSTILE = [
    b"/\xff\xfe",
    b"/a\nb",
    b"/\\012",
    b"/\x1b[2J",
    b"=1+1",
    "/é\u202e".encode(),
    b"/\xed\xa0\x80",
]
names = st.one_of(
    st.sampled_from(HOSTILE),
    st.binary(min_size=1, max_size=12),
    st.text(min_size=1, max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@st.composite
def maps(draw: st.DrawFn) -> bytes:
    """A map with odd names, shared and overlapping ranges, copies, holes and hard links."""
    keys = draw(st.lists(st.tuples(st.sampled_from("fdsm"), st.integers(1, 2), names), max_size=12))
    objects: list[dict[str, Any]] = [
        {"type": "v", "device": device, "ranges": [{"disk": disk, "start": 0, "end": 40_000}]}
        for disk, device in ((1, "/dev/sda"), (2, "/dev/sdb"))
    ]
    for kind, device, path in sorted(set(keys)):
        one: dict[str, Any] = {
            "type": kind,
            "device": f"/dev/sda{device}",
            "path": name_in_json(path),
        }
        if draw(st.booleans()):
            one |= {
                "inode": draw(st.integers(1, 4)),
                "size": draw(st.integers(0, 2**63)),
                "links": 2,
            }
        ranges: list[dict[str, Any]] = []
        for start in draw(st.lists(st.integers(0, 20), max_size=4)):
            length = draw(st.integers(1, 4)) * 512
            one_range: dict[str, Any] = {
                "disk": draw(st.integers(1, 2)),
                "start": start * 512,
                "end": start * 512 + length,
            }
            if draw(st.booleans()):
                one_range["offset"] = start * 512
            if draw(st.booleans()):
                one_range["flags"] = [draw(st.sampled_from(["unwritten", "parity", "encoded"]))]
            ranges.append(one_range)
        objects.append(one | {"ranges": ranges})
    return json_lines(objects)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    maps(),
    maps(),
    st.lists(st.tuples(st.integers(0, 12_000), st.integers(1, 9000)), min_size=1, max_size=9),
)
def test_odd_maps_are_answered_as_the_program_does(
    old: bytes, new: bytes, pairs: list[tuple[int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, name) for name in ("old.jsonl", "new.jsonl")]
        for path, contents in zip(paths, (old, new), strict=True):
            path.write_bytes(contents)
        for disk in (1, 2):
            check_at(paths[0], disk, [start for start, _ in pairs])
            check_overlaps(paths[0], disk, [(start, start + length) for start, length in pairs])
        check_files(paths[0], types="fdsm")
        check_diff(*paths)


def test_lists_of_ranges_are_those_of_the_program() -> None:
    path = QUESTIONS / "changed.json"
    answer = ask("lookup", MAPS[0], "--ranges", path)
    listed = virt_bmap.read_ranges(path)
    summary = answer["summary"]
    assert (listed.format, listed.rule) == (summary["kind"], summary["rule"])
    assert (listed.entries, listed.counted) == (summary["entries"], summary["counted"])
    assert len(listed.ranges) == summary["ranges"]
    found = Map.open(MAPS[0]).overlaps(listed)
    assert found[1:] == Map.open(MAPS[0]).overlaps(listed.ranges)[1:]
    assert listed.disk_size == Map.open(MAPS[0]).disks[0].size
    with pytest.raises(ValueError, match="for a disk of 8388608 bytes, but disk 1 .* has 1048576"):
        Map.open(FORMATS / "sample.jsonl").overlaps(listed)
    assert (found.bytes, found.in_objects) == (summary["bytes"], summary["in_objects"])
    bad = virt_bmap.read_ranges(QUESTIONS / "bad-blocks.txt", format="badblocks", block_size=512)
    command = ("--from", "badblocks", "--block-size", "512")
    answer = ask("lookup", MAPS[0], "--ranges", QUESTIONS / "bad-blocks.txt", *command)
    assert sum(end - start for start, end in bad.ranges) == answer["summary"]["bytes"]


def test_the_header_is_that_of_the_map() -> None:
    guest = Map.open(FORMATS / "sample.jsonl")
    header = json.loads((FORMATS / "sample.jsonl").read_bytes().splitlines()[0])
    assert guest.generator == header["generator"]
    assert [(disk.number, disk.size, disk.image.format) for disk in guest.disks] == [
        (image["disk"], image["size"], image["format"]) for image in header["images"]
    ]
    assert len(guest.disks[0].backing) == len(header["images"][0]["chain"])
    assert not guest.complete
    for warning, written in zip(guest.warnings, header["warnings"], strict=True):
        cause = dict(written["cause"])
        assert warning.kind == cause.pop("kind")
        assert warning.data == cause
        assert warning.device == written.get("device")
        assert warning.text == written["text"]
    filesystem, written = guest.filesystems[0], header["filesystems"][0]
    assert filesystem.balance is not None and guest.balance == filesystem.balance
    assert filesystem.balance._asdict() == written["balance"]
    assert (filesystem.type, filesystem.free) == (written["type"], written["free"])
    used, unexplained = filesystem.balance.used, filesystem.balance.unexplained
    assert guest.explained == (used - unexplained) * 10_000 // used / 10_000
    assert Map.open(FORMATS / "sample.csv").disks == ()


def test_names_are_found_by_text_and_bytes(write: Any) -> None:
    files = [("/dev/sda1", b"/\xff", 512), ("/dev/sda1", b"/twice", 0), ("/dev/sda2", b"/twice", 0)]
    objects = (
        {
            "type": "f",
            "device": device,
            "path": name_in_json(name),
            "ranges": [{"disk": 1, "start": start, "end": start + 512}],
        }
        for device, name, start in files
    )
    path = write("odd.jsonl", json_lines(objects))
    guest = Map.open(path)
    found = guest.at(1, 512)[0]
    assert found.path == "/\udcff"
    assert list(guest.ranges(found.path)) == list(guest.ranges(b"/\xff"))
    with pytest.raises(ValueError, match="there are several: .*sda1 /twice.*sda2 /twice"):
        guest.ranges("/twice")
    assert len(guest.ranges("/twice", device="/dev/sda2")) == 1
    with pytest.raises(KeyError, match="/none"):
        guest.ranges("/none")
    with pytest.raises(KeyError):
        guest.ranges("/twice", device="/dev/sda3")


def test_rows_are_a_sequence() -> None:
    files = Map.open(MAPS[0]).files()
    rows = list(files)
    assert len(files) == len(rows) > 3
    assert [files[number] for number in range(-len(rows), len(rows))] == rows * 2
    assert files[1:4] == rows[1:4] and files[::-2] == rows[::-2]
    for number in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            files[number]
    later = iter(files)
    assert list(later) == rows and list(later) == []
    assert repr(files) == f"<virt_bmap.Rows: {len(rows)}>"


def test_arguments_are_checked() -> None:
    guest = Map.open(MAPS[0])
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: guest.at(0, 0), "no disk 0"),
        (lambda: guest.at(2, 0), "no disk 2"),
        (lambda: guest.at(1, 8 << 20), "byte 8388608 is past the end of disk 1, which has 8388608"),
        (lambda: guest.at(1, 2**64 - 1), "past the end"),
        (lambda: guest.overlaps([], 0), "no disk 0"),
        (lambda: guest.overlaps([(0, 2**64 - 1)]), "past the end"),
        (lambda: guest.overlaps([(5, 4)]), "range 0 ends at 4"),
        (lambda: guest.overlaps([(1, 2), (5,)]), "range 1 is not a pair"),
        (lambda: guest.overlaps([(1, 2, 3)]), "range 0 is not a pair"),
        (lambda: guest.files("/[a"), "invalid pattern"),
        (lambda: guest.files(types="fx"), "letters of types"),
        (lambda: guest.objects("é"), "letters of types"),
        (lambda: virt_bmap.read_ranges(MAPS[0], format="none"), "formats are"),
        (lambda: virt_bmap.read_ranges(MAPS[0], block_size=0), "at least one byte"),
        (lambda: virt_bmap.unescape("\\9"), "three octal digits"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()
    for disk, offset in ((1, -1), (1, 2**64), (70_000, 0)):
        with pytest.raises(OverflowError):
            guest.at(disk, offset)
    assert guest.overlaps([]).bytes == 0
    assert guest.overlaps((x, x + 1) for x in range(3)).bytes == 3
    assert virt_bmap.unescape(r"/a\012b\377") == b"/a\nb\xff"
