"""What the spec refers to in the registry, or in other runs: dataset, parent adapter, the run to go on from."""

from __future__ import annotations

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, end, expire


def parent_of_another_base(case: Case) -> Finding | None:
    """An adapter fits the model that it was trained on, and no other."""
    parent, base = case.outcome.parent, case.run.spec.base_model.display_name
    if not case.starting or parent is None or parent.base_model == base:
        return None
    return end(
        reasons.INVALID_SPEC,
        f"spec.parentAdapter: adapter {parent.name} version {parent.version} was trained on the base model "
        f"{parent.base_model}, and spec.baseModel is {base}: use the parent's base model under the same name, or "
        "another parent",
    )


def dataset_missing(case: Case) -> Finding | None:
    """The registry has no such dataset."""
    dataset, wanted = case.outcome.dataset, case.run.spec.dataset.registered
    if not case.starting or dataset is None or not dataset.missing:
        return None
    return expire(reasons.DATASET_UNAVAILABLE, dataset.missing, f"Dataset/{wanted.name if wanted else '?'}")


def parent_missing(case: Case) -> Finding | None:
    """There is no such adapter, or the claim that holds it is gone."""
    wanted = case.run.spec.parent_adapter
    if not case.starting or not case.outcome.parent_missing:
        return None
    name = f"Adapter/{wanted.name if wanted else '?'}"
    return expire(reasons.PARENT_ADAPTER_UNAVAILABLE, case.outcome.parent_missing, name)


def resume_missing(case: Case) -> Finding | None:
    """There is no such run, or nothing of it to go on from."""
    wanted = case.run.spec.resume_from
    if not case.starting or not case.outcome.resume_missing:
        return None
    name = f"TrainingRun/{wanted.run if wanted else '?'}"
    return expire(reasons.CHECKPOINT_UNAVAILABLE, case.outcome.resume_missing, name)
