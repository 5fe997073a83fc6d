"""`finetune registry`: serve the registry, migrate its database."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.logs import Format, install

from .export.destinations import add_registry_flags

if TYPE_CHECKING:
    from sqlalchemy import URL

    from finetune.registry.blobs import BlobStore
    from finetune.registry.database import Database
    from finetune.registry.store.namespaces import NamespaceStore

DATABASE_URL = "FINETUNE_DATABASE_URL"
STORE = "FINETUNE_STORE"
REFUSALS = frozenset({"42501", "25006"})
"""SQLSTATE of what an administrator must grant: a privilege that is missing, a database that is only read."""
MOST_DAYS = 100_000
ADMINISTRATOR = "administrator"
"""Who the audit trail says has used the commands on the database itself."""


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `registry` and its sub-commands; each sets `handler`, a function from the arguments to an exit code."""
    from . import keeping, people  # keeping uses what is here

    registry = subparsers.add_parser("registry", help="the registry of datasets, runs and adapters")
    commands = registry.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="migrate the database, then serve the HTTP API until SIGTERM")
    add_database(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; empty: all (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    _add_callers(serve)
    add_store(serve)
    _add_limits(serve)
    serve.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM, for HTTPS; default: HTTP")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM, the certificate's key")
    add_log_format(serve)
    serve.set_defaults(handler=_serve)

    migrate = commands.add_parser("migrate", help="bring the database to this version's schema and exit")
    add_database(migrate)
    add_log_format(migrate)
    migrate.set_defaults(handler=_migrate)

    collect = commands.add_parser("gc", help="remove the files that no adapter version and no run needs, and exit")
    add_database(collect)
    add_store(collect)
    _add_interim(collect, default=None, said="they are left to the registry that serves, which knows its own days")
    collect.add_argument(
        "--orphans",
        action="store_true",
        help="files of which no row knows, too: not before a lost database was restored, to which all files are such",
    )
    collect.add_argument("--dry-run", action="store_true", help="only say how many there are")
    add_log_format(collect)
    collect.set_defaults(handler=_collect_garbage)

    contents = commands.add_parser("contents", help="move datasets' rows into the store or the database, and exit")
    contents.add_argument(
        "--into",
        choices=("store", "database"),
        required=True,
        help="database: an older registry finds them there; store: what `serve` does by itself",
    )
    add_database(contents)
    add_store(contents)
    add_log_format(contents)
    contents.set_defaults(handler=_move_contents)

    listed = commands.add_parser("namespaces", help="list the namespaces that have rows, and the former ones' keys")
    add_database(listed)
    add_log_format(listed)
    listed.set_defaults(handler=_namespaces)

    forget = commands.add_parser("forget", help="delete everything of a namespace but its audit trail")
    forget.add_argument("namespace", help="its name, or the key of a former one")
    add_database(forget)
    add_log_format(forget)
    forget.set_defaults(handler=_forget)

    adopt = commands.add_parser("adopt", help="give a former namespace's rows to the one that has its name now")
    adopt.add_argument("key", help='as "finetune registry namespaces" shows it')
    add_database(adopt)
    add_log_format(adopt)
    adopt.set_defaults(handler=_adopt)
    keeping.add_commands(commands)
    export = people.add(commands, "export", "exporting.export_registry", "write the runs of a namespace to MLflow")
    add_registry_flags(export)


def _add_limits(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--max-file-bytes", type=int, default=2 * 1024**3, help="of one file of an adapter (default: %(default)s)"
    )
    serve.add_argument(
        "--max-run-bytes", type=int, default=4 * 1024**3, help="of all files of an adapter (default: %(default)s)"
    )
    serve.add_argument(
        "--max-line-bytes",
        type=int,
        default=16 * 1024**2,
        help="of one row of a dataset: parsed it takes up to ten times that of memory (default: %(default)s)",
    )
    serve.add_argument(
        "--max-line-values", type=int, default=200_000, help="of one row of a dataset (default: %(default)s)"
    )
    serve.add_argument(
        "--namespace-bytes", type=int, help="of a namespace's datasets and adapters together (default: no limit)"
    )
    serve.add_argument(
        "--namespace-quota",
        action="append",
        default=[],
        type=_quota,
        metavar="NAMESPACE=BYTES",
        help="the same for one namespace, instead; 0: no limit; can be given several times",
    )
    serve.add_argument(
        "--keep-versions",
        type=int,
        help="of each adapter so many newest versions are kept, and those with an alias; older ones are deleted "
        "(default: all are kept)",
    )
    _add_interim(serve, default=30, said="%(default)s")
    serve.add_argument(
        "--presigned-downloads",
        action="store_true",
        help="send who reads an adapter's file to the bucket, by an address that is good for five minutes: the bucket "
        "must be reachable from where people and pods are",
    )


def _quota(text: str) -> tuple[str, int]:
    namespace, _, size = text.partition("=")
    if not namespace or not (size.isascii() and size.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE=BYTES, such as ml=10737418240")
    return namespace, int(size)


def _add_interim(parser: argparse.ArgumentParser, *, default: int | None, said: str) -> None:
    parser.add_argument(
        "--keep-interim-days",
        type=_days,
        default=default,
        metavar="DAYS",
        help="how long what a run has sent while it trained is kept after it has ended without an adapter "
        f"(default: {said})",
    )


def _days(text: str) -> int:
    """A number of days for which there is a date before today."""
    if not (text.isascii() and text.isdigit() and int(text) <= MOST_DAYS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days from 0 to {MOST_DAYS}")
    return int(text)


def add_log_format(parser: argparse.ArgumentParser) -> None:
    """Add the flag of the programs that log."""
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: one object a line, for whatever collects logs (default: %(default)s)",
    )


def add_database(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says which database."""
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="sqlite:////path/registry.db or postgresql://user:password@host/name; default: the environment "
        f"variable {DATABASE_URL}, which keeps a password out of the process list",
    )


def _add_callers(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--auth",
        choices=("none", "kubernetes"),
        default="none",
        help="none: everybody may do everything, loopback only; kubernetes: bearer tokens, which the API server "
        "checks (default: %(default)s)",
    )
    serve.add_argument(
        "--operator-user",
        metavar="USER",
        help="the user that may record runs and register adapters: system:serviceaccount:<namespace>:<name>",
    )
    serve.add_argument(
        "--proxy-user",
        metavar="USER",
        help="the account of an authenticating proxy before the pages, whose X-Forwarded-User and X-Forwarded-Groups "
        "say who is asking; without it nobody's do",
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which store."""
    parser.add_argument(
        "--store",
        metavar="URL",
        help="where files of adapters are kept: file:///path, s3://bucket/prefix, gs://... or az://...; credentials "
        f"come from the environment; default: {STORE}, then a folder beside an SQLite database",
    )
    parser.add_argument("--store-label", metavar="TEXT", help="what messages call the store, like `claim registry`")


def _serve(arguments: argparse.Namespace) -> int:
    from finetune.registry.blobs import InvalidStoreURL
    from finetune.registry.database import InvalidDatabaseURL
    from finetune.registry.server import InvalidSettings, Settings, serve

    try:
        settings = Settings(
            database_url=_database_url(arguments),
            host=arguments.host,
            port=arguments.port,
            auth=arguments.auth,
            operator_user=arguments.operator_user,
            proxy_user=arguments.proxy_user,
            store=_store(arguments),
            store_label=arguments.store_label,
            file_bytes=arguments.max_file_bytes,
            run_bytes=arguments.max_run_bytes,
            namespace_bytes=arguments.namespace_bytes,
            namespace_quotas=dict(arguments.namespace_quota),
            line_bytes=arguments.max_line_bytes,
            line_values=arguments.max_line_values,
            keep_versions=arguments.keep_versions,
            interim_days=arguments.keep_interim_days,
            presigned=arguments.presigned_downloads,
            tls_certificate=arguments.tls_certificate,
            tls_key=arguments.tls_key,
        )
        settings.check()
    except (InvalidDatabaseURL, InvalidSettings, InvalidStoreURL) as error:
        return _fail(error, code=2)
    return _on_database(lambda: serve(settings), arguments.log_format)


def _migrate(arguments: argparse.Namespace) -> int:
    from finetune.registry.database import InvalidDatabaseURL, parse_url
    from finetune.registry.migrate import migrate

    try:
        url = parse_url(_database_url(arguments))
    except InvalidDatabaseURL as error:
        return _fail(error, code=2)

    def run() -> None:
        before, after = migrate(url)
        print(f"schema {after}" + (" already" if before == after else f" (was: {before or 'empty'})"))

    return _on_database(run, arguments.log_format)


def _collect_garbage(arguments: argparse.Namespace) -> int:
    async def collect(database: Database, store: BlobStore) -> str:
        from finetune.registry.store import garbage

        days = arguments.keep_interim_days
        after = None if days is None else timedelta(days=days)
        found = await garbage.collect(database, store, dry_run=arguments.dry_run, interim_after=after)
        done = "would be removed" if arguments.dry_run else "removed"
        said = f"{found.blobs} files of {found.bytes} bytes {done} from {store.name}"
        if arguments.orphans:
            orphans = await garbage.collect_orphans(database, store, dry_run=arguments.dry_run)
            said += f"; {orphans.blobs} files of {orphans.bytes} bytes of which no row knows"
        return said

    return _on_store(arguments, collect)


def _move_contents(arguments: argparse.Namespace) -> int:
    async def move(database: Database, store: BlobStore) -> str:
        from finetune.registry.store.contents import Contents

        contents = Contents(database, store)
        if arguments.into == "store":
            return f"{await contents.move_into_store()} pieces of datasets' rows moved into {store.name}"
        return f"{await contents.move_into_database()} pieces of datasets' rows moved out of {store.name}"

    return _on_store(arguments, move)


def _on_store(arguments: argparse.Namespace, action: Callable[[Database, BlobStore], Awaitable[str]]) -> int:
    """Do something with a migrated database and its store, and print what was done."""
    from finetune.registry.blobs import InvalidStoreURL, open_store
    from finetune.registry.database import Database, InvalidDatabaseURL, parse_url
    from finetune.registry.errors import RegistryFault
    from finetune.registry.migrate import migrate
    from finetune.registry.server import Settings

    settings = Settings(database_url=_database_url(arguments), store=_store(arguments))
    try:
        url, store = parse_url(settings.database_url), settings.store_url()
        if store is None:
            return _fail(f"no store is configured: give --store, or {STORE}", code=2)
        opened = open_store(store, label=arguments.store_label)
    except (InvalidDatabaseURL, InvalidStoreURL) as error:
        return _fail(error, code=2)

    async def run() -> str:
        database = Database(url)
        try:
            return await action(database, opened)
        finally:
            await opened.close()
            await database.close()

    def act() -> None:
        import asyncio

        migrate(url)
        print(asyncio.run(run()))

    try:
        return _on_database(act, arguments.log_format)
    except RegistryFault as error:
        return _fail(f"{error.message}\nhint: {error.hint}", code=1)


def on_backup(arguments: argparse.Namespace, action: Callable[[URL, BlobStore | None], str]) -> int:
    """Do something with a database that may be empty, and its store if it has one; print what was done."""
    from finetune.registry.backup import BackupError
    from finetune.registry.blobs import InvalidStoreURL, open_store
    from finetune.registry.database import InvalidDatabaseURL, parse_url
    from finetune.registry.errors import RegistryFault
    from finetune.registry.server import Settings

    settings = Settings(database_url=_database_url(arguments), store=_store(arguments))
    try:
        url, store = parse_url(settings.database_url), settings.store_url()
        opened = None if store is None else open_store(store, label=arguments.store_label)
    except (InvalidDatabaseURL, InvalidStoreURL) as error:
        return _fail(error, code=2)
    try:
        return _on_database(lambda: print(action(url, opened)), arguments.log_format)
    except BackupError as error:
        return _fail(error, code=1)
    except RegistryFault as error:
        return _fail(f"{error.message}\nhint: {error.hint}", code=1)


def _store(arguments: argparse.Namespace) -> str | None:
    return arguments.store or os.environ.get(STORE) or None


def _namespaces(arguments: argparse.Namespace) -> int:

    async def show(store: NamespaceStore) -> None:
        for row in await store.listed():
            until = f" until {row.retired_time:%Y-%m-%d %H:%M}" if row.retired_time else ""
            print(f"{row.key:<24} {row.name:<24} {row.uid:<36} {row.seen_time:%Y-%m-%d %H:%M}{until}")

    return _on_namespaces(arguments, show)


def _forget(arguments: argparse.Namespace) -> int:

    async def forget(store: NamespaceStore) -> None:
        counts = await store.forget(arguments.namespace, actor=ADMINISTRATOR)
        told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count)
        print(f"forgotten: {told or 'nothing but the name'}")

    return _on_namespaces(arguments, forget)


def _adopt(arguments: argparse.Namespace) -> int:

    async def adopt(store: NamespaceStore) -> None:
        print(f"given to namespace {await store.adopt(arguments.key, actor=ADMINISTRATOR)}")

    return _on_namespaces(arguments, adopt)


def _on_namespaces(arguments: argparse.Namespace, action: Callable[[NamespaceStore], Awaitable[None]]) -> int:
    from finetune.registry.store.namespaces import NamespaceStore

    return on_database(arguments, lambda database: action(NamespaceStore(database)))


def on_database(arguments: argparse.Namespace, action: Callable[[Database], Awaitable[None]]) -> int:
    """Do something with a migrated database; what it refuses is one line and a hint."""
    from finetune.registry.database import Database, InvalidDatabaseURL, parse_url
    from finetune.registry.errors import RegistryFault
    from finetune.registry.migrate import migrate

    try:
        url = parse_url(_database_url(arguments))
    except InvalidDatabaseURL as error:
        return _fail(error, code=2)

    async def run() -> None:
        database = Database(url)
        try:
            await action(database)
        finally:
            await database.close()

    def act() -> None:
        import asyncio

        migrate(url)
        asyncio.run(run())

    try:
        return _on_database(act, arguments.log_format)
    except RegistryFault as error:
        return _fail(f"{error.message}\nhint: {error.hint}", code=1)


def _database_url(arguments: argparse.Namespace) -> str:
    return arguments.database_url or os.environ.get(DATABASE_URL) or ""


def _on_database(action: Callable[[], None], log_format: Format) -> int:
    """Run something that needs the database; what an administrator can mend becomes one line, not a traceback."""
    from sqlalchemy.exc import DBAPIError, OperationalError

    from finetune.registry.migrate import UnknownRevision

    install(log_format)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # migrate.py says what was done
    try:
        action()
    except UnknownRevision as error:
        return _fail(error, code=1)
    except OperationalError as error:
        return _fail(f"the database does not answer: {error.orig}", code=1)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in REFUSALS:
            raise
        said = str(error.orig).partition("\n")[0]
        return _fail(f"the database refuses: {said}; the registry's user owns its tables and may write", code=1)
    return 0


def _fail(error: object, *, code: int) -> int:
    print(f"finetune registry: {error}", file=sys.stderr)
    return code
