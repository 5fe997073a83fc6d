"""One run: its curves, what became of it, what it was made from and what came of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import yaml
from pydantic import JsonValue

from finetune.api import reasons
from finetune.api.conditions import ACCEPTED, DATASET_READY, STALLED, SUCCEEDED, Condition
from finetune.api.registry import Run
from finetune.registry.pages.charts import Chart, Line, draw
from finetune.registry.pages.queries import Part
from finetune.registry.pages.text import UNKNOWN, clean, duration, moment, number, shortened

from .runs import Loss, State, base_path, left_of, loss_of, state_of, step_of
from .settings import Setting, settings_of

CHARTS = (
    ("Loss", ("loss", "evaluationLoss")),
    ("Learning rate", ("learningRate",)),
    ("Tokens per second", ("tokensPerSecond",)),
    ("Gradient norm", ("gradientNorm",)),
    ("Reward accuracy", ("rewardAccuracy",)),
    ("Reward margin", ("rewardMargin",)),
)
"""Known metrics in the order of their charts; each other one has a chart of its own after these."""
LABELS = {"loss": "training loss", "evaluationLoss": "held-out loss", "learningRate": "learning rate"}
JUDGED = frozenset({ACCEPTED, DATASET_READY, SUCCEEDED})
"""Conditions that are true when all is well."""
TIMINGS = {"startTime": "trainer started", "modelLoadedTime": "model loaded", "firstStepTime": "first step"}
"""The times of the trainer's document, and their words."""
TOKENS = "tokens"
"""How many the trainer has seen by a step: no curve, but what the others can be drawn over."""
MAX_CHARTS = 12
PARTS = 80
"""Of a curve that the page itself brings."""
SHARED_SPEC = ("suspend",)
"""What a new run does not take from the one that it is made from."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A name and what belongs to it, perhaps with an address."""

    name: str
    value: str
    href: str = ""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A box of the drawing of where a run is from."""

    title: str
    text: str
    href: str
    x: int
    y: int


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Boxes from left to right: what went in, the run, what came out."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int, int, int], ...]
    height: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run failed, where, and what to do."""

    reason: str
    message: str
    hint: str
    row: int | None
    row_text: str
    """The row as it stands in the dataset, where that is known."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A held-out prompt and its answers."""

    row: str
    prompt: str
    reference: str
    base: str
    adapter: str


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A start of the trainer."""

    number: int
    first: str
    last: str
    after: str
    """How long after the run was recorded."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A condition of the run's object."""

    type: str
    status: str
    kind: str
    """As `State.kind`: whether that is as it should be."""
    reason: str
    message: str
    since: str


@dataclass(frozen=True, kw_only=True)
class RunView:
    """Everything of a run's page but its charts."""

    name: str
    uid: str
    href: str
    state: State
    reason: str
    loss: Loss
    progress: int | None
    step: str
    left: str
    is_live: bool
    is_archived: bool
    failure: Failure | None
    message: str
    """What a run says that has not failed."""
    facts: tuple[Fact, ...]
    times: tuple[Fact, ...]
    conditions: tuple[Said, ...]
    attempts: tuple[Attempt, ...]
    lineage: Lineage
    settings: tuple[Setting, ...]
    changed: int
    samples: tuple[Sample, ...]
    logs: str
    tags: Mapping[str, str]
    notes: str
    follow_up: str
    """Name of a new run that is made from this one."""


def run_view(
    namespace: str,
    run: Run,
    *,
    attempts: Sequence[Any],
    result: Mapping[str, Any] | None,
    row_text: str,
    conditions: Sequence[Condition] = (),
) -> RunView:
    """The page's content. `attempts` as `PageQueries.attempts` has them, `result` the trainer's document.

    `conditions` are those of the run's object, as long as there is one.
    """
    outcome = run.outcome
    step, total = step_of(run)
    settings = settings_of(run.spec)
    ended = bool(outcome and outcome.ended)
    return RunView(
        name=run.name,
        uid=run.uid,
        href=f"{base_path(namespace)}/runs/{run.uid}",
        state=state_of(run),
        reason=(outcome.reason or "") if outcome and outcome.reason != outcome.phase else "",
        loss=loss_of(run),
        progress=_progress(run),
        step=UNKNOWN if step is None else f"{step:,}" + (f" of {total:,}" if total else ""),
        left=left_of(run),
        is_live=not ended,
        is_archived=run.archived_time is not None,
        failure=_failure(run, row_text),
        message=(outcome.message or "") if outcome and outcome.phase != reasons.FAILED else "",
        facts=tuple(_facts(namespace, run)),
        times=tuple(_times(run, attempts, result, conditions)),
        conditions=tuple(map(_condition, conditions)),
        attempts=tuple(
            Attempt(
                number=each.attempt,
                first=f"{each.first:,}",
                last=f"{each.last:,}",
                after=duration(each.seconds),
            )
            for each in attempts
        ),
        lineage=lineage(namespace, run),
        settings=tuple(settings),
        changed=sum(each.differs for each in settings),
        samples=tuple(samples_of(result)),
        logs=f"kubectl logs -n {namespace} -l finetune.dev/run-uid={run.uid} --all-containers --prefix --tail=-1",
        tags=run.tags or {},
        notes=run.notes or "",
        follow_up=next_name(run.name),
    )


def charts_of(run: Run, outlines: Mapping[tuple[str, str], Sequence[Part]], marks: Sequence[int]) -> list[Chart]:
    """The run's charts, the most important first."""
    known = {name for _, names in CHARTS for name in names} | {TOKENS}
    groups = [*CHARTS, *((name, (name,)) for name in sorted(run.metrics) if name not in known)]
    live = not (run.outcome and run.outcome.ended)
    found = []
    for title, names in groups:
        lines = [
            Line(
                label=LABELS.get(name, name),
                metric=name,
                run=run.uid,
                parts=outlines.get((run.uid, name), ()),
                place=place,
            )
            for place, name in enumerate(names)
        ]
        base = loss_of(run).base if title == "Loss" else None
        chart = draw(title, lines, base=base, marks=marks, is_live=live)
        if chart is not None:
            found.append(chart)
    return found[:MAX_CHARTS]


def _progress(run: Run) -> int | None:
    if run.trainer_status is None or (run.outcome and run.outcome.ended):
        return None
    return run.trainer_status.progress_percentage


def _failure(run: Run, row_text: str) -> Failure | None:
    outcome = run.outcome
    if outcome is None or outcome.phase != reasons.FAILED:
        return None
    return Failure(
        reason=outcome.reason or reasons.FAILED,
        message=outcome.message or "",
        hint=outcome.hint or "",
        row=outcome.row,
        row_text=shortened(clean(row_text), 4000),
    )


def _condition(each: Condition) -> Said:
    judged = {"True": "good", "False": "bad"}.get(each.status, "idle") if each.type in JUDGED else "idle"
    kind = "bad" if each.type == STALLED and each.status == "True" else judged
    return Said(
        type=each.type,
        status=each.status,
        kind=kind,
        reason=each.reason,
        message=each.message,
        since=moment(each.last_transition_time),
    )


def _facts(namespace: str, run: Run) -> list[Fact]:
    base, outcome = base_path(namespace), run.outcome
    facts = [
        Fact(name="experiment", value=run.experiment, href=f"{base}/experiments/{run.experiment}"),
        Fact(name="method", value=run.method),
        Fact(name="uid", value=run.uid),
    ]
    if outcome and outcome.gpu_seconds is not None:
        facts.append(Fact(name="GPU hours", value=f"{outcome.gpu_seconds / 3600:.2f}"))
    if outcome and outcome.attempts is not None:
        facts.append(Fact(name="attempts", value=f"{outcome.attempts:,}"))
    if outcome and outcome.resumed_from_step:
        facts.append(Fact(name="resumed from step", value=f"{outcome.resumed_from_step:,}"))
    if run.adapter:
        facts.append(Fact(name="final training loss", value=run.adapter.final_loss))
        if run.adapter.reward_accuracy:
            facts.append(Fact(name="reward accuracy", value=run.adapter.reward_accuracy))
        if run.adapter.reward_margin:
            facts.append(Fact(name="reward margin", value=run.adapter.reward_margin))
        if run.adapter.tokens:
            facts.append(Fact(name="tokens", value=f"{run.adapter.tokens:,}"))
    return facts


def _times(
    run: Run, attempts: Sequence[Any], result: Mapping[str, Any] | None, conditions: Sequence[Condition]
) -> list[Fact]:
    """Where the time went: what happened when, and how long after the event before."""
    outcome = run.outcome
    events: list[tuple[datetime, str]] = [(run.created_time, "recorded")]
    names = {ACCEPTED: "accepted", DATASET_READY: "rows exported"}
    events += [
        (each.last_transition_time, names[each.type])
        for each in conditions
        if each.type in names and each.status == "True"
    ]
    if outcome and outcome.start_time:
        events.append((outcome.start_time, "job started"))
    timings = (result or {}).get("timings")
    told = {name: _time((timings if isinstance(timings, Mapping) else {}).get(name)) for name in TIMINGS}
    events += [(at, TIMINGS[name]) for name, at in told.items() if at is not None]
    if attempts and told["firstStepTime"] is None:
        events.append((run.created_time + timedelta(seconds=attempts[0].seconds), "first step told"))
    if outcome and outcome.completion_time:
        events.append((outcome.completion_time, "ended"))
    events.sort(key=lambda event: event[0])
    began = [Fact(name=events[0][1], value=moment(events[0][0]))]
    return began + [
        Fact(name=name, value=f"{moment(at)}, {_after(before, at)} later")
        for (before, _), (at, name) in pairwise(events)
    ]


def _time(text: object) -> datetime | None:
    """A time that the trainer has written; None for what is none."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _after(start: datetime, end: datetime) -> str:
    return duration((end - start).total_seconds())


def lineage(namespace: str, run: Run) -> Lineage:
    """What went into the run, and what came out of it."""
    base = base_path(namespace)
    sources = [Node(title="base model", text=run.base_model or UNKNOWN, href="", x=0, y=0)]
    if run.dataset_name:
        version = f"{run.dataset_name}/{run.dataset_version}"
        href = f"{base}/datasets/{run.dataset_name}?version={run.dataset_version}"
        sources.append(Node(title="dataset", text=version, href=href, x=0, y=0))
    if run.parent_adapter:
        parent = run.parent_adapter
        href = f"{base}/adapters/{parent.name}?version={parent.version}"
        sources.append(Node(title="parent adapter", text=f"{parent.name}@{parent.version}", href=href, x=0, y=0))
    height = 56 * len(sources)
    middle = (height - 48) // 2
    placed = [
        Node(title=node.title, text=_fitting(node.text), href=node.href, x=0, y=56 * place)
        for place, node in enumerate(sources)
    ]
    this = Node(title=f"run, {run.method}", text=_fitting(run.name), href="", x=260, y=middle)
    made = run.adapter
    result = Node(
        title="adapter",
        text=_fitting(f"{made.name}@{made.version}") if made else "none yet",
        href=f"{base}/adapters/{made.name}?version={made.version}" if made else "",
        x=520,
        y=middle,
    )
    edges = [(200, node.y + 24, 260, middle + 24) for node in placed]
    return Lineage(nodes=(*placed, this, result), edges=(*edges, (460, middle + 24, 520, middle + 24)), height=height)


def _fitting(text: str) -> str:
    """As much of a text as a box has room for; of a path the end tells more."""
    text = clean(text)
    return text if len(text) <= 26 else "…" + text[-25:]


def samples_of(result: Mapping[str, Any] | None) -> list[Sample]:
    """The sample answers of a trainer's document; what is not as expected is left out."""
    listed = (result or {}).get("samples")
    return [
        Sample(
            row=str(each.get("row", ""))[:20],
            prompt=shortened(str(each.get("prompt", "")), 2000),
            reference=shortened(str(each.get("reference") or ""), 2000),
            base=shortened(str(each.get("base", "")), 2000),
            adapter=shortened(str(each.get("adapter", "")), 2000),
        )
        for each in (listed[:10] if isinstance(listed, list) else [])
        if isinstance(each, Mapping)
    ]


def next_name(name: str) -> str:
    """The name of the run after this: its number one higher, or `-2` behind it."""
    stem, dash, last = name.rpartition("-")
    if dash and last.isdigit() and len(last) < 9:
        return f"{stem}-{int(last) + 1}"
    return f"{name[:61].rstrip('.-')}-2"


def manifest(namespace: str, run: Run) -> str:
    """A TrainingRun with the same spec under the next name, as YAML."""
    spec: dict[str, JsonValue] = {key: value for key, value in run.spec.items() if key not in SHARED_SPEC}
    document = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": next_name(run.name), "namespace": namespace},
        "spec": spec,
    }
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=False, width=110)
    return text


def read_result(document: bytes | None) -> Mapping[str, Any] | None:
    """The trainer's document; None where there is none that can be read."""
    if document is None:
        return None
    try:
        found = json.loads(document)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def tags_text(tags: Mapping[str, str]) -> str:
    r"""Tags as a line of a form: `key=value, key=value`; a comma of a value is written `\,`."""
    said = {key: re.sub(r"([\\,])", r"\\\1", value) for key, value in sorted(tags.items())}
    return ", ".join(f"{key}={value}" if value else key for key, value in said.items())


def summary(run: Run) -> str:
    """One line of a run, for the title of its page."""
    loss = loss_of(run)
    said = [run.name, state_of(run).word]
    if loss.value is not None:
        said.append(f"held-out loss {number(loss.value)}")
    return ", ".join(said)
