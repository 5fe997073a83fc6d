"""A private PostgreSQL server in a temporary folder, where the machine has its programs."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from tests.support.schema import provide_schema

PROGRAMS = Path("/usr/lib/postgresql")
UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root


class PostgreSQL:
    """A running server; every call of `new_database` gives a database of its own."""

    def __init__(self, *, bin_dir: Path, folder: Path) -> None:
        self._bin_dir = bin_dir
        self._folder = folder

    def new_database(self, *, schema: bool = False) -> str:
        """The URL of an empty database, or of one with the registry's newest schema."""
        name = f"registry_{uuid.uuid4().hex[:12]}"
        self._create(name, template=self._with_schema if schema else "template1")
        return self._url(name)

    @functools.cached_property
    def _with_schema(self) -> str:
        """The name of a database that is migrated once and copied for each test that needs it so."""
        name = "with_schema"
        self._create(name, template="template1")
        provide_schema(self._url(name))
        return name

    def _create(self, name: str, *, template: str) -> None:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def _url(self, name: str) -> str:
        return f"postgresql://finetune@/{name}?host={self._folder}"

    def stop(self) -> None:
        """Stop at once, as after a crash: connections are cut, a second start recovers."""
        _run(self._bin_dir / "pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "stop")

    def start(self) -> None:
        """Start on a socket in the folder; no port, so that nothing can collide."""
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off -c max_connections=100"
        log = str(self._folder / "log")
        _run(self._bin_dir / "pg_ctl", "-D", str(self._folder / "data"), "-l", log, "-o", options, "-w", "start")


def find_programs() -> Path | None:
    """The folder with initdb of the newest installed version; None when there is none."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = sorted(PROGRAMS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def postgresql(bin_dir: Path) -> Iterator[PostgreSQL]:
    """A server for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="finetune-pg-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
        data = str(folder / "data")
        _run(bin_dir / "initdb", "-D", data, "-U", "finetune", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-locale")
        server = PostgreSQL(bin_dir=bin_dir, folder=folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _run(program: Path, *arguments: str) -> None:
    done = subprocess.run(
        [str(program), *arguments],
        user=UNPRIVILEGED if os.geteuid() == 0 else None,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{program.name} {' '.join(arguments)}: {done.stdout}")
