"""Running the program. A script stands in for it, but for the last tests."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

import virt_bmap
from conftest import ROOT, find_program
from virt_bmap import MapImageError, map_image

SAMPLE = ROOT / "tests" / "formats" / "sample.jsonl"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that notes its arguments, writes a map, and ends with $STATUS."""
    path = tmp_path / "program"
    path.write_text(
        f"""#!/bin/sh
printf '%s\\n' "$@" > '{tmp_path}/arguments'
echo 'examined nothing'
echo 'virt-bmap-rs: a message' >&2
[ -z "$SLEEP" ] || exec sleep "$SLEEP"
while [ "$1" != -o ]; do shift; done
[ -n "$NO_MAP" ] || cat '{SAMPLE}' > "$2"
exit "${{STATUS:-0}}"
"""
    )
    path.chmod(0o755)
    return path


def arguments(program: Path) -> list[str]:
    return (program.parent / "arguments").read_text().splitlines()


def test_a_map_is_made(program: Path, tmp_path: Path) -> None:
    guest = map_image("guest.raw", program=program)
    assert guest.range_count == virt_bmap.Map.open(SAMPLE).range_count
    given = arguments(program)
    assert given[0] == "-o" and given[2:] == ["--", "guest.raw"]
    assert not os.path.exists(given[1])

    kept = tmp_path / "kept.jsonl"
    map_image([Path("-a"), "list"], program=program, output=kept, options=["--accel", "tcg"])
    assert arguments(program) == ["--accel", "tcg", "-o", str(kept), "--", "-a", "list"]
    assert kept.exists()


def test_an_incomplete_map_is_no_error(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATUS", "3")
    guest = map_image("guest.raw", program=program)
    assert not guest.complete and guest.warnings
    with pytest.raises(MapImageError, match="status 3") as caught:
        map_image("guest.raw", program=program, strict=True)
    assert caught.value.map is not None and caught.value.map.warnings == guest.warnings


@pytest.mark.parametrize("status", [1, 2, 4, 130])
def test_other_statuses_are_errors(
    status: int, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATUS", str(status))
    with pytest.raises(MapImageError, match=f"status {status}: virt-bmap-rs: a message") as caught:
        map_image("guest.raw", program=program)
    assert caught.value.status == status and caught.value.map is None
    assert "examined nothing" in caught.value.messages


def test_a_program_that_writes_no_map_is_an_error(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_MAP", "1")
    with pytest.raises(FileNotFoundError):
        map_image("guest.raw", program=program)


def test_a_program_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        map_image("guest.raw", program=tmp_path / "no-such-program")


def test_a_run_that_takes_too_long_is_ended(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEP", "60")
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        map_image("guest.raw", program=program, timeout=0.3)
    assert time.monotonic() - began < 20


def test_a_signal_is_an_error(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(MapImageError) as caught:
        map_image("guest.raw", program=program)
    assert caught.value.status == -signal.SIGKILL


def test_the_real_program_takes_the_arguments(tmp_path: Path) -> None:
    for image in ("-x", "list"):
        with pytest.raises(MapImageError, match=image) as caught:
            map_image(image, program=find_program(), options=["-q"])
        assert caught.value.status == 1, caught.value.messages


def test_a_guest_is_mapped(tmp_path: Path) -> None:
    """The real program, in a real appliance: a partition holds what nothing knows."""
    disk = bytearray(random.Random(1).randbytes(4 << 20))
    # A partition table (MBR) with one Linux partition, from 1 MiB to the end.
    disk[:512] = (
        bytes(446) + struct.pack("<B3xB3xII", 0, 0x83, 2048, 6144) + bytes(48) + b"\x55\xaa"
    )
    disk[512 : 1 << 20] = bytes((1 << 20) - 512)
    image = tmp_path / "noise.raw"
    image.write_bytes(disk)
    guest = map_image(image, program=find_program(), options=["--format", "raw"], timeout=600)
    assert [warning.kind for warning in guest.warnings] == ["unknown-content"]
    assert not guest.complete
    assert [(hit.type, hit.device) for hit in guest.at(1, 1 << 20)] == [
        ("p", "/dev/sda1"),
        ("v", "/dev/sda"),
    ]
    assert guest.disks[0].size == 4 << 20 and guest.disks[0].image.format == "raw"
