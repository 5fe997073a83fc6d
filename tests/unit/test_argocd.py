"""Argo CD's scripts for TrainingRuns, on objects as the API server gave them, with and without Lua's libraries."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from deploy.argocd.render import CONFIG_MAP, config_map
from tests.support import argocd
from tests.support.argocd import KIND, TESTDATA, stored_run

HEALTH_TESTS = yaml.safe_load((KIND / "health_test.yaml").read_text())["tests"]
ACTION_TESTS = yaml.safe_load((KIND / "actions" / "action_test.yaml").read_text())["discoveryTests"]
STEM = len("testdata/"), -len(".yaml")


def name_of(row: dict[str, Any]) -> str:
    return str(row["inputPath"])[STEM[0] : STEM[1]]


@pytest.mark.parametrize("libraries", [False, True], ids=["from the ConfigMap", "shipped with Argo CD"])
@pytest.mark.parametrize("row", HEALTH_TESTS, ids=name_of)
def test_health(row: dict[str, Any], libraries: bool) -> None:
    assert argocd.health(stored_run(name_of(row)), libraries=libraries) == row["healthStatus"]


def test_every_stored_object_has_its_row() -> None:
    assert [f"testdata/{path.name}" for path in sorted(TESTDATA.iterdir())] == [
        row["inputPath"] for row in HEALTH_TESTS
    ]


@pytest.mark.parametrize("row", ACTION_TESTS, ids=name_of)
def test_actions_that_are_offered(row: dict[str, Any]) -> None:
    offered = argocd.run_script("actions/discovery.lua", stored_run(name_of(row)))
    listed = {each["name"]: {**each, "disabled": each.get("disabled", False)} for each in row["result"]}
    assert {name: {**offered[name], "name": name} for name in offered} == listed


def test_a_run_of_an_older_generation_goes_on() -> None:
    run = stored_run("training")
    run["metadata"]["generation"] += 1
    said = argocd.health(run)
    assert said == {"status": "Progressing", "message": "The operator has not seen the newest spec yet."}


@pytest.mark.parametrize(("name", "health"), [("succeeded", "Healthy"), ("failed-in-training", "Degraded")])
def test_a_run_that_ended_stays_so_whatever_is_patched(name: str, health: str) -> None:
    """A parent Application must not fall back to Progressing because somebody suspends what is done."""
    run = stored_run(name)
    run["metadata"]["generation"] += 1
    run["spec"]["suspend"] = True
    assert argocd.health(run)["status"] == health
    assert "suspend" not in argocd.enabled_actions(run)


def test_progress_is_told() -> None:
    run = stored_run("training")
    run["status"]["progress"] = {"step": 120, "totalSteps": 400}
    assert argocd.health(run)["message"] == "Training, step 120 of 400"


@pytest.mark.parametrize("status", [{}, {"observedGeneration": -1}, {"observedGeneration": 1}, {"conditions": []}])
def test_a_status_without_most_of_its_fields(status: dict[str, Any]) -> None:
    run = {**stored_run("new"), "status": status}
    assert argocd.health(run)["status"] == "Progressing"
    assert argocd.enabled_actions(run) == {"suspend"}


@pytest.mark.parametrize(("action", "name", "suspend"), [("suspend", "training", True), ("resume", "suspended", False)])
def test_suspend_and_resume_change_nothing_else(action: str, name: str, suspend: bool) -> None:
    run = stored_run(name)
    changed = argocd.run_script(f"actions/{action}/action.lua", run)
    expected = copy.deepcopy(run)
    expected["spec"]["suspend"] = suspend
    assert without_empty(changed) == without_empty(expected)


def without_empty(value: Any) -> Any:
    """Lua has one empty table for {} and []; Argo CD restores what the object had."""
    if isinstance(value, dict):
        return {key: without_empty(each) for key, each in value.items() if each not in ({}, [])}
    if isinstance(value, list):
        return [without_empty(each) for each in value]
    return value


class TestRetry:
    def created(self, name: str, **spec: Any) -> dict[str, Any]:
        run = stored_run(name)
        run["spec"] |= spec
        (impacted,) = argocd.run_script("actions/retry/action.lua", run)
        assert impacted["operation"] == "create"
        resource: dict[str, Any] = impacted["resource"]
        return resource

    def test_it_goes_on_from_the_checkpoint(self) -> None:
        new = self.created("failed-in-training")
        assert new["spec"]["resumeFrom"] == {"run": "failed-in-training"}
        assert new["spec"]["output"] == {"claimName": stored_run("failed-in-training")["status"]["output"]["claimName"]}

    def test_what_never_trained_starts_anew(self) -> None:
        new = self.created("failed-before-training")
        assert "resumeFrom" not in new["spec"]
        assert "output" not in new["spec"]

    def test_it_joins_the_same_series_of_adapters(self) -> None:
        assert self.created("failed-in-training")["spec"]["experiment"] == "failed-in-training"
        assert self.created("failed-in-training", experiment="tickets")["spec"]["experiment"] == "tickets"

    def test_the_rest_of_the_spec_is_the_same(self) -> None:
        old, new = stored_run("failed-in-training")["spec"], self.created("failed-in-training", suspend=True)["spec"]
        changed = ("suspend", "resumeFrom", "output", "experiment")
        assert {key: value for key, value in new.items() if key not in changed} == without_empty(
            {key: value for key, value in old.items() if key not in changed}
        )
        assert "suspend" not in new

    def test_it_belongs_to_nobody(self) -> None:
        """What Argo CD tracks and Git does not hold is pruned; what the failed run owns goes with it."""
        metadata = self.created("failed-in-training")["metadata"]
        assert set(metadata) == {"name", "namespace", "annotations"}
        assert metadata["annotations"] == {"finetune.dev/retry-of": "failed-in-training"}
        assert metadata["name"].startswith("failed-in-training-")


def test_the_config_map_holds_these_scripts() -> None:
    assert CONFIG_MAP.read_text() == config_map(), "run make argocd"
    data = yaml.safe_load(config_map())["data"]
    assert data["resource.customizations.health.finetune.dev_TrainingRun"] == (KIND / "health.lua").read_text()
    actions = yaml.safe_load(data["resource.customizations.actions.finetune.dev_TrainingRun"])
    assert actions["discovery.lua"] == (KIND / "actions" / "discovery.lua").read_text()
    assert {each["name"]: each["action.lua"] for each in actions["definitions"]} == {
        name: (KIND / "actions" / name / "action.lua").read_text() for name in ("suspend", "resume", "retry")
    }
