"""People's commands on a real API server and a real registry, which they reach through the server's proxy."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.kubectl import Kubectl
from tests.support.people import Installed, LogServer, Person, a_person, installed, record, relayed
from tests.support.registry import pairs
from tests.support.world import manifest, stamp

SYSTEM = "finetune-commands"


@pytest.fixture(scope="module")
def registry(api_server: ApiServerOnly, api: KubeApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("commands")
    with installed(api, api_server.kubeconfig, folder, namespace=SYSTEM) as made:
        yield made


@pytest.fixture
def person(api_server: ApiServerOnly, kubectl: Kubectl, registry: Installed, tmp_path: Path) -> Person:
    return a_person(registry, api_server.kubeconfig, kubectl.namespace, tmp_path)


@pytest.fixture
def known(person: Person) -> Person:
    """The same person, logged in."""
    said = person("login", "--create")
    assert said.code == 0, said.err
    assert f"the registry {SYSTEM}/finetune-operator-registry answers" in said.out
    return person


def put_status(kubectl: Kubectl, name: str, **status: Any) -> None:
    kubectl.patch("trainingruns", name, {"status": {"observedGeneration": 1, **status}}, subresource="status")


FAILED = {
    "phase": "Failed",
    "attempts": 1,
    "progress": {"step": 40, "totalSteps": 100, "percent": 40, "checkpointStep": 30},
    "failure": {
        "reason": "DatasetInvalid",
        "message": "train.jsonl row 7: completion is empty",
        "hint": "Correct the row.",
        "row": 7,
    },
}
RESULT = {
    "finalLoss": "1.62",
    "evaluationLoss": "1.9011",
    "baseEvaluationLoss": "2.77",
    "steps": 55,
    "tokens": 9,
    "adapter": {"id": "1", "name": "support", "version": 3, "uri": "pvc://a/b", "sha256": "c" * 64, "bytes": 3},
}


def test_a_registry_that_does_not_know_the_person_says_how_to_log_in(person: Person) -> None:
    said = person("datasets", "list")
    assert said.code == 1
    assert "finetune login" in said.err
    said = person("login", "somebody")
    assert said.code == 2
    assert "there is no service account somebody" in said.err
    assert "--create" in said.err


def test_the_registry_is_reached_by_kubectls_port_forward_too(
    known: Person, registry: Installed, tmp_path: Path
) -> None:
    """kubectl is one that says where the registry is, for there is no kubelet that could forward."""
    relay = tmp_path / "bin" / "kubectl"
    relay.parent.mkdir()
    known.environment["PATH"] = f"{relay.parent}:/usr/bin:/bin"
    relay.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho no such service >&2\nexit 1\n')
    relay.chmod(0o755)
    done = known("datasets", "list", "--port-forward")
    assert done.code == 2
    assert "no such service" in done.err
    assert "port-forward service/finetune-operator-registry" in (tmp_path / "asked").read_text()
    with relayed(registry.url) as port:
        relay.write_text(f"#!/bin/sh\necho 'Forwarding from 127.0.0.1:{port} -> 8080'\nexec sleep 600\n")
        assert known("datasets", "list", "--port-forward").code == 0


def test_datasets_go_through_the_service_proxy(known: Person, kubectl: Kubectl, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(pairs(3))
    assert known("datasets", "push", "tickets", str(rows)).out.startswith("stored as tickets version 1 (3 rows")
    assert known("datasets", "push", "tickets", str(rows)).out.startswith("unchanged: it already is tickets version 1")
    rows.write_bytes(pairs(2) + pairs(2, tag="new ") + pairs(1))
    assert known("datasets", "push", "tickets", str(rows), "-o", "name").out == "tickets@2\n"
    said = known("datasets", "diff", "tickets@1")
    assert said.out.splitlines()[0] == "tickets@1 -> tickets@2: +3 -1 rows, 2 the same"
    assert said.out.splitlines()[1:] == [
        '- {"prompt": "question 2", "completion": "answer 2"}',
        '+ {"prompt": "question 0", "completion": "answer 0"}',
        '+ {"prompt": "question new 0", "completion": "answer 0"}',
        '+ {"prompt": "question new 1", "completion": "answer 1"}',
    ]
    (newest,) = json.loads(known("datasets", "list", "-o", "json").out)
    assert (newest["name"], newest["version"], newest["rows"]) == ("tickets", 2, 5)
    said = known("datasets", "show", "gone", "-n", kubectl.namespace)
    assert said.code == 1
    assert "hint:" in said.err
    assert known("datasets", "push", "tickets", str(tmp_path / "none.jsonl")).code == 2


def test_a_token_that_has_expired_is_made_anew(known: Person, tmp_path: Path) -> None:
    path = tmp_path / ".config" / "finetune" / "logins.json"
    assert path.stat().st_mode & 0o077 == 0
    ((server, entry),) = json.loads(path.read_text()).items()
    ((namespace, login),) = entry["namespaces"].items()
    old = {**login, "token": "old", "expires": "2020-01-01T00:00:00Z"}
    path.write_text(json.dumps({server: {**entry, "namespaces": {namespace: old}}}))
    assert known("datasets", "list").code == 0
    assert json.loads(path.read_text())[server]["namespaces"][namespace]["token"] != "old"
    assert known("logout").out.startswith("logged out")
    assert known("datasets", "list").code == 1


def test_a_run_is_made_from_flags_a_file_and_another_run(person: Person, kubectl: Kubectl, tmp_path: Path) -> None:
    flags = (
        "--model=claim://base-models/m",
        "--dataset=tickets@2",
        "--adapter=support",
        "--gpus=0",
        "-s",
        "maxSteps=10",
    )
    said = person("run", *flags, "--dry-run=client")
    assert said.code == 0, said.err
    printed = yaml.safe_load(said.out)
    assert printed["metadata"] == {"generateName": "support-"}
    assert printed["spec"] == {
        "method": "SFT",
        "baseModel": {"volume": {"claimName": "base-models", "path": "m"}},
        "dataset": {"registry": {"name": "tickets", "version": 2}},
        "adapter": {"name": "support"},
        "resources": {"gpus": 0},
        "training": {"maxSteps": 10},
    }
    assert kubectl.items("trainingruns") == []
    file = tmp_path / "run.yaml"
    file.write_text(said.out)
    assert person("run", "one", "-f", str(file), "--dry-run=server").out == "one would be made (server dry run)\n"
    assert person(
        "run",
        "one",
        "-f",
        "-",
        stdin=said.out,
    ).out.startswith("made one;")
    again = person("run", "one", *flags)
    assert again.code == 1
    assert "another name" in again.err
    name = person("run", "--from", "one", "--set", "learningRate=1e-4", "--set", "training.maxSteps=", "-o", "name").out
    made = kubectl.find("trainingruns", name.strip().removeprefix("trainingrun/"))
    assert made is not None
    assert made["metadata"]["name"].startswith("support-")
    spec = made["spec"]
    assert (spec["adapter"], spec["experiment"], spec["training"]["learningRate"]) == (
        {"name": "support"},
        "one",
        "1e-4",
    )
    assert "maxSteps" not in spec["training"]
    refused = person("run", "two", *flags, "--set", "training.epochs=2")
    assert refused.code == 1
    assert "epochs" in refused.err  # the API server's sentence
    said = person("compare", "one", made["metadata"]["name"])
    assert [line.split()[0] for line in said.out.split("\n\n")[0].splitlines()[1:]] == [
        "training.maxSteps", "experiment", "training.learningRate",
    ]  # fmt: skip


def test_a_failed_run_says_what_to_do_and_is_made_again(person: Person, kubectl: Kubectl) -> None:
    kubectl.apply(manifest("bad", adapter={"name": "support"}))
    put_status(kubectl, "bad", **FAILED)
    watched = person("watch", "bad")
    assert watched.code == 1
    shown = person("status", "bad").out
    for text in (watched.out, shown):
        assert "Failed: DatasetInvalid" in text
        assert "train.jsonl row 7: completion is empty" in text
        assert "row 7 of the dataset" in text
        assert "do: Correct the row." in text
        assert "again: finetune retry bad  (goes on from step 30)" in text
    said = person("retry", "bad", "better", "--set", "resources.memory=16Gi")
    assert said.code == 0, said.err
    made = kubectl.find("trainingruns", "better")
    assert made is not None
    assert made["spec"]["resumeFrom"] == {"run": "bad"}
    assert made["spec"]["adapter"] == {"name": "support"}
    assert made["spec"]["resources"]["memory"] == "16Gi"
    assert person("suspend", "better").code == 0
    assert (kubectl.find("trainingruns", "better") or {})["spec"]["suspend"] is True
    assert person("resume", "better").out == "better goes on\n"
    refused = person("resume", "bad")
    assert refused.code == 2
    assert "finetune retry bad" in refused.err
    for words in (("run", "--from"), ("retry",), ("status",)):
        assert person("__complete", *words, "be").out == "better\n"
    kubectl.apply(manifest("third"))
    assert person("delete", "").code == 2  # an empty variable is no name of every run
    assert kubectl.find("trainingruns", "better") is not None
    several = person("delete", "trainingrun/better", "none", "third", "-o", "name")
    assert (several.code, several.out) == (1, "trainingrun/better\ntrainingrun/third\n")
    assert '"none" not found' in several.err
    assert kubectl.find("trainingruns", "better") is None
    gone = person("status", "better")
    assert gone.code == 1
    assert "finetune list" in gone.err


def test_list_joins_cluster_and_registry_and_does_without_either(
    known: Person, kubectl: Kubectl, registry: Installed
) -> None:
    kubectl.apply(manifest("here"))
    put_status(kubectl, "here", phase="Succeeded", result=RESULT, attempts=1)
    record(registry, kubectl.namespace, "gone")
    table = known("list", "-a").out.splitlines()
    assert " ".join(table[0].split()) == "NAME STATE REASON MODEL DATASET LOSS VS BASE STEP LEFT ADAPTER AGE"
    rows = {line.split()[0]: line for line in table[1:]}
    assert set(rows) == {"here", "gone"}
    assert "1.901  -31 %" in rows["here"]
    assert "support/3" in rows["here"]
    assert "1.901  -31 %" in rows["gone"]
    assert known("list", "-o", "name").out == "trainingrun/here\n"
    assert known("list", "-a", "-o", "name", "--state=succeeded", "--text=GONE").out == "trainingrun/gone\n"
    assert known("list", "-a", "-o", "name", "--state=failed").out == ""
    card = known("status", "gone").out
    assert "its object is gone" in card
    assert "1.901 on held-out rows, 2.77 of the base (-31 %), 1.834 in training" in card
    away = known("list", "--registry-url=http://127.0.0.1:9")
    assert away.code == 0
    assert "only the cluster's runs are shown" in away.err
    assert "here" in away.out
    elsewhere = Person({**known.environment, "KUBECONFIG": "/nowhere"})
    nowhere = elsewhere("list")
    assert nowhere.code == 2
    assert "no kubeconfig at /nowhere" in nowhere.err
    done = known("watch", "here")
    assert done.code == 0
    assert "finetune adapters pull support@3" in done.out


def test_adapters_are_listed_named_and_shown(known: Person, kubectl: Kubectl, registry: Installed) -> None:
    record(registry, kubectl.namespace, "first")
    record(registry, kubectl.namespace, "second")
    assert known("adapters", "alias", "support", "production", "1").out == "support@production is version 1\n"
    moved = known("adapters", "promote", "support", "production")
    assert moved.out == "support@production is version 2 of second: heldOutLoss 1.901, before version 1 (1.901)\n"
    assert "already" in known("adapters", "promote", "support", "production").out
    assert known("adapters", "alias", "support", "production", "1", "--expected=2").code == 0
    lines = known("adapters", "list", "support").out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["support", "2"], ["support", "1"]]
    assert "-31 %" in lines[1]
    assert lines[2].endswith("production")
    shown = known("adapters", "show", "support@production").out
    assert "Against it:      -31 %" in shown
    assert json.loads(known("adapters", "show", "support", "-o", "json").out)["version"] == 2
    refused = known("adapters", "pull", "support@2", "--to", "/nonexistent/x/y")
    assert refused.code in {1, 2}
    assert refused.err


def test_logs_are_followed_from_attempt_to_attempt(
    person: Person, kubectl: Kubectl, api_server: ApiServerOnly, api: KubeApi, registry: Installed
) -> None:
    kubectl.apply(manifest("logged"))
    run = kubectl.find("trainingruns", "logged")
    assert run is not None
    nothing = person("logs", "logged")
    assert nothing.code == 2
    assert "no pod yet" in nothing.err
    with LogServer().serving(api_server.kubeconfig.with_suffix(".pem")) as kubelet:
        node = f"node-{uuid.uuid4().hex[:6]}"
        registry.create("/api/v1/nodes", {"metadata": {"name": node}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port}},
        }
        patch = "application/merge-patch+json"
        assert api.request("PATCH", f"/api/v1/nodes/{node}/status", {"status": status}, content_type=patch)[0] == 200
        for number, state in ((1, "Failed"), (2, "Succeeded")):
            _pod(kubectl, f"logged-{number}", run["metadata"]["uid"], node, state)
            kubelet.logs[f"logged-{number}/export"] = "rows\n"
            kubelet.logs[f"logged-{number}/trainer"] = f"step {number}\x1b[2J\nend"
        last = person("logs", "logged")
        assert last.out == "rows\nstep 2\ufffd[2J\nend\n"
        assert person("logs", "logged", "--attempt=1", "-c", "trainer").out.startswith("step 1")
        assert "it has export, trainer" in person("logs", "logged", "-c", "none").err

        def end() -> None:  # while nobody reads
            kubelet.logs["logged-2/trainer"] += "\nand more"
            _set_states(kubectl, "logged-2", "Succeeded", "terminated")
            put_status(kubectl, "logged", phase="Succeeded", result=RESULT)

        _set_states(kubectl, "logged-2", "Running", "running")
        kubelet.cuts["logged-2/trainer"] = end
        followed = person("logs", "-f", "logged")
    assert followed.code == 0
    assert [line[:6] for line in followed.out.splitlines()] == [
        "rows", "step 1", "end", "rows", "step 2", "end", "and mo",
    ]  # fmt: skip
    assert "==> logged-1 export" in followed.err


def _pod(kubectl: Kubectl, name: str, uid: str, node: str, phase: str) -> None:
    containers = [{"name": "trainer", "image": "i"}]
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"finetune.dev/run-uid": uid}},
            "spec": {"nodeName": node, "initContainers": [{"name": "export", "image": "i"}], "containers": containers},
        }
    )
    _set_states(kubectl, name, phase, "terminated")


def _set_states(kubectl: Kubectl, name: str, phase: str, trainer: str) -> None:
    """Say that the pod's export has ended, and what its trainer does."""
    states = {
        "terminated": {"terminated": {"exitCode": 0, "startedAt": stamp(), "finishedAt": stamp()}},
        "running": {"running": {"startedAt": stamp()}},
    }
    common = {"image": "i", "imageID": "", "ready": False, "restartCount": 0}
    status = {
        "phase": phase,
        "initContainerStatuses": [{"name": "export", **common, "state": states["terminated"]}],
        "containerStatuses": [{"name": "trainer", **common, "state": states[trainer]}],
    }
    kubectl.patch("pods", name, {"status": status}, subresource="status")


def test_doctor_names_what_is_missing(person: Person, known: Person, kubectl: Kubectl) -> None:
    kubectl.apply(manifest("needy"))
    said = known("doctor", "needy")
    assert said.code == 1
    assert "+ cluster: " in said.out
    assert "+ TrainingRuns: served, with all fields" in said.out
    assert "+ rights: you may make, see, change and delete runs" in said.out
    assert f"+ registry: {SYSTEM}/finetune-operator-registry answers and knows you" in said.out
    assert f"x needy: claim base-models does not exist in {kubectl.namespace}" in said.out
    found = json.loads(known("doctor", "-o", "json").out)
    assert {each["level"] for each in found} <= {"ok", "warn"}
    assert {each["what"] for each in found} >= {"cluster", "TrainingRuns", "rights", "GPUs", "storage", "registry"}
    person("logout")
    said = person("doctor")
    assert said.code == 1
    assert "do: finetune login" in said.out
    said = Person({**person.environment, "KUBECONFIG": "/nowhere"})("doctor")
    assert said.code == 1
    assert "no kubeconfig at /nowhere" in said.out
