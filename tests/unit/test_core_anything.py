"""Whatever a cluster shows: a status can be written, comes to rest, and loses no training."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.refusals import Doing, classify, classify_registry
from finetune.controller.core.views import AdapterView, DatasetView, ProgressView
from tests.support import objects as o
from tests.support.cases import action, again, failure, look, status, stored

BOUNDED = settings(deadline=None, derandomize=True, max_examples=60)
ADAPTER = AdapterView(id="7", name="support", version=4, uri="pvc://adapters/x/adapter", sha256="a" * 64, bytes=10)
TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "",
            "x" * 9_000,
            'secret "hub" not found',
            'configmap "rows" not found',
            "429 Too Many Requests",
            json.dumps(o.RESULT),
            json.dumps({"failure": {"reason": "DatasetInvalid", "message": "row 7", "row": 7}}),
            json.dumps({"interrupted": {"step": 2**60}}),
            json.dumps({"result": {}, "dataset": {"rows": -1}}),
        ]
    ),
)
TIMES = st.integers(-4_000, 4_000)
CODES = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 75, 76, 128, 137, 143, 255])
WAITS = st.sampled_from(
    ["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "PodInitializing", "CrashLoopBackOff", "New"]
)
STATES = st.one_of(
    st.just({}),
    st.builds(o.running, TIMES),
    st.builds(o.waiting, WAITS, TEXT),
    st.builds(
        lambda code, text, at, reason: o.ended(code, text, seconds=at, reason=reason),
        CODES,
        TEXT,
        TIMES,
        st.sampled_from(["", "OOMKilled", "Error", "ContainerStatusUnknown"]),
    ),
)


@st.composite
def pods(draw: st.DrawFn, name: str = "p") -> list[dict[str, Any]]:
    """Some pods, in any state that the API allows."""
    made = []
    for number in range(draw(st.integers(0, 3))):
        phase = draw(st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]))
        going: dict[str, Any] = {"deletionTimestamp": o.stamp(draw(TIMES))} if draw(st.booleans()) else {}
        pod = o.pod(f"{name}{number}", phase, created=draw(TIMES), export=draw(STATES), trainer=draw(STATES), **going)
        if draw(st.booleans()):
            pod = o.beside(pod, "proxy", draw(STATES), init=draw(st.booleans()), always=draw(st.booleans()))
        if draw(st.booleans()):
            pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": draw(TEXT)}]
        if draw(st.booleans()):
            pod["status"] |= {"reason": draw(st.sampled_from(["Evicted", "NodeLost", "New"])), "message": draw(TEXT)}
        made.append(pod)
    return made


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any] | None:
    """A Job, or none."""
    if draw(st.integers(0, 5)) == 0:
        return None
    suspended = draw(st.booleans())
    return o.job(
        draw(st.sampled_from(["", "", "", "Complete", "Failed", "FailureTarget", "New"])),
        reason=draw(st.sampled_from(["BackoffLimitExceeded", "PodFailurePolicy", "DeadlineExceeded", "New"])),
        message=draw(TEXT),
        suspend=suspended,
        suspended_by=draw(st.sampled_from(["", o.UID, "other"])),
        suspended_at=draw(st.one_of(st.none(), TIMES)),
        started=draw(st.one_of(st.none(), TIMES)),
        queue=draw(st.sampled_from(["", "gpus"])),
        seconds=draw(TIMES),
        end=draw(TIMES),
    )


@st.composite
def looks(draw: st.DrawFn) -> Case:
    """A look at a run in any situation."""
    more: dict[str, Any] = {}
    if draw(st.booleans()):
        steps = st.dictionaries(st.sampled_from(["step", "loss", "totalSteps", "checkpointStep", "epoch"]), TEXT)
        more["progress"] = ProgressView(
            metrics=draw(steps), percent=7, remaining_seconds=draw(st.integers(-5, 2**70)), time=o.at(draw(TIMES))
        )
    if draw(st.booleans()):
        named = st.sampled_from(["FailedMount", "FailedCreate", "Pulling", "SuccessfulCreate", "New", "Resumed"])
        more["events"] = [o.event(draw(named), draw(TEXT), draw(TIMES)) for _ in range(draw(st.integers(0, 4)))]
    refused = draw(st.sampled_from(["", "", "", "server", "registry"]))
    if refused == "server":
        code = draw(st.sampled_from([0, 400, 403, 409, 422, 500]))
        more["refusal"] = classify(code, draw(TEXT), about="Job/x", doing=Doing.GO_ON)
    if refused == "registry":
        more["refusal"] = classify_registry(draw(st.sampled_from([0, 422, 503])), "", draw(TEXT), about="Run/x")
    if draw(st.booleans()):
        more["collect_job"], more["collect_pods"] = draw(jobs()), draw(pods("c"))
    more["result_asked"] = draw(st.booleans())
    more["dataset"] = draw(st.sampled_from([None, DatasetView(version=1), DatasetView(missing="none")]))
    more["workload"] = draw(st.sampled_from([None, o.workload(), o.workload(active=False)]))
    run = o.run(suspend=draw(st.booleans()), activeDeadlineSeconds=draw(st.sampled_from([None, 90])))
    return look(run, draw(jobs()), *draw(pods()), **more)


@BOUNDED
@given(looks())
def test_a_status_can_be_written_and_comes_to_rest(case: Case) -> None:
    action(case)
    made = stored(case).status
    json.dumps(made.to_dict(), ensure_ascii=False).encode()
    assert made.condition("Finished") is not None
    second = stored(again(case, 61))
    if made.failure is None:
        assert status(again(case, 62, before=again(case, 61))) == second.status


@BOUNDED
@given(looks())
def test_a_training_that_ended_well_fails_only_by_what_was_read(case: Case) -> None:
    if not case.seen.trainer_done:
        return
    found = failure(case)
    assert found is None or found.reason == reasons.ADAPTER_INVALID


@BOUNDED
@given(looks())
def test_what_has_failed_does_nothing_more_and_what_waits_says_so(case: Case) -> None:
    if failure(case) is not None:
        assert action(case) is None
        assert status(case).phase == reasons.FAILED
        return
    waiting = status(case).waiting
    if case.outcome.refusal is not None:
        assert waiting is not None
    if waiting is not None:
        assert waiting.since == case.now
        assert case.waited(waiting.reason, waiting.object) == timedelta(0)
