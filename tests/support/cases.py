"""What the core is asked: a run, what was seen of it and what came of the operator's calls, at a time.

A wait has its clock in the status: it begins when a pass has stored it. `again` is the next pass.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import TrainingRun
from finetune.controller.core import decide
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding
from finetune.controller.core.policies import failure_of, waiting_of
from finetune.controller.core.seen import Outcome, Seen
from finetune.controller.core.settings import Settings
from finetune.controller.core.status import next_status
from finetune.controller.core.views import event_views, job_view, pod_view, workload_view
from tests.support import objects as o

_OUTCOME = frozenset(field.name for field in dataclasses.fields(Outcome))


def look(
    run: TrainingRun | None = None,
    job: dict[str, Any] | None = None,
    *pods: dict[str, Any],
    seconds: float = 60,
    settings: Settings = o.SETTINGS,
    **more: Any,
) -> Case:
    """A look at a run so many seconds after its creation; keyword arguments are fields of Seen and of Outcome.

    Job, pods, events, collect Job, its pods and the Workload are documents as the API has them.
    """
    outcome = {name: more.pop(name) for name in list(more) if name in _OUTCOME}
    views: dict[str, Any] = {
        "job": job_view(job) if job else None,
        "pods": tuple(pod_view(pod) for pod in pods),
        "events": event_views(more.pop("events", ())),
        "collect_pods": tuple(pod_view(pod) for pod in more.pop("collect_pods", ())),
    }
    for name, view in (("collect_job", job_view), ("send_job", job_view), ("workload", workload_view)):
        document = more.pop(name, None)
        views[name] = view(document) if document else None
    seen = Seen(**views, **more)
    return Case(run if run is not None else o.run(), seen, Outcome(**outcome), settings, o.at(seconds))


def again(case: Case, seconds: float, before: Case | None = None) -> Case:
    """A look at the same, so many seconds after the run's creation, once the status of `before` is stored.

    `before` is the look before it; the same when it is not given.
    """
    return dataclasses.replace(case, run=stored(before or case), now=o.at(seconds))


def stored(case: Case) -> TrainingRun:
    """The run with the status that this look makes, as it is read again."""
    return with_status(case.run, status(case))


def with_status(run: TrainingRun, new: TrainingRunStatus) -> TrainingRun:
    """The run with another status, as it is read again."""
    read = TrainingRunStatus.model_validate(new.to_dict())
    return run.model_copy(update={"status": read})


def status(case: Case) -> TrainingRunStatus:
    """The status that the look makes."""
    return next_status(case)


def action(case: Case) -> decide.Action | None:
    """What is done next."""
    return decide.next_action(case)


def failure(case: Case) -> Finding | None:
    """Why the run has failed; None while it has not."""
    return failure_of(case)


def failed(case: Case) -> Finding:
    """Why the run has failed."""
    found = failure_of(case)
    assert found is not None
    return found


def waiting(case: Case) -> Finding:
    """What the run waits for."""
    found = waiting_of(case)
    assert found is not None
    return found


def waits_for(case: Case) -> str | None:
    """The reason of what the run waits for; None when it waits for nothing, or has failed."""
    found = waiting_of(case)
    return found.reason if found is not None else None


def expires(case: Case) -> bool:
    """Whether the run fails by what it waits for, when it goes on for the whole of the reference timeout."""
    late = case.now + timedelta(seconds=case.settings.reference_timeout_seconds)
    return failure_of(dataclasses.replace(case, run=stored(case), now=late)) is not None
