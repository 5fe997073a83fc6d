"""What decisions about one run are made from: what was read, and what came of the operator's own calls."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.api.status import ResumeStatus

from .messages import Message
from .refusals import Refusal
from .views import (
    AdapterView,
    ClaimView,
    DatasetView,
    EventView,
    JobView,
    ParentView,
    PodView,
    ProgressView,
    WorkloadView,
)


@dataclass(frozen=True)
class Seen:
    """What was read of a run's children."""

    job: JobView | None = None
    pods: tuple[PodView, ...] = ()
    """The pods that the Job controls, those that are gone but were heard among them."""
    events: tuple[EventView, ...] = ()
    """Events of the Job, the pod and the claims that the run waits for."""
    collect_job: JobView | None = None
    collect_pods: tuple[PodView, ...] = ()
    send_job: JobView | None = None
    """Looked for when the status says that the registry lacks the files."""
    workload: WorkloadView | None = None
    """What Kueue says of the Job; looked for when somebody else suspended it."""
    workload_hidden: str = ""
    """Why Kueue's record could not be read, in the API server's words: whether a queue holds the Job is not known."""
    claim_exists: bool = False
    name_taken: str = ""
    """The Job's name belongs to another object; says to which."""
    progress: ProgressView | None = None
    pending_seconds: float = 0.0
    """How long the operator has seen the Job wait for its pod, or the pod for its start; 0 when it does not."""

    @property
    def newest_pod(self) -> PodView | None:
        """The pod of the latest attempt."""
        return newest(self.pods)

    @property
    def result(self) -> Message | None:
        """The trainer's result in the last words of a pod of the Job."""
        return _result_of(self.pods)

    @property
    def trainer_done(self) -> bool:
        """A trainer of the Job has ended with 0, whatever became of its pod."""
        return any(pod.trainer.succeeded for pod in self.pods)

    @property
    def collected(self) -> bool:
        """The claim has been read to its end, and whoever read it can still say what was there."""
        return any(pod.trainer.succeeded for pod in self.collect_pods)


@dataclass(frozen=True)
class Outcome:
    """What the operator's own calls of this pass have returned."""

    dataset: DatasetView | None = None
    """Set once the registry has been told of the run, which happens before the Job is created."""
    parent: ParentView | None = None
    """The adapter version that is pinned for `spec.parentAdapter`; known as the dataset is."""
    parent_missing: str = ""
    """Why there is no such adapter, or why its files cannot be reached."""
    resume: ResumeStatus | None = None
    """The run of `spec.resumeFrom`."""
    resume_missing: str = ""
    """Why there is nothing to go on from."""
    known: bool = False
    """The registry has heard of this run's training before: perhaps it is done."""
    result_asked: bool = False
    """The registry was asked for the result."""
    stored_result: Message | None = None
    """The result document from the registry; None when it was not asked for or has none."""
    adapter: AdapterView | None = None
    """The adapter version that the registry has given the run."""
    refusal: Refusal | None = None
    """The call that was refused; nothing more is done in this pass."""
    recorded_again: bool = False
    """The registry did not know the run any more, and was told of it anew."""
    stored: bool | None = None
    """Whether the registry's store has the adapter's files; None when it was not asked."""
    claim: ClaimView | None = None
    """The claim that was made for the run, looked for when it has failed before it trained."""
    claim_deleted: bool = False
    """That claim was asked to go."""
    told: bool = False
    """The registry knows how the run has ended, or will not hear of it."""
    mark_refused: bool = False
    """The mark of the end could not be written; the rest of the cleaning up goes on."""


def newest(pods: tuple[PodView, ...]) -> PodView | None:
    """The pod that was created last; of two of one second the one that has not ended, for there is one at a time."""
    return max(pods, key=lambda pod: (pod.created, not pod.finished, pod.name), default=None)


def result_of(seen: Seen, outcome: Outcome) -> Message | None:
    """The trainer's result: from the termination message, the registry, or the claim, in this order."""
    return seen.result or _with_result(outcome.stored_result) or _result_of(seen.collect_pods)


def _result_of(pods: tuple[PodView, ...]) -> Message | None:
    spoken = (pod.trainer.message for pod in pods if pod.trainer.succeeded)
    return next((message for message in spoken if message.result), None)


def _with_result(message: Message | None) -> Message | None:
    return message if message is not None and message.result else None
