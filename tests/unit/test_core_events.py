"""The Events that tell of a change of the status."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.api.status import TrainingRunStatus
from finetune.controller.core.case import Case
from finetune.controller.core.events import EventDraft, build_event, events_between
from finetune.controller.core.refusals import Doing, classify
from finetune.controller.core.views import AdapterView, DatasetView
from tests.support import objects as o
from tests.support.cases import again, look, status, stored

ADAPTER = AdapterView(id="7", name="support", version=4, uri="pvc://adapters/x/adapter", sha256="a" * 64, bytes=10)
EXPORTED = o.ended(0, {"dataset": {"version": 2, "rows": 400, "evaluationRows": 40}}, seconds=6)
TRAINING = o.pod("p1", export=EXPORTED, trainer=o.running())
DONE = o.pod("p1", "Succeeded", export=EXPORTED, trainer=o.ended(0, o.RESULT, seconds=95))


def told(case: Case) -> list[EventDraft]:
    """What a look at a run tells."""
    return list(events_between(case.run.status, status(case), case.run.metadata.name))


def said(case: Case) -> list[str]:
    return [draft.reason for draft in told(case)]


def test_events_tell_what_changed_and_are_the_same_event_when_told_again() -> None:
    empty = TrainingRunStatus()
    ended = status(look(None, o.job("Complete"), DONE, adapter=ADAPTER))
    assert [draft.reason for draft in events_between(empty, ended)] == [
        "JobCreated",
        "DatasetExported",
        "AdapterRegistered",
    ]
    assert events_between(ended, ended) == ()
    draft = events_between(empty, ended)[0]
    first, second = (build_event(o.run().metadata, draft, o.at(seconds)) for seconds in (1, 2))
    assert first["metadata"]["name"] == second["metadata"]["name"]


def test_a_failed_attempt_is_an_event_once() -> None:
    case = look(None, o.job(), o.failed_pod("p1", 137))
    assert "AttemptEnded" in said(case)
    assert told(again(case, 70)) == []


def test_the_event_of_the_job_says_how_to_read_its_logs() -> None:
    (draft,) = told(look(None, o.job()))
    assert (draft.type, draft.reason) == ("Normal", "JobCreated")
    assert "kubectl logs -l finetune.dev/run=support --all-containers" in draft.message


@pytest.mark.parametrize(
    ("more", "kind", "reason", "text"),
    [
        ({"dataset": DatasetView(missing="no such dataset")}, "Warning", "DatasetUnavailable", "no such dataset"),
        ({"name_taken": "taken"}, "Warning", "JobNameTaken", "taken"),
        (
            {"refusal": classify(500, "Internal error occurred", about="Job/x", doing=Doing.START)},
            "Warning",
            "APIServerUnavailable",
            "Internal error occurred",
        ),
    ],
)
def test_every_wait_is_an_event_once(more: dict[str, Any], kind: str, reason: str, text: str) -> None:
    case = look(**more)
    (draft,) = told(case)
    assert (draft.type, draft.reason) == (kind, reason)
    assert text in draft.message
    assert told(again(case, 90)) == []


def test_a_wait_for_a_node_is_an_event_with_what_to_do() -> None:
    known = stored(look(None, o.job()))
    (draft,) = told(look(known, o.job(), o.unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")))
    assert (draft.type, draft.reason) == ("Warning", "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in draft.message
    assert "spec.resources" in draft.message


def test_a_queue_is_no_trouble() -> None:
    known = stored(look(None, o.job()))
    waiting = o.workload(("QuotaReserved", "False", "Pending", "insufficient unused quota"))
    (draft, *_) = told(look(known, o.job(suspend=True, queue="gpus", suspended_at=3), workload=waiting))
    assert (draft.type, draft.reason) == ("Normal", "Queued")


def test_suspension_and_resume_are_events_and_no_warning() -> None:
    run = stored(look(None, o.job(), TRAINING))
    wants = o.run(run.status.to_dict(), suspend=True)
    saving = look(wants, o.job(suspend=True, suspended_by=o.UID, suspended_at=60), TRAINING)
    assert ("Normal", "Suspending") in [(draft.type, draft.reason) for draft in told(saving)]
    saved = o.failed_pod("p1", 75, {"interrupted": {"step": 293}})
    rests = look(stored(saving), o.job(suspend=True, suspended_by=o.UID, suspended_at=60), saved)
    drafts = told(rests)
    assert {draft.type for draft in drafts} == {"Normal"}
    assert [draft.reason for draft in drafts] == ["Suspended", "AttemptInterrupted"]
    assert "kept step 293" in drafts[1].message
    resumed = look(o.run(stored(rests).status.to_dict()), o.job(), saved)
    assert said(resumed) == ["Resumed"]


def test_an_attempt_that_failed_is_a_warning_with_its_node_and_code() -> None:
    run = stored(look(None, o.job(), TRAINING))
    drafts = told(look(run, o.job(), o.failed_pod("p1", 9)))
    assert [(draft.type, draft.reason) for draft in drafts] == [("Warning", "AttemptEnded")]
    assert "pod p1 on node node-1 ended: GPUUnavailable, exit code 9" in drafts[0].message


def test_a_failure_is_an_event_with_its_hint() -> None:
    words = {"failure": {"reason": "DatasetInvalid", "message": "row 7: not valid JSON", "row": 7}}
    pod = o.pod("p1", "Failed", export=o.ended(3, words))
    draft = told(look(None, o.job("Failed", reason="PodFailurePolicy"), pod))[-1]
    assert (draft.type, draft.reason) == ("Warning", "DatasetInvalid")
    assert "row 7: not valid JSON - " in draft.message
    assert "invalidRows" in draft.message


def test_an_event_is_no_longer_than_the_api_allows() -> None:
    event = build_event(o.run().metadata, EventDraft("Warning", "X", "y" * 5_000), o.at(1))
    assert len(event["message"]) == 1024


def test_a_second_suspension_is_said_again() -> None:
    def name(seconds: float) -> str:
        case = look(o.run(suspend=True), o.job(suspend=True), seconds=seconds)
        (draft,) = [each for each in told(case) if each.reason == "Suspended"]
        return str(build_event(case.run.metadata, draft, case.now)["metadata"]["name"])

    assert name(100) != name(1_300)
    assert name(100) == name(100)
