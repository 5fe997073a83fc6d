"""What a refusal means: one table for every answer of the API server and of the registry that is not a success.

Whether waiting helps cannot be told from the HTTP status alone: a quota and an admission rule both say 403, a webhook
that gives no code denies with 400, and one that does not answer is a 500. So each row looks at the server's words too.
The first row that matches decides; the last ones match whatever is left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from finetune.api import reasons

from .findings import Finding, Verdict

CPU_LIMIT_HINT = (
    "The namespace wants a limit that the pod does not have: set spec.resources.cpuLimit in a new run, or ask the "
    "administrator to set trainer.cpuLimit in the chart's values."
)
CLAIM_HINT = (
    "Lower spec.output.claim.size, name a claim that exists in spec.output.claimName, or ask for a larger quota."
)
POLICY_HINT = (
    "A rule of the cluster refuses what the run needs. Change what the message names in spec.resources or "
    "spec.scheduling of a new run, or show the message to the cluster's administrator: an exception is theirs to make."
)
QUOTA_HINT = "The run starts once the quota has room: end or suspend other work, or ask for a larger quota."
RIGHTS_HINT = (
    "The operator lacks a right: its administrator should look at the chart's Roles (watch.namespaces), for example "
    "with helm upgrade."
)
NAMESPACE_HINT = "The namespace is being deleted, and the run goes with it."
WEBHOOK_HINT = (
    "An admission webhook does not answer, or fails: the cluster's administrator can mend it, and the run goes on."
)
PASSING_HINT = "It is tried again by itself."


class Doing(Enum):
    """What was asked for; only what makes a run start may end it."""

    START = "start"
    """Create the Job or the claim of a run that has not started."""
    GO_ON = "go on"
    """Anything else: read, change, collect, register. Nothing that may pass ends a run by it."""


class Answer(Enum):
    """What to do about a refusal."""

    WAITS = "waits"
    """It may pass, and however long it takes."""
    EXPIRES = "expires"
    """It may pass, but a run that has not trained waits for it only so long."""
    ENDS = "ends"
    """It is the run's own fault, and for ever."""
    RETRIES = "retries at once"
    """Nothing is known to be wrong with the run: asked again soon, and told when it repeats."""


@dataclass(frozen=True)
class Row:
    """One row of the table: answers with one of these statuses (empty: any) and these words (empty: any)."""

    statuses: tuple[int, ...]
    words: str
    answer: Answer
    reason: str
    hint: str = ""

    def matches(self, status: int, words: str) -> bool:
        """Whether the row speaks of such an answer."""
        return (not self.statuses or status in self.statuses) and re.search(
            self.words, words, re.IGNORECASE
        ) is not None


_AWAY = reasons.API_SERVER_UNAVAILABLE
_REFUSED = reasons.POD_CREATION_REFUSED

_PASSING = (408, 425, 429)
_REFUSALS = tuple(status for status in range(400, 500) if status not in _PASSING)
"""What a webhook may deny with: any code that it likes; without one it is 400. Policies say 401, 403, 413 or 422."""
_DENIED = (400, 403, 405, 406, 411, 413, 415, 422)
"""How the API server itself says no."""

TABLE: tuple[Row, ...] = (
    Row(_REFUSALS, r"denied (the )?request", Answer.EXPIRES, _REFUSED, POLICY_HINT),
    Row((), r"denied (the )?request", Answer.WAITS, reasons.WEBHOOK_UNAVAILABLE, WEBHOOK_HINT),
    Row((), r"is being terminated|because it is being deleted|namespaces? \"[^\"]*\" not found", Answer.WAITS,
        reasons.NAMESPACE_TERMINATING, NAMESPACE_HINT),
    Row((), r"cannot (get|list|watch|create|update|patch|delete) resource|cannot set (blockOwnerDeletion|an ownerRef)",
        Answer.WAITS, reasons.OPERATOR_FORBIDDEN, RIGHTS_HINT),
    Row((401,), "", Answer.WAITS, reasons.OPERATOR_FORBIDDEN, RIGHTS_HINT),
    Row((), r"fail(ed|ure) (to call|calling) webhook|error calling webhook|no endpoints available for service",
        Answer.WAITS, reasons.WEBHOOK_UNAVAILABLE, WEBHOOK_HINT),
    Row((), r"internal error occurred|etcdserver:|context deadline exceeded|request did not complete|too many requests|"
        r"the server (was unable|is currently unable|has asked|could not find)|connection (refused|reset)|"
        r"at this time|not yet ready|operation cannot be fulfilled|try again",
        Answer.RETRIES, _AWAY, PASSING_HINT),
    Row((), r"must specify [^:]*limits\.cpu|(maximum|minimum) cpu usage|cpu max limit to request ratio",
        Answer.EXPIRES, _REFUSED, CPU_LIMIT_HINT),
    Row((), r"exceeded quota.*(requests\.storage|persistentvolumeclaims)", Answer.WAITS, reasons.QUOTA_EXCEEDED,
        CLAIM_HINT),
    Row((), r"exceeded quota|insufficient quota|status unknown for quota", Answer.WAITS, reasons.QUOTA_EXCEEDED,
        QUOTA_HINT),
    Row((409,), "", Answer.RETRIES, _AWAY, PASSING_HINT),
    Row((422,), r"is invalid", Answer.ENDS, reasons.INVALID_SPEC),
    Row(_DENIED, "", Answer.EXPIRES, _REFUSED, POLICY_HINT),
    Row((), "", Answer.RETRIES, _AWAY, PASSING_HINT),
)  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """An answer that was not a success, classified."""

    answer: Answer
    reason: str
    message: str
    object: str
    hint: str = ""
    retry_after: float | None = None
    """Seconds after which the server wants to be asked again, if it said so."""

    @property
    def finding(self) -> Finding:
        """What it means for the run."""
        verdict = {Answer.EXPIRES: Verdict.EXPIRE, Answer.ENDS: Verdict.END}.get(self.answer, Verdict.WAIT)
        return Finding(verdict, self.reason, self.message, self.object, self.hint)


def classify(status: int, message: str, *, about: str, doing: Doing) -> Refusal:
    """What an answer of the API server means: its HTTP status (0: there was none) and its own words.

    `about` is the object that was asked for, such as `Job/t-support-3e5572be`; `doing` says whether a refusal may end
    the run.
    """
    row = next(row for row in TABLE if row.matches(status, message))
    answer, reason = row.answer, row.reason
    if doing is Doing.GO_ON and answer in (Answer.EXPIRES, Answer.ENDS):
        answer, reason = Answer.WAITS, reasons.POD_CREATION_REFUSED if answer is Answer.EXPIRES else reason
    hint = CLAIM_HINT if about.startswith("PersistentVolumeClaim/") and row.reason == _REFUSED else row.hint
    return Refusal(answer, reason, message or f"HTTP {status}", about, hint)


def classify_words(message: str, *, about: str) -> Refusal:
    """What a controller's Event means that repeats the API server's refusal without its status.

    Words that do not say no are of something that passes: a connection that broke, a server that was busy.
    """
    says_no = re.search(r"forbidden|denied|is invalid|not allowed", message, re.IGNORECASE) is not None
    return classify(403 if says_no else 0, message, about=about, doing=Doing.START)


ADAPTER_VERDICTS = frozenset({"DigestMismatch", "Conflict"})
"""Reasons with which the registry will refuse this adapter for ever; any other may be another version's."""


def classify_registry(status: int, reason: str, message: str, *, about: str) -> Refusal:
    """What an answer of the registry means: its HTTP status (0: there was none), its document's reason and words."""
    if about.startswith("Adapter/") and reason in ADAPTER_VERDICTS:
        return Refusal(Answer.ENDS, reasons.ADAPTER_INVALID, message, about)
    if status in (0, 429) or status >= 500:
        return Refusal(Answer.WAITS, reasons.REGISTRY_UNAVAILABLE, message, about)
    return Refusal(Answer.WAITS, reasons.REGISTRY_REFUSED, message, about)
