"""The package: its types, its examples, and how fast the first answer comes."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import virt_bmap
from conftest import ROOT

PYTHON = ROOT / "python"
QUESTIONS = ROOT / "tests" / "questions"


def python(*arguments: str | Path, cwd: Path | None = None) -> str:
    """What Python prints."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_types(tmp_path: Path) -> None:
    """The stubs are those of the module, and the package and its tests follow them."""
    config, parts = PYTHON / "pyproject.toml", ("tests", "examples", "bench")
    python("-m", "mypy.stubtest", "virt_bmap", *("--mypy-config-file", config), cwd=tmp_path)
    python("-m", "mypy", "--config-file", config, *(PYTHON / part for part in parts), cwd=tmp_path)


def test_everything_has_a_docstring() -> None:
    for name in virt_bmap.__all__:
        it = getattr(virt_bmap, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(it), name
        if name in ("Map", "Rows"):
            for member, value in vars(it).items():
                assert member.startswith("__") or inspect.getdoc(value), f"{name}.{member}"


@pytest.mark.parametrize("page", ["python/README.md", "docs/python.md"])
def test_examples_of_pages(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(QUESTIONS)
    found = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8")
    assert found.attempted >= 5 and found.failed == 0


def test_the_example_says_what_a_backup_changed() -> None:
    script = PYTHON / "examples" / "what_changed.py"
    by_list = python(script, "guest.bmap", "changed.json", cwd=QUESTIONS)
    assert "/var/lib/dpkg/status" in by_list and "/boot/vmlinuz" not in by_list
    by_map = python(script, "guest.bmap", "later.bmap", cwd=QUESTIONS)
    assert "removed" in by_map and "/var/cache/big" in by_map


def test_the_import_is_light() -> None:
    """Nothing is imported that most scripts do not need."""
    imported = python("-c", "import sys, virt_bmap; print(*sys.modules)").split()
    assert "virt_bmap" in imported
    assert not {"pandas", "pyarrow", "numpy", "subprocess", "tempfile"} & set(imported)
