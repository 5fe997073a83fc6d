"""Whatever the API server accepts as a TrainingRun becomes a Job that it accepts, with arguments that parse back."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from finetune.api.sources import DatasetSource
from finetune.api.status import ResumeStatus
from finetune.api.trainingrun import TrainingRun
from finetune.controller.core.arguments import export_arguments, trainer_arguments
from finetune.controller.core.manifests import build_claim, build_collect_job, build_job
from finetune.controller.core.settings import Settings
from model import flags
from model.data.settings import ExportSettings
from model.data.source_settings import DATABASE_VARIABLE, SourceSettings
from model.training.config import TrainSettings
from tests.cluster.kube_api import KubeApi
from tests.support import objects
from tests.support.spec_strategies import Spec, specs

NAMESPACE = "restricted"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
RUNS = f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/trainingruns"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
RESUME = ResumeStatus(run="other", uid="other-uid", claim_name="others", path="other/other-uid")

Document = dict[str, Any]
BOUNDED = settings(
    deadline=None,
    derandomize=True,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def restricted(api: KubeApi) -> Iterator[KubeApi]:
    """A namespace that enforces the restricted Pod Security Standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}})
    assert made[0] == 201, made
    account = api.request("POST", f"{CORE}/serviceaccounts", {"metadata": {"name": "default"}})
    assert account[0] in {201, 409}, account
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, DATABASE_VARIABLE, "sqlite://")  # also for sources of a mix, which have none
        yield api


def create(api: KubeApi, path: str, document: Document) -> tuple[int, Any]:
    """What the server would answer; nothing is stored."""
    metadata = {**document["metadata"], "namespace": NAMESPACE}
    return api.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", {**document, "metadata": metadata})


def accepted(api: KubeApi, spec: Spec) -> TrainingRun | None:
    """The run as the server would store it; None when it refuses the spec, with a reason."""
    metadata = {"name": "support", "namespace": NAMESPACE}
    run = {"apiVersion": "finetune.dev/v1alpha1", "kind": "TrainingRun", "metadata": metadata, "spec": spec}
    code, answer = api.request("POST", f"{RUNS}?dryRun=All&fieldValidation=Strict", run)
    assert code in {201, 422}, answer
    return TrainingRun.from_object(answer) if code == 201 else None


def check_accepted(api: KubeApi, run: TrainingRun, settings: Settings) -> None:
    """Job, its pod, the collect Job and the claim are such as the server takes."""
    parent = objects.PARENT if run.spec.parent_adapter else None
    resume = RESUME if run.spec.resume_from else None
    job = build_job(run, settings, parent, resume)
    collect = build_collect_job(run, settings)
    for each in (job, collect):
        code, answer = create(api, JOBS, each)
        assert code == 201, answer
        pod = copy.deepcopy(each["spec"]["template"])
        pod["metadata"]["name"] = "pod"
        for named in ("priorityClassName", "runtimeClassName"):  # these must exist first; the Job is checked with them
            pod["spec"].pop(named, None)
        code, answer = create(api, f"{CORE}/pods", pod)
        assert code == 201, answer
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            assert not any("\0" in argument for argument in container["args"]), "no program can be given a NUL"
    if run.spec.output.claim_name is None:
        code, answer = create(api, f"{CORE}/persistentvolumeclaims", build_claim(run, objects.SETTINGS))
        assert code == 201, answer


def as_said(value: Any) -> Any:
    """A value of the spec as the trainer understands it."""
    return list(value) if isinstance(value, tuple) else value


def check_understood(run: TrainingRun, settings: Settings) -> None:
    """Export and trainer read from their arguments what the spec says."""
    spec, parent = run.spec, objects.PARENT if run.spec.parent_adapter else None
    resume = RESUME if spec.resume_from else None
    command, *arguments = trainer_arguments(run, settings, parent, resume)
    trainer = flags.parse(TrainSettings, arguments)
    assert command == "train"
    for prefix, part in (("", spec.training), ("lora_", spec.lora), ("dpo_", spec.dpo)):
        for name in type(part).model_fields if part else ():
            understood, said = getattr(trainer, prefix + name), as_said(getattr(part, name))
            if prefix == "dpo_" and said is None:
                continue
            assert understood == (float(said) if isinstance(understood, float) else said), name
    assert (trainer.method, trainer.too_long, trainer.gpus) == (spec.method, spec.dataset.too_long, spec.resources.gpus)
    assert (trainer.quantization, trainer.run_uid) == (spec.quantization, run.metadata.uid)
    assert str(trainer.run_directory) == f"/output/{run.experiment}/{run.metadata.uid}"
    hub = spec.base_model.hub
    assert trainer.recorded_base_model == spec.base_model.display_name
    assert trainer.base_model_revision == (hub.revision if hub else None)

    export, dataset = flags.parse(ExportSettings, export_arguments(run, settings)), spec.dataset
    assert (export.method, export.seed, export.invalid_rows) == (spec.method, spec.training.seed, dataset.invalid_rows)
    held_out = dataset.evaluation
    assert export.evaluation_percent == (held_out.percent if held_out else None)
    assert export.evaluation_max_rows == (held_out.max_rows if held_out else None)
    assert export.column == (dataset.columns.renamed() if dataset.columns else {})
    assert (export.ignore_column, export.turns) == (list(dataset.ignored_columns or ()), dataset.turns)
    if dataset.mix is None:
        check_source(export, dataset, "/source")
    assert len(export.mix) == len(dataset.mix or ())
    for index, (understood, said) in enumerate(zip(export.mix, dataset.mix or (), strict=True)):
        check_source(understood, said, f"/source/{index}")
        assert (understood.name, understood.weight, understood.max_rows) == (said.name, said.weight, said.max_rows)
        assert understood.column == (said.columns.renamed() if said.columns else {})
        assert (understood.ignore_column, understood.turns) == (list(said.ignored_columns or ()), said.turns)


def check_source(understood: SourceSettings, said: DatasetSource, folder: str) -> None:
    """The export reads the source that the spec names."""
    source = next(getattr(said, name) for name in SOURCES if getattr(said, name))
    for name in ("query", "uri", "endpoint", "repository", "revision", "configuration", "split"):
        assert getattr(understood, name) == getattr(source, name, None), name
    if path := getattr(source, "path", None) or getattr(source, "key", None):
        assert str(understood.path) == f"{folder}/{path}"


SOURCES = ("registry", "sql", "hub", "object_store", "volume", "config_map")


def test_whatever_is_accepted_becomes_a_job_that_is_accepted(restricted: KubeApi) -> None:
    seen: Counter[bool] = Counter()

    @BOUNDED
    @given(spec=specs(), cpu_limit=st.sampled_from([None, "2", "500m"]))
    def check(spec: Spec, cpu_limit: str | None) -> None:
        run = accepted(restricted, spec)
        seen[run is not None] += 1
        if run is None:
            return
        note(f"spec: {run.spec.to_dict()}")
        operator = objects.SETTINGS.model_copy(update={"cpu_limit": cpu_limit})
        check_understood(run, operator)
        check_accepted(restricted, run, operator)

    check()
    assert seen[True] >= seen[False], f"most specs are refused ({seen}): they say nothing about Jobs"
