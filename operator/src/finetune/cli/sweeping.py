"""`finetune sweep`: make the runs of a sweep, let so many train at once, and say which one was the best.

Everything that is to be remembered is on the objects: whoever gives the command again, on any machine or in a CronJob,
finds the same runs, makes those that are missing, and lets the next ones begin.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .making import described
from .manifest import Document
from .output import document, number, phase_colour, table
from .runs import RESOURCE, brief
from .session import Result, Session, UsageError, fail, note
from .sweeps import HELD_ANNOTATION, SWEEP_LABEL, Member, held, is_over, members, next_ones
from .views import RunView, of_object
from .watching import line, passes

if TYPE_CHECKING:
    from finetune.clients.cluster import Cluster

POLL_SECONDS = 5.0

Objects = dict[str, Document]
"""The objects of a sweep by name."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What one call of the command works on."""

    name: str
    namespace: str
    members: Sequence[Member]
    parallel: int | None
    """How many may train at once; None leaves that to the cluster, or to its queue."""
    cluster: Cluster

    @property
    def order(self) -> list[str]:
        """The members' names, in the order in which they begin."""
        return [member.name for member in self.members]

    async def objects(self) -> Objects:
        """Its runs as the API server has them."""
        from finetune.clients.cluster import runs_path

        found = await self.cluster.items(runs_path(self.namespace), labelSelector=f"{SWEEP_LABEL}={self.name}")
        return {each["metadata"]["name"]: each for each in found}


async def sweep(session: Session, arguments: argparse.Namespace) -> Result:
    """Make the runs of a sweep, all of them or none; then release and watch them as far as it was asked for."""
    made, name = await _members(session, arguments)
    if arguments.dry_run == "client":
        return manifests([member.manifest for member in made], arguments.output)
    this = Sweep(
        name=name,
        namespace=made[0].manifest["metadata"]["namespace"],  # the file's, as for `finetune run`
        members=made,
        parallel=arguments.parallel,
        cluster=await session.cluster(),
    )
    before = await this.objects()
    problems = await _judged(this, before)
    if problems:
        return fail("nothing was made: these runs are refused\n  " + "\n  ".join(problems))
    if arguments.dry_run == "server":
        return _said(arguments, this, {**before, **{member.name: member.manifest for member in made}}, new=None)
    await _create(this, before)
    objects = await _release(this, await this.objects())
    said = _said(arguments, this, objects, new=sum(name not in before for name in this.order))
    if not arguments.watch:
        return said
    print(said, flush=True)
    return await _follow(this)


async def _members(session: Session, arguments: argparse.Namespace) -> tuple[list[Member], str]:
    """The members and the sweep's name. Raises UsageError."""
    if arguments.experiment is None and not arguments.from_run and not arguments.filename:
        arguments.experiment = arguments.name
    base = await described(session, arguments)
    name = base["metadata"].get("name")
    if not name:
        raise UsageError("give the sweep a name: its runs are found again by it")
    if arguments.seed is not None and arguments.random is None:
        raise UsageError("--seed is for random choices: say how many runs with --random=10")
    made = members(base, arguments.set, name=name, count=arguments.random, seed=arguments.seed or 0)
    if arguments.parallel is not None:
        queues = {str((each.manifest["spec"].get("scheduling") or {}).get("queueName") or "") for each in made}
        if queues != {""}:
            raise UsageError(f"the queue {max(queues)} says how many train at once: leave --parallel or the queue out")
        if arguments.dry_run == "client":
            raise UsageError(
                "--parallel is kept by the command that releases the runs, not by manifests: in Git, name a queue "
                "(--set scheduling.queueName=...), or run the command in the cluster; docs/sweeps.md shows both"
            )
    return made, name


async def _judged(this: Sweep, before: Objects) -> list[str]:
    """What the API server has against the members that are missing, each in a line. Raises as the cluster does."""
    from finetune.clients.cluster import runs_path
    from finetune.clients.kubernetes_errors import AlreadyExistsError, KubernetesError

    problems: dict[str, list[str]] = {}
    for member in this.members:
        if member.name in before:
            continue
        try:
            await this.cluster.create(
                runs_path(this.namespace), _made(this, member), fieldValidation="Strict", dryRun="All"
            )
        except AlreadyExistsError:
            said = f"there is such a TrainingRun, and it is not of the sweep {this.name}"
            problems.setdefault(said, []).append(member.name)
        except KubernetesError as error:
            if error.status == 401 or passes(error):  # it is not about this member
                raise
            said = brief(error).replace(member.name, "NAME")  # what is wrong with all of them is said once
            problems.setdefault(said, []).append(f"{member.name} ({member.label})")
    return [f"{', '.join(names)}: {said}" for said, names in problems.items()]


def _made(this: Sweep, member: Member) -> Document:
    return member.manifest if this.parallel is None else held(member)


async def _create(this: Sweep, before: Objects) -> None:
    """Create the missing members; where one is refused after all, those that were just made go again."""
    from finetune.clients.cluster import runs_path
    from finetune.clients.kubernetes_errors import AlreadyExistsError, KubernetesError

    made: list[str] = []
    try:
        for member in this.members:
            if member.name in before:
                continue
            try:
                await this.cluster.create(
                    runs_path(this.namespace), _made(this, member), fieldValidation="Strict", fieldManager="finetune"
                )
            except AlreadyExistsError:  # somebody gives the same command
                continue
            made.append(member.name)
    except KubernetesError:
        left = await _removed(this, made)
        note(
            f"could not be deleted again: {', '.join(left)}" if left else "what was made of the sweep is deleted again"
        )
        raise


async def _removed(this: Sweep, names: Iterable[str]) -> list[str]:
    """Delete runs again; gives those that could not be."""
    from finetune.clients.cluster import runs_path
    from finetune.clients.kubernetes_errors import KubernetesError, NotFoundError

    left = []
    for name in names:
        try:
            await this.cluster.delete(runs_path(this.namespace, name))
        except NotFoundError:
            continue
        except KubernetesError:
            left.append(name)
    return left


async def _release(this: Sweep, objects: Objects) -> Objects:
    """Let the next members begin; gives the objects as they are then."""
    from finetune.clients.cluster import runs_path
    from finetune.clients.kubernetes_errors import ConflictError, NotFoundError

    if this.parallel is None:
        return objects
    found = dict(objects)
    for name in next_ones(objects, this.order, parallel=this.parallel):
        version = objects[name]["metadata"]["resourceVersion"]  # so that of two commands one releases it
        change = {
            "metadata": {"annotations": {HELD_ANNOTATION: None}, "resourceVersion": version},
            "spec": {"suspend": False},
        }
        try:
            found[name] = await this.cluster.patch(runs_path(this.namespace, name), change)
        except (ConflictError, NotFoundError):
            continue
    return found


async def _follow(this: Sweep) -> int:
    """Release the next members as others end, a line for each change, until all have ended; then the ranking."""
    from finetune.clients.kubernetes_errors import KubernetesError

    told: dict[str, str] = {}
    while True:
        try:
            objects = await _release(this, await this.objects())
        except KubernetesError as error:
            if not passes(error):
                raise
            await asyncio.sleep(POLL_SECONDS)
            continue
        views = {name: of_object(objects[name]) for name in this.order if name in objects}
        for name, view in views.items():
            if told.get(name) != view.phase:
                told[name] = view.phase
                print(line(view, on=False), flush=True)
        if all(map(is_over, (objects[name] for name in views))):
            gone = len(this.members) - len(views)
            if gone:
                note(f"{gone} of the sweep's runs were deleted")
            print("\n" + ranking(this.members, views))
            return 0 if any(view.phase == "Succeeded" for view in views.values()) else 1
        await asyncio.sleep(POLL_SECONDS)


def ranking(made: Sequence[Member], views: Mapping[str, RunView], *, on: bool | None = None) -> str:
    """The runs with their settings, the lowest loss on held-out rows first."""
    paths = list(dict.fromkeys(path for member in made for path in member.settings))
    shown = sorted(
        (member for member in made if member.name in views),
        key=lambda member: (
            views[member.name].evaluation_loss is None,
            float(views[member.name].evaluation_loss or 0),
        ),
    )
    rows = []
    for member in shown:
        view = views[member.name]
        values = (member.settings[path] or "(default)" for path in paths)
        losses = (number(view.evaluation_loss), view.change or "-")
        rows.append((member.name, view.phase, *values, *losses, view.adapter or "-"))
    columns = ("NAME", "STATE", *(path.rpartition(".")[2].upper() for path in paths), "LOSS", "VS BASE", "ADAPTER")
    return table(columns, rows, paint={"STATE": phase_colour}, on=on)


def manifests(made: Sequence[Document], form: str) -> str:
    """Manifests that kubectl and Git take: one after the other, or as JSON a List."""
    if form == "json":
        return document({"apiVersion": "v1", "kind": "List", "items": list(made)}, "json")
    return "\n---\n".join(document(each, "yaml") for each in made)


def _said(arguments: argparse.Namespace, this: Sweep, objects: Mapping[str, Document], *, new: int | None) -> str:
    """What there is to say once the runs are there; `new` is how many were just made, None of a dry run."""
    shown = [objects[name] for name in this.order if name in objects]
    if arguments.output in {"json", "yaml"}:
        for each in shown:
            each["metadata"].pop("managedFields", None)
        return manifests(shown, arguments.output)
    if arguments.output == "name":
        return "\n".join(f"{RESOURCE}/{each['metadata']['name']}" for each in shown)
    lines = [f"{member.name}  {member.label}" for member in this.members if member.name in objects]
    if new is None:
        return "\n".join([*lines, f"{len(shown)} runs would be there (server dry run)"])
    lines.append(f"sweep {this.name}: {new} runs made, {len(shown) - new} were there")
    waiting = sum(HELD_ANNOTATION in (each["metadata"].get("annotations") or {}) for each in shown)
    if waiting and not arguments.watch:
        lines.append(f"{waiting} wait for their turn: the same command again releases the next, --watch all of them")
    return "\n".join(lines)
