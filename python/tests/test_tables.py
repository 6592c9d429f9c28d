"""Tables for Arrow and pandas, and the memory that large maps take."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

import virt_bmap
from conftest import ROOT, json_lines, run
from virt_bmap import Map

FORMATS = ROOT / "tests" / "formats"
QUESTIONS = ROOT / "tests" / "questions"


@pytest.mark.parametrize("path", [FORMATS / "sample.jsonl", QUESTIONS / "guest.bmap"])
def test_the_table_is_that_of_the_program(path: Path, tmp_path: Path) -> None:
    table = Map.open(path).to_arrow()
    run("convert", path, tmp_path / "map.parquet")
    parquet = pyarrow.parquet.read_table(tmp_path / "map.parquet")
    assert table.schema.equals(parquet.schema)
    assert table.equals(parquet)
    table.validate(full=True)
    run("convert", path, tmp_path / "map.csv")
    with open(tmp_path / "map.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == table["path"].to_pylist()
    assert table.column_names == list(rows[0])


def test_names_in_the_table_can_be_unescaped() -> None:
    guest = Map.open(FORMATS / "sample.jsonl")
    table = guest.to_arrow()
    named = {(it.path or "").encode("utf-8", "surrogateescape") for it in guest.objects()}
    found = {virt_bmap.unescape(name) for name in table["path"].to_pylist()}
    assert found <= named and any(b"\xff" in name for name in found)


def test_pandas() -> None:
    guest = Map.open(QUESTIONS / "guest.bmap")
    frame = guest.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == guest.range_count
    assert frame.length.sum() == sum(
        end - start for start, end in zip(frame.start, frame.end, strict=True)
    )
    files = guest.files().to_pandas()
    assert list(files.columns) == list(virt_bmap.File._fields)
    assert files.set_index("path").on_disk["/var/cache/big"] == 0x80000
    changes = guest.diff(Map.open(QUESTIONS / "later.bmap")).to_pandas()
    assert set(changes.change) >= {"renamed", "added", "removed"}
    nothing = guest.diff(guest).to_pandas()
    assert nothing.empty and list(nothing.columns) == list(virt_bmap.Change._fields)


def test_odd_names_are_in_frames() -> None:
    guest = Map.open(FORMATS / "sample.jsonl")
    for rows in (guest.files(), guest.objects(), guest.overlaps([(0, 1 << 20)]).shares):
        frame = rows.to_pandas()
        assert tuple(frame.columns) == rows.fields
        named = frame.path.dropna()
        assert any("\\377" in name for name in named)
        assert "\x1b" not in frame.to_string()
        found = [virt_bmap.unescape(name) for name in named]
        expected = [row.path.encode("utf-8", "surrogateescape") for row in rows if row.path]
        assert found == expected
        assert set(named) <= set(guest.to_pandas().path) | set(guest.objects().to_pandas().path)


def test_an_empty_map_has_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(json_lines([]))
    table = Map.open(path).to_arrow()
    assert table.num_rows == 0 and "file_offset" in table.column_names


def test_a_stream_outlives_its_map_and_can_be_dropped() -> None:
    reader = pyarrow.RecordBatchReader.from_stream(Map.open(QUESTIONS / "guest.bmap"))
    assert reader.read_all().num_rows > 0
    capsule = Map.open(QUESTIONS / "guest.bmap").__arrow_c_stream__()
    assert "arrow_array_stream" in repr(capsule)
    del capsule


def test_long_names_end_a_batch_early(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    name = "/" + "\x01" * (250 * 1024)
    ranges = [{"disk": 1, "start": at * 1024, "end": at * 1024 + 512} for at in range(60)]
    path.write_bytes(
        json_lines([{"type": "f", "device": "/dev/sda", "path": name, "ranges": ranges}])
    )
    batches = list(pyarrow.RecordBatchReader.from_stream(Map.open(path)))
    assert sum(len(batch) for batch in batches) == 60
    assert max(len(batch) for batch in batches) == 17


def in_child(code: str, *arguments: str) -> list[int]:
    """Runs Python in a process of its own, and returns the numbers that it prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


LARGE = """
import sys
import pyarrow
from virt_bmap import Map
def peak():
    # Not getrusage: its peak is that of the process before exec, too.
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    print(int(line.split()[1]) * 1024)
peak()
guest = Map.open(sys.argv[1])
assert guest.range_count == 1_000_000
guest.at(1, 0)
sum(1 for it in guest.ranges("/0"))
peak()
found = guest.overlaps((at, at + 1) for at in range(0, 4_000_000_000, 4000))
assert found.bytes == 1_000_000
files = guest.files()
pieces = sum(1 for file in files for piece in guest.ranges(file.path))
assert pieces == 1_000_000, pieces
rows = 0
for batch in pyarrow.RecordBatchReader.from_stream(guest):
    rows += len(batch)
assert rows == 1_000_000, rows
assert len(guest.diff(guest)) == 0
peak()
"""


def test_a_million_ranges_take_bounded_memory(write: Callable[[str, bytes], Path]) -> None:
    """Going over a map, in rows or in batches, takes little more than the map itself."""
    objects = (
        {
            "type": "f",
            "device": "/dev/sda1",
            "path": f"/{number}",
            "ranges": [
                {"disk": 1, "start": at, "end": at + 512, "offset": 1024 * place}
                for place, at in enumerate(range(number * 1024, 1000 * 1_024_000, 1_024_000))
            ],
        }
        for number in range(1000)
    )
    path = write("large.jsonl", json_lines(objects))
    before, opened, after = in_child(LARGE, str(path))
    print(f"{before=} {opened=} {after=}")
    # 32 bytes a range, as much again while it is sorted, the index, and the ranges by object.
    assert opened - before < 100 << 20
    assert after - opened < 64 << 20
