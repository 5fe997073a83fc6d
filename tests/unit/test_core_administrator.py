"""What the cluster's administrator decides of runs: what they may choose, whether they may start, who they run as."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.controller.core import decide
from finetune.controller.core.manifests import build_collect_job, build_job
from finetune.controller.core.messages import message_of
from finetune.controller.core.settings import Settings
from finetune.controller.core.views import AdapterView, ClaimView, DatasetView
from tests.support import objects as o
from tests.support.cases import action, failed, failure, look, status, waiting

RECORDED = DatasetView(version=3)
ALLOWED = {
    "images": ["registry.example.com/ml/trainer:2", "mirror.local/ml/*"],
    "serviceAccountNames": ["reader"],
    "podLabelPrefixes": ["cost.example.com/", "team"],
}


def settings(**values: Any) -> Settings:
    """Settings as the chart gives them: documents as JSON."""
    texts = {name: each if isinstance(each, str) else json.dumps(each) for name, each in values.items()}
    needed = {"FINETUNE_REGISTRY_URL": "http://registry", "FINETUNE_TRAINER_IMAGE": "trainer:1"}
    return Settings.from_environment({**needed, **{f"FINETUNE_{name.upper()}": each for name, each in texts.items()}})


def specs(run: Any, chosen: Settings) -> list[dict[str, Any]]:
    """The pods of the training's and of the reader's Job."""
    return [job["spec"]["template"]["spec"] for job in (build_job(run, chosen), build_collect_job(run, chosen))]


@pytest.mark.parametrize(
    ("spec", "passes"),
    [
        ({}, True),
        ({"image": "registry.example.com/ml/trainer:2"}, True),
        ({"image": "mirror.local/ml/other@sha256:0"}, True),
        ({"image": "registry.example.com/ml/trainer:22"}, False),
        ({"image": "mirror.local/ml"}, False),
        ({"image": "xmirror.local/ml/a"}, False),
        ({"serviceAccountName": "reader"}, True),
        ({"serviceAccountName": "reader2"}, False),
        ({"podLabels": {"cost.example.com/team": "a", "team": "b"}}, True),
        ({"podLabels": {"team": "b", "cost.example.org/x": "a"}}, False),
    ],
)
def test_a_run_may_choose_what_the_lists_have_and_nothing_else(spec: dict[str, Any], *, passes: bool) -> None:
    case = look(o.run(**spec), settings=settings(allowed=ALLOWED), dataset=RECORDED)
    assert (failure(case) is None) is passes
    assert action(case) == (decide.CreateJob() if passes else None)
    for nothing in (settings(), settings(allowed={"images": [], "serviceAccountNames": [], "podLabelPrefixes": []})):
        assert (failure(look(o.run(**spec), settings=nothing)) is None) is (not spec)


def test_a_refusal_names_the_field_the_value_and_the_list() -> None:
    refused = failed(look(o.run(image="miner:1"), settings=settings(allowed=ALLOWED)))
    assert refused.reason == "InvalidSpec"
    assert refused.message == (
        "spec.image: miner:1 is not allowed; the administrator's list (trainer.allowed.images of the chart) has: "
        "registry.example.com/ml/trainer:2, mirror.local/ml/*"
    )
    assert failed(look(o.run(podLabels={"a": "b"}), settings=settings())).message.endswith("has: nothing")


def test_a_list_that_shrinks_ends_no_run_that_has_its_job() -> None:
    case = look(o.run({"jobName": o.JOB, "jobUid": "job-uid"}, image="old:1"), o.job(), settings=settings())
    assert failure(case) is None


def test_what_a_run_chose_is_in_every_job_of_it() -> None:
    run = o.run(
        image="mirror.local/ml/t:1",
        serviceAccountName="reader",
        podLabels={"team": "b", "finetune.dev/run": "x"},
    )
    chosen = settings(allowed=ALLOWED, service_accounts={"ml": "for-ml"})
    for pod in specs(run, chosen):
        assert pod["serviceAccountName"] == "reader"
        assert {each["image"] for each in [*pod.get("initContainers", ()), *pod["containers"]]} == {run.spec.image}
    for job in (build_job(run, chosen), build_collect_job(run, chosen)):
        labels = job["spec"]["template"]["metadata"]["labels"]
        assert (labels["team"], labels["finetune.dev/run"]) == ("b", "support")


def test_a_namespace_has_a_service_account_of_its_own() -> None:
    elsewhere, here = settings(service_accounts={"other": "a"}), settings(service_accounts={"ml": "for-ml"})
    assert {pod["serviceAccountName"] for pod in specs(o.run(), elsewhere)} == {"default"}
    assert {pod["serviceAccountName"] for pod in specs(o.run(), here)} == {"for-ml"}


def test_a_cluster_that_assigns_ids_is_given_none() -> None:
    for pod in specs(o.run(), settings(fixed_ids="false")):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(pod["securityContext"])
        assert pod["securityContext"]["runAsNonRoot"] is True
    assert {pod["securityContext"]["runAsUser"] for pod in specs(o.run(), settings())} == {10001}


def test_a_pause_holds_new_runs_back_and_lets_the_others_go_on() -> None:
    paused = settings(paused="true")
    new = look(o.run(output={}), settings=paused, dataset=RECORDED)
    assert action(new) is None
    assert (waiting(new).reason, waiting(new).object) == ("Paused", "Operator")
    assert action(look(o.run(output={}), settings=settings(), dataset=RECORDED)) == decide.CreateClaim()
    under_way = look(o.run({"jobName": o.JOB, "jobUid": "job-uid", "phase": "Training"}), o.job(), settings=paused)
    assert failure(under_way) is None
    assert action(look(o.run(suspend=True), o.job(), settings=paused)) == decide.SuspendJob()


def test_what_the_registry_knows_as_done_does_not_wait_for_the_end_of_a_pause() -> None:
    """A restored run, which needs no Job."""
    known: dict[str, Any] = {"dataset": RECORDED, "known": True, "result_asked": True}
    known["stored_result"] = message_of(o.RESULT)
    paused = settings(paused="true")
    assert action(look(settings=paused, **known)) == decide.RegisterAdapter()
    adapter = AdapterView(id="1", name="support", version=1, uri="pvc://adapters/x", sha256="a" * 64, bytes=10)
    ended = status(look(settings=paused, adapter=adapter, **known))
    accepted = ended.condition("Accepted")
    assert accepted is not None
    assert (ended.phase, ended.waiting, accepted.status) == ("Succeeded", None, "True")


NO_MODEL = {"uid": "b", "pod": "p-2", "reason": "BaseModelUnavailable", "exitCode": 4, "completionTime": o.stamp(80)}
KILLED = {"uid": "a", "pod": "p-1", "reason": "OutOfMemory", "exitCode": 137, "completionTime": o.stamp(40)}


def ended(reason: str, **more: Any) -> dict[str, Any]:
    condition = {"type": "Finished", "status": "True", "reason": reason, "lastTransitionTime": o.stamp(90)}
    failure_ = {"reason": reason, "message": "m", "hint": "h"}
    return {"phase": "Failed", "conditions": [condition], "failure": failure_, **more}


@pytest.mark.parametrize(
    ("status", "spec", "goes"),
    [
        (ended("DatasetInvalid", jobName=o.JOB), {"output": {}}, True),
        (ended("ImagePullFailed"), {"output": {"claim": {"size": "1Gi"}}}, True),
        (ended("DatasetInvalid"), {"output": {"claimName": "mine"}}, False),
        (ended("BaseModelUnavailable", trainingStartTime=o.stamp(5)), {"output": {}}, False),
        (ended("BaseModelUnavailable", trainingStartTime=o.stamp(5), attemptHistory=[NO_MODEL]), {"output": {}}, True),
        (
            ended("BaseModelUnavailable", trainingStartTime=o.stamp(5), attemptHistory=[KILLED, NO_MODEL]),
            {"output": {}},
            False,
        ),
        (
            ended("BaseModelUnavailable", attemptHistory=[NO_MODEL], progress={"step": 5}),
            {"output": {}},
            False,
        ),
        (ended("JobLost", jobName=o.JOB), {"output": {}}, False),
        (ended("DeadlineExceeded", jobName=o.JOB), {"output": {}}, False),
    ],
)
def test_only_a_run_that_never_trained_leaves_no_claim(
    status: dict[str, Any], spec: dict[str, Any], *, goes: bool
) -> None:
    run = o.run(status, **spec)
    assert action(look(run, told=True)) == (decide.FindClaim() if goes else decide.MarkFinished())


@pytest.mark.parametrize(
    ("claim", "goes"),
    [
        (ClaimView(uid="c"), True),
        (ClaimView(), False),
        (ClaimView(uid="c", runs=("other",)), False),
        (ClaimView(uid="c", stepped=True), False),
    ],
)
def test_only_a_claim_that_nobody_uses_is_deleted(claim: ClaimView, *, goes: bool) -> None:
    run = o.run(ended("DatasetInvalid", jobName=o.JOB), output={})
    assert action(look(run, claim=claim)) == (decide.DeleteClaim("c") if goes else decide.MarkFinished())
    assert action(look(run, claim=claim, claim_deleted=True)) == decide.MarkFinished()


def test_a_run_that_ends_before_its_job_is_marked_once_the_registry_knows() -> None:
    """It may never have been recorded, and a marked run is not looked at again."""
    run = o.run(ended("DatasetUnavailable"), output={"claimName": "mine"})
    assert action(look(run)) == decide.TellEnd()
    assert action(look(run, told=True)) == decide.MarkFinished()
    assert action(look(o.run(ended("Diverged", jobName=o.JOB)))) == decide.MarkFinished()
