"""The list of runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, urlencode

from finetune.api import reasons
from finetune.api.registry import DELETED, NAME_PATTERN, Run
from finetune.registry.errors import Invalid
from finetune.registry.pages.text import UNKNOWN, age, change, decimal, duration, number, percent
from finetune.registry.store.listing import SORTS, UNKNOWN_PHASE, RunFilter

PAGE = 50
STATES = (
    reasons.PENDING,
    reasons.QUEUED,
    reasons.EXPORTING,
    reasons.TRAINING,
    reasons.REGISTERING,
    reasons.SUSPENDED,
    reasons.SUCCEEDED,
    reasons.FAILED,
    DELETED,
    UNKNOWN_PHASE,
)
METHODS = ("SFT", "DPO", "KTO")
SYMBOLS = {
    reasons.SUCCEEDED: "✓",
    reasons.FAILED: "✕",
    reasons.TRAINING: "●",
    reasons.SUSPENDED: "‖",
    DELETED: "∅",
    UNKNOWN_PHASE: "?",
}
"""Beside the word, for those who see no colours; ○ for what goes on."""
FILTERS = ("state", "experiment", "method", "dataset", "text", "sort", "archived")


@dataclass(frozen=True, kw_only=True)
class State:
    """A run's state: the word, a sign, and the class that colours it."""

    word: str
    sign: str
    kind: str
    """`good`, `bad`, `busy` or `idle`."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A held-out loss: the number, what it is, and how it stands to the base's."""

    value: float | None
    text: str
    note: str
    """Where it is from: `best@2200`, or `newest` while the run trains."""
    base: float | None
    share: str
    """Against the base, as `percent` has it."""
    is_worse: bool


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One line of the list."""

    uid: str
    name: str
    href: str
    state: State
    reason: str
    problem: str
    """What a failed or waiting run says, and what to do."""
    adapter: str
    adapter_href: str
    experiment: str
    method: str
    model: str
    dataset: str
    dataset_href: str
    loss: Loss
    spark: str
    step: str
    left: str
    gpu_hours: str
    age: str
    created: datetime
    is_archived: bool


def base_path(namespace: str) -> str:
    """Where the pages of a namespace are."""
    return f"/ui/{quote(namespace)}"


def state_of(run: Run) -> State:
    """The state in the operator's own words."""
    word = run.outcome.phase if run.outcome else UNKNOWN_PHASE
    kinds = {reasons.SUCCEEDED: "good", reasons.FAILED: "bad", reasons.TRAINING: "busy"}
    return State(word=word, sign=SYMBOLS.get(word, "○"), kind=kinds.get(word, "idle"))


def loss_of(run: Run) -> Loss:
    """The best held-out loss that is known of a run."""
    status, adapter, outcome = run.trainer_status, run.adapter, run.outcome
    ended = decimal(adapter.evaluation_loss if adapter else outcome.evaluation_loss if outcome else None)
    newest = decimal(status.value("evaluationLoss")) if status else None
    value = ended if ended is not None else newest
    base = decimal(adapter.base_evaluation_loss if adapter else outcome.base_evaluation_loss if outcome else None)
    if base is None and status:
        base = decimal(status.value("baseEvaluationLoss"))
    if ended is not None:
        note = f"best@{adapter.best_step:,}" if adapter and adapter.best_step else ""
    else:
        note = "newest" if value is not None else ""
    share = change(value, base)
    return Loss(
        value=value, text=number(value), note=note, base=base, share=percent(share), is_worse=bool(share and share > 0)
    )


def step_of(run: Run) -> tuple[int | None, int | None]:
    """The newest step, and how many there will be."""
    if run.trainer_status is None:
        return (run.adapter.steps, None) if run.adapter else (None, None)
    step, total = (decimal(run.trainer_status.value(name)) for name in ("step", "totalSteps"))
    return None if step is None else int(step), None if total is None else int(total)


def problem_of(run: Run) -> str:
    """What a run says that did not go as it should: message and hint in one."""
    outcome = run.outcome
    if outcome is None or outcome.phase in {reasons.SUCCEEDED, reasons.TRAINING} or not outcome.message:
        return ""
    message = outcome.message.rstrip()
    if not outcome.ended or not outcome.hint:
        return message
    return f"{message}{'' if message.endswith(('.', '!', '?')) else '.'} {outcome.hint}"


def left_of(run: Run) -> str:
    """The time that is left of a run that trains."""
    status = run.trainer_status
    if run.outcome is None or run.outcome.ended or status is None:
        return UNKNOWN
    return duration(status.estimated_remaining_seconds)


def run_row(namespace: str, run: Run, spark: str, now: datetime) -> RunRow:
    """The line of one run."""
    base = base_path(namespace)
    state = state_of(run)
    step, total = step_of(run)
    reason = run.outcome.reason if run.outcome and run.outcome.reason != state.word else None
    seconds = run.outcome.gpu_seconds if run.outcome else None
    return RunRow(
        uid=run.uid,
        name=run.name,
        href=f"{base}/runs/{run.uid}",
        state=state,
        reason=reason or "",
        problem=problem_of(run),
        adapter=f"{run.adapter.name}@{run.adapter.version}" if run.adapter else "",
        adapter_href=f"{base}/adapters/{run.adapter.name}?version={run.adapter.version}" if run.adapter else "",
        experiment=run.experiment,
        method=run.method,
        model=(run.base_model or UNKNOWN).rstrip("/").rpartition("/")[2] or UNKNOWN,
        dataset=f"{run.dataset_name}/{run.dataset_version}" if run.dataset_name else "",
        dataset_href=f"{base}/datasets/{run.dataset_name}?version={run.dataset_version}" if run.dataset_name else "",
        loss=loss_of(run),
        spark=spark,
        step=UNKNOWN if step is None else f"{step:,}" if total in (None, step) else f"{step:,}/{total:,}",
        left=left_of(run),
        gpu_hours=UNKNOWN if seconds is None else f"{seconds / 3600:.1f}",
        age=age(run.created_time, now),
        created=run.created_time,
        is_archived=run.archived_time is not None,
    )


def filter_of(query: Mapping[str, str]) -> RunFilter:
    """The filter that a form's fields make; empty ones ask for nothing. Raises `Invalid`, naming the field."""
    said = {name: query.get(name, "").strip() for name in FILTERS}
    sort = said["sort"] or "-created"
    if sort.removeprefix("-") not in SORTS:
        raise Invalid(f"there is no order {sort[:40]!r}", hint=f"sort by one of: {', '.join(SORTS)}")
    for name in ("experiment",):
        if said[name] and not re.fullmatch(NAME_PATTERN, said[name]):
            raise Invalid(f"{said[name][:70]!r} is no name of an {name}", hint="small letters, digits, '-' and '.'")
    dataset, _, version = said["dataset"].partition("/")
    if dataset and (
        not re.fullmatch(NAME_PATTERN, dataset) or (version and not re.fullmatch("[1-9][0-9]{0,8}", version))
    ):
        raise Invalid(f"{said['dataset'][:70]!r} is no dataset", hint="write its name, or name/version")
    if said["state"] and not re.fullmatch("[A-Za-z]{1,32}", said["state"]):
        raise Invalid(f"there is no state {said['state'][:40]!r}", hint=f"one of: {', '.join(STATES)}")
    return RunFilter(
        states=(said["state"],) if said["state"] else (),
        experiment=said["experiment"] or None,
        method=said["method"][:16] or None,
        dataset=said["dataset"] or None,
        text=said["text"].replace("\0", "")[:200] or None,
        sort=sort,
        archived=None if said["archived"] else False,
    )


def page_links(path: str, query: Mapping[str, str], following: str | None) -> dict[str, str | None]:
    """Where the first page and the next one of a list are; None where there is none."""
    kept = {name: query[name] for name in FILTERS if query.get(name)}
    first = f"{path}?{urlencode(kept)}" if kept else path
    return {
        "newest": first if query.get("continue") else None,
        "older": f"{path}?{urlencode({**kept, 'continue': following})}" if following else None,
    }
