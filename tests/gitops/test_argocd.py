"""The story of a team that keeps its runs in Git: the real Argo CD, a real cluster, real pods.

One test after the other, on one repository: what comes later needs what was synced before.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import yaml

from tests.cluster.argocd import RESYNC_SECONDS, ArgoCD
from tests.e2e import runs
from tests.support.installation import CHART, NAMESPACE, RELEASE, Installation, image_values
from tests.support.kubectl import Kubectl

Document = dict[str, Any]

TEAM = "gitops"
SYSTEM, RUNS = "finetune-operator", "runs"
SECONDS = 420.0
ENDLESS = {**runs.LONG, "maxSteps": 100_000}
"""A training that is still under way whenever a test looks."""


def text(*documents: Document) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False)


def run_file(name: str, **spec: Any) -> dict[str, str]:
    return {f"{RUNS}/{name}.yaml": text(runs.manifest(name, **spec))}


def stays(argo: ArgoCD, application: str, comparisons: int) -> list[tuple[str, str]]:
    """Sync and health at so many comparisons from now on, each of another moment."""
    seen: dict[str, tuple[str, str]] = {}

    def look() -> bool:
        status = argo.status(application)
        seen[status["reconciledAt"]] = (status["sync"]["status"], status["health"]["status"])
        return len(seen) > comparisons

    argo.wait_for(f"{comparisons} comparisons", look, seconds=comparisons * RESYNC_SECONDS * 6)
    return list(seen.values())


@pytest.fixture(scope="module")
def team(installation: Installation, argo: ArgoCD) -> Kubectl:
    """The chart, synced from Git into an empty cluster, and the namespace of a team with a base model."""
    copied = argo.repository / "charts" / RELEASE
    argo.commit({"README.md": "what runs here\n"})
    shutil.copytree(CHART, copied)
    values = {
        "image": image_values(installation.images.operator),
        "trainer": {"image": image_values(installation.images.trainer)},
        "operator": {"pretendedGPUs": True, "terminationGraceSeconds": 30},
        "registry": {"persistence": {"size": "1Gi"}},
    }
    argo.commit({})
    argo.apply_application(
        SYSTEM,
        path=f"charts/{RELEASE}",
        namespace=NAMESPACE,
        source={
            "repoURL": argo.repository.as_uri(),
            "path": f"charts/{RELEASE}",
            "targetRevision": "main",
            "helm": {"releaseName": RELEASE, "valuesObject": values},
        },
        syncPolicy={
            "automated": {"prune": True, "selfHeal": True},
            "syncOptions": ["CreateNamespace=true", "ServerSideApply=true"],
        },
    )
    argo.wait_for("the chart is healthy", lambda: argo.health(SYSTEM) == "Healthy", SECONDS)
    kubectl = installation.create_namespace(TEAM)
    installation.provide_base_model(kubectl, tiny=True)
    return kubectl


@pytest.fixture(scope="module")
def rows(installation: Installation, team: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> None:
    runs.push(installation, team, tmp_path_factory.mktemp("rows"))


@pytest.mark.usefixtures("team")
def test_the_chart_is_synced_and_stays_so(argo: ArgoCD) -> None:
    argo.wait_for("the chart is synced", lambda: argo.sync(SYSTEM) == "Synced", SECONDS)
    assert set(stays(argo, SYSTEM, 3)) == {("Synced", "Healthy")}


@pytest.mark.usefixtures("rows")
def test_a_run_goes_from_progressing_to_healthy(argo: ArgoCD) -> None:
    argo.commit(run_file("first", adapter={"name": "sums"}))
    argo.apply_application(RUNS, path=RUNS, namespace=TEAM)
    argo.wait_for("it is under way", lambda: argo.health(RUNS) == "Progressing")
    argo.wait_for("it is healthy", lambda: argo.health(RUNS) == "Healthy", SECONDS)
    said = argo.said_of(RUNS, "TrainingRun", "first")
    assert (said["status"], said["health"]) == (
        "Synced",
        {"status": "Healthy", "message": "adapter sums version 1"},
    )


def test_nothing_drifts(argo: ArgoCD, team: Kubectl) -> None:
    before = team.json("get", "trainingrun", "first")["metadata"]["generation"]
    synced = len(argo.status(RUNS)["history"])
    assert set(stays(argo, RUNS, 4)) == {("Synced", "Healthy")}
    assert team.json("get", "trainingrun", "first")["metadata"]["generation"] == before
    assert len(argo.status(RUNS)["history"]) == synced


def test_a_failed_run_is_degraded_and_says_why(argo: ArgoCD, team: Kubectl) -> None:
    dataset = runs.config_map(team, runs.lines(['{"prompt": "a", "completion": ""}']))
    argo.commit(run_file("failing", dataset=dataset))
    argo.refresh(RUNS)
    argo.wait_for("it is degraded", lambda: argo.health(RUNS) == "Degraded", SECONDS)
    message = argo.said_of(RUNS, "TrainingRun", "failing")["health"]["message"]
    assert message.startswith("DatasetInvalid: ")
    assert "What to do: " in message
    argo.commit({f"{RUNS}/failing.yaml": None})
    argo.refresh(RUNS)
    argo.wait_for("it is pruned", lambda: team.find("trainingruns", "failing") is None)
    argo.wait_for("the rest is healthy", lambda: argo.health(RUNS) == "Healthy")


def test_a_run_suspended_in_git_rests_and_goes_on(argo: ArgoCD, team: Kubectl) -> None:
    argo.commit(run_file("long", training=ENDLESS, adapter={"name": "long"}))
    argo.refresh(RUNS)
    argo.wait_for("it trains", lambda: phase(team, "long") == "Training", SECONDS)
    argo.commit(run_file("long", training=ENDLESS, adapter={"name": "long"}, suspend=True))
    argo.refresh(RUNS)
    argo.wait_for("it is suspended", lambda: argo.health(RUNS) == "Suspended", SECONDS)
    assert argo.sync(RUNS) == "Synced"
    argo.commit(run_file("long", training=ENDLESS, adapter={"name": "long"}))
    argo.refresh(RUNS)
    argo.wait_for("it goes on", lambda: phase(team, "long") == "Training", SECONDS)


def test_what_git_does_not_say_is_left_to_people(argo: ArgoCD, team: Kubectl) -> None:
    """The manifest has no `suspend`: the actions work, and self-healing does not take them back."""
    action(argo, "suspend", "long")
    argo.wait_for("it is suspended", lambda: argo.health(RUNS) == "Suspended", SECONDS)
    assert set(stays(argo, RUNS, 3)) == {("Synced", "Suspended")}
    action(argo, "resume", "long")
    argo.wait_for("it goes on", lambda: phase(team, "long") == "Training", SECONDS)


def test_what_git_says_is_taken_back(argo: ArgoCD, team: Kubectl) -> None:
    argo.commit(run_file("long", training=ENDLESS, adapter={"name": "long"}, suspend=False))
    argo.refresh(RUNS)
    argo.wait_for("Git says that it goes on", lambda: argo.sync(RUNS) == "Synced")
    team.patch("trainingruns", "long", {"spec": {"suspend": True}})
    argo.wait_for("it goes on", lambda: not team.json("get", "trainingrun", "long")["spec"]["suspend"], SECONDS)


def action(argo: ArgoCD, name: str, run: str) -> None:
    argo.cli(
        "app", "actions", "run", RUNS, name, "--kind=TrainingRun", "--group=finetune.dev", f"--resource-name={run}"
    )


def test_a_changed_run_says_what_to_do(argo: ArgoCD) -> None:
    argo.commit(run_file("first", adapter={"name": "sums"}, training={"maxSteps": 9}))
    argo.refresh(RUNS)

    def refusal() -> str:
        return str((argo.status(RUNS).get("operationState") or {}).get("message", ""))

    argo.wait_for("the change is refused", lambda: "immutable" in refusal(), SECONDS)
    assert "new name" in refusal()
    argo.commit(run_file("first", adapter={"name": "sums"}))
    argo.refresh(RUNS)
    argo.wait_for("all is as in Git", lambda: argo.sync(RUNS) == "Synced", SECONDS)


def test_pruning_needs_no_operator(installation: Installation, argo: ArgoCD, team: Kubectl) -> None:
    system = installation.system
    argo.patch(SYSTEM, {"spec": {"syncPolicy": None}})  # or Argo CD starts the operator again
    system("scale", f"deployment/{RELEASE}", "--replicas=0")
    system.wait_for("no operator", lambda: not system.items("pods", "app.kubernetes.io/component=operator"))
    argo.commit({f"{RUNS}/long.yaml": None, f"{RUNS}/first.yaml": None, f"{RUNS}/README.md": "no runs now\n"})
    argo.apply_application(
        RUNS, path=RUNS, namespace=TEAM, syncPolicy={"automated": {"prune": True, "allowEmpty": True}}
    )
    argo.refresh(RUNS)
    argo.wait_for("the runs are gone", lambda: not team.items("trainingruns"), SECONDS)
    argo.wait_for("their pods, too", lambda: not team.items("pods", "finetune.dev/run"), SECONDS)


def test_the_definition_outlives_the_application(argo: ArgoCD, team: Kubectl) -> None:
    for name in (RUNS, SYSTEM):
        argo.delete(name)
        argo.wait_for(f"{name} is gone", lambda name=name: not argo.application(name), SECONDS)  # type: ignore[misc]
    assert team.find("deployments", RELEASE) is None
    found = team("get", "customresourcedefinition", "trainingruns.finetune.dev", "--output=name")
    assert found.strip() == "customresourcedefinition.apiextensions.k8s.io/trainingruns.finetune.dev"


def phase(team: Kubectl, name: str) -> str:
    run = team.find("trainingruns", name) or {}
    return str((run.get("status") or {}).get("phase", ""))
