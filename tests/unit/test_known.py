"""Which events of the watches are worth a pass."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.api.registry import TrainerStatus
from finetune.controller.core import names
from finetune.controller.core.mark import mark_of
from finetune.controller.handlers import PROGRESS_SECONDS, is_worth_writing
from finetune.controller.known import Echoes, KnownRuns, job_needs_a_pass, run_needs_a_pass, run_of
from finetune.controller.workqueue import Key
from tests.support import objects as o
from tests.support.cases import look, stored

KEY = Key("ml", "support")


def document(uid: str = "u", version: str = "1", phase: str = "Training", **metadata: Any) -> dict[str, Any]:
    head = {"namespace": "ml", "name": "support", "uid": uid, "resourceVersion": version, **metadata}
    return {"metadata": head, "status": {"phase": phase}}


def ended() -> dict[str, Any]:
    """A run that has failed and is marked, as the API gives it."""
    words = {"failure": {"reason": "Diverged", "message": "the loss is nan"}}
    run = stored(look(None, o.job("Failed", reason="PodFailurePolicy"), o.failed_pod("p1", 6, words)))
    metadata = {"namespace": "ml", "name": "support", "uid": run.metadata.uid, "generation": run.metadata.generation}
    return {"metadata": {**metadata, "annotations": mark_of(run, run.status)}, "status": run.status.to_dict()}


def test_an_own_write_is_no_news_and_what_others_wrote_is() -> None:
    echoes = Echoes(size=2)
    echoes.note(document(version="7"))
    assert echoes.is_own(document(version="7"))
    assert not echoes.is_own(document(version="8"))
    assert not echoes.is_own(document(uid="other", version="7"))
    for uid in ("a", "b"):
        echoes.note(document(uid=uid))
    assert not echoes.is_own(document(version="7")), "only the newest are kept"
    echoes.note({"kind": "Status", "metadata": {}})


def test_an_ended_run_that_is_marked_needs_nothing() -> None:
    assert not run_needs_a_pass(ended())


@pytest.mark.parametrize("what", ["no mark", "broken mark", "another's mark", "another generation", "no condition"])
def test_whatever_is_left_to_be_written_needs_a_pass(what: str) -> None:
    run = ended()
    match what:
        case "no mark":
            run["metadata"]["annotations"] = {}
        case "broken mark":
            run["metadata"]["annotations"] = {names.FINISHED_ANNOTATION: "[" * 100_000}
        case "another's mark":
            run["metadata"]["uid"] = "restored"
        case "another generation":
            run["metadata"]["generation"] += 1
        case _:
            run["status"]["conditions"] = []
    assert run_needs_a_pass(run)


@pytest.mark.parametrize(
    ("condition", "ttl", "unfinished", "needed"),
    [
        ("Complete", 600, False, False),
        ("Failed", 600, False, False),
        ("Complete", 600, True, True),  # a policy of the cluster gives every Job a time to live
        ("Complete", None, False, True),
        ("", 600, False, True),
    ],
)
def test_a_job_of_an_ended_run_is_looked_at_until_its_time_to_live_is_set(
    condition: str, ttl: int | None, unfinished: bool, needed: bool
) -> None:
    job = o.job(condition)
    if ttl is not None:
        job["spec"]["ttlSecondsAfterFinished"] = ttl
    assert job_needs_a_pass(job, unfinished=unfinished) is needed


def test_a_child_belongs_to_the_run_of_its_label() -> None:
    child = {"metadata": {"namespace": "ml", "labels": {names.RUN_LABEL: "support"}}}
    assert run_of(child) == KEY
    assert run_of({"metadata": {"namespace": "ml"}}) is None


def test_who_trains_and_who_has_not_ended() -> None:
    known = KnownRuns()
    assert known.note(document(phase="Pending"), gone=False, finished=False) == KEY
    assert (known.is_unfinished(KEY), known.training) == (True, {})
    known.note(document(version="2"), gone=False, finished=False)
    assert (known.training, known.unfinished_in("ml")) == ({"u": KEY}, {KEY: ("u", "2")})
    assert known.unfinished_in("another") == {}
    known.note(document(phase="Succeeded"), gone=False, finished=True)
    assert (known.is_unfinished(KEY), known.training) == (False, {})


def test_the_end_of_a_run_does_not_hide_its_successor_of_the_same_name() -> None:
    known = KnownRuns()
    known.note(document(uid="second"), gone=False, finished=False)
    known.note(document(uid="first"), gone=True, finished=False)
    known.missed(KEY, "first")
    assert known.is_unfinished(KEY)
    known.missed(KEY, "second")
    assert not known.is_unfinished(KEY)


def posted(percent: int | None, loss: str) -> TrainerStatus:
    return TrainerStatus.model_validate({"progressPercentage": percent, "metrics": [{"name": "loss", "value": loss}]})


@pytest.mark.parametrize(
    ("now", "before", "seconds", "worth"),
    [
        (posted(1, "2"), None, 0, True),
        (posted(1, "2"), posted(1, "2"), 1e6, False),
        (posted(1, "1.9"), posted(1, "2"), PROGRESS_SECONDS - 1, False),
        (posted(1, "1.9"), posted(1, "2"), PROGRESS_SECONDS, True),
        (posted(2, "1.9"), posted(1, "2"), 1, True),
        (posted(None, "1.9"), posted(None, "2"), 1, False),
    ],
)
def test_progress_is_written_when_it_moves_by_a_percent_or_is_a_minute_old(
    now: TrainerStatus, before: TrainerStatus | None, seconds: float, worth: bool
) -> None:
    assert is_worth_writing(now, (before, 100.0) if before else None, 100.0 + seconds) is worth
