"""What is known of a run, whoever says it: the object in the cluster, or the registry's record of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from finetune.api.losses import loss_change

if TYPE_CHECKING:
    from finetune.api.registry import Run

Document = dict[str, Any]

ENDED = frozenset({"Succeeded", "Failed", "Deleted"})
UNKNOWN = "Unknown"


@dataclass(frozen=True)
class RunView:
    """One run. What is not known is None; losses are numbers as text."""

    name: str
    uid: str
    created: datetime | None
    spec: Document = field(repr=False)
    phase: str = UNKNOWN
    reason: str | None = None
    """Why it failed, or what it waits for."""
    message: str | None = None
    hint: str | None = None
    row: int | None = None
    exit_code: int | None = None
    adapter: str | None = None
    """Name and version, once it is registered."""
    dataset_version: int | None = None
    step: int | None = None
    total_steps: int | None = None
    percent: int | None = None
    remaining: int | None = None
    checkpoint: int | None = None
    tokens_per_second: str | None = None
    loss: str | None = None
    """Training loss: the newest, or the final one."""
    evaluation_loss: str | None = None
    base_loss: str | None = None
    best_step: int | None = None
    reward_accuracy: str | None = None
    attempts: int | None = None
    resumed_from: int | None = None
    gpu_seconds: int | None = None
    started: datetime | None = None
    ended: datetime | None = None
    warnings: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()
    """The course of the training loss, as far as the object has it."""
    conditions: tuple[tuple[str, str, str], ...] = ()
    """Type, status and message of each."""
    in_cluster: bool = True
    namespace: str | None = None

    @property
    def method(self) -> str:
        """SFT, DPO or KTO."""
        return str(self.spec.get("method") or "-")

    @property
    def experiment(self) -> str:
        """The spec's, else the run's name."""
        return str(self.spec.get("experiment") or self.name)

    @property
    def adapter_name(self) -> str:
        """The adapter that the run makes a version of."""
        return str((self.spec.get("adapter") or {}).get("name") or self.experiment)

    @property
    def model(self) -> str:
        """The base model, in a word."""
        return model_of(self.spec)

    @property
    def dataset(self) -> str:
        """Where the rows come from, in a word."""
        return dataset_of(self.spec, self.dataset_version)

    @property
    def change(self) -> str | None:
        """The loss on held-out rows against the base model's, such as `-31 %`."""
        return loss_change(self.evaluation_loss, self.base_loss)

    @property
    def best_known_loss(self) -> str | None:
        """The loss on held-out rows where there is one, else the training loss."""
        return self.evaluation_loss or self.loss

    @property
    def is_over(self) -> bool:
        """It has succeeded, failed, or was deleted."""
        return self.phase in ENDED

    def to_dict(self) -> Document:
        """For `-o json` and `-o yaml`."""
        found: Document = {
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "phase": self.phase,
            "reason": self.reason,
            "message": self.message,
            "hint": self.hint,
            "row": self.row,
            "method": self.method,
            "experiment": self.experiment,
            "baseModel": self.model,
            "dataset": self.dataset,
            "adapter": self.adapter,
            "step": self.step,
            "totalSteps": self.total_steps,
            "percent": self.percent,
            "remainingSeconds": self.remaining,
            "loss": self.loss,
            "evaluationLoss": self.evaluation_loss,
            "baseEvaluationLoss": self.base_loss,
            "lossChange": self.change,
            "attempts": self.attempts,
            "gpuSeconds": self.gpu_seconds,
            "createdTime": _stamp(self.created),
            "startTime": _stamp(self.started),
            "completionTime": _stamp(self.ended),
            "inCluster": self.in_cluster,
        }
        return {key: value for key, value in found.items() if value is not None}


def of_object(obj: Mapping[str, Any]) -> RunView:
    """A TrainingRun as the API server gives it."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    failure, waiting = status.get("failure") or {}, status.get("waiting") or {}
    progress, result = status.get("progress") or {}, status.get("result") or {}
    adapter, dataset = result.get("adapter") or {}, status.get("dataset") or {}
    cause = failure or waiting
    return RunView(
        namespace=metadata.get("namespace"),
        name=metadata["name"],
        uid=metadata["uid"],
        created=_time(metadata.get("creationTimestamp")),
        spec=dict(spec),
        phase=status.get("phase") or UNKNOWN,
        reason=cause.get("reason"),
        message=cause.get("message"),
        hint=cause.get("hint"),
        row=failure.get("row"),
        exit_code=failure.get("exitCode"),
        adapter=f"{adapter['name']}/{adapter['version']}" if adapter else None,
        dataset_version=dataset.get("version"),
        step=progress.get("step", result.get("steps")),
        total_steps=progress.get("totalSteps"),
        percent=progress.get("percent"),
        remaining=progress.get("remainingSeconds"),
        checkpoint=progress.get("checkpointStep"),
        tokens_per_second=progress.get("tokensPerSecond"),
        loss=result.get("finalLoss") or progress.get("loss"),
        evaluation_loss=result.get("evaluationLoss"),
        base_loss=result.get("baseEvaluationLoss"),
        best_step=result.get("bestStep"),
        reward_accuracy=result.get("rewardAccuracy"),
        attempts=status.get("attempts"),
        resumed_from=status.get("resumedFromStep"),
        gpu_seconds=status.get("gpuSeconds"),
        started=_time(status.get("startTime")),
        ended=_time(status.get("completionTime")),
        warnings=tuple(status.get("warnings") or ()),
        losses=tuple(float(point["loss"]) for point in status.get("lossHistory") or ()),
        conditions=tuple(
            (each["type"], each["status"], each.get("message") or "") for each in status.get("conditions") or ()
        ),
    )


def of_record(run: Run, namespace: str | None = None) -> RunView:
    """A run as the registry keeps it, in that namespace."""
    said, posted, adapter = run.outcome, run.trainer_status, run.adapter
    step, total, checkpoint = (
        _count(posted.value(name)) if posted else None for name in ("step", "totalSteps", "checkpointStep")
    )
    return RunView(
        name=run.name,
        uid=run.uid,
        created=run.created_time,
        spec={**run.spec, "method": run.method, "experiment": run.experiment},
        phase=said.phase if said else UNKNOWN,
        reason=said.reason if said and said.phase != "Succeeded" else None,
        message=said.message if said and said.phase != "Succeeded" else None,
        hint=said.hint if said else None,
        row=said.row if said else None,
        adapter=f"{adapter.name}/{adapter.version}" if adapter else None,
        dataset_version=run.dataset_version,
        step=adapter.steps if adapter else step,
        total_steps=total,
        percent=posted.progress_percentage if posted else None,
        remaining=posted.estimated_remaining_seconds if posted and not (said and said.ended) else None,
        checkpoint=checkpoint,
        tokens_per_second=posted.value("tokensPerSecond") if posted else None,
        loss=adapter.final_loss if adapter else (posted.value("loss") if posted else None),
        evaluation_loss=(said and said.evaluation_loss) or (posted and posted.value("evaluationLoss")) or None,
        base_loss=(said and said.base_evaluation_loss) or None,
        best_step=adapter.best_step if adapter else None,
        reward_accuracy=adapter.reward_accuracy if adapter else None,
        attempts=said.attempts if said else None,
        resumed_from=said.resumed_from_step if said else None,
        gpu_seconds=said.gpu_seconds if said else None,
        started=said.start_time if said else None,
        ended=said.completion_time if said else None,
        namespace=namespace,
        in_cluster=False,
    )


def merged(objects: Iterable[RunView], records: Iterable[RunView]) -> list[RunView]:
    """Each run once, newest first: what the cluster has is as the cluster says, with the registry's newer numbers."""
    recorded = {each.uid: each for each in records}
    found = [_joined(each, recorded.pop(each.uid, None)) for each in objects]
    everything = [*found, *recorded.values()]
    return sorted(
        everything, key=lambda run: (run.created is not None and run.created.timestamp(), run.name), reverse=True
    )


def _joined(run: RunView, record: RunView | None) -> RunView:
    """The object's view; of a run that trains with the losses on held-out rows that the registry has heard of."""
    from dataclasses import replace

    if record is None or run.is_over:
        return run
    return replace(
        run,
        evaluation_loss=run.evaluation_loss or record.evaluation_loss,
        base_loss=run.base_loss or record.base_loss,
        step=max((each for each in (run.step, record.step) if each is not None), default=None),
    )


def model_of(spec: Mapping[str, Any]) -> str:
    """The base model that a spec names, in a word."""
    source = spec.get("baseModel") or {}
    hub, volume = source.get("hub") or {}, source.get("volume") or {}
    if hub:
        return str(hub.get("repository")) + (f"@{hub['revision']}" if hub.get("revision") else "")
    return str(volume.get("path") or volume.get("claimName") or "-")


def dataset_of(spec: Mapping[str, Any], version: int | None = None) -> str:
    """The rows that a spec names, in a word."""
    dataset = spec.get("dataset") or {}
    registry = dataset.get("registry") or {}
    if registry:
        number = version or registry.get("version")
        return str(registry.get("name")) + (f"/{number}" if number else "")
    if dataset.get("mix"):
        return "+".join(str(each.get("name") or dataset_of({"dataset": each})) for each in dataset["mix"])
    for kind, word in (("hub", "repository"), ("objectStore", "uri"), ("volume", "claimName"), ("configMap", "name")):
        if dataset.get(kind):
            return str(dataset[kind].get(word))
    return "SQL" if dataset.get("sql") else "-"


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _stamp(moment: datetime | None) -> str | None:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}" if moment else None


def _count(text: str | None) -> int | None:
    try:
        return int(float(text)) if text else None
    except (ValueError, OverflowError):
        return None
