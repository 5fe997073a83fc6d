"""Databases: PostgreSQL and SQLite, streamed, read-only, with the database's own words when it refuses."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from model.data.records import InvalidRowError
from model.data.sources import SourceInterruptedError, SqlSource
from model.exits import FailureError

if TYPE_CHECKING:
    from tests.support.postgresql import PostgreSQL

PASSWORD = "pass:word/%"
OTHERS = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


def wait_until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline


def failure(source: SqlSource) -> FailureError:
    with pytest.raises(FailureError) as caught:
        list(source.records())
    assert PASSWORD not in caught.value.message
    return caught.value


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    path = tmp_path / "rows.db"
    with sqlite3.connect(path) as database:
        database.execute("create table pairs (id integer primary key, prompt text, completion text)")
        rows = [(f"p{number}", "100% :b %s") for number in range(1, 301)]
        database.executemany("insert into pairs (prompt, completion) values (?, ?)", rows)
    database.close()
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def database(postgresql_server: PostgreSQL) -> Iterator[tuple[str, psycopg.Connection[Any]]]:
    """A database with rows, by its URL, and a connection of somebody else to it."""
    url = postgresql_server.new_database()
    with psycopg.connect(
        url.replace("postgresql://finetune@/", "postgresql:///") + "&user=finetune", autocommit=True
    ) as c:
        c.execute(
            "create table pairs as select i as id, 'p' || i as prompt, 'c' as completion from generate_series(1, 300) i"
        )
        c.execute('create table chats as select \'[{"role": "user", "content": "a"}]\'::jsonb as messages')
        yield url, c


@pytest.fixture
def url(database: tuple[str, psycopg.Connection[Any]]) -> str:
    return database[0]


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "url"))


def test_rows_are_numbered_as_the_query_gives_them(any_url: str) -> None:
    source = SqlSource(any_url, "select prompt, id as completion from pairs order by id desc;")
    records = list(source.records())
    assert [record.number for record in records] == list(range(1, 301))
    assert records[0].value == {"prompt": "p300", "completion": 300}
    assert (source.name, source.version) == ("query result", None)


def test_a_newline_after_the_url_is_not_part_of_it(any_url: str) -> None:
    """Secrets that are made of files end with one."""
    source = SqlSource(f"{any_url}\n", "select count(*) as prompt from pairs")
    assert [record.value for record in source.records()] == [{"prompt": 300}]
    assert source.request() == SqlSource(any_url, source.query).request()


def test_percent_signs_and_colons_mean_nothing(any_url: str) -> None:
    (record,) = SqlSource(any_url, "select '50% :a %s %(b)s' as prompt").records()
    assert record.value == {"prompt": "50% :a %s %(b)s"}


def test_a_query_without_rows(any_url: str) -> None:
    assert list(SqlSource(any_url, "select * from pairs where id < 0").records()) == []


def test_json_columns_are_decoded(url: str) -> None:
    (record,) = SqlSource(url, "select messages from chats").records()
    assert record.value == {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("select * from pears", "pears"),
        ("selec", 'syntax error'),
        ("select id, prompt as id from pairs", "--query returns the column id more than once: name each with AS"),
        ("delete from pairs returning *", ""),
        ("insert into pairs (prompt) values ('x')", ""),
        ("drop table pairs", ""),
        ("select 1; drop table pairs", ""),
        ("select 1; commit; drop table pairs", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_a_query_that_is_refused_changes_nothing(any_url: str, query: str, said: str) -> None:
    found = failure(SqlSource(any_url, query))
    assert (found.code, found.reason) == (2, "InvalidSpec")
    assert said in found.message
    assert "\n" not in found.message
    assert len(list(SqlSource(any_url, "select * from pairs").records())) == 300


def test_an_error_in_a_later_row_is_the_databases_own(url: str) -> None:
    records = SqlSource(url, "select 1 / (250 - id) as prompt from pairs order by id").records()
    numbers = []
    with pytest.raises(FailureError, match="the database refuses the query: division by zero"):
        numbers.extend(record.number for record in records)


def test_a_function_cannot_write_either(database: tuple[str, psycopg.Connection[Any]]) -> None:
    url, other = database
    other.execute(
        "create function note() returns text language sql as $$ insert into chats values ('1') returning 'x' $$"
    )
    found = failure(SqlSource(url, "select note() as prompt"))
    assert found.code == 2
    assert "cannot execute INSERT in a read-only transaction" in found.message


def test_a_row_that_is_too_long_is_one_invalid_row(any_url: str) -> None:
    query = "select prompt from pairs where id = 1 union all select {} union all select 'last'"
    long = "hex(zeroblob(9 << 20))" if any_url.startswith("sqlite") else "repeat('x', 17 << 20)"
    first, second, third = SqlSource(any_url, query.format(long)).records()
    assert (first.value, third.value) == ({"prompt": "p1"}, {"prompt": "last"})
    assert isinstance(second.value, InvalidRowError)


def test_text_that_is_not_utf8_spoils_its_own_row_only(sqlite_url: str) -> None:
    first, second = SqlSource(sqlite_url, "select cast(x'61ff' as text) as prompt union all select 'b'").records()
    assert isinstance(first.value, InvalidRowError)
    assert str(first.value) == "prompt: not UTF-8: byte 0xff"
    assert second.value == {"prompt": "b"}


def test_the_server_keeps_the_rows_until_they_are_asked_for(database: tuple[str, psycopg.Connection[Any]]) -> None:
    url, other = database
    endless = "select a.prompt from pairs a, pairs b, pairs c, pairs d, pairs e"
    records = SqlSource(url, endless).records()
    with closing(records):  # type: ignore[type-var]
        assert [next(records).number for _ in range(400)][-1] == 400
        ((state, query),) = other.execute(f"select state, query {OTHERS}").fetchall()
        assert state == "idle in transaction"
        assert query.startswith("FETCH FORWARD 100 FROM")
    wait_until(lambda: other.execute(f"select count(*) {OTHERS}").fetchone() == (0,))


def test_what_others_write_in_the_meantime_is_not_seen(database: tuple[str, psycopg.Connection[Any]]) -> None:
    url, other = database
    other.execute("create table moving as select i as id from generate_series(1, 1000) i")
    records = SqlSource(url, "select id from moving").records()
    next(records)
    other.execute("delete from moving where id > 500")
    assert len(list(records)) == 999


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_query_that_is_cancelled_is_read_again(database: tuple[str, psycopg.Connection[Any]], how: str) -> None:
    url, _ = database
    slow = "select i, pg_sleep(case when i > 100 then 60 else 0 end) from generate_series(1, 1000) i"
    records = SqlSource(url, slow).records()
    next(records)
    stop = (
        f"do $$ begin loop perform {how}(pid) {OTHERS} and wait_event = 'PgSleep'; exit when found; "
        "perform pg_stat_clear_snapshot(); end loop; end $$"
    )
    user = [sys.executable, "-c", f"import psycopg; psycopg.connect({url!r}, autocommit=True).execute({stop!r})"]
    with (
        subprocess.Popen(user),
        pytest.raises(SourceInterruptedError, match=r"the query broke off: .*(cancel|terminat)"),
    ):
        list(records)


@pytest.fixture(scope="module")
def locked_server(postgresql_server: PostgreSQL) -> str:
    """Where in a URL the server is, without user: it asks `reader` for a password."""
    url = postgresql_server.new_database()
    where = url.split("@/")[1]
    with psycopg.connect(url.replace("finetune@/", "/") + "&user=finetune", autocommit=True) as connection:
        connection.execute("create table secrets as select 1 as prompt")
        connection.execute(f"create role reader login password '{PASSWORD}'")
        (path,) = connection.execute("show hba_file").fetchone() or ("",)
        rules = Path(path)
        rules.write_text("local all reader scram-sha-256\n" + rules.read_text())
        connection.execute("select pg_reload_conf()")

    def asks_for_a_password() -> bool:
        try:
            psycopg.connect(reader_url(where, "no")).close()
        except psycopg.OperationalError:
            return True
        return False

    wait_until(asks_for_a_password)
    return where


def reader_url(where: str, password: str = PASSWORD) -> str:
    from urllib.parse import quote

    return f"postgresql://reader:{quote(password, safe='')}@/{where}"


def test_a_password_is_used_and_never_shown(locked_server: str) -> None:
    source = SqlSource(reader_url(locked_server), "select 1 as prompt")
    assert [record.value for record in source.records()] == [{"prompt": 1}]
    shown = json.dumps(source.description()) + repr(source)
    assert "reader@" in shown
    assert not any(word in shown for word in ("pass:", "pass%3A", "word/", "word%2F", "password"))


def test_a_password_that_the_database_repeats_is_not_shown(locked_server: str) -> None:
    found = failure(SqlSource(reader_url(locked_server), f"select '{PASSWORD}'::int"))
    assert found.message == 'the database refuses the query: invalid input syntax for type integer: "***"'


def test_a_wrong_password(locked_server: str) -> None:
    found = failure(SqlSource(reader_url(locked_server, "wrong" + PASSWORD), "select 1"))
    assert (found.code, found.reason) == (5, "AccessDenied")
    assert 'password authentication failed for user "reader"' in found.message
    assert "check the user and the password in DATASET_URL" in found.message


def test_a_user_that_is_not_there(url: str) -> None:
    found = failure(SqlSource(url.replace("finetune@", "nobody@"), "select 1"))
    assert found.code == 5
    assert 'role "nobody" does not exist; check the user and the password' in found.message


def test_a_table_that_may_not_be_read(locked_server: str) -> None:
    found = failure(SqlSource(reader_url(locked_server), "select * from secrets"))
    assert (found.code, found.reason) == (5, "AccessDenied")
    assert found.message.startswith("permission denied for table secrets; grant the user of DATASET_URL the right")


def test_a_database_that_is_not_there(url: str) -> None:
    found = failure(SqlSource(url.replace("registry_", "nothing_"), "select 1"))
    assert (found.code, found.reason) == (10, "DatasetUnavailable")
    assert "does not exist; check DATASET_URL" in found.message


def test_an_sqlite_file_that_is_not_there_is_not_created(sqlite_url: str, tmp_path: Path) -> None:
    found = failure(SqlSource(sqlite_url.replace("rows.db", "row.db"), "select 1"))
    assert found.code == 10
    assert found.message.endswith("row.db does not exist: did you mean rows.db?")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.db"]


def test_a_server_that_is_not_there() -> None:
    source = SqlSource(
        f"postgresql://reader:{PASSWORD.replace('%', '%25').replace('/', '%2F')}@127.0.0.1:9/d", "select 1"
    )
    with pytest.raises(SourceInterruptedError, match=r"cannot connect to the database: .*refused"):
        list(source.records())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("mysql://reader:secret@host/d", "names the database mysql: use postgresql:// or sqlite:///"),
        ("postgresql://reader:sec:ret@host:port/d", "is no database URL"),
        (
            "postgresql://reader:secret@127.0.0.1:9/d?sslmoed=require",
            'DATASET_URL: invalid connection option "sslmoed"',
        ),
        ("secret", "is no database URL"),
        ("", "is no database URL"),
        ("sqlite://", "does not exist"),
    ],
)
def test_an_url_that_is_none_is_not_repeated(wrong: str, said: str) -> None:
    found = failure(SqlSource(wrong, "select 1"))
    assert said in found.message
    assert "sec" not in found.message
