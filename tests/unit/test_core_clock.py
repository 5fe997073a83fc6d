"""How long a run waits: each reason and object has a clock of its own, from when it was first said, and by the
operator's clock alone. And what is waited for is said in the status."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from finetune.api import conditions
from finetune.api.status import TrainingRunStatus
from finetune.controller.core.events import events_between
from finetune.controller.core.findings import wait
from finetune.controller.core.status import troubled_status
from finetune.controller.core.views import DatasetView
from tests.support import objects as o
from tests.support.cases import again, failed, failure, look, status, stored, waiting, waits_for, with_status

NO_ROWS = 'MountVolume.SetUp failed for volume "source" : configmap "rows" not found'
ROWS: dict[str, Any] = {"dataset": {"configMap": {"name": "rows", "key": "train.jsonl"}}}
HUB: dict[str, Any] = {"baseModel": {"hub": {"repository": "org/m", "tokenSecretRef": {"name": "hub", "key": "token"}}}}
NO_DATASET: dict[str, Any] = {"dataset": DatasetView(missing='dataset "tickets" not found')}
NO_PARENT: dict[str, Any] = {"dataset": DatasetView(version=3), "parent_missing": "adapter 'support' does not exist"}


def test_a_dataset_is_waited_for_from_when_it_is_first_missed() -> None:
    first = look(seconds=5, **NO_DATASET)
    assert failure(again(first, 304)) is None
    late = failed(again(first, 305))
    assert (late.reason, "tickets" in late.message) == ("DatasetUnavailable", True)


def test_so_is_a_parent_adapter() -> None:
    first = look(o.run(**o.PREFERENCE), seconds=5, **NO_PARENT)
    assert failure(again(first, 304)) is None
    late = failed(again(first, 305))
    assert (late.reason, "adapter 'support'" in late.message) == ("ParentAdapterUnavailable", True)


def test_what_is_seen_for_the_first_time_ends_nothing_however_old_the_run_is() -> None:
    assert failure(look(seconds=10_000, **NO_DATASET)) is None
    instant = o.SETTINGS.model_copy(update={"reference_timeout_seconds": 0})
    case = look(settings=instant, **NO_DATASET)
    assert failure(case) is None
    assert failed(again(case, 60)).reason == "DatasetUnavailable"


def test_each_wait_has_a_clock_of_its_own() -> None:
    """The dataset was missing for 200 s, then the parent for 100 s: neither of them for 300 s."""
    run = o.run(**o.PREFERENCE)
    first = look(run, seconds=5, **NO_DATASET)
    second = look(stored(first), seconds=205, **NO_PARENT)
    assert failure(again(second, 305)) is None
    assert failed(again(second, 505)).reason == "ParentAdapterUnavailable"


def test_a_wait_that_was_over_begins_anew() -> None:
    first = look(seconds=5, **NO_DATASET)
    between = look(stored(first), seconds=100, dataset=DatasetView(version=1))
    assert status(between).waiting is None
    back = look(stored(between), seconds=200, **NO_DATASET)
    assert failure(again(back, 305)) is None
    assert failed(again(back, 500)).reason == "DatasetUnavailable"


def test_troubles_that_take_turns_do_not_keep_each_other_from_expiring() -> None:
    """A missing dataset, and an API server that fails every other pass: only the time spent on each counts for it."""
    missing = look(seconds=0, **NO_DATASET)
    away = wait("APIServerUnavailable", "no answer", "TrainingRun/support")
    ended, seconds = None, 0.0
    for seconds in range(0, 1_000, 10):
        case = dataclasses.replace(missing, now=o.at(seconds))
        ended = failure(case)
        if ended is not None:
            break
        run = stored(case)
        troubled = troubled_status(run.status, away, 1, o.at(seconds + 5))
        missing = dataclasses.replace(missing, run=with_status(run, troubled))
    assert ended is not None
    assert ended.reason == "DatasetUnavailable"
    assert seconds == 600, "300 s of its own, in turns of five"


def test_a_wait_between_two_of_the_same_is_told_once() -> None:
    first = stored(look(seconds=0, **NO_DATASET))
    away = wait("APIServerUnavailable", "no answer", "TrainingRun/support")
    troubled = with_status(first, troubled_status(first.status, away, 1, o.at(5)))
    back = stored(look(troubled, seconds=10, **NO_DATASET))
    assert [each.reason for each in events_between(first.status, troubled.status, "support")] == [away.reason]
    assert events_between(troubled.status, back.status, "support") == ()


def test_other_words_about_the_same_thing_do_not_start_the_clock_again() -> None:
    """A kubelet alternates between two reasons for one image, and counts its back-off in the message."""
    first = look(None, o.job(), o.pending(o.waiting("ErrImagePull", "rpc error")), seconds=10)
    second = look(stored(first), o.job(), o.pending(o.waiting("ImagePullBackOff", "Back-off 20s")), seconds=60)
    assert second.waited(*waiting(second).key).total_seconds() == 50
    assert failed(again(first, 310, before=second)).reason == "ImagePullFailed"


def test_a_suspended_run_does_not_fail_by_what_it_waits_for() -> None:
    case = look(o.run(suspend=True), o.job(), o.pending(o.waiting("ErrImagePull", "gone")), seconds=10)
    assert failure(again(case, 10_000)) is None


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_the_clocks_of_others_do_not_matter(skew: float) -> None:
    """Pods, nodes and the API server are an hour ahead of the operator, or behind it."""
    pod = o.pod("p1", "Pending", created=2 + skew, export=o.waiting("ErrImagePull", "i/o timeout"))
    first = look(None, o.job(seconds=1 + skew), pod, seconds=60)
    assert failure(first) is None
    assert failure(again(first, 359)) is None
    assert failed(again(first, 360)).reason == "ImagePullFailed"
    mounts = [o.event("FailedMount", NO_ROWS, 20 + skew)]
    first = look(o.run(**ROWS), o.job(seconds=1 + skew), o.pod("p1", "Pending", created=2 + skew), events=mounts)
    assert failure(again(first, 359)) is None
    assert failed(again(first, 360)).reason == "DatasetUnavailable"


def test_an_operator_whose_clock_goes_back_waits_longer_and_not_for_ever() -> None:
    first = look(seconds=4000, **NO_DATASET)
    assert failure(again(first, 400)) is None
    assert again(first, 400).waited("DatasetUnavailable", "Dataset/tickets").total_seconds() == 0
    assert failed(again(first, 4300)).reason == "DatasetUnavailable"


def test_the_time_in_the_queue_is_not_a_wait_for_the_image() -> None:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": o.stamp(9_000)}
    unfit = look(None, o.job(), o.unschedulable("0/3 nodes are available"), seconds=10)
    pod = o.pod("p1", "Pending", export=o.waiting("ErrImagePull", "i/o timeout"), conditions=[scheduled])
    first = look(stored(unfit), o.job(), pod, seconds=9_010)
    assert failure(first) is None
    assert failure(again(first, 9_309)) is None
    assert failed(again(first, 9_310)).reason == "ImagePullFailed"


def test_the_export_is_not_a_wait_for_the_trainers_secret() -> None:
    words = o.waiting("CreateContainerConfigError", 'secret "hub" not found')
    pod = o.pod("p1", "Pending", export=o.ended(0, seconds=2_000), trainer=words)
    first = look(o.run(**HUB), o.job(), pod, seconds=2_010)
    assert failure(first) is None
    assert failed(again(first, 2_310)).reason == "AccessDenied"


@pytest.mark.parametrize("words", ["429 Too Many Requests", "unexpected EOF", "500 Internal Server Error"])
def test_one_failed_pull_after_a_long_one_is_not_the_end(words: str) -> None:
    """The node pulled 6 GB for 400 s; at 401 s the registry answers badly for the first time."""
    pulling = look(
        None, o.job(), o.pending({}), seconds=100, events=[o.event("Pulling", 'Pulling image "x"', warning=False)]
    )
    case = look(stored(pulling), o.job(), o.pending(o.waiting("ErrImagePull", words)), seconds=403)
    assert failure(case) is None
    assert waits_for(case) == "ImagePullFailed"


# In every condition


def test_what_is_waited_for_is_in_the_status_with_its_hint_and_its_clock() -> None:
    case = look(None, o.job(), o.unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), seconds=60)
    made = status(case)
    assert made.waiting is not None
    assert (made.waiting.reason, made.waiting.since) == ("Unschedulable", o.at(60))
    assert "spec.resources" in (made.waiting.hint or "")
    assert "waits without end" in (made.waiting.hint or "")
    for type_ in (conditions.SUCCEEDED, conditions.FINISHED, conditions.RECONCILING):
        found = made.condition(type_)
        assert found is not None
        assert "Insufficient nvidia.com/gpu" in found.message
    assert status(again(case, 400)).waiting == made.waiting


def test_a_status_that_was_written_once_is_not_written_again() -> None:
    case = look(None, o.job(), o.pending(o.waiting("ErrImagePull", "x")), seconds=60)
    made = stored(case).status
    assert status(again(case, 200)) == made


def test_a_message_that_is_too_long_is_cut_and_the_status_is_written() -> None:
    case = look(None, o.job(), o.pending(o.waiting("ErrImagePull", "x" * 20_000)))
    waiting_ = stored(case).status.waiting
    assert waiting_ is not None
    assert len(waiting_.message) == 4096
    assert failed(again(case, 400)).reason == "ImagePullFailed"


def test_a_name_that_is_too_long_for_the_status_has_a_clock_all_the_same() -> None:
    image = f"registry.example.com/{'x' * 300}/trainer:1"
    settings = o.SETTINGS.model_copy(update={"trainer_image": image})
    case = look(None, o.job(), o.pending(o.waiting("ErrImagePull", "gone")), settings=settings)
    assert status(again(case, 200)) == status(again(case, 61))
    assert failed(again(case, 360)).reason == "ImagePullFailed"


# A run that cannot be looked at


def test_a_run_that_cannot_be_looked_at_says_so_and_keeps_what_is_known() -> None:
    known = stored(look(None, o.job(), o.pod("p1", export=o.ended(0), trainer=o.running()))).status
    trouble = wait("OperatorError", "ValueError: what", "TrainingRun/support")
    first = troubled_status(known, trouble, 3, o.at(100))
    assert (first.phase, first.attempts, first.observed_generation) == ("Training", 1, 3)
    assert first.waiting is not None
    assert (first.waiting.reason, first.waiting.since) == ("OperatorError", o.at(100))
    for type_ in (conditions.SUCCEEDED, conditions.FINISHED, conditions.RECONCILING):
        found = first.condition(type_)
        assert found is not None
        assert (found.reason, found.message) == ("Training", "ValueError: what")
    assert troubled_status(first, trouble, 3, o.at(500)) == first


def test_so_does_one_that_has_no_status_yet() -> None:
    made = troubled_status(TrainingRunStatus(), wait("OperatorForbidden", "no", "Job/x"), 1, o.at(9))
    assert (made.phase, made.observed_generation) == ("Pending", 1)
    assert made.waiting is not None
    assert made.waiting.message == "no"
