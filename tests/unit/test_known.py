"""What is remembered of runs: which events are news, what need not be read, and what is forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.api.registry import TrainerStatus
from finetune.controller.core import names
from finetune.controller.core.mark import mark_of
from finetune.controller.known import (
    ABSENT_SECONDS,
    PROGRESS_SECONDS,
    KnownRuns,
    is_newer,
    is_over,
    is_worth_writing,
    run_of,
)
from finetune.controller.workqueue import Key
from tests.support import objects as o
from tests.support.cases import look, stored

KEY = Key("ml", "support")
Document = dict[str, Any]


class Clock:
    """Seconds that only pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(version: int = 10, uid: str = o.UID, phase: str = "Training", **metadata: Any) -> Document:
    head = {"namespace": "ml", "name": "support", "uid": uid, "resourceVersion": str(version), "generation": 1}
    status = {"observedGeneration": -1} | ({"phase": phase} if phase else {})  # as the CRD's default makes it
    return {"kind": "TrainingRun", "metadata": {**head, **metadata}, "status": status}


def ended(version: int = 90) -> Document:
    """A run that has failed and is marked, as the API gives it."""
    words = {"failure": {"reason": "Diverged", "message": "the loss is nan"}}
    case = stored(look(None, o.job("Failed", reason="PodFailurePolicy"), o.failed_pod("p1", 6, words)))
    document = run(version, annotations=mark_of(case, case.status))
    return {**document, "status": case.status.to_dict()}


def child(document: Document, version: int, *, role: str = "train", uid: str = o.UID) -> Document:
    labels = {names.RUN_LABEL: "support", names.RUN_UID_LABEL: uid, names.ROLE_LABEL: role}
    head = {**document["metadata"], "namespace": "ml", "labels": labels, "resourceVersion": str(version)}
    return {**document, "metadata": head}


def job(version: int = 20, condition: str = "", **more: Any) -> Document:
    return {"kind": "Job", **child(o.job(condition, **more), version)}


def pod(version: int = 30, name: str = "p1", phase: str = "Running", **more: Any) -> Document:
    return child(o.pod(name, phase, **more), version)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> KnownRuns:
    """A run that trains, with a Job and a pod; all of it was read just now."""
    known = KnownRuns(fresh_seconds=120, clock=clock)
    known.run_seen(run())
    known.was_read(KEY, o.UID, job(), [pod()], frozenset())
    return known


def names_of(known: KnownRuns) -> list[str] | None:
    children = known.children(KEY, o.UID)
    return None if children is None else [each.name for each in children.pods]


# What is news


def test_the_echo_of_an_own_write_is_no_news_and_what_others_write_is(known: KnownRuns) -> None:
    known.written(run(12))
    known.written(job(22, suspend=True))
    known.written({"kind": "Event", "metadata": {"name": "x"}})
    assert (known.run_seen(run(12)), known.job_seen(job(22, suspend=True))) == (False, False)
    assert (known.run_seen(run(13)), known.job_seen(job(23))) == (True, True)


def test_nothing_goes_back(known: KnownRuns) -> None:
    known.written(run(12, phase="Registering"))
    assert not known.run_seen(run(11))
    assert known.document(KEY) == run(12, phase="Registering")
    assert not known.job_seen(job(19, suspend=True))
    assert not known.pod_seen(pod(29, phase="Pending"))
    children = known.children(KEY, o.UID)
    assert children is not None
    assert (children.job.suspended, children.pods[0].phase) == (False, "Running")


def test_a_newer_version_that_says_the_same_is_no_news(known: KnownRuns) -> None:
    assert not known.job_seen(job(25))
    assert not known.job_seen(job(24, suspend=True)), "older than what was passed over"
    assert not known.pod_seen(pod(35))
    assert known.pod_seen(pod(36, phase="Succeeded"))


@pytest.mark.parametrize(
    ("version", "older", "newer"), [("10", "9", True), ("9", "10", False), ("a", "b", True), ("a", "a", False)]
)
def test_versions_are_numbers_where_they_are(version: str, older: str, newer: bool) -> None:
    assert is_newer(version, older) is newer


def test_an_ended_run_that_is_marked_is_forgotten_with_its_job_and_needs_nothing(known: KnownRuns) -> None:
    assert not known.run_seen(ended())
    assert (known.is_unfinished(KEY), known.phases(), known.training()) == (False, [], {})
    assert not known.pod_seen(pod(95, phase="Succeeded"))
    assert known.job_seen(job(96, "Failed")), "it has no time to live"
    assert known.document(KEY) == ended()
    assert not known.job_seen(job(97, "Failed", ttlSecondsAfterFinished=600))
    assert known.document(KEY) is None
    assert not known.job_seen(job(97, "Failed", ttlSecondsAfterFinished=600))
    assert not known.run_seen(ended(), gone=True)


@pytest.mark.parametrize("how", ["deleted", "read", "unknown", "before"])
def test_an_ended_run_without_a_job_is_forgotten(known: KnownRuns, how: str) -> None:
    if how == "unknown":
        known.doubt_children(None)
    if how == "before":
        known.job_seen(job(85), gone=True)
    assert not known.run_seen(ended())
    if how == "deleted":
        assert not known.job_seen(job(95), gone=True)
    if how == "read":
        known.was_read(KEY, o.UID, None, [], frozenset())
    assert known.document(KEY) is None


@pytest.mark.parametrize("what", ["no mark", "broken mark", "another's mark", "another generation", "no condition"])
def test_whatever_is_left_to_be_written_needs_a_pass(what: str) -> None:
    document = ended()
    match what:
        case "no mark":
            document["metadata"]["annotations"] = {}
        case "broken mark":
            document["metadata"]["annotations"] = {names.FINISHED_ANNOTATION: "[" * 100_000}
        case "another's mark":
            document["metadata"]["uid"] = "restored"
        case "another generation":
            document["metadata"]["generation"] += 1
        case _:
            document["status"]["conditions"] = []
    known = KnownRuns()
    assert known.run_seen(document)
    assert known.is_unfinished(KEY) is (what == "no condition")
    assert known.document(KEY) == document


@pytest.mark.parametrize(
    ("condition", "ttl", "unfinished", "gone", "needed"),
    [
        ("Complete", 600, False, False, False),
        ("Failed", 600, False, False, False),
        ("Complete", 600, True, False, True),  # a policy of the cluster gives every Job a time to live
        ("Complete", None, False, False, True),
        ("", 600, False, False, True),
        ("", None, False, True, False),
        ("", None, True, True, True),
    ],
)
def test_a_job_of_an_ended_run_is_looked_at_until_its_time_to_live_is_set(
    condition: str, ttl: int | None, unfinished: bool, gone: bool, needed: bool
) -> None:
    known = KnownRuns()
    if unfinished:
        known.run_seen(run())
    more = {} if ttl is None else {"ttlSecondsAfterFinished": ttl}
    assert known.job_seen(job(20, condition, **more), gone=gone) is needed


def test_what_reads_the_result_is_always_news(known: KnownRuns) -> None:
    collect = job(40)
    collect["metadata"]["name"] = names.collect_job_name(o.JOB)
    reader = child(o.pod("c1"), 41, role=names.ROLE_COLLECT)
    assert all([known.job_seen(collect), known.job_seen(collect), known.pod_seen(reader), known.pod_seen(reader)])
    assert names_of(known) == ["p1"]


def test_a_child_belongs_to_the_run_of_its_label(known: KnownRuns) -> None:
    assert run_of(child(o.job(), 1)) == KEY
    assert run_of({"metadata": {"namespace": "ml"}}) is None
    assert (known.job_seen(o.job()), known.pod_seen(o.pod())) == (False, False)
    assert known.pod_seen(child(o.pod("p9"), 40, uid="another")), "it is looked at"
    assert names_of(known) == ["p1"], "and not believed"


# What need not be read


def test_what_is_known_is_what_was_told_last(known: KnownRuns) -> None:
    known.job_seen(job(21, suspend=True))
    known.pod_seen(pod(31, "p2"))
    known.run_seen(run(11, managedFields=[{"manager": "kubectl"}]))
    children = known.children(KEY, o.UID)
    assert children is not None
    assert (children.job.suspended, [each.name for each in children.pods]) == (True, ["p1", "p2"])
    assert known.document(KEY) == run(11)


def test_everything_is_read_again_after_a_while(known: KnownRuns, clock: Clock) -> None:
    clock.now += 119
    known.pod_seen(pod(31, phase="Succeeded"))
    assert names_of(known) == ["p1"]
    assert not known.is_stale(KEY)
    clock.now += 1
    assert names_of(known) is None
    assert known.is_stale(KEY)


def test_that_something_is_not_there_is_read(known: KnownRuns, clock: Clock) -> None:
    known.was_read(KEY, o.UID, job(21), [], frozenset({"p1-uid"}))
    clock.now += ABSENT_SECONDS - 1
    assert names_of(known) == []
    clock.now += 1
    assert names_of(known) is None, "a Job without a pod"
    known.pod_seen(pod(31))
    assert names_of(known) == ["p1"]
    known.job_seen(job(22), gone=True)
    assert names_of(known) is None, "no Job"


def test_a_read_that_began_before_a_deletion_does_not_undo_it(known: KnownRuns) -> None:
    before = known.pods_of(KEY)
    known.job_seen(job(25), gone=True)
    known.pod_seen(pod(35), gone=True)
    known.pod_seen(pod(36, "p2"))
    known.was_read(KEY, o.UID, job(20), [pod(30)], before)
    assert names_of(known) is None
    known.job_seen(job(26))
    assert names_of(known) == ["p2"], "which was made while the list was read"


def test_pods_that_had_last_words_are_kept_and_the_others_go(known: KnownRuns) -> None:
    known.pod_seen(pod(31, "p2", "Failed"))
    known.was_read(KEY, o.UID, job(21), [], known.pods_of(KEY))
    assert names_of(known) == ["p2"]
    assert [each.name for each in known.last_words(KEY, o.UID)] == ["p2"]
    assert known.last_words(KEY, "another") == []


def test_a_run_that_was_made_before_our_eyes_has_no_children() -> None:
    known = KnownRuns()
    known.run_seen(run(phase=""), added=True)
    assert known.take_born(KEY, o.UID)
    assert not known.take_born(KEY, o.UID)
    known.written(job())
    assert names_of(known) == [], "its Job is the one that we made, and its pods are to come"


@pytest.mark.parametrize(
    ("added", "phase", "uid"), [(False, "", o.UID), (True, "Pending", o.UID), (True, "", "another")]
)
def test_other_runs_may_have_children(added: bool, phase: str, uid: str) -> None:
    known = KnownRuns()
    known.run_seen(run(phase=phase), added=added)
    assert not known.take_born(KEY, uid)


def test_doubt_makes_everything_be_read(known: KnownRuns) -> None:
    known.doubt(KEY)
    assert (known.document(KEY), names_of(known), known.is_stale(KEY)) == (None, None, True)
    assert known.is_unfinished(KEY)
    known.run_seen(run(11))
    known.was_read(KEY, o.UID, job(21), [pod(31)], frozenset())
    known.doubt_children("another")
    assert names_of(known) == ["p1"]
    known.doubt_children("ml")
    assert (known.document(KEY), names_of(known)) == (run(11), None)


def test_versions_that_are_no_numbers_are_not_relied_on() -> None:
    known = KnownRuns()
    words, strange = run(), job()
    words["metadata"]["resourceVersion"] = strange["metadata"]["resourceVersion"] = "a3f"
    known.run_seen(words)
    known.was_read(KEY, o.UID, strange, [pod()], frozenset())
    assert (known.document(KEY), names_of(known)) == (None, None)


# What is there, and what is forgotten


def test_the_end_of_a_run_does_not_hide_its_successor_of_the_same_name(known: KnownRuns) -> None:
    known.run_seen(run(50, uid="second"))
    assert not known.run_seen(run(40), gone=True)
    known.missed(KEY, o.UID)
    assert known.unfinished_in("ml") == {KEY: "second"}
    assert names_of(known) is None
    known.was_read(KEY, o.UID, job(60), [pod(61)], frozenset())
    assert known.children(KEY, "second") is None
    known.missed(KEY, "second")
    assert not known.is_unfinished(KEY)


def test_a_deleted_run_is_forgotten(known: KnownRuns) -> None:
    assert known.run_seen(run(11), gone=True)
    assert (known.is_unfinished(KEY), known.unfinished_in(None)) == (False, {})
    assert not known.run_seen(run(11), gone=True)


def test_who_has_not_ended_and_who_trains(known: KnownRuns) -> None:
    assert (known.unfinished_in("ml"), known.unfinished_in("other"), known.unfinished_in(None)) == (
        {KEY: o.UID},
        {},
        {KEY: o.UID},
    )
    assert (known.training(), known.phases()) == ({o.UID: KEY}, [("Training", "")])
    known.run_seen({**run(11), "status": {"phase": "Pending", "waiting": {"reason": "Unschedulable"}}})
    assert (known.training(), known.phases()) == ({}, [("Pending", "Unschedulable")])


def test_the_pods_of_a_run_are_bounded(known: KnownRuns) -> None:
    for number in range(100):
        known.pod_seen(pod(100 + number, f"f{number}", "Failed", created=10 + number))
    assert [each.name for each in known.last_words(KEY, o.UID)] == [f"f{number}" for number in range(68, 100)]


# Progress


def posted(percent: int | None, loss: str) -> TrainerStatus:
    return TrainerStatus.model_validate({"progressPercentage": percent, "metrics": [{"name": "loss", "value": loss}]})


def test_posts_are_kept_for_the_runs_that_were_asked_for(known: KnownRuns, clock: Clock) -> None:
    training = {**known.training(), "gone": Key("ml", "gone")}
    assert known.posted(training, {o.UID: posted(1, "2"), "gone": posted(1, "2")}) == [KEY]
    assert known.progress(KEY, o.UID) == posted(1, "2")
    assert known.posted(training, {o.UID: posted(1, "1.9")}) == []
    assert known.progress(KEY, o.UID) == posted(1, "1.9")
    clock.now += PROGRESS_SECONDS
    assert known.posted(training, {o.UID: posted(1, "1.9")}) == [KEY]
    assert known.posted(training, {}) == []
    assert (known.progress(KEY, o.UID), known.progress(KEY, "another")) == (None, None)


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


def test_unfinished_runs_are_found_by_a_word_that_they_have(known: KnownRuns) -> None:
    reader = run(11, uid="b", name="reader")
    known.run_seen({**reader, "spec": {"dataset": {"volume": {"claimName": "rows", "path": "rows-2"}}}})
    known.run_seen({**ended(12), "spec": {"output": {"claimName": "rows"}}})
    reads = Key("ml", "reader")
    assert known.naming("ml", "rows") == [reads]
    assert known.naming("ml", "rows-") == known.naming("other", "rows") == []
    known.doubt(reads)
    assert known.naming("ml", "rows-") == [reads], "it may be anything by now"


@pytest.mark.parametrize(
    ("child_", "over"),
    [
        (o.pod("p1", "Running"), False),
        (o.pod("p1", "Succeeded"), True),
        (o.pod("p1", "Failed"), True),
        (o.job(), False),
        (o.job("Complete"), True),
        (o.job("Failed"), True),
        ({"metadata": {}}, False),
    ],
)
def test_jobs_and_pods_have_ended_by_their_own_words(child_: Document, *, over: bool) -> None:
    assert is_over(child_) is over
