"""`finetune registry backup`, `restore` and `audit`: an administrator's commands on the database itself."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from . import registry

NAMED = 5
"""Files that a warning names."""

if TYPE_CHECKING:
    from sqlalchemy import URL

    from finetune.registry.blobs import BlobStore


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of `registry`."""
    backup = commands.add_parser("backup", help="write all rows, and with --files the store's files, into one file")
    backup.add_argument("file", type=Path, help="a new file; it appears whole or not at all")
    backup.add_argument("--files", action="store_true", help="the files of the store, too: as large as the store")
    _finish(backup)
    backup.set_defaults(handler=_back_up)

    restore = commands.add_parser("restore", help="fill an empty database, and the store, from a backup")
    restore.add_argument("file", type=Path, help="what `finetune registry backup` wrote, from either kind of database")
    _finish(restore)
    restore.set_defaults(handler=_restore)

    audit = commands.add_parser("audit", help="list who did what, newest first")
    audit.add_argument("namespace", nargs="?", help="its name, or a former one's key (default: all)")
    audit.add_argument("--actor", help="who")
    audit.add_argument("--action", help="what, such as CreateDatasetVersion or DeleteAdapter")
    audit.add_argument("--subject", help="to what: a name with all of it, name/version or name@alias")
    audit.add_argument("--since", type=_time, metavar="TIME", help="not before this time, such as 2026-11-28T10:00")
    audit.add_argument("--until", type=_time, metavar="TIME", help="before this time")
    audit.add_argument("--limit", type=_count, default=100, help="so many entries (default: %(default)s)")
    audit.add_argument("-o", "--output", choices=("table", "json"), default="table", help="(default: %(default)s)")
    registry.add_database(audit)
    registry.add_log_format(audit)
    audit.set_defaults(handler=_audit)


def _finish(parser: argparse.ArgumentParser) -> None:
    registry.add_database(parser)
    registry.add_store(parser)
    registry.add_log_format(parser)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _back_up(arguments: argparse.Namespace) -> int:
    def act(url: URL, store: BlobStore | None) -> str:
        from finetune.registry.backup import BackupError, back_up
        from finetune.registry.migrate import migrate

        if arguments.files and store is None:
            raise BackupError("there is no store whose files could be in the backup: give --store, or no --files")
        migrate(url)
        made = back_up(url, arguments.file, store if arguments.files else None)
        if made.missing and store is not None:
            print(
                f"finetune registry: {len(made.missing)} files are not in the store {store.name}, deleted just now or "
                f"lost, and not in the backup: {', '.join(made.missing[:NAMED])}",
                file=sys.stderr,
            )
        beside = "" if arguments.files or store is None else f"; back up the store now, too: {store.name}"
        return f"{arguments.file}: {sum(made.rows.values())} rows and {made.files} files{beside}"

    return registry.on_backup(arguments, act)


def _restore(arguments: argparse.Namespace) -> int:
    def act(url: URL, store: BlobStore | None) -> str:
        from finetune.registry.backup import restore

        made = restore(arguments.file, url, store)
        return f"restored {sum(made.rows.values())} rows and {made.files} files"

    return registry.on_backup(arguments, act)


def _audit(arguments: argparse.Namespace) -> int:
    from finetune.api.audit import AuditEntry
    from finetune.registry.database import Database
    from finetune.registry.store.audit import AuditFilter, AuditLog

    async def entries(database: Database) -> list[AuditEntry]:
        names = ("namespace", "actor", "action", "subject", "since", "until")
        wanted = AuditFilter(**{name: getattr(arguments, name) for name in names})
        found: list[AuditEntry] = []
        before: int | None = None
        while len(found) < arguments.limit:
            page = await AuditLog(database).page(wanted, before=before, limit=min(arguments.limit - len(found), 200))
            found += page.items
            if page.continue_ is None:
                break
            before = int(page.continue_)
        return found

    async def show(database: Database) -> None:
        for each in await entries(database):
            if arguments.output == "json":
                print(each.model_dump_json(by_alias=True))
                continue
            details = json.dumps(each.details, ensure_ascii=False, sort_keys=True)
            time = f"{each.time:%Y-%m-%dT%H:%M:%SZ}"
            print("  ".join((time, each.actor, each.action, each.namespace, each.subject, details)))

    return registry.on_database(arguments, show)
