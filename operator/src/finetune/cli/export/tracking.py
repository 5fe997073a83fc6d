"""A run of the registry as one of MLflow: tags, parameters, and metrics with their courses."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import JsonValue

from finetune.api.registry import DELETED

if TYPE_CHECKING:
    from datetime import datetime

    from finetune.api.registry import Run, Series

UID_TAG = "finetune.run.uid"
"""By which a run is found again: exporting twice makes no second one."""
STATUS = {"Succeeded": "FINISHED", "Failed": "FAILED", DELETED: "KILLED"}
RUNNING = "RUNNING"
MAX_KEY = 250
MAX_PARAMETER = 6000
MAX_TAG = 5000
"""Characters; MLflow's own limits, and those of its databases."""
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_.\- ]")
RESULT = "result."
"""What the final metrics' names begin with: a course of the same name has points of its own."""


@dataclass(frozen=True)
class Point:
    """A value of a metric."""

    key: str
    value: float
    milliseconds: int
    """Since 1970."""
    step: int


@dataclass(frozen=True)
class TrackedRun:
    """What MLflow shall have of a run."""

    experiment: str
    name: str
    uid: str
    status: str
    start: int
    """Milliseconds since 1970."""
    end: int | None
    tags: dict[str, str]
    parameters: dict[str, str]
    points: tuple[Point, ...]

    @property
    def digest(self) -> str:
        """What changes when anything of it does."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def tracked(run: Run, series: Iterable[Series], *, namespace: str) -> TrackedRun:
    """Return what MLflow shall have of a run with those series."""
    start, outcome = milliseconds(run.created_time), run.outcome
    ended = outcome.completion_time if outcome is not None and outcome.ended else None
    end = milliseconds(ended) if ended is not None else None
    courses = [
        Point(key_of(each.metric), value, start + 1000 * seconds, step)
        for each in series
        for step, value, seconds in zip(each.steps, each.values, each.seconds, strict=True)
    ]
    last = max([end or start, *(point.milliseconds for point in courses)])
    step = run.adapter.steps if run.adapter is not None else max((point.step for point in courses), default=0)
    finals = (Point(RESULT + name, value, last, step) for name, value in final_metrics(run).items())
    return TrackedRun(
        experiment=f"{namespace}/{run.experiment}",
        name=run.name,
        uid=run.uid,
        status=RUNNING if outcome is None or not outcome.ended else STATUS.get(outcome.phase, "FAILED"),
        start=start,
        end=end,
        tags=tags_of(run, namespace),
        parameters=parameters_of(run.spec),
        points=(*courses, *finals),
    )


def final_metrics(run: Run) -> dict[str, float]:
    """The numbers of a run's end, by name; what was not measured, or is no number, is left out."""
    known: dict[str, str | int | None] = {}
    if run.outcome is not None:
        known |= {
            "evaluationLoss": run.outcome.evaluation_loss,
            "baseEvaluationLoss": run.outcome.base_evaluation_loss,
            "gpuSeconds": run.outcome.gpu_seconds,
            "attempts": run.outcome.attempts,
        }
    if run.adapter is not None:
        known |= {
            "finalLoss": run.adapter.final_loss,
            "evaluationLoss": run.adapter.evaluation_loss,
            "baseEvaluationLoss": run.adapter.base_evaluation_loss,
            "rewardAccuracy": run.adapter.reward_accuracy,
            "rewardMargin": run.adapter.reward_margin,
            "steps": run.adapter.steps,
            "bestStep": run.adapter.best_step,
            "tokens": run.adapter.tokens,
        }
    numbers = {name: float(value) for name, value in known.items() if value is not None}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def tags_of(run: Run, namespace: str) -> dict[str, str]:
    """What is known of a run beside numbers: how it ended, and its lineage."""
    adapter, outcome, parent = run.adapter, run.outcome, run.parent_adapter
    dataset = run.dataset_name and f"{run.dataset_name}@{run.dataset_version}"
    known = {
        UID_TAG: run.uid,
        "finetune.run.name": run.name,
        "finetune.namespace": namespace,
        "finetune.method": run.method,
        "finetune.base_model": adapter.base_model.name if adapter else run.base_model,
        "finetune.base_model.revision": adapter and adapter.base_model.revision,
        "finetune.dataset": dataset,
        "finetune.dataset.sha256": adapter.dataset.sha256 if adapter else run.dataset_sha256,
        "finetune.parent": parent and f"{parent.name}@{parent.version}",
        "finetune.parent.sha256": parent and parent.sha256,
        "finetune.adapter": adapter and f"{adapter.name}@{adapter.version}",
        "finetune.adapter.sha256": adapter and adapter.sha256,
        "finetune.adapter.uri": adapter and adapter.uri,
        "finetune.phase": outcome and outcome.phase,
        "finetune.reason": outcome and outcome.reason,
        "finetune.message": outcome and outcome.message,
        "finetune.hint": outcome and outcome.hint,
        **{f"finetune.tag.{name}": value for name, value in (run.tags or {}).items()},
        "mlflow.note.content": run.notes,
    }
    return {key_of(name): cut(value, MAX_TAG) for name, value in known.items() if value}


def parameters_of(spec: Mapping[str, JsonValue]) -> dict[str, str]:
    """The fields of a run's spec by their paths, such as `training.learningRate`; lists are JSON."""
    return {key_of(path): cut(value, MAX_PARAMETER) for path, value in _leaves(spec, "")}


def _leaves(value: JsonValue | Mapping[str, JsonValue], path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or not path):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, str):
        if value:
            yield path, value
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def key_of(name: str) -> str:
    """A name that MLflow takes. It makes files and folders of them, so that a slash is none here."""
    key = _NOT_IN_KEYS.sub(lambda found: "." if found[0] == "/" else f"_{ord(found[0]):x}_", name)[:MAX_KEY]
    return f"_{key}" if key.startswith(".") else key


def cut(text: str, most: int) -> str:
    """The text, its end left out where it is longer than MLflow takes."""
    return text if len(text) <= most else text[: most - 3] + "..."


def milliseconds(time: datetime) -> int:
    """Since 1970."""
    return round(time.timestamp() * 1000)
