"""The rows that a query of a database returns, streamed with a cursor on the server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.data.readers import MAX_LINE_BYTES
from model.data.readers.lines import too_long
from model.data.records import InvalidRowError, Problem, Record
from model.data.sources import patterns
from model.data.sources.base import SourceInterruptedError, access_denied, does_not_exist, invalid_spec

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, CursorResult
    from sqlalchemy.exc import DBAPIError

FETCH_ROWS = 100
"""Few, since a row may be large; each fetch is one round trip."""

_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}
_TIMEOUTS = {"connect_timeout": "10", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
"""So that a server that is gone without a word is noticed within a minute."""
_KEPT_OPTIONS = ("host", "port", "service", "sslmode")
_REFUSED = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "is not permitted to log in",
)


@dataclass(frozen=True)
class SqlSource:
    """The rows that a query returns.

    Parameters
    ----------
    url
        `postgresql://user:password@host:port/database` or `sqlite:////path/to/file.db`; never shown.
    query
        One statement that returns rows; it runs in a transaction that can only read.
    """

    url: str = field(repr=False)
    query: str
    version: int | None = None
    passed_over: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What to call the rows in messages."""
        return "query result"

    def request(self) -> dict[str, Any]:
        """Return the query and the database, without the password and what else the URL may hide."""
        url = self._parsed
        options = {key: value for key, value in url.query.items() if key in _KEPT_OPTIONS}
        shown = url.set(drivername=url.get_backend_name(), query=options)._replace(password=None)
        return {"type": "sql", "database": shown.render_as_string(hide_password=False), "query": self.query}

    def description(self) -> dict[str, Any]:
        """Return the request: a database has no version that could be noted."""
        return self.request()

    def records(self) -> Iterator[Record]:
        """Yield the query's rows as mappings from column to value, numbered as they come."""
        from sqlalchemy.exc import DBAPIError

        with self._connection() as connection:
            try:
                with connection.exec_driver_sql(self.query.strip().rstrip(";")) as result:
                    columns = _columns(result)
                    for number, row in enumerate(result, start=1):
                        yield Record(number, _value(columns, row))
            except DBAPIError as error:
                raise self._query_failure(error) from error

    @property
    def _parsed(self) -> URL:
        """The URL with the driver that is used for its database."""
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self.url.strip())  # a Secret made of a file ends with a newline
            backend = url.get_backend_name()
        except (ArgumentError, ValueError):  # their text may hold the password
            raise invalid_spec(
                "DATASET_URL is no database URL: it must look like postgresql://user:password@host:5432/database, "
                "with special characters in the password percent-encoded"
            ) from None
        if backend not in _DRIVERS:
            raise invalid_spec(f"DATASET_URL names the database {backend}: use postgresql:// or sqlite:///")
        return url.set(drivername=_DRIVERS[backend])

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        from sqlalchemy import create_engine
        from sqlalchemy.exc import DBAPIError
        from sqlalchemy.pool import NullPool

        url = self._parsed
        options: dict[str, Any] = {"no_parameters": True, "yield_per": FETCH_ROWS}
        if url.get_backend_name() == "postgresql":
            url = url.update_query_dict(_TIMEOUTS | dict(url.query))
            options["postgresql_readonly"] = True
        else:
            url = _read_only_sqlite(url)
        engine = create_engine(url, poolclass=NullPool)
        try:
            connection = engine.connect()
        except DBAPIError as error:
            raise self._connect_failure(error) from error
        if url.get_backend_name() == "sqlite":
            _keep_undecodable_text(connection)
        with connection:
            yield connection.execution_options(**options)

    def _connect_failure(self, error: DBAPIError) -> Exception:
        text = self._shown(error)
        if any(said in text for said in _REFUSED) or 'FATAL: role "' in text:
            return access_denied(f"{text}; check the user and the password in DATASET_URL")
        if "invalid connection option" in text:
            return invalid_spec(f"DATASET_URL: {text}")
        if "does not exist" in text:
            return does_not_exist(f"{text}; check DATASET_URL")
        return SourceInterruptedError(f"cannot connect to the database: {text}")

    def _query_failure(self, error: DBAPIError) -> Exception:
        text = self._shown(error)
        if self._parsed.get_backend_name() == "sqlite":
            if "is locked" in text or "disk I/O error" in text:
                return SourceInterruptedError(f"the query broke off: {text}")
            return invalid_spec(f"the database refuses the query: {text}")
        state = getattr(error.orig, "sqlstate", None) or ""
        if state == "42501":
            return access_denied(f"{text}; grant the user of DATASET_URL the right to read it")
        # Classes of SQLSTATE: what is wrong with the statement itself, or with the values that it computes.
        if state[:2] in ("0A", "21", "22", "25", "26", "34", "42", "3D", "3F"):
            return invalid_spec(f"the database refuses the query: {text}")
        return SourceInterruptedError(f"the query broke off: {text}")

    def _shown(self, error: DBAPIError) -> str:
        """Return the database's own words in one line, without the password."""
        diagnosis = getattr(error.orig, "diag", None)
        words = [getattr(diagnosis, part, None) for part in ("message_primary", "message_detail", "message_hint")]
        # What is wrong without where: the position counts from the cursor's declaration around the query.
        text = ". ".join(word for word in words if word) or " ".join(str(error.orig).split())
        password = self._parsed.password
        return text.replace(password, "***") if password else text


def _columns(result: CursorResult[Any]) -> list[str]:
    if not result.returns_rows:
        raise invalid_spec("--query returns no rows: use a SELECT")
    columns = list(result.keys())
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise invalid_spec(f"--query returns the column {repeated[0]} more than once: name each with AS")
    return columns


def _value(columns: Sequence[str], row: Iterable[Any]) -> Any:
    """Return a row as a mapping, or what is wrong with it."""
    value = dict(zip(columns, row, strict=True))
    if sum(len(cell) for cell in value.values() if isinstance(cell, str)) > MAX_LINE_BYTES:
        return too_long()
    undecoded = [(name, cell) for name, cell in value.items() if isinstance(cell, UnicodeDecodeError)]
    if not undecoded:
        return value
    return InvalidRowError(
        [Problem(name, f"not UTF-8: byte 0x{error.object[error.start]:02x}", "notUtf8") for name, error in undecoded]
    )


def _read_only_sqlite(url: URL) -> URL:
    """Return a URL that opens the file for reading only, and does not create it.

    Raises
    ------
    FailureError
        When there is no such file.
    """
    path = Path(url.database or "")
    if not path.is_file():
        folder = path.parent
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        raise does_not_exist(f"DATASET_URL: {path} does not exist: {patterns.neighbours(path.name, names)}")
    return url.set(database=path.absolute().as_uri()).update_query_dict({"mode": "ro", "uri": "true"})


def _keep_undecodable_text(connection: Connection) -> None:
    """Let text that is not UTF-8 spoil its own row only: the error stands in its place."""
    database: Any = connection.connection.driver_connection
    database.text_factory = _decoded


def _decoded(text: bytes) -> str | UnicodeDecodeError:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return error
