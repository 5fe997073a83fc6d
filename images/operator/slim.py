"""Takes out of the operator's image what nothing in it reaches.

    python /opt/finetune/slim.py /opt/venv/lib/python3.13/site-packages

Runs in the image's build with the image's own Python, before the packages are compiled; install.py then imports every
module of the project, so that a build that lacks one fails.
"""

from __future__ import annotations

import importlib
import shutil
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

TESTS = ("tests", "testing")
"""Folders of packages that hold their own tests, or help to write tests with them."""
UNUSED = ("pydantic/v1", "sqlalchemy/dialects/mssql", "sqlalchemy/dialects/mysql", "sqlalchemy/dialects/oracle")
"""Parts of packages that are imported when somebody asks for them by name, and nobody here does."""
SOURCES = (".c", ".h", ".hpp", ".pxd", ".pyi", ".pyx")
"""What modules are compiled from, and what type checkers read."""
GENERATED = ("kubernetes/aio/client/api", "kubernetes/aio/client/models")
"""One module for each kind of the Kubernetes API, imported when asked for. The project speaks in plain documents."""
ELF = b"\x7fELF\x02\x01"
"""How programs and libraries of 64 bits begin that have the low byte first: those of x86-64 and of arm64."""


def main(arguments: list[str]) -> None:
    """Slim the packages of one folder, and say what it has saved."""
    (site,) = map(Path, arguments)
    before = size(site)
    for library in site.rglob("*.so*"):  # first: a library that this process has loaded must not be written to
        if not library.is_symlink():
            strip(library)
    keep_asynchronous_client(site)
    remove_unread(site)
    keep_loaded(site, GENERATED, modules=("kubernetes.aio.client", "kubernetes.aio.config"))
    print(f"{site}: {before / 1e6:.0f} MB -> {size(site) / 1e6:.0f} MB")


def keep_asynchronous_client(site: Path) -> None:
    """Leave `kubernetes.aio`, which never imports the other half; the package's __init__ would, so it becomes empty."""
    package = site / "kubernetes"
    for path in package.iterdir():
        if path.is_dir() and path.name != "aio":
            shutil.rmtree(path)
    (package / "__init__.py").write_text("")


def remove_unread(site: Path) -> None:
    """Remove tests, parts that nobody asks for, and the sources of what is compiled."""
    for folder in [*(site / name for name in UNUSED), *(path for name in TESTS for path in site.glob(f"*/{name}"))]:
        shutil.rmtree(folder)
    for path in site.rglob("*"):
        if path.suffix in SOURCES or path.name.endswith("_test.py"):
            path.unlink()


def keep_loaded(site: Path, folders: Iterable[str], *, modules: Iterable[str]) -> None:
    """Remove the modules of some folders of `site` that importing `modules` does not load."""
    for module in modules:
        importlib.import_module(module)
    loaded = {getattr(module, "__file__", None) for module in sys.modules.values()}
    for folder in folders:
        for path in (site / folder).glob("*.py"):
            if str(path) not in loaded:
                path.unlink()


def strip(library: Path) -> int:
    """Cut off what stands in a shared library behind all that is loaded: symbols and the tables of debuggers.

    What loads a library goes by its program headers; sections are for linkers and debuggers (elf(5)). Returns the
    number of bytes that were cut off; 0 where the file is no library.
    """
    content = bytearray(library.read_bytes())
    if not content.startswith(ELF):
        return 0
    (start,) = struct.unpack_from("<Q", content, 32)
    entry, count = struct.unpack_from("<HH", content, 54)
    end: int = start + entry * count
    for place in range(start, end, entry):
        offset, length = struct.unpack_from("<Q", content, place + 8) + struct.unpack_from("<Q", content, place + 32)
        end = max(end, offset + length)
    struct.pack_into("<Q", content, 40, 0)  # where the section headers are
    struct.pack_into("<HH", content, 60, 0, 0)  # how many, and which of them has the names
    library.write_bytes(content[:end])
    return len(content) - end


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    main(sys.argv[1:])
