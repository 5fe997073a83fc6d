"""What is done next for a run, from what was seen of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from finetune.api.status import ResumeStatus
from finetune.controller.core import decide
from finetune.controller.core.mark import mark_of
from finetune.controller.core.messages import message_of
from finetune.controller.core.refusals import Doing, classify, classify_registry
from finetune.controller.core.views import AdapterView, DatasetView
from tests.support import objects as o
from tests.support.cases import action, again, failed, failure, look, stored, waiting, waits_for

ADAPTER = AdapterView(id="1", name="support", version=1, uri="pvc://adapters/x", sha256="a" * 64, bytes=10)
RECORDED = DatasetView(version=3)
DONE = o.pod("p1", "Succeeded", export=o.ended(0), trainer=o.ended(0, o.RESULT))
TRAINED: dict[str, Any] = {"phase": "Training", "jobName": o.JOB, "jobUid": "job-uid"}
REGISTERING: dict[str, Any] = {"phase": "Registering", "jobName": o.JOB, "jobUid": "job-uid"}
STORED = message_of(o.RESULT)


def collect(condition: str = "", **more: Any) -> dict[str, Any]:
    made = o.job(condition, **more)
    return {**made, "metadata": {**made["metadata"], "name": f"{o.JOB}-collect", "uid": "collect-uid"}}


def test_a_new_run_is_recorded_then_gets_its_claim_and_then_its_job() -> None:
    run = o.run(output={})
    assert action(look(run)) == decide.RecordRun()
    assert action(look(run, dataset=RECORDED)) == decide.CreateClaim()
    assert action(look(run, dataset=RECORDED, claim_exists=True)) == decide.CreateJob()


def test_a_named_claim_is_not_created() -> None:
    assert action(look(dataset=RECORDED)) == decide.CreateJob()


def test_no_job_without_its_dataset() -> None:
    missing = look(dataset=DatasetView(missing='dataset "tickets" not found'))
    assert action(missing) is None
    assert waits_for(missing) == "DatasetUnavailable"


def test_no_job_without_its_parent_adapter() -> None:
    run = o.run(**o.PREFERENCE)
    missing = look(run, dataset=RECORDED, parent_missing="adapter 'support' does not exist")
    assert action(missing) is None
    assert waits_for(missing) == "ParentAdapterUnavailable"


def test_a_parent_of_the_same_base_model_is_trained_on() -> None:
    assert action(look(o.run(**o.PREFERENCE), dataset=RECORDED, parent=o.PARENT)) == decide.CreateJob()


def test_a_parent_of_another_base_model_is_refused_before_there_is_a_job() -> None:
    other = dataclasses.replace(o.PARENT, base_model="org/other")
    case = look(o.run(**o.PREFERENCE), dataset=RECORDED, parent=other)
    assert action(case) is None
    found = failed(case)
    assert found.reason == "InvalidSpec"
    assert "adapter support version 3 was trained on the base model org/other" in found.message
    assert "spec.baseModel is smollm2" in found.message


def test_the_run_to_go_on_from_is_found_before_there_is_a_claim_or_a_job() -> None:
    run = o.run(resumeFrom={"run": "first"}, output={})
    assert action(look(run, dataset=RECORDED)) == decide.FindResume()
    missing = look(run, dataset=RECORDED, resume_missing='TrainingRun "first" not found in namespace "ml"')
    assert action(missing) is None
    assert (waiting(missing).reason, waiting(missing).object) == ("CheckpointUnavailable", "TrainingRun/first")
    found = ResumeStatus(run="first", uid="u", claim_name="adapters", path="first/u")
    assert action(look(run, dataset=RECORDED, resume=found)) == decide.CreateClaim()
    assert action(look(run, dataset=RECORDED, resume=found, claim_exists=True)) == decide.CreateJob()


def test_the_registry_may_be_away_for_ever() -> None:
    away = look(refusal=classify_registry(0, "", "no answer", about="Run/support"))
    assert action(away) is None
    late = again(away, 10_000)
    assert failure(late) is None
    assert (waiting(late).reason, waiting(late).message) == ("RegistryUnavailable", "no answer")


def test_a_suspended_run_starts_nothing() -> None:
    assert action(look(o.run(suspend=True))) is None


def test_after_a_refusal_nothing_more_is_done_in_this_pass() -> None:
    refusal = classify(500, "Internal error occurred", about="Job/x", doing=Doing.START)
    assert action(look(dataset=RECORDED, refusal=refusal)) is None
    assert action(look(o.run(suspend=True), o.job(), refusal=refusal)) is None


def test_a_failed_pod_is_not_a_failed_run() -> None:
    case = look(None, o.job(), o.failed_pod("p1", 137))
    assert failure(case) is None
    assert action(case) is None


# What the registry knows as done


def test_what_the_registry_has_an_adapter_of_does_not_train_again() -> None:
    """The status was wiped, the Job is long gone: the registry's answer has the adapter and its measurements."""
    known = look(o.run(output={}), dataset=RECORDED, adapter=ADAPTER, stored_result=STORED, result_asked=True)
    assert action(known) is None
    status = stored(known).status
    assert (status.phase, status.result.adapter.version if status.result else 0) == ("Succeeded", 1)


def test_what_the_registry_has_heard_of_is_asked_for_its_result_before_it_trains() -> None:
    heard = look(dataset=RECORDED, known=True)
    assert action(heard) == decide.FetchResult()
    assert action(look(dataset=RECORDED, known=True, result_asked=True, stored_result=STORED)) == (
        decide.RegisterAdapter()
    )
    assert action(look(dataset=RECORDED, known=True, result_asked=True)) == decide.CreateJob()


# The end


def test_success_needs_the_adapter_first() -> None:
    assert action(look(None, o.job("Complete"), DONE)) == decide.RegisterAdapter()
    assert action(look(None, o.job("Complete"), DONE, adapter=ADAPTER)) is None


def test_a_trainer_that_ended_with_0_is_registered_whatever_the_job_says() -> None:
    """The Job needs a moment, or a container beside the trainer holds it up, or fails it."""
    assert action(look(None, o.job(), DONE)) == decide.RegisterAdapter()
    alive = o.beside(
        o.pod("p1", "Running", export=o.ended(0), trainer=o.ended(0, o.RESULT)), "istio-proxy", o.running()
    )
    assert action(look(None, o.job(), alive)) == decide.RegisterAdapter()
    assert action(look(None, o.job("Failed", reason="BackoffLimitExceeded"), alive)) == decide.RegisterAdapter()
    assert action(look(None, o.job("Failed", reason="DeadlineExceeded"), alive)) == decide.RegisterAdapter()


def test_the_result_is_looked_for_in_the_registry_and_then_on_the_claim() -> None:
    complete = look(None, o.job("Complete"))
    assert action(complete) == decide.FetchResult()
    assert action(look(None, o.job("Complete"), result_asked=True, stored_result=STORED)) == decide.RegisterAdapter()
    assert action(look(None, o.job("Complete"), result_asked=True)) == decide.CreateCollectJob()
    read = o.pod("c", "Succeeded", trainer=o.ended(0, o.RESULT))
    collected = look(None, o.job("Complete"), result_asked=True, collect_job=collect("Complete"), collect_pods=[read])
    assert action(collected) == decide.RegisterAdapter()


def test_a_trainer_that_ended_with_0_without_words_is_asked_for_elsewhere() -> None:
    silent = o.pod("p1", "Succeeded", export=o.ended(0), trainer=o.ended(0))
    assert action(look(None, o.job(), silent)) == decide.FetchResult()
    assert action(look(None, o.job(), silent, result_asked=True)) == decide.CreateCollectJob()


def test_a_result_that_nobody_heard_is_read_once_more() -> None:
    case = look(None, o.job("Complete"), result_asked=True, collect_job=collect("Complete"))
    assert failure(case) is None
    late = again(case, 60 + o.SETTINGS.linger_seconds)
    assert action(late) == decide.DeleteJob(f"{o.JOB}-collect", "collect-uid")
    empty = o.pod("c", "Succeeded", trainer=o.ended(0, "?"))
    unread = look(None, o.job("Complete"), result_asked=True, collect_job=collect("Complete"), collect_pods=[empty])
    assert failed(unread).reason == "AdapterInvalid"


def test_a_collect_job_that_is_going_is_waited_for() -> None:
    going = collect()
    going["metadata"]["deletionTimestamp"] = o.stamp(50)
    for job in (going, collect()):
        assert action(look(None, o.job("Complete"), result_asked=True, collect_job=job)) is None
    ended = collect("Failed")
    ended["metadata"]["deletionTimestamp"] = o.stamp(50)
    assert action(look(None, o.job("Complete"), result_asked=True, collect_job=ended)) is None


# A Job that is not there


def test_a_lost_job_is_never_created_again() -> None:
    gone = look(o.run(TRAINED))
    assert action(gone) == decide.FetchResult()
    assert failure(gone) is None
    asked = look(o.run(TRAINED), result_asked=True)
    assert action(asked) is None
    assert failed(asked).reason == "JobLost"


def test_no_job_is_lost_while_the_registry_cannot_say_whether_the_training_was_done() -> None:
    away = classify_registry(0, "", "no answer", about="Run/support")
    case = look(o.run(TRAINED), refusal=away)
    assert failure(case) is None
    assert waits_for(case) == "RegistryUnavailable"


def test_a_job_lost_when_the_training_was_done_still_gives_its_adapter() -> None:
    """Whether the status says so or not: the trainer has put its result into the registry."""
    for status in (TRAINED, REGISTERING):
        assert action(look(o.run(status), result_asked=True, stored_result=STORED)) == decide.RegisterAdapter(), status
    assert failure(look(o.run(REGISTERING))) is None
    assert action(look(o.run(REGISTERING), result_asked=True)) == decide.CreateCollectJob()


def test_a_job_that_somebody_deletes_is_said_to_go_before_it_is_lost() -> None:
    leaving = o.job()
    leaving["metadata"]["deletionTimestamp"] = o.stamp(50)
    case = look(o.run(TRAINED), leaving, o.pod("p1", export=o.ended(0), trainer=o.running()))
    assert (waiting(case).reason, o.JOB in waiting(case).message) == ("Terminating", True)


def test_another_objects_job_is_left_alone() -> None:
    taken = look(name_taken="taken")
    assert action(taken) is None
    late = again(taken, 10_000)
    assert failure(late) is None
    assert (waiting(late).reason, waiting(late).message) == ("JobNameTaken", "taken")


# After the end


def finished(since: float = 90, *, succeeded: bool = True, **more: Any) -> dict[str, Any]:
    condition = {"type": "Finished", "status": "True", "reason": "X", "lastTransitionTime": o.stamp(since)}
    adapter = {"id": "1", "name": "s", "version": 1, "uri": "pvc://a/b", "sha256": "a" * 64, "bytes": 10}
    end = (
        {"result": {"finalLoss": "1.8", "steps": 5, "tokens": 7, "adapter": adapter}}
        if succeeded
        else {"failure": {"reason": "Diverged", "message": "nan", "hint": "lower it"}}
    )
    return {"phase": "Succeeded" if succeeded else "Failed", "jobName": o.JOB, "conditions": [condition], **end, **more}


def ended(since: float = 90, *, succeeded: bool = True, **more: Any) -> Any:
    """A finished run that bears its mark."""
    run = o.run(finished(since, succeeded=succeeded, **more))
    return o.run(finished(since, succeeded=succeeded, **more), annotations=mark_of(run, run.status))


def test_a_finished_run_is_marked_before_anything_is_removed() -> None:
    run = o.run(finished())
    assert action(look(run, o.job("Complete"), collect_job=collect())) == decide.MarkFinished()
    assert action(look(run, o.job("Complete", end=100), seconds=130, mark_refused=True)) == decide.SetTTL(30 + 3600)


def test_a_finished_run_only_cleans_up() -> None:
    assert action(look(ended())) is None
    assert action(look(ended(), o.job(), collect_job=collect())) == (
        decide.DeleteJob(f"{o.JOB}-collect", "collect-uid")
    )
    assert action(look(ended(), o.job("Complete", end=100), seconds=130)) == decide.SetTTL(30 + 3600)
    assert action(look(ended(), o.job("Complete", ttlSecondsAfterFinished=5))) is None


def test_the_job_of_a_success_has_a_moment_to_end_and_no_longer() -> None:
    """A sidecar would hold the GPU for ever; its logs, and the trainer's, are kept when it ends in time."""
    assert action(look(ended(90), o.job(), seconds=100)) is None
    assert decide.lingers(look(ended(90), o.job(), seconds=100)).total_seconds() == 20
    assert action(look(ended(90), o.job(), seconds=121)) == decide.DeleteJob(o.JOB, "job-uid")


def test_the_job_of_a_failed_run_is_over_at_once() -> None:
    assert action(look(ended(90, succeeded=False), o.job(), seconds=91)) == decide.DeleteJob(o.JOB, "job-uid")


def test_a_job_that_is_being_deleted_is_not_deleted_again() -> None:
    leaving = o.job()
    leaving["metadata"]["deletionTimestamp"] = o.stamp(95)
    assert action(look(ended(succeeded=False), leaving)) is None


def test_a_finished_run_that_is_toggled_stays_as_it_is() -> None:
    run = ended()
    toggled = run.model_copy(update={"spec": o.run(suspend=True).spec})
    assert action(look(toggled, o.job("Complete", ttlSecondsAfterFinished=5))) is None
