"""Trainers that are stopped or killed: the run goes on from what was saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.base import Cluster
from tests.e2e import runs
from tests.support.installation import Installation
from tests.support.kubectl import Kubectl, is_true


@pytest.mark.usefixtures("registry_needed")
def test_a_killed_trainer_goes_on_from_its_checkpoint(
    cluster: Cluster, installation: Installation, tiny: Kubectl, tmp_path: Path
) -> None:
    runs.push(installation, tiny, tmp_path)
    tiny.apply(runs.manifest(training=runs.LONG))
    runs.first_steps(tiny, 25)
    uid = tiny.json("get", "trainingrun", "run")["metadata"]["uid"]
    runs.kill_process(cluster, tiny, f"cli train.*{uid}")
    done = runs.succeeded(tiny)
    assert [a["exitCode"] for a in done["status"]["attemptHistory"]] == [137, 0]
    assert done["status"]["resumedFromStep"] >= 20
    with installation.registry(tiny) as registry:
        assert len(registry.json("adapters", "list", "run")) == 1


def test_suspending_saves_and_resuming_goes_on_with_what_is_left_of_the_deadline(tiny: Kubectl) -> None:
    long = {"batchSize": 4, "maxLength": 128, "maxSteps": 800, "checkpointSteps": 1000}
    dataset = runs.config_map(tiny, runs.lines(runs.rows(64)))
    tiny.apply(runs.manifest(training=long, dataset=dataset, activeDeadlineSeconds=600))
    runs.first_steps(tiny)
    tiny("patch", "trainingrun", "run", "--type=merge", '--patch={"spec":{"suspend":true}}')
    tiny.wait_for("no pod", lambda: not runs.pods(tiny))
    assert is_true(runs.in_phase(tiny, "Suspended"), "Suspended")
    tiny("patch", "trainingrun", "run", "--type=merge", '--patch={"spec":{"suspend":false}}')
    done = runs.succeeded(tiny)
    assert done["status"]["resumedFromStep"] > 0
    assert done["status"]["attempts"] == 2
    assert done["status"]["attemptHistory"][0]["reason"] == "Suspended"
    [job] = tiny.items("jobs", "finetune.dev/run=run")
    assert job["spec"]["activeDeadlineSeconds"] == 600 - done["status"]["active"]["seconds"] < 600
