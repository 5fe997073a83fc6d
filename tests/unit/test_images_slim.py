"""What is taken out of the operator's image: nothing that a program loads."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from images.operator import slim

COMPILED = ("multidict._multidict", "yaml._yaml", "pydantic_core._pydantic_core", "greenlet._greenlet")
"""Modules in C, in Cython and in Rust, as wheels bring them."""


def library(target: Path, *, loaded: int, behind: int) -> bytes:
    """The start of a library of 64 bits with one part that is loaded, and section headers behind it."""
    header = slim.ELF + bytes(10) + struct.pack("<HHIQQQ", 3, 62, 1, 0, 64, loaded)
    header += struct.pack("<IHHHHHH", 0, 64, 56, 1, 64, 5, 4)
    part = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, loaded, loaded, 4096)
    content = (header + part).ljust(loaded, b"c") + b"s" * behind
    target.write_bytes(content)
    return content


def test_what_stands_behind_the_loaded_part_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "a.so"
    before = library(file, loaded=500, behind=77)
    assert slim.strip(file) == 77
    after = file.read_bytes()
    assert (len(after), after[64:]) == (500, before[64:500])
    sections = struct.unpack_from("<Q", after, 40) + struct.unpack_from("<HH", after, 60)
    assert sections == (0, 0, 0)
    assert slim.strip(file) == 0
    assert file.read_bytes() == after


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x01\x01 of 32 bits", b"INPUT(libc.so.6)"])
def test_what_is_no_library_of_64_bits_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "libc.so"
    file.write_bytes(content)
    assert slim.strip(file) == 0
    assert file.read_bytes() == content


@pytest.mark.parametrize("name", COMPILED)
def test_a_wheels_library_can_be_loaded_afterwards(tmp_path: Path, name: str) -> None:
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    copy = tmp_path / Path(found.origin).name
    shutil.copyfile(found.origin, copy)
    cut = slim.strip(copy)
    assert copy.stat().st_size == Path(found.origin).stat().st_size - cut
    loads = f"import ctypes, os; ctypes.CDLL({str(copy)!r}, mode=os.RTLD_NOW).PyInit_{name.rpartition('.')[2]}"
    subprocess.run([sys.executable, "-c", loads], check=True)


def package(site: Path, name: str) -> None:
    path = site / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    for folder in (path.parent, *path.parent.parents):
        if folder != site and site in folder.parents:
            (folder / "__init__.py").touch()


def test_only_generated_modules_that_something_imports_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("slimmed.models.used", "slimmed.models.unused", "slimmed.api.unused", "slimmed.other"):
        package(tmp_path, name)
    (tmp_path / "slimmed" / "start.py").write_text("from slimmed.models import used\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    slim.keep_loaded(tmp_path, ("slimmed/models", "slimmed/api"), modules=("slimmed.start",))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py")}
    assert left == {
        *("slimmed/__init__.py", "slimmed/start.py", "slimmed/other.py"),
        *("slimmed/models/__init__.py", "slimmed/models/used.py"),
    }


def test_what_nobody_reads_goes_and_the_code_stays(tmp_path: Path) -> None:
    kept = ("b.tests_of_others", "a.deep.tests.c", "sqlalchemy.dialects.sqlite.base")
    for name in (
        *kept,
        "a.tests.test_a",
        "b.testing.help",
        *(f"{each.replace('/', '.')}.base" for each in slim.UNUSED),
    ):
        package(tmp_path, name)
    for name in ("a/fast.pyx", "a/fast.pyi", "a/fast.c", "a/fast.so", "a/data.json"):
        (tmp_path / name).touch()
    slim.remove_unread(tmp_path)
    files = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != "__init__.py")
    left = {str(path.relative_to(tmp_path)) for path in files}
    assert left == {"a/fast.so", "a/data.json", *(f"{name.replace('.', '/')}.py" for name in kept)}


def test_the_blocking_half_of_the_kubernetes_client_goes(tmp_path: Path) -> None:
    for name in ("kubernetes.aio.client", "kubernetes.client.models.pod"):
        package(tmp_path, name)
    (tmp_path / "kubernetes" / "__init__.py").write_text("import kubernetes.client\n")
    slim.keep_asynchronous_client(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py")}
    assert left == {"kubernetes/__init__.py", "kubernetes/aio/__init__.py", "kubernetes/aio/client.py"}
    assert (tmp_path / "kubernetes" / "__init__.py").read_text() == ""
