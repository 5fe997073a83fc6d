"""`finetune promote` and `finetune adapters promote`: point an alias to the best version by a measure.

The best takes the place of the alias's version unless it is worse by more than the guard allows; then nothing moves,
the exit code is 1 and both numbers are told. Two of these commands at once do no harm: an alias moves only from the
version that was compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .measures import best_of, measure, objection, usable_of
from .output import document, number
from .session import Result, Session, UsageError, fail, note

if TYPE_CHECKING:
    from finetune.clients.people import PeopleClient
    from finetune.clients.registry import AdapterVersion


async def promote(session: Session, arguments: argparse.Namespace) -> Result:
    """Point an alias to the best adapter that an experiment's runs have made."""
    registry, experiment = await session.registry(), arguments.experiment
    runs = await registry.list_runs(session.namespace, experiment=experiment)
    if not runs:
        raise UsageError(f"the registry knows no runs of experiment {experiment} in namespace {session.namespace}")
    unfinished = [run.name for run in runs if not (run.outcome and run.outcome.ended)]
    if unfinished:
        note(f"{len(unfinished)} of {len(runs)} runs of {experiment} have not ended yet")
    made = [run.adapter for run in runs if run.adapter]
    names = sorted({each.name for each in made})
    if arguments.adapter is None and len(names) > 1:
        raise UsageError(f"the runs of {experiment} have made {', '.join(names)}: choose one with --adapter")
    name = arguments.adapter or (names[0] if names else experiment)
    versions = [each for each in made if each.name == name]
    return await _promote(session, arguments, registry, name, versions, of=f"experiment {experiment}")


async def promote_adapter(session: Session, arguments: argparse.Namespace) -> Result:
    """Point an alias to the best of all versions of an adapter."""
    registry, name = await session.registry(), arguments.name
    versions = await registry.list_adapter_versions(session.namespace, name)
    return await _promote(session, arguments, registry, name, versions, of=name)


async def _promote(
    session: Session,
    arguments: argparse.Namespace,
    registry: PeopleClient,
    name: str,
    versions: Sequence[AdapterVersion],
    *,
    of: str,
) -> Result:
    from finetune.clients.registry_errors import RegistryNotFound

    alias, by = arguments.alias, arguments.by
    best = best_of(versions, by)
    if best is None:
        raise UsageError(f"no version of {of} that may be used has {by}; `finetune adapters list {name}` shows them")
    datasets = {each.dataset.sha256 for each in usable_of(versions, by)}
    if len(datasets) > 1:
        note(f"the versions were trained on {len(datasets)} datasets: numbers compare only on the same held-out rows")
    try:
        current = await registry.find_adapter(session.namespace, name, alias)
    except RegistryNotFound:
        current = None
    if current is not None and current.version == best.version:
        return _said(arguments, best, current, f"{name}@{alias} is version {best.version} already, the best by {by}")
    if current is not None:
        if why := objection(best, current, by, arguments.guard):
            return fail(f"{name}@{alias} stays at version {current.version}: {why}")
        if current.dataset.sha256 != best.dataset.sha256:
            note(f"versions {current.version} and {best.version} were measured on rows of different datasets")
    if not arguments.dry_run:
        await registry.point_alias(
            session.namespace, name, alias, best.version, expected=current.version if current else 0, protected=None
        )
    verb = "would be" if arguments.dry_run else "is"
    before = f", before version {current.version} ({number(measure(current, by))})" if current else ""
    told = f"{name}@{alias} {verb} version {best.version} of {best.run_name}: {by} {number(measure(best, by))}{before}"
    return _said(arguments, best, current, told)


def _said(arguments: argparse.Namespace, best: AdapterVersion, current: AdapterVersion | None, told: str) -> str:
    """What was done, in the form that was asked for."""
    if arguments.output == "name":
        return f"{best.name}@{best.version}"
    if arguments.output in {"json", "yaml"}:
        found = {
            "adapter": best.name,
            "alias": arguments.alias,
            "version": best.version,
            "run": best.run_name,
            "measure": arguments.by,
            "value": measure(best, arguments.by),
            "versionBefore": current.version if current else None,
            "valueBefore": measure(current, arguments.by) if current else None,
        }
        return document({key: value for key, value in found.items() if value is not None}, arguments.output)
    return told
