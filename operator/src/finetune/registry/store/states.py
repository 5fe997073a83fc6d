"""What people do with adapter versions: mark them, name them by aliases, delete them; and the files that they read."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.files import AdapterAlias, AdapterAliases, AliasRequest, VersionChange
from finetune.api.registry import AdapterVersion
from finetune.registry.database import Database
from finetune.registry.errors import Conflict, Forbidden, Invalid, NotFound
from finetune.registry.schema import adapter_aliases, adapter_versions, adapters, run_files, run_parents, runs

from .adapters import ADAPTERS, complete, find_version, refuse_withheld
from .common import named, now, record
from .interim_rows import give_up

MAX_NAMED = 5
"""Aliases and runs that a refusal names."""


class AdapterStates:
    """Changes versions, and gives those that may be given out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def given_out(self, namespace: str, name: str, version: int | str | None) -> AdapterVersion:
        """A version whose files may be read from the store. Raises `NotFound`, `Conflict` when it has none."""
        async with self._database.reading() as connection:
            row = await find_version(connection, namespace, name, version)
            refuse_withheld(row)
            found = (await complete(connection, [row]))[0]
        if not found.stored:
            raise Conflict(
                f"the files of adapter {name!r} version {found.version} are not in the registry's store, but at "
                f"{found.uri}",
                hint="read them from the claim; a run's trainer sends its files when the registry has a store",
            )
        return found

    async def change(
        self, namespace: str, name: str, version: int | str | None, request: VersionChange, *, actor: str
    ) -> AdapterVersion:
        """Change mark, tags or notes; what the request leaves out stays. Raises `NotFound`, `Conflict`."""
        said = request.model_dump(exclude_unset=True)
        values: dict[str, Any] = {key: said[key] for key in ("tags", "notes") if said.get(key) is not None}
        if "mark" in said:
            values |= {"mark": said["mark"], "mark_reason": said.get("reason"), "marked_time": now()}
        elif "reason" in said:
            values["mark_reason"] = said["reason"]

        async def transaction(connection: AsyncConnection) -> AdapterVersion:
            row = await self._locked(connection, namespace, name, version)
            if row.mark == "Deleted":
                raise Conflict(
                    f"version {row.version} of adapter {name!r} was deleted", hint="a deleted version cannot be changed"
                )
            if values:
                change = update(adapter_versions).where(adapter_versions.c.id == row.id)
                await connection.execute(change.values(**values))
                subject = f"{name}/{row.version}"
                details = {key: value for key, value in said.items() if key != "notes"}
                await record(
                    connection,
                    actor=actor,
                    action="ChangeAdapter",
                    namespace=namespace,
                    subject=subject,
                    details=details,
                )
            row = await ADAPTERS.find(connection, namespace, name, row.version)
            return (await complete(connection, [row]))[0]

        return await self._database.write(transaction)

    async def delete(self, namespace: str, name: str, version: int, *, actor: str) -> AdapterVersion:
        """Give up the files of a version for good; what is known of it stays, with its number. Idempotent.

        Raises `NotFound`, and `Conflict` while an alias points to it or an unfinished run goes on from it.
        """

        async def transaction(connection: AsyncConnection) -> AdapterVersion:
            row = await self._locked(connection, namespace, name, version)
            if row.mark != "Deleted":
                await _refuse_needed(connection, row)
                values = {"mark": "Deleted", "mark_reason": None, "marked_time": now(), "stored_time": None}
                change = update(adapter_versions).where(adapter_versions.c.id == row.id)
                await connection.execute(change.values(**values))
                await give_up(connection, row.run_id)
                await connection.execute(delete(run_files).where(run_files.c.run_id == row.run_id))
                await record(
                    connection,
                    actor=actor,
                    action="DeleteAdapter",
                    namespace=namespace,
                    subject=f"{name}/{version}",
                    details={"sha256": row.sha256},
                )
            row = await ADAPTERS.find(connection, namespace, name, version)
            return (await complete(connection, [row]))[0]

        return await self._database.write(transaction)

    async def aliases(self, namespace: str, name: str) -> AdapterAliases:
        """The aliases of an adapter, sorted by name. Raises `NotFound` for an adapter that does not exist."""
        async with self._database.reading() as connection:
            await _adapter(connection, namespace, name)
            rows = (await connection.execute(_aliases(namespace, name))).all()
        return AdapterAliases(items=[_alias(row) for row in rows])

    async def point(
        self, namespace: str, name: str, alias: str, request: AliasRequest, *, protects: bool, actor: str
    ) -> AdapterAlias:
        """Point an alias to a version; `protects` says whether the caller may move protected ones.

        Raises `NotFound`, also for a version that is withheld, `Conflict` when the alias points elsewhere than the
        caller expects, and `Forbidden` when it is protected from the caller.
        """
        if alias == "latest":
            raise Invalid("`latest` is the newest version, and no alias", hint="take another word, like production")

        async def transaction(connection: AsyncConnection) -> AdapterAlias:
            adapter = await _adapter(connection, namespace, name, lock=True)
            row = await ADAPTERS.find(connection, namespace, name, request.version)
            refuse_withheld(row)
            before = (await connection.execute(_aliases(namespace, name, alias))).first()
            _refuse_unexpected(name, alias, before, request.expected)
            _refuse_protected(name, alias, before, protects=protects, changes=request.protected is not None)
            protected = request.protected if request.protected is not None else bool(before and before.protected)
            values = {"adapter_version_id": row.id, "protected": protected, "moved_time": now()}
            if before is None:
                await connection.execute(insert(adapter_aliases).values(adapter_id=adapter.id, alias=alias, **values))
            else:
                change = update(adapter_aliases).where(_is(adapter, alias))
                await connection.execute(change.values(**values))
            await self._record_alias(
                connection, namespace, name, alias, actor=actor, old=before and before.version, new=row.version
            )
            return _alias((await connection.execute(_aliases(namespace, name, alias))).one())

        return await self._database.write(transaction)

    async def unpoint(
        self, namespace: str, name: str, alias: str, *, expected: int | None, protects: bool, actor: str
    ) -> None:
        """Remove an alias; one that does not exist is no error. Raises as `point` does."""

        async def transaction(connection: AsyncConnection) -> None:
            adapter = await _adapter(connection, namespace, name, lock=True)
            before = (await connection.execute(_aliases(namespace, name, alias))).first()
            _refuse_unexpected(name, alias, before, expected)
            if before is None:
                return
            _refuse_protected(name, alias, before, protects=protects, changes=False)
            await connection.execute(delete(adapter_aliases).where(_is(adapter, alias)))
            await self._record_alias(connection, namespace, name, alias, actor=actor, old=before.version, new=None)

        await self._database.write(transaction)

    @staticmethod
    async def _record_alias(
        connection: AsyncConnection, namespace: str, name: str, alias: str, *, actor: str, old: Any, new: int | None
    ) -> None:
        await record(
            connection,
            actor=actor,
            action="MoveAlias",
            namespace=namespace,
            subject=f"{name}@{alias}",
            details={"from": old, "to": new},
        )

    @staticmethod
    async def _locked(connection: AsyncConnection, namespace: str, name: str, version: int | str | None) -> Any:
        """A version's row; the adapter's row is the lock for its versions and aliases."""
        await _adapter(connection, namespace, name, lock=True)
        return await find_version(connection, namespace, name, version)


async def _adapter(connection: AsyncConnection, namespace: str, name: str, *, lock: bool = False) -> Any:
    query = select(adapters).where(named(adapters, namespace, name))
    row = (await connection.execute(query.with_for_update(key_share=True) if lock else query)).first()
    if row is None:
        raise NotFound(
            f"adapter {name!r} does not exist in namespace {namespace!r}", hint=ADAPTERS.how_to_make(namespace, name)
        )
    return row


def _aliases(namespace: str, name: str, alias: str | None = None) -> Select[Any]:
    query = (
        select(adapter_aliases, adapter_versions.c.version)
        .join(adapters, adapters.c.id == adapter_aliases.c.adapter_id)
        .join(adapter_versions, adapter_versions.c.id == adapter_aliases.c.adapter_version_id)
        .where(named(adapters, namespace, name))
    )
    return query.order_by(adapter_aliases.c.alias) if alias is None else query.where(adapter_aliases.c.alias == alias)


def _is(adapter: Any, alias: str) -> Any:
    return (adapter_aliases.c.adapter_id == adapter.id) & (adapter_aliases.c.alias == alias)


def _alias(row: Any) -> AdapterAlias:
    return AdapterAlias(alias=row.alias, version=row.version, protected=row.protected, moved_time=row.moved_time)


def _refuse_unexpected(name: str, alias: str, before: Any, expected: int | None) -> None:
    found = 0 if before is None else before.version
    if expected is not None and expected != found:
        where = f"points to version {found}" if found else "does not exist"
        raise Conflict(
            f"alias {alias!r} of adapter {name!r} {where}, not to version {expected} as expected"
            if expected
            else f"alias {alias!r} of adapter {name!r} exists already: it {where}",
            hint="somebody else has moved it: look at it again before you move it",
        )


def _refuse_protected(name: str, alias: str, before: Any, *, protects: bool, changes: bool) -> None:
    if not protects and (changes or (before is not None and before.protected)):
        raise Forbidden(
            f"alias {alias!r} of adapter {name!r} is protected, or would be",
            hint="ask for a Role with verb 'protect' on 'adapters' of API group finetune.dev",
        )


async def _refuse_needed(connection: AsyncConnection, row: Any) -> None:
    query = select(adapter_aliases.c.alias).where(adapter_aliases.c.adapter_version_id == row.id)
    aliases = (await connection.execute(query.limit(MAX_NAMED))).scalars().all()
    if aliases:
        raise Conflict(
            f"version {row.version} of adapter {row.name!r} has the alias {', '.join(sorted(aliases))}",
            hint="move the alias to another version first, or remove it",
        )
    going_on = select(runs.c.name).join(run_parents, run_parents.c.run_id == runs.c.id)
    going_on = going_on.where(run_parents.c.adapter_version_id == row.id, runs.c.ended.is_(False))
    names = (await connection.execute(going_on.limit(MAX_NAMED))).scalars().all()
    if names:
        raise Conflict(
            f"version {row.version} of adapter {row.name!r} is the parent of a run that has not ended: "
            f"{', '.join(sorted(names))}",
            hint="wait for the run, or delete it",
        )
