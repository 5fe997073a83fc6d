"""A base image where no public registry is reached: Debian with Python, from this machine's own Debian mirror."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from images import shell

SUITE = "trixie"
PACKAGES = ("ca-certificates", "python3", "python3-venv")
PROGRAMS = {"debootstrap": "debootstrap", "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring"}
SOURCES = Path("/etc/apt")

# Nothing in a container reads these; licences stay, as the packages ask for.
REMOVED = (
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/share/doc-base",
    "usr/share/zoneinfo/right",
    "usr/share/zoneinfo/posix",
    "var/lib/apt/lists",
    "var/cache",
    "var/log",
    "debootstrap",
)


def recipe_key() -> str:
    """A digest of what decides the base image's content, apart from the mirror's packages of the day."""
    parts = [SUITE, *PACKAGES, "", *REMOVED, inspect.getsource(_slim)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def archive() -> Path:
    """The root file system as a tar file in the cache; made where it is not there yet.

    Raises:
        CommandError: this machine has no Debian mirror configured, or debootstrap failed.
    """
    folder = shell.cache_dir() / "base"
    target = folder / f"{SUITE}-{recipe_key()}.tar"
    if target.is_file():
        return target
    if os.getuid() != 0:
        raise shell.CommandError("debootstrap needs root: run this as root, or set BASE_IMAGE to an image with Python")
    shell.install(PROGRAMS)
    print(f"making a base image of Debian {SUITE} (once) ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch) / "root"
        argv: list[str | Path] = [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            SUITE,
            root,
            mirror(),
        ]
        shell.run(argv, timeout=1800)
        _slim(root)
        partial = Path(scratch) / "root.tar"
        shell.run(
            ["tar", "--create", "--sort=name", "--numeric-owner", f"--file={partial}", f"--directory={root}", "."]
        )
        partial.rename(target)
    print(f"made it in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return target


def mirror() -> str:
    """The Debian mirror that this machine installs its own packages from."""
    for uri, suites in _apt_sources():
        # Security and third-party archives have other suites; any Debian mirror carries all of Debian's releases.
        if any(re.fullmatch(r"bookworm|trixie|forky|sid|stable|testing|bullseye", suite) for suite in suites):
            return uri
    raise shell.CommandError(
        f"no Debian mirror in {SOURCES}/sources.list or sources.list.d to make a base image from: "
        "set BASE_IMAGE to an image with Python 3.11 or newer"
    )


def _apt_sources() -> Iterator[tuple[str, list[str]]]:
    """Each configured archive and its suites, from both of apt's formats."""
    for path in [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        text = path.read_text()
        if path.suffix == ".sources":
            for block in text.split("\n\n"):
                fields = dict(re.findall(r"^(URIs|Suites):\s*(.+)$", block, re.MULTILINE))
                if fields.keys() == {"URIs", "Suites"}:
                    yield fields["URIs"].split()[0], fields["Suites"].split()
        else:
            for match in re.finditer(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", text, re.MULTILINE):
                yield match[1], [match[2]]


def _slim(root: Path) -> None:
    for name in REMOVED:
        shutil.rmtree(root / name, ignore_errors=True)
    for folder in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt"):
        (root / folder).mkdir(parents=True)
    for path in (root / "usr/share/doc").glob("*/*"):
        if path.name != "copyright":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (root / "usr/bin/python").unlink(missing_ok=True)
    (root / "usr/bin/python").symlink_to("python3")
    # debootstrap copies this machine's own resolver and name.
    for name in ("etc/resolv.conf", "etc/hostname"):
        (root / name).write_text("")
