"""Types of the extension module. Its docstrings are at run time: help(virt_bmap.Map)."""

import os
from collections.abc import Iterable, Iterator
from types import GenericAlias
from typing import Any, Generic, SupportsIndex, TypeVar, final, overload

import pandas
import pyarrow

from ._types import (
    Balance,
    Change,
    Disk,
    File,
    Filesystem,
    Hit,
    MapWarning,
    Object,
    Overlaps,
    Range,
    RangeList,
)

__all__ = ["Map", "Rows", "__version__", "escape", "read_ranges", "unescape"]

__version__: str

_Row = TypeVar("_Row", covariant=True)

@final
class Rows(Generic[_Row]):
    """The rows of an answer: a sequence that makes each row when it is asked for."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_Row]: ...
    @overload
    def __getitem__(self, key: SupportsIndex, /) -> _Row: ...
    @overload
    def __getitem__(self, key: slice, /) -> list[_Row]: ...
    @property
    def fields(self) -> tuple[str, ...]: ...
    def to_pandas(self) -> pandas.DataFrame: ...
    @classmethod
    def __class_getitem__(cls, of: Any) -> GenericAlias: ...

@final
class Map:
    """A block map: which objects each byte of a guest's disks belongs to."""

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Map: ...
    @property
    def path(self) -> str: ...
    @property
    def generator(self) -> str: ...
    @property
    def complete(self) -> bool: ...
    @property
    def explained(self) -> float | None: ...
    @property
    def balance(self) -> Balance | None: ...
    @property
    def disks(self) -> tuple[Disk, ...]: ...
    @property
    def filesystems(self) -> tuple[Filesystem, ...]: ...
    @property
    def warnings(self) -> tuple[MapWarning, ...]: ...
    @property
    def comments(self) -> tuple[str, ...]: ...
    @property
    def object_count(self) -> int: ...
    @property
    def range_count(self) -> int: ...
    def at(self, disk: int, offset: int) -> list[Hit]: ...
    def overlaps(self, ranges: RangeList | Iterable[Iterable[int]], disk: int = 1) -> Overlaps: ...
    def files(
        self,
        glob: str | Iterable[str] | None = None,
        *,
        types: str = "f",
        device: str | bytes | None = None,
    ) -> Rows[File]: ...
    def objects(self, types: str | None = None) -> Rows[Object]: ...
    def ranges(
        self,
        path: str | bytes | None,
        *,
        device: str | bytes | None = None,
        type: str | None = None,
    ) -> Rows[Range]: ...
    def diff(self, new: Map) -> Rows[Change]: ...
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def to_arrow(self) -> pyarrow.Table: ...
    def to_pandas(self) -> pandas.DataFrame: ...

def read_ranges(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    block_size: int | None = None,
) -> RangeList: ...
def escape(name: str | bytes) -> str: ...
def unescape(name: str) -> bytes: ...
