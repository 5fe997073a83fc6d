"""Databases and registries for the tests of the registry, started once for all of them.

Nothing heavy is imported before a test asks for it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.postgresql import PostgreSQL


@pytest.fixture(scope="session", autouse=True)
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one authority: httpx reads the machine's hundreds for each client, which takes 40 ms of a core."""
    import certifi

    first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----\n")
    file = tmp_path_factory.mktemp("authority") / "one.pem"
    file.write_text(first + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """A private PostgreSQL server."""
    from tests.support.postgresql import find_programs, postgresql

    bin_dir = find_programs()
    if bin_dir is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql/*/bin")
    with postgresql(bin_dir) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"], scope="session")
def backend(request: pytest.FixtureRequest) -> str:
    """The tests that use a database run once for each of these."""
    return str(request.param)


@pytest.fixture
def empty_database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    return server.new_database()


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the newest schema."""
    from tests.support.schema import provide_schema

    if backend == "sqlite":
        url = f"sqlite:///{tmp_path}/registry.db"
        provide_schema(url)
        return url
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    return server.new_database(schema=True)


@pytest.fixture(scope="session")
def registry_url(
    backend: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A running registry; the tests share it and have a namespace each."""
    from tests.support.registry import serving

    if backend == "sqlite":
        database = f"sqlite:///{tmp_path_factory.mktemp('registry')}/registry.db"
    else:
        database = request.getfixturevalue("postgresql_server").new_database(schema=True)
    with serving(database) as url:
        yield url


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"ns-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def uid() -> str:
    """A run's uid that no other test uses."""
    return str(uuid.uuid4())
