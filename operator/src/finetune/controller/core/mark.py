"""The durable mark of a finished run: an annotation that outlives its status.

A status is lost more easily than the object: backups leave it out, and whoever replaces it by hand wipes it. A run
without a status would train again, and after a restore all of history would. So the end is written on the run a second
time. It holds for the very same run only: same namespace, name and spec; a copy under another name is another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune.api import conditions, reasons
from finetune.api.conditions import set_condition
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import TrainingRun

from . import names
from .case import awaits_files, is_finished

VERSION = 1
_LEFT_OUT = ("conditions", "observedGeneration", "attemptHistory", "lossHistory", "warnings", "waiting")
"""What makes a status large or is about the moment."""
_RESTORED = "restored from the run's mark: it has ended before, and does not train again"


def mark_of(run: TrainingRun, status: TrainingRunStatus) -> dict[str, str]:
    """The annotation for a run that has ended with this status."""
    document = {
        "version": VERSION,
        "uid": run.metadata.uid,
        "run": _identity(run),
        "status": {key: value for key, value in status.to_dict().items() if key not in _LEFT_OUT},
    }
    return {names.FINISHED_ANNOTATION: json.dumps(document, separators=(",", ":"), sort_keys=True)}


def is_marked(run: TrainingRun) -> bool:
    """The run carries the mark of its own end."""
    return _document_in(run) is not None


def is_settled(run: Mapping[str, Any]) -> bool:
    """A run as the API gives it has ended, its end is marked and of its generation: nothing is left to be done.

    Only a mark of this very object counts here; whether another one is the run's own takes reading the whole of it.
    """
    metadata, status = run["metadata"], run.get("status") or {}
    if not has_finished(run) or status.get("observedGeneration") != metadata.get("generation"):
        return False
    if (status.get("result") or {}).get("adapter", {}).get("stored") is False:
        return False
    try:
        mark = json.loads((metadata.get("annotations") or {}).get(names.FINISHED_ANNOTATION, ""))
        return bool(mark["uid"] == metadata["uid"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def has_finished(run: Mapping[str, Any]) -> bool:
    """`is_finished` for a run as the API gives it, which is not worth reading as a whole."""
    found = (run.get("status") or {}).get("conditions") or []
    return any(each.get("type") == conditions.FINISHED and each.get("status") == "True" for each in found)


def restored_status(run: TrainingRun, now: datetime) -> TrainingRunStatus | None:
    """The final status of a run that has lost it; None for a run that has a status, or no mark of its own."""
    if is_finished(run.status):
        return None
    status = _status_in(run)
    if status is None:
        return None
    return _finished(status, run.metadata.generation, now)


def spec_without_suspend(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a run asks for; whether it rests is not part of it."""
    return {key: value for key, value in spec.items() if key != "suspend"}


def _document_in(run: TrainingRun) -> Mapping[str, Any] | None:
    """The mark, if it is the run's own: made for this very object, or for the one that it was restored from.

    The uid comes first, for an operator of another version may describe the spec in other words.
    """
    try:
        document = json.loads(run.metadata.annotations.get(names.FINISHED_ANNOTATION, ""))
        ours = document["uid"] == run.metadata.uid or document["run"] == _identity(run)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return document if ours else None


def _status_in(run: TrainingRun) -> TrainingRunStatus | None:
    document = _document_in(run)
    if document is None:
        return None
    status = _without_sending(TrainingRunStatus.model_validate(document.get("status") or {}))
    return status if status.result is not None or status.failure is not None else None


def _without_sending(status: TrainingRunStatus) -> TrainingRunStatus:
    """What was being sent when the mark was made is sent by now, or never: a restored run's claim is another one."""
    if status.result is None or not awaits_files(status):
        return status
    adapter = status.result.adapter.model_copy(update={"stored": None})
    return status.model_copy(update={"result": status.result.model_copy(update={"adapter": adapter})})


def _identity(run: TrainingRun) -> str:
    """What makes two runs the same one for a person: where it is, its name, and what it asks for."""
    spec = spec_without_suspend(run.spec.to_dict())
    said = json.dumps([run.metadata.namespace, run.metadata.name, spec], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _finished(status: TrainingRunStatus, generation: int, now: datetime) -> TrainingRunStatus:
    failure = status.failure if status.result is None else None
    reason = failure.reason if failure else reasons.ADAPTER_REGISTERED
    message = f"{failure.message} ({_RESTORED})" if failure else _RESTORED
    listed = set_condition((), conditions.ACCEPTED, "True", reasons.SPEC_ACCEPTED, _RESTORED, generation, now)
    listed = set_condition(
        listed, conditions.SUCCEEDED, "False" if failure else "True", reason, message, generation, now
    )
    listed = set_condition(listed, conditions.FINISHED, "True", reason, message, generation, now)
    if failure:
        listed = set_condition(listed, conditions.STALLED, "True", reason, failure.hint, generation, now)
    return status.model_copy(
        update={
            "conditions": listed,
            "observed_generation": generation,
            "phase": reasons.FAILED if failure else reasons.SUCCEEDED,
        }
    )
