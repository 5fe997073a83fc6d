"""What stands in the way of a run, and what it means: the words of all policies.

A policy (`core/policies`) looks at a run and says what it found, or nothing. The first finding of the list counts. A
verdict says whether it ends the run, and the clock of `status.waiting` says how long a run has waited for it: each
reason and object has a clock of its own, which starts when the operator first saw it, by the operator's clock alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from finetune.api.fields import clip

MAX_NAME = 253
"""Characters of the object in a status."""


class Verdict(Enum):
    """What a finding means for the run."""

    WAIT = "wait"
    """It may pass: waited for as long as it takes."""
    EXPIRE = "expire"
    """It may pass, but a run that has not reached its trainer fails after `referenceTimeoutSeconds`."""
    END = "end"
    """The run has failed."""


@dataclass(frozen=True)
class Finding:
    """Something in the way of a run.

    Attributes
    ----------
    reason: a failure reason, or the reason of a wait that never becomes a failure.
    object: what it is about, as `Kind/name`; with the reason it is the key of the clock.
    hint: what to do; empty for the reason's own.
    exit_code, row: of the container that ended the run, and of the dataset, where they are known.
    """

    verdict: Verdict
    reason: str
    message: str
    object: str = ""
    hint: str = ""
    exit_code: int | None = None
    row: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What has a clock of its own, as the status can hold it."""
        return self.reason, clip(self.object, MAX_NAME)


def wait(reason: str, message: str, object_: str, hint: str = "") -> Finding:
    """Something that is waited for as long as it takes."""
    return Finding(Verdict.WAIT, reason, message, object_, hint)


def expire(reason: str, message: str, object_: str, hint: str = "") -> Finding:
    """Something that must appear in time, unless the run has trained already."""
    return Finding(Verdict.EXPIRE, reason, message, object_, hint)


def end(reason: str, message: str, *, exit_code: int | None = None, row: int | None = None, hint: str = "") -> Finding:
    """The end of the run."""
    return Finding(Verdict.END, reason, message, hint=hint, exit_code=exit_code, row=row)
