"""Files that the trainer could not send are sent from the claim by a Job, once the run has succeeded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.api.trainingrun import TrainingRun
from finetune.controller.core import decide
from finetune.controller.core.case import Case
from finetune.controller.core.mark import is_settled, mark_of, restored_status
from finetune.controller.core.status import with_stored
from finetune.controller.core.views import AdapterView
from tests.support import objects as o
from tests.support.cases import action, look, status

SUCCEEDED = {"type": "Finished", "status": "True", "reason": "AdapterRegistered", "lastTransitionTime": o.stamp(90)}
ADAPTER: dict[str, Any] = {"id": "1", "name": "s", "version": 1, "uri": "pvc://a/b", "sha256": "a" * 64, "bytes": 10}
CLEANED = o.job("Complete", ttlSecondsAfterFinished=5)


def ended(stored: bool | None) -> TrainingRun:
    """A run that has succeeded and bears its mark; the status says this of its adapter's files."""
    adapter = ADAPTER | ({} if stored is None else {"stored": stored})
    said: dict[str, Any] = {
        "phase": "Succeeded",
        "observedGeneration": 1,
        "jobName": o.JOB,
        "conditions": [{**SUCCEEDED, "message": "", "observedGeneration": 1}],
        "result": {"finalLoss": "1.8", "steps": 5, "tokens": 7, "adapter": adapter},
    }
    return o.run(said, annotations=mark_of(o.run(said), o.run(said).status))


def finished(stored: bool | None) -> Case:
    """The look at a run that has just been registered, with this answer."""
    pod = o.pod("p1", "Succeeded", export=o.ended(0), trainer=o.ended(0, o.RESULT))
    return look(None, o.job("Complete"), pod, adapter=AdapterView(**ADAPTER, stored=stored))


@pytest.mark.parametrize("stored", [True, False, None])
def test_the_status_says_what_the_registry_says_of_the_files(stored: bool | None) -> None:
    result = status(finished(stored)).result
    assert result is not None
    assert result.adapter.stored is stored


def test_a_job_sends_what_is_missing_and_the_registry_is_asked_once() -> None:
    run = ended(stored=False)
    assert action(look(run, o.job("Complete", end=100), seconds=130)) == decide.SetTTL(30 + 3600)  # that comes first
    for job in (CLEANED, None):
        assert action(look(run, job)) == decide.CreateSendJob()
        assert action(look(run, job, send_job=o.job())) is None
    for condition in ("Complete", "Failed"):
        assert action(look(run, CLEANED, send_job=o.job(condition))) == decide.AskStored()
        assert action(look(run, CLEANED, send_job=o.job(condition), stored=False)) is None
    for known in (True, None):
        assert action(look(ended(known), CLEANED)) is None


@pytest.mark.parametrize(("said", "kept"), [(True, {"stored": True}), (False, {}), (None, {"stored": False})])
def test_what_the_registry_says_then_is_all_that_changes(said: bool | None, kept: dict[str, bool]) -> None:
    before = ended(stored=False).status.to_dict()
    expected = {**before, "result": {**before["result"], "adapter": ADAPTER | kept}}
    assert with_stored(before, said) == expected


@pytest.mark.parametrize(("stored", "settled"), [(False, False), (True, True), (None, True)])
def test_a_run_is_settled_once_nothing_is_being_sent(stored: bool | None, settled: bool) -> None:
    run = ended(stored)
    metadata = {"uid": o.UID, "generation": 1, "annotations": dict(run.metadata.annotations)}
    assert is_settled({"metadata": metadata, "status": run.status.to_dict()}) is settled


def test_a_restored_run_has_nothing_to_send() -> None:
    """Its claim is another one, and what was being sent when the mark was made is in the registry or lost."""
    marked = ended(stored=False).metadata.annotations
    assert '"stored":false' in json.loads(json.dumps(marked))["finetune.dev/finished"]
    restored = restored_status(o.run(annotations=dict(marked)), o.at(100))
    assert restored is not None
    assert restored.result is not None
    assert restored.result.adapter.stored is None
