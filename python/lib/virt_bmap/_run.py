"""Runs the program that makes maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO

from ._native import Map

StrPath = str | os.PathLike[str]

#: The program's exit status if a map was written and something is missing from it.
INCOMPLETE = 3

#: Seconds that the program has to end after it was asked to: it takes down a virtual machine.
GRACE = 30

#: Bytes of the program's messages that an error keeps.
MESSAGES = 64 * 1024


class MapImageError(RuntimeError):
    """The program made no map, or with ``strict`` an incomplete one."""

    def __init__(self, status: int, messages: str, map: Map | None = None) -> None:
        lines = messages.strip().splitlines()
        reason = lines[-1] if lines else "it printed nothing"
        super().__init__(f"the program ended with status {status}: {reason}")
        self.status = status
        """Its exit status; below 0: the signal that ended it."""
        self.messages = messages
        """The end of what it printed to standard error."""
        self.map = map
        """The incomplete map."""


def map_image(
    images: StrPath | Sequence[StrPath],
    *,
    output: StrPath | None = None,
    options: Sequence[str] = (),
    program: StrPath = "virt-bmap-rs",
    timeout: float | None = None,
    strict: bool = False,
) -> Map:
    """Maps a guest with the program virt-bmap-rs, which must be installed, and returns the map.

    It takes seconds to minutes: the program starts a virtual machine that reads the guest's
    filesystems. The images are not changed.

    If something could not be examined (the program's exit status 3), the map's ``complete`` is
    false and its ``warnings`` say what is missing.

    Parameters
    ----------
    images: the image of the guest's disk, or the images of its disks in order.
    output: a file to keep the map in; its suffix selects the format. By default none is kept.
    options: further options of the program, such as ``["--key", "/dev/sda2:file:KEYFILE"]``.
    program: the program's name or path.
    timeout: seconds after which the run is ended and ``subprocess.TimeoutExpired`` is raised.
    strict: whether an incomplete map is an error.

    Raises FileNotFoundError if the program is not installed, and MapImageError if it made no map.
    """
    # Only here: with what it imports, it takes longer to import than all of this package.
    import tempfile

    several = [images] if isinstance(images, (str, os.PathLike)) else images
    with tempfile.TemporaryDirectory(prefix="virt-bmap-") as directory:
        path = os.fspath(output) if output is not None else os.path.join(directory, "map.jsonl")
        # After `--`, no name of an image is an option or a subcommand.
        command = [
            os.fspath(program),
            *options,
            "-o",
            path,
            "--",
            *(os.fspath(image) for image in several),
        ]
        with tempfile.TemporaryFile() as messages:
            status = _run(command, messages, timeout)
            text = _end_of(messages)
        if status not in (0, INCOMPLETE):
            raise MapImageError(status, text)
        made = Map.open(path)
    if strict and status == INCOMPLETE:
        raise MapImageError(status, text, made)
    return made


def _run(command: list[str], messages: IO[bytes], timeout: float | None) -> int:
    """Runs a command, and asks it to end if this is interrupted or takes too long."""
    import subprocess

    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages
    ) as process:
        try:
            return process.wait(timeout)
        except BaseException:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def _end_of(messages: IO[bytes]) -> str:
    length = messages.seek(0, os.SEEK_END)
    messages.seek(max(0, length - MESSAGES))
    return messages.read().decode("utf-8", "replace")
