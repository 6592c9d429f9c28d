"""What the tests share: the program as an oracle, and maps to ask about."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: The fields of rows that are names from a guest.
NAMES = ("device", "path", "old_path")


def find_program() -> str:
    """The program that this checkout has built; VIRT_BMAP names another."""
    if named := os.environ.get("VIRT_BMAP"):
        return named
    built = [ROOT / "target" / profile / "virt-bmap-rs" for profile in ("debug", "release")]
    there = [path for path in built if path.exists()]
    if not there:
        pytest.fail("the program is not built: cargo build", pytrace=False)
    return str(max(there, key=lambda path: path.stat().st_mtime))


def run(*arguments: str | Path) -> bytes:
    """What the program prints."""
    done = subprocess.run([find_program(), *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout


def ask(*arguments: str | Path) -> Any:
    """The program's answer in JSON."""
    return json.loads(run(*arguments, "--json"))


def as_json(row: Any) -> dict[str, Any]:
    """A row as the program's JSON has it: names that are not UTF-8 also in hexadecimal."""
    fields: dict[str, Any] = {}
    for field, value in row._asdict().items():
        fields[field] = value
        if field in NAMES and value is not None:
            name = value.encode("utf-8", "surrogateescape")
            fields[field] = name.decode("utf-8", "replace")
            if fields[field].encode() != name:
                fields[field + "_hex"] = name.hex()
    return fields


def name_in_json(name: bytes) -> Any:
    """A name as JSON Lines have it."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(name).decode()}


def json_lines(objects: Iterable[dict[str, Any]], **header: Any) -> bytes:
    """A map in JSON Lines."""
    made = {"generator": "virt-bmap-rs 0.1.0", "dialect": "escaped"}
    first = {"format": "virt-bmap", "version": 2, **made, **header}
    lines = [json.dumps(line, separators=(",", ":")) for line in (first, *objects)]
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Writes a file."""

    def write(name: str, contents: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(contents)
        return path

    return write
