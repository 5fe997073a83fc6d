"""What the operator counts, and that no series grows with what people and servers say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetune.api import conditions, reasons
from finetune.api.conditions import Condition
from finetune.api.status import (
    AdapterStatus,
    Attempt,
    Failure,
    Result,
    Timings,
    TrainingRunStatus,
    Waiting,
)
from finetune.api.trainingrun import ObjectMeta
from finetune.clients.kubernetes_errors import Asked, KubernetesError
from finetune.clients.registry_errors import RegistryRefused, RegistrySilent
from finetune.controller.metrics import OperatorMetrics, cause_of
from finetune.controller.workqueue import QueueState

CREATED = datetime(2026, 11, 24, 6, tzinfo=UTC)
RUN = ObjectMeta(name="support-1", namespace="ml", uid="u-1", creation_timestamp=CREATED)
HOSTILE = ("", 'a"b\nc', "x" * 9000, "runs/secret", "UnheardOf", "\x00")


def at(seconds: float) -> datetime:
    return CREATED + timedelta(seconds=seconds)


def value(metrics: OperatorMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"finetune_operator_{name}", labels)


def series(metrics: OperatorMetrics) -> set[str]:
    text = generate_latest(metrics.registry).decode()
    return {line.rpartition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}


def finished() -> tuple[Condition, ...]:
    return (Condition(type=conditions.FINISHED, status="True", last_transition_time=at(0), reason="X"),)


def succeeded(**more: object) -> TrainingRunStatus:
    adapter = AdapterStatus(id="1", name="support", version=1, uri="pvc://c/p", sha256="a", bytes=3)
    result = Result(final_loss="1.5", steps=5, tokens=900, adapter=adapter)
    values = {"phase": "Succeeded", "conditions": finished(), "completion_time": at(100), "result": result}
    return TrainingRunStatus.model_validate({**values, **more})


def failed(reason: str, **more: object) -> TrainingRunStatus:
    failure = Failure(reason=reason, message="m", hint="h")
    values = {"phase": "Failed", "conditions": finished(), "completion_time": at(50), "failure": failure}
    return TrainingRunStatus.model_validate({**values, **more})


def attempt(uid: str, reason: str | None, *, ended: bool = True) -> Attempt:
    return Attempt(pod=f"p-{uid}", uid=uid, start_time=at(1), completion_time=at(9) if ended else None, reason=reason)


def test_a_run_that_succeeds_is_counted_once_with_its_tokens_and_times() -> None:
    metrics = OperatorMetrics()
    accepted = TrainingRunStatus(phase="Pending", timings=Timings(accepted_seconds=2))
    trained = succeeded(timings=Timings(accepted_seconds=2, first_step_seconds=40), gpu_seconds=90)
    for old, new in ((TrainingRunStatus(), accepted), (accepted, accepted), (accepted, trained), (trained, trained)):
        metrics.status_changed(RUN, old, new)
    metrics.status_changed(RUN, trained, trained.model_copy(update={"observed_generation": 7}))
    assert value(metrics, "runs_finished_total", reason="AdapterRegistered") == 1
    assert value(metrics, "tokens_trained_total") == 900
    assert value(metrics, "gpu_seconds_total") == 90
    assert value(metrics, "run_acceptance_seconds_sum") == 2
    assert value(metrics, "run_acceptance_seconds_count") == 1
    assert value(metrics, "run_first_step_seconds_sum") == 40
    assert value(metrics, "run_first_step_seconds_count") == 1
    assert value(metrics, "run_completion_seconds_sum", phase="Succeeded") == 100
    assert value(metrics, "run_completion_seconds_count", phase="Succeeded") == 1


def test_a_failure_is_counted_by_its_reason() -> None:
    metrics = OperatorMetrics()
    metrics.status_changed(RUN, TrainingRunStatus(phase="Training"), failed(reasons.DIVERGED))
    assert value(metrics, "runs_finished_total", reason="Diverged") == 1
    assert value(metrics, "run_completion_seconds_sum", phase="Failed") == 50
    assert value(metrics, "tokens_trained_total") == 0


def test_each_attempt_is_counted_when_it_has_ended_and_its_gpu_time_once() -> None:
    metrics = OperatorMetrics()
    first = TrainingRunStatus(attempt_history=(attempt("a", None, ended=False),))
    second = TrainingRunStatus(attempt_history=(attempt("a", "Interrupted"),), gpu_seconds=16)
    third = TrainingRunStatus(attempt_history=(attempt("a", "Interrupted"), attempt("b", "Suspended")), gpu_seconds=40)
    for old, new in ((TrainingRunStatus(), first), (first, second), (second, third)):
        metrics.status_changed(RUN, old, new)
    assert value(metrics, "attempts_ended_total", reason="Interrupted") == 1
    assert value(metrics, "attempts_ended_total", reason="Suspended") == 1
    assert value(metrics, "gpu_seconds_total") == 40


def test_a_status_that_somebody_cut_back_takes_nothing_off() -> None:
    metrics = OperatorMetrics()
    early = ObjectMeta(name="r", creation_timestamp=at(500))  # the clock of whoever made it was ahead
    metrics.status_changed(early, TrainingRunStatus(gpu_seconds=50), failed(reasons.HUNG, gpu_seconds=3))
    assert value(metrics, "gpu_seconds_total") == 0
    assert value(metrics, "run_completion_seconds_sum", phase="Failed") == 0


def test_requests_are_counted_by_verb_kind_and_code() -> None:
    metrics = OperatorMetrics()
    metrics.kubernetes_answered(Asked("GET", "/x", "jobs", "batch", "t-1", "Job"), 200, 0.02)
    metrics.kubernetes_answered(Asked("GET", "/x", "trainingruns", "finetune.dev"), 429, 0.02)
    metrics.kubernetes_answered(Asked("PUT", "/x", "trainingruns", "finetune.dev", "r"), 0, 30.0)
    metrics.kubernetes_answered(Asked("GET", "/version"), 200, 0.02)
    count = "kubernetes_requests_total"
    assert value(metrics, count, verb="get", resource="jobs", code="200") == 1
    assert value(metrics, count, verb="list", resource="trainingruns", code="429") == 1
    assert value(metrics, count, verb="update", resource="trainingruns", code="none") == 1
    assert value(metrics, count, verb="get", resource="other", code="200") == 1
    assert value(metrics, "kubernetes_request_duration_seconds_bucket", verb="update", le="10.0") == 0
    assert value(metrics, "kubernetes_request_duration_seconds_bucket", verb="update", le="30.0") == 1


def test_calls_to_the_registry_are_counted_by_what_came_of_them() -> None:
    metrics = OperatorMetrics()
    metrics.registry_answered("PUT", None, 0.01)
    metrics.registry_answered("PUT", RegistryRefused(status=409, reason="Conflict", message="m", hint="h"), 0.01)
    metrics.registry_answered("GET", RegistrySilent("x"), 5.0)
    name = "registry_call_duration_seconds_count"
    assert value(metrics, name, method="PUT", result="ok") == 1
    assert value(metrics, name, method="PUT", result="RegistryRefused") == 1
    assert value(metrics, name, method="GET", result="RegistrySilent") == 1


def test_the_cause_of_a_failed_pass() -> None:
    metrics = OperatorMetrics()
    metrics.pass_made(0.2, None)
    metrics.pass_made(0.2, KubernetesError(verb="GET", path="/", status=500, reason="", message=""))
    metrics.pass_made(0.2, ZeroDivisionError("x"))
    assert value(metrics, "reconcile_duration_seconds_count") == 3
    assert value(metrics, "reconcile_errors_total", cause="kubernetes") == 1
    assert value(metrics, "reconcile_errors_total", cause="internal") == 1
    assert cause_of(RegistrySilent("x")) == "registry"
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - pydantic's, which is one
        Timings.model_validate({"acceptedSeconds": -1})
    assert cause_of(caught.value) == "object"


def test_the_gauges_are_of_the_moment_of_the_scrape() -> None:
    metrics, runs = OperatorMetrics(), [("Training", ""), ("Training", ""), ("Pending", "ImagePullFailed"), ("", "")]
    metrics.show(
        runs=lambda: runs,
        queue=lambda: QueueState(3, 4, 2, 1.5),
        namespaces=lambda: {"served": 2, "refused": 1},
        registry_silent=lambda: True,
    )
    assert value(metrics, "runs", phase="Training") == 2
    assert value(metrics, "runs", phase="New") == 1
    assert value(metrics, "runs", phase="Queued") == 0
    assert value(metrics, "runs_waiting", reason="ImagePullFailed") == 1
    assert value(metrics, "queue_depth", line="urgent") == 3
    assert value(metrics, "queue_depth", line="routine") == 4
    assert value(metrics, "queue_running") == 2
    assert value(metrics, "queue_oldest_seconds") == 1.5
    assert value(metrics, "namespaces", state="refused") == 1
    assert value(metrics, "registry_silent") == 1
    runs.clear()
    assert value(metrics, "runs", phase="Training") == 0
    assert value(metrics, "runs_waiting", reason="ImagePullFailed") is None


def _feed(metrics: OperatorMetrics, word: str, number: int) -> None:
    """Let every label be told this word, by a run and a server that say what they like."""
    run = RUN.model_copy(update={"name": f"{word}-{number}", "namespace": word, "uid": f"{number}"})
    odd = (attempt(f"{number}", word[:253]), attempt(f"{number}-2", None))
    metrics.status_changed(run, TrainingRunStatus(phase="Training"), failed(word[:253], attempt_history=odd))
    waiting = Waiting(reason=word[:253], object=word[:253], message="m", since=at(0))
    metrics.status_changed(run, TrainingRunStatus(), TrainingRunStatus(phase=word[:253], waiting=waiting))
    metrics.kubernetes_answered(Asked(word, word, word, word, word, word), number, 0.1)
    metrics.registry_answered(word, type(f"E{number}", (Exception,), {})(word), 0.1)
    metrics.pass_made(0.1, type(f"E{number}", (Exception,), {})(word))


def test_no_label_grows_with_what_it_is_told() -> None:
    metrics, runs = OperatorMetrics(), list[tuple[str, str]]()
    metrics.show(
        runs=lambda: runs,
        queue=lambda: QueueState(0, 0, 0, 0.0),
        namespaces=lambda: {"served": 1},
        registry_silent=lambda: False,
    )
    for number, word in enumerate(HOSTILE):
        _feed(metrics, word, number)
        runs.append((word, word))
    for code in range(700, 1000):
        _feed(metrics, "UnheardOf", code)
    before = series(metrics)
    for number in range(10_000):
        _feed(metrics, f"word-{number}", number + 1000)
        runs.append((f"phase-{number}", f"reason-{number}"))
    assert series(metrics) == before
    assert len(before) < 400
    assert not any(word in line for line in before for word in ("word-", "phase-", "secret", "UnheardOf", "support-1"))
    assert value(metrics, "runs", phase="other") == 10_000 + sum(1 for word in HOSTILE if word)
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    assert all(f.documentation for f in families)
