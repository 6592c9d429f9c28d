"""Measures how long a script waits for its first answer.

    python first_answer.py [FILES]

Makes maps of FILES files (100,000), and starts Python afresh for each measurement: it imports
virt_bmap, opens a map, and asks what is at one offset. Prints the median and the slowest of eleven,
and the processor time of all of it, the start of Python included, which depends less on the load.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 11

ANSWER = """
import time
began = time.perf_counter()
import virt_bmap
imported = time.perf_counter()
guest = virt_bmap.Map.open({path!r})
opened = time.perf_counter()
assert guest.at(1, {offset})[0].path == {answer!r}
ended = time.perf_counter()
print(imported - began, opened - imported, ended - opened, time.process_time())
"""


def write_map(path: Path, files: int) -> None:
    """A map as of a Linux guest: four files in a directory, every eighth file in two pieces."""
    with open(path, "w") as lines:
        header = {"format": "virt-bmap", "version": 2, "generator": "", "dialect": "escaped"}
        disk = {
            "type": "v",
            "device": "/dev/sda",
            "ranges": [{"disk": 1, "start": 0, "end": 2**40}],
        }
        print(json.dumps(header), json.dumps(disk), sep="\n", file=lines)
        for number in range(files):
            start = (number + 1) * 65536
            pieces = [{"disk": 1, "start": start, "end": start + 8192, "offset": 0}]
            if number % 8 == 0:
                pieces.append(
                    {"disk": 1, "start": start + 32768, "end": start + 36864, "offset": 8192}
                )
            known = {"inode": number + 12, "size": 12000, "links": 1, "mode": 33188}
            times = {
                "modified": 1_700_000_000_000_000_000 + number,
                "changed": 1_700_000_000_000_000_000,
            }
            name = {"type": "f", "device": "/dev/sda1", "path": path_of(number)}
            print(json.dumps({**name, **known, **times, "ranges": pieces}), file=lines)


def path_of(number: int) -> str:
    return f"/usr/share/package-{number // 64}/directory-{number // 4}/file-{number}.txt"


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(
        f"{files} files; Python {platform.python_version()}; {os.cpu_count()} processors; load "
        f"{os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as directory:
        plain = Path(directory, "map.jsonl")
        write_map(plain, files)
        packed = Path(directory, "map.jsonl.gz")
        with open(packed, "wb") as output:
            subprocess.run(["gzip", "-c", plain], stdout=output, check=True)
        last = files - 1
        for path in (plain, packed):
            code = ANSWER.format(
                path=str(path), offset=(last + 1) * 65536 + 100, answer=path_of(last)
            )
            rounds = []
            for _ in range(ROUNDS):
                printed = subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, check=True
                )
                rounds.append([float(word) for word in printed.stdout.split()])
            parts = [statistics.median(part) for part in zip(*rounds, strict=True)]
            totals = [sum(round[:3]) for round in rounds]
            print(
                f"{path.name}: {statistics.median(totals):.3f} s (slowest {max(totals):.3f}): "
                f"import {parts[0]:.3f}, open {parts[1]:.3f}, first answer {parts[2]:.3f}; "
                f"processor {parts[3]:.3f}"
            )


main()
