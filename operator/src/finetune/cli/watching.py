"""`finetune watch` and `finetune logs`: how a run goes, until it ends.

The exit code of `watch` is 0 when the run has succeeded, 1 when it has failed or is gone, and 130 when it was
interrupted, which leaves the run alone.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .curve import bar, curve
from .output import duration, number, painted, phase_colour, printable
from .runs import card, panel
from .session import Session, UsageError, note
from .views import RunView, of_object

if TYPE_CHECKING:
    from finetune.clients.cluster import Cluster
    from finetune.clients.kubernetes_errors import KubernetesError

POLL_SECONDS = 2.0
SERIES_SECONDS = 6.0
"""Between two questions for the curve, and the longest that one may take: the run is what is watched."""
STEPS_A_LINE = 10
"""Without a terminal a line is written for so many percent of progress."""
CONTAINERS = ("export", "trainer", "collect")
"""The project's containers, in the order in which they run."""

_STAMPED = re.compile(r"(\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)) ?(.*)", re.DOTALL)

Document = dict[str, Any]


@dataclass
class Curves:
    """What the registry has of a run's course."""

    losses: tuple[float, ...] = ()
    evaluation: str | None = None


async def watch(session: Session, arguments: argparse.Namespace) -> int:
    """Show a run until it ends; the exit code says how it ended."""
    return await follow(session, arguments.name, namespace=session.namespace)


async def follow(session: Session, name: str, *, namespace: str) -> int:
    """Show a run until it ends, on a terminal in place, otherwise a line for each change."""
    from finetune.clients.cluster import runs_path
    from finetune.clients.kubernetes_errors import KubernetesError, NotFoundError

    cluster = await session.cluster()
    view = of_object(await cluster.get(runs_path(namespace, name)))
    screen = Screen(terminal=sys.stdout.isatty())
    curves, asked = Curves(), 0.0
    clock = asyncio.get_running_loop().time
    while True:
        if view.phase == "Training" and clock() - asked >= SERIES_SECONDS:
            curves, asked = await _curves(session, namespace, view, curves), clock()
        screen.show(view, curves)
        if view.is_over:
            screen.end(view)
            return 0 if view.phase == "Succeeded" else 1
        await asyncio.sleep(POLL_SECONDS)
        try:
            found = of_object(await cluster.get(runs_path(namespace, name)))
        except NotFoundError:
            note(f"{name} was deleted; `finetune status {name}` says what the registry knows of it")
            return 1
        except KubernetesError as error:
            if not passes(error):
                raise
            continue
        if found.uid != view.uid:
            note(f"{name} was deleted, and there is another run of that name now")
            return 1
        view = found


async def _curves(session: Session, namespace: str, view: RunView, known: Curves) -> Curves:
    """The loss so far; what was known where the registry does not say."""
    from finetune.clients.kubernetes_errors import KubernetesError
    from finetune.clients.registry_errors import RegistryError

    try:
        async with asyncio.timeout(SERIES_SECONDS):
            found = await (await session.registry()).series(namespace, view.uid, "loss,evaluationLoss")
    except (RegistryError, KubernetesError, UsageError, TimeoutError):
        return known
    by_metric = {each.metric: each.values for each in found.items}
    evaluation = by_metric.get("evaluationLoss")
    return Curves(tuple(by_metric.get("loss", ())), str(evaluation[-1]) if evaluation else None)


def passes(error: KubernetesError) -> bool:
    """Whether the API server is away for a moment: the run goes on without us, and we ask again."""
    return not error.status or error.status >= 500 or error.status == 429


class Screen:
    """Where a run is shown: lines that are written over, or one line after the other."""

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal
        self._drawn = 0
        self._said: object = None

    def show(self, view: RunView, curves: Curves) -> None:
        """Show how the run is now."""
        if not self._terminal:
            if (key := _noteworthy(view)) != self._said:
                self._said = key
                print(line(view, curves.evaluation, on=False), flush=True)
            return
        width = shutil.get_terminal_size().columns
        lines = [line(view, curves.evaluation)]
        lines += [painted(each, "blue") for each in curve(curves.losses or view.losses, width=max(20, width - 12))]
        if trouble := panel(view):
            lines += trouble.split("\n")
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        # Wrapping would make more lines than are counted; it is off while these are written.
        text = "".join(f"\x1b[2K{each}\n" for each in lines)
        sys.stdout.write(f"{up}\x1b[0J\x1b[?7l{text}\x1b[?7h")
        sys.stdout.flush()
        self._drawn = len(lines)

    def end(self, view: RunView) -> None:
        """Say how it ended, and what to do next."""
        print("\n" + card(view, now=datetime.now(UTC)))
        if view.phase == "Succeeded" and view.adapter:
            name, _, version = view.adapter.partition("/")
            print(f"\nfetch it:  finetune adapters pull {name}@{version}")


def _noteworthy(view: RunView) -> object:
    percent = view.percent // STEPS_A_LINE if view.percent is not None and view.phase == "Training" else None
    return view.phase, view.reason, view.attempts, percent


def line(view: RunView, evaluation: str | None = None, *, on: bool | None = None) -> str:
    """A run in a line."""
    words = [view.name, painted(view.phase, phase_colour(view.phase), on=on)]
    if view.attempts and view.attempts > 1:
        words.append(f"attempt {view.attempts}")
    if view.percent is not None:
        words.append(f"{bar(view.percent)} {view.percent} %")
    if view.step is not None:
        words.append(f"step {view.step}" + (f"/{view.total_steps}" if view.total_steps else ""))
    if view.loss:
        words.append(f"loss {number(view.loss)}")
    held_out = view.evaluation_loss or evaluation
    if held_out:
        words.append(f"held-out {number(held_out)}" + (f" ({view.change} vs base)" if view.change else ""))
    if not view.is_over:
        if view.tokens_per_second:
            words.append(f"{number(view.tokens_per_second)} tok/s")
        if view.remaining is not None:
            words.append(f"{duration(view.remaining)} left")
        if view.reason:
            words.append(f"{view.reason}: {printable(view.message or '')}")
    return "  ".join(words)


async def logs(session: Session, arguments: argparse.Namespace) -> int:
    """Print what a run's containers have written; with `-f` from attempt to attempt until the run ends."""
    from finetune.clients.cluster import runs_path

    cluster = await session.cluster()
    view = of_object(await cluster.get(runs_path(session.namespace, arguments.name)))
    reader = Reader(cluster, session.namespace, view, only=arguments.container, tail=arguments.tail)
    if arguments.follow:
        await reader.follow()
        return 0
    pods = await reader.pods()
    if not pods:
        raise UsageError(_no_pods(view))
    wanted = pods if arguments.attempt is None else pods[arguments.attempt - 1 : arguments.attempt]
    if not wanted:
        raise UsageError(f"{view.name} has {len(pods)} pods left; --attempt={arguments.attempt} is none of them")
    for pod in wanted if arguments.attempt else wanted[-1:]:
        await reader.read(pod, follow=False)
    return 0


def _no_pods(view: RunView) -> str:
    if view.is_over:
        return (
            f"the pods of {view.name} are gone: they are kept for spec.jobTTLSeconds after the end; "
            f"`finetune status {view.name}` says what is kept of it"
        )
    return f"{view.name} has no pod yet ({view.phase}{f': {view.message}' if view.message else ''}); -f waits for it"


class Reader:
    """Reads the logs of a run's pods, each container once."""

    def __init__(self, cluster: Cluster, namespace: str, run: RunView, *, only: str | None, tail: int | None) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._run = run.name
        self._uid = run.uid
        self._only = only
        self._tail = tail
        self._done: set[tuple[str, str]] = set()
        self._waited = ""

    async def pods(self) -> list[Document]:
        """The run's pods, oldest first."""
        from finetune.clients.cluster import UID_LABEL

        path = f"/api/v1/namespaces/{self._namespace}/pods"
        found = await self._cluster.items(path, labelSelector=f"{UID_LABEL}={self._uid}")
        return sorted(found, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    async def follow(self) -> None:
        """Print what is written until the run has ended and all of it was printed."""
        from finetune.clients.cluster import runs_path
        from finetune.clients.kubernetes_errors import KubernetesError, NotFoundError

        while True:
            try:
                view = of_object(await self._cluster.get(runs_path(self._namespace, self._run)))
                pods = await self.pods()
            except NotFoundError:
                note(f"{self._run} was deleted")
                return
            except KubernetesError as error:
                if not passes(error):
                    raise
                await asyncio.sleep(POLL_SECONDS)
                continue
            fresh = [await self.read(pod, follow=True) for pod in pods]
            if any(fresh):
                continue
            if view.is_over or view.uid != self._uid:
                return
            self._wait_for(view)
            await asyncio.sleep(POLL_SECONDS)

    async def read(self, pod: Document, *, follow: bool) -> bool:
        """Print the logs of a pod's containers that have begun; whether there were any that were not printed before."""
        fresh = False
        for container in self._containers(pod):
            key = (pod["metadata"]["uid"], container)
            if key not in self._done and has_begun(pod, container):
                self._done.add(key)
                fresh = True
                await self._print(pod, container, follow=follow)
        return fresh

    async def _print(self, pod: Document, container: str, *, follow: bool) -> None:
        """Print a container's log; one that is followed goes on where it was until the container has ended.

        A stream ends before that where a proxy cuts it, or where the node begins a new file.
        """
        from finetune.clients.kubernetes_errors import KubernetesError

        name = pod["metadata"]["name"]
        print(painted(f"==> {name} {container}", "bold"), file=sys.stderr, flush=True)
        last = ""
        while True:
            ended = not follow or await self._has_ended(name, container)
            since, tail = last, None if last else self._tail
            lines = self._cluster.log(self._namespace, name, container, follow=follow, tail=tail, since=since)
            try:
                async for text in lines:
                    stamp, words = stamped(text) if follow else ("", text)
                    if not since or not stamp or moment(stamp) > moment(since):
                        print(printable(words), flush=True)
                    last = stamp or last
            except KubernetesError as error:
                if ended or not passes(error):
                    note(f"the log of {name} {container} cannot be read: {error.message}")
                    return
            if ended:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _has_ended(self, pod: str, container: str) -> bool:
        """Whether nothing more will be written: the container has ended, or the run has, or one of them is gone."""
        from finetune.clients.cluster import runs_path
        from finetune.clients.kubernetes_errors import KubernetesError, NotFoundError

        try:
            found = await self._cluster.get(f"/api/v1/namespaces/{self._namespace}/pods/{pod}")
            view = of_object(await self._cluster.get(runs_path(self._namespace, self._run)))
        except NotFoundError:
            return True
        except KubernetesError as error:
            if not passes(error):
                raise
            return False
        return view.uid != self._uid or view.is_over or "running" not in _state(found, container)

    def _containers(self, pod: Document) -> Sequence[str]:
        named = [each["name"] for part in ("initContainers", "containers") for each in pod["spec"].get(part) or ()]
        if self._only is None:
            return [each for each in CONTAINERS if each in named]
        if self._only not in named:
            raise UsageError(
                f"pod {pod['metadata']['name']} has no container {self._only!r}; it has {', '.join(named)}"
            )
        return [self._only]

    def _wait_for(self, view: RunView) -> None:
        """Say once what the run waits for."""
        words = f"{view.phase}{f': {view.message}' if view.message else ''}"
        if words != self._waited:
            self._waited = words
            note(f"waiting; the run is {words}")


def stamped(line: str) -> tuple[str, str]:
    """The time that begins a line of a followed log, and the container's words; a node's own have no time."""
    found = _STAMPED.fullmatch(line)
    return (found[1], found[2]) if found else ("", line)


def moment(stamp: str) -> datetime:
    """The time of a line; nodes write it in their own time zone."""
    return datetime.fromisoformat(stamp)


def has_begun(pod: Document, container: str) -> bool:
    """Whether a container runs or has run."""
    state = _state(pod, container)
    return "running" in state or "terminated" in state


def _state(pod: Document, container: str) -> Document:
    status = pod.get("status") or {}
    listed: Iterable[Document] = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    return next((each.get("state") or {} for each in listed if each["name"] == container), {})
