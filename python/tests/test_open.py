"""Every format is read, and what is not a map is refused: with its path, and with the line."""

from __future__ import annotations

import gzip
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import virt_bmap
from conftest import ROOT, run
from virt_bmap import Map, MapError

Write = Callable[[str, bytes], Path]
FORMATS = ROOT / "tests" / "formats"


@pytest.mark.parametrize("suffix", ["bmap", "jsonl", "csv"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_formats_are_read(suffix: str, packed: str, tmp_path: Path) -> None:
    plain = Map.open(FORMATS / f"sample.{suffix}")
    path = tmp_path / f"sample.{suffix}{packed}"
    run("convert", FORMATS / f"sample.{suffix}", path)
    guest = Map.open(str(path))
    assert list(guest.objects()) == list(plain.objects())
    assert guest.range_count == plain.range_count > 0
    assert guest.path == str(path)
    assert repr(path) not in repr(guest) and path.name in repr(guest)
    # The contents decide, and not the name.
    path.rename(tmp_path / "map")
    assert list(Map.open(tmp_path / "map").files()) == list(plain.files())


@pytest.mark.parametrize("suffix, name", [("parquet", "Parquet"), ("xml", "DFXML")])
def test_formats_that_are_only_written_are_refused(suffix: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"map.{suffix}"
    run("convert", FORMATS / "sample.jsonl", path)
    with pytest.raises(ValueError, match=f"{path}.*this is {name}, which is written only"):
        Map.open(path)


BROKEN = [
    ("empty", b"", None),
    ("no map", b"\x7fELF\0\0", 1),
    ("text", b"# virt-bmap-rs 0.1.0 map 1\n1 0 100 v /dev/sda\n1 80 90 f /dev/sda1 /a\n", 3),
    ("cut off", b"1 0 100 v /dev/sda\n1 100 200 v /dev", 2),
    ("escape", b"# virt-bmap-rs 0.1.0 map 1\n1 0 100 f /dev/sda /\\9\n", 2),
    ("disk", b"70000 0 100 v /dev/sda\n", 1),
    (
        "json",
        b'{"format":"virt-bmap","version":2,"generator":"","dialect":"escaped"}\n{"type":\n',
        2,
    ),
    ("version", b'{"format":"virt-bmap","version":9}\n', 1),
    (
        "records",
        b'{"format":"virt-bmap","version":2,"generator":"","dialect":"escaped","records":3}\n',
        None,
    ),
    ("nested", b"[" * 100_000 + b"\n", 1),
    ("json nested", b'{"a":' * 100_000 + b"\n", 1),
    ("gzip", gzip.compress(b"1 0 100 v /dev/sda\n" * 9)[:-12], None),
    ("zstd", b"\x28\xb5\x2f\xfd\x00\x00\xff\xff", None),
    ("bmap-tools", b'<?xml version="1.0" ?>\n<bmap version="2.0">\n</bmap>\n', None),
]


@pytest.mark.parametrize("name, contents, line", BROKEN, ids=[name for name, _, _ in BROKEN])
def test_what_is_no_map_is_refused(
    name: str, contents: bytes, line: int | None, write: Write
) -> None:
    path = write("broken map", contents)
    with pytest.raises(ValueError) as caught:
        Map.open(path)
    error = caught.value
    assert isinstance(error, MapError)
    assert str(path) in str(error) and error.path == str(path)
    assert error.line == line, error
    if line is not None and line > 1:
        assert f"line {line}:" in str(error)


def test_a_row_of_csv_is_named(write: Write) -> None:
    rows = (FORMATS / "sample.csv").read_bytes().splitlines(keepends=True)
    rows[4] = b"1,9,8,7,f,/dev/sda,/a\n"
    with pytest.raises(MapError, match="line 5: ") as caught:
        Map.open(write("map.csv", b"".join(rows)))
    assert caught.value.line == 5


def test_a_list_that_is_none_is_refused(write: Write) -> None:
    path = write("list", b"0 512\nx y\n")
    with pytest.raises(MapError, match="list: line 2: ") as caught:
        virt_bmap.read_ranges(path)
    assert (caught.value.path, caught.value.line) == (str(path), 2)
    with pytest.raises(MapError, match="empty"):
        virt_bmap.read_ranges(write("nothing", b""))
    with pytest.raises(FileNotFoundError):
        virt_bmap.read_ranges("/no such list")


def test_files_that_cannot_be_read_are_errors_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Map.open(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        Map.open(tmp_path)
    with pytest.raises(TypeError):
        Map.open(5)  # type: ignore[arg-type]


def test_a_dash_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        Map.open("-")
    (tmp_path / "-").write_bytes((FORMATS / "sample.bmap").read_bytes())
    assert Map.open("-").range_count > 0


def test_a_path_that_is_not_utf8_is_opened(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.bmap"
    with open(path, "wb") as file:
        file.write((FORMATS / "sample.bmap").read_bytes())
    assert Map.open(os.fsdecode(path)).range_count > 0


def damaged(contents: bytes, seed: int) -> bytes:
    """The contents with some damage, the same for the same seed."""
    chance = random.Random(seed)
    damage = bytearray(contents)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(damage))
        match chance.randrange(5):
            case 0:
                damage[at] = chance.randrange(256)
            case 1:
                del damage[at : at + chance.randint(1, 40)]
            case 2:
                damage[at:at] = chance.randbytes(chance.randint(1, 20))
            case 3:
                digits = str(chance.choice([0, 2**16, 2**32, 2**63, 2**64 - 1, 2**64])).encode()
                damage[at : at + 1] = digits
            case 4:
                other = chance.randrange(len(damage))
                damage[at:at] = damage[other : other + chance.randint(1, 200)]
        if not damage:
            break
    return bytes(damage)


@pytest.mark.parametrize("suffix", ["bmap", "jsonl", "csv"])
def test_damaged_maps_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    contents = (FORMATS / f"sample.{suffix}").read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    refused = 0
    for seed in range(400):
        path.write_bytes(damaged(contents, seed))
        # A panic is no Exception, and would end the test.
        try:
            guest = Map.open(path)
        except ValueError as error:
            assert str(path) in str(error), seed
            refused += 1
            continue
        for it in guest.objects():
            for piece in guest.ranges(it.path, device=it.device, type=it.type):
                assert guest.at(piece.disk, piece.start), seed
        if guest.range_count:
            guest.overlaps([(piece.start, piece.end)], piece.disk)
        assert list(guest.diff(guest)) == []
        guest.files(types="vplbdfsmu")[:]
        assert guest.warnings is not None and guest.filesystems is not None
    assert 40 < refused < 400


def test_threads_ask_one_map() -> None:
    guest = Map.open(FORMATS / "sample.jsonl")
    expected = [guest.at(1, offset) for offset in range(0, 0x6D000, 0x400)]
    files = guest.files()
    rows = list(files)
    fresh = Map.open(FORMATS / "sample.jsonl")
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(5):
            answers = [fresh.at(1, offset) for offset in range(0, 0x6D000, 0x400)]
            if answers != expected or list(fresh.files()) != rows:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
