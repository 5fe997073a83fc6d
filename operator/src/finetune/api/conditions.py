"""Conditions: their types, and the one pure function that changes a list of them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from .fields import MAX_MESSAGE, ApiModel, Time, clip

ACCEPTED = "Accepted"
"""True: the operator took the run on. False: it waits for what the spec refers to, or refuses the spec. Unknown:
it waits for the registry, a quota or a name."""
DATASET_READY = "DatasetReady"
"""True: the rows are on the output claim."""
SUCCEEDED = "Succeeded"
"""True: the adapter is registered. False: the run failed. Unknown: still under way."""
FINISHED = "Finished"
"""True at either end, for `kubectl wait --for=condition=Finished`."""
SUSPENDED = "Suspended"
"""True: spec.suspend is set and no pod is left."""
RECONCILING = "Reconciling"
"""True while the run is under way (kstatus)."""
STALLED = "Stalled"
"""True exactly when the run has failed (kstatus)."""

TYPES = frozenset({ACCEPTED, DATASET_READY, SUCCEEDED, FINISHED, SUSPENDED, RECONCILING, STALLED})

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(ApiModel):
    """One observation about the run, as metav1.Condition."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)]
    """What is observed."""
    status: ConditionStatus
    """True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this speaks of."""
    last_transition_time: Time
    """When the status last changed."""
    reason: Annotated[
        str,
        StringConstraints(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
    ]
    """One word for why."""
    message: Annotated[str, StringConstraints(max_length=MAX_MESSAGE)] = ""
    """A sentence for people."""


def set_condition(  # noqa: PLR0917 - the order of metav1.Condition
    conditions: Iterable[Condition],
    type: str,  # noqa: A002 - the API's own word
    status: ConditionStatus,
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions with one of them set; the order is kept, a new one comes last.

    `lastTransitionTime` becomes `now` only when the status changes. A message that is too long is shortened.
    """
    current = tuple(conditions)
    previous = next((condition for condition in current if condition.type == type), None)
    unchanged = previous is not None and previous.status == status
    updated = Condition(
        type=type,
        status=status,
        observed_generation=generation,
        last_transition_time=previous.last_transition_time if previous and unchanged else now,
        reason=reason,
        message=clip(message),
    )
    if previous is None:
        return (*current, updated)
    return tuple(updated if condition is previous else condition for condition in current)
