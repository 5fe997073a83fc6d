"""Sweeps and promotion on a real API server and a real registry, and the accounts that docs/sweeps.md gives them."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from finetune.cli import sweeping
from finetune.cli.sweeps import HELD_ANNOTATION, SWEEP_LABEL
from finetune.registry.access import REGISTRY_AUDIENCE
from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support import documents
from tests.support.kubectl import Kubectl
from tests.support.people import Installed, Person, a_person, installed
from tests.support.registry import adapter_document, run_document, sha256
from tests.support.world import manifest

SYSTEM = "finetune-sweeps"
PAGE = documents.ROOT / "docs" / "sweeps.md"
GRID = ("--set", "learningRate=1e-4,2e-4", "--set", "lora.rank=8,16")


@pytest.fixture(scope="module")
def registry(api_server: ApiServerOnly, api: KubeApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("sweeps")
    with installed(api, api_server.kubeconfig, folder, namespace=SYSTEM) as made:
        yield made


@pytest.fixture
def person(api_server: ApiServerOnly, kubectl: Kubectl, registry: Installed, tmp_path: Path) -> Person:
    return a_person(registry, api_server.kubeconfig, kubectl.namespace, tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> str:
    """The file of a run to sweep over."""
    path = tmp_path / "tune.yaml"
    path.write_text(yaml.safe_dump(manifest("tune", adapter={"name": "support"})))
    return str(path)


def runs(kubectl: Kubectl) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in kubectl.items("trainingruns")}


def put_phase(kubectl: Kubectl, name: str, phase: str, loss: str = "1.5") -> None:
    result = {"finalLoss": loss, "evaluationLoss": loss, "baseEvaluationLoss": "2.0", "steps": 1, "tokens": 1}
    adapter = {"id": "1", "name": "support", "version": 1, "uri": "pvc://a/b", "sha256": "c" * 64, "bytes": 3}
    told = {"result": {**result, "adapter": adapter}} if phase == "Succeeded" else {}
    change = {"status": {"observedGeneration": 1, "phase": phase, **told}}
    kubectl.patch("trainingruns", name, change, subresource="status")


def test_a_grid_is_made_once_and_grows(person: Person, kubectl: Kubectl, base: str) -> None:
    assert person("sweep", "-f", base, *GRID, "--dry-run=server").code == 0
    assert runs(kubectl) == {}
    printed = person("sweep", "-f", base, *GRID, "--dry-run", "-o", "yaml")
    assert printed.code == 0, printed.err
    wanted = {each["metadata"]["name"]: each["spec"] for each in yaml.safe_load_all(printed.out)}
    said = person("sweep", "-f", base, *GRID)
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "sweep tune: 4 runs made, 0 were there"
    made = runs(kubectl)
    assert made.keys() == wanted.keys()
    assert {each["metadata"]["labels"][SWEEP_LABEL] for each in made.values()} == {"tune"}
    assert {(each["spec"]["training"]["learningRate"], each["spec"]["lora"]["rank"]) for each in made.values()} == {
        (rate, rank) for rate in ("1e-4", "2e-4") for rank in (8, 16)
    }
    assert {each["spec"]["experiment"] for each in made.values()} == {"tune"}
    assert not any(each["spec"]["suspend"] for each in made.values())
    uids = {each["metadata"]["uid"] for each in made.values()}
    assert person("sweep", "-f", base, *GRID).out.splitlines()[-1] == "sweep tune: 0 runs made, 4 were there"
    kubectl.command("kubectl", "apply", "--dry-run=server", "--filename=-", stdin=printed.out)  # Git's are the same
    larger = person("sweep", "-f", base, "--set", "learningRate=1e-4,2e-4", "--set", "rank=8,16,32", "-o", "name")
    assert len(larger.out.splitlines()) == 6
    assert uids < {each["metadata"]["uid"] for each in runs(kubectl).values()}


def test_the_runs_are_made_in_the_file_s_namespace(person: Person, kubectl: Kubectl, base: str, tmp_path: Path) -> None:
    document = yaml.safe_load(Path(base).read_text())
    document["metadata"]["namespace"] = kubectl.namespace
    Path(base).write_text(yaml.safe_dump(document))
    config = yaml.safe_load(Path(person.environment["KUBECONFIG"]).read_text())
    for each in config["contexts"]:
        each["context"]["namespace"] = "elsewhere"
    (tmp_path / "elsewhere.conf").write_text(yaml.safe_dump(config))
    said = Person({**person.environment, "KUBECONFIG": str(tmp_path / "elsewhere.conf")})("sweep", "-f", base, *GRID)
    assert said.code == 0, said.err
    assert len(runs(kubectl)) == 4


def test_nothing_is_made_where_one_is_refused(person: Person, kubectl: Kubectl, base: str) -> None:
    """dpo and kto are for their methods only: a rule of the API server's."""
    refused = person("sweep", "-f", base, "--set", "method=SFT,DPO,KTO", "--set", "dpo.beta=0.1,0.2")
    assert (refused.code, refused.out) == (1, "")
    assert "nothing was made" in refused.err
    for method in ("SFT", "KTO"):
        assert f"method={method}, dpo.beta=0.2" in refused.err
    assert "method=DPO" not in refused.err
    assert runs(kubectl) == {}
    names = person("sweep", "-f", base, *GRID, "--dry-run=client", "-o", "json").out
    taken = [each["metadata"]["name"] for each in json.loads(names)["items"][1:3]]
    for each in taken:
        kubectl.apply(manifest(each))
    other = person("sweep", "-f", base, *GRID)
    assert other.code == 1
    assert f"{', '.join(taken)}: there is such a TrainingRun, and it is not of the sweep tune" in other.err
    assert runs(kubectl).keys() == set(taken)


def test_what_was_made_goes_again_where_a_later_one_is_refused(person: Person, kubectl: Kubectl, base: str) -> None:
    """A quota lets each of them pass alone. Here a policy does, which is asked in dry runs, too."""
    name = f"no-rank-16-{kubectl.namespace}"
    mine = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": kubectl.namespace}}}
    operations = {"apiGroups": ["finetune.dev"], "apiVersions": ["*"], "operations": ["CREATE"]}
    rule = {**operations, "resources": ["trainingruns"]}
    validation = {"expression": "request.dryRun || object.spec.lora.rank != 16", "message": "no room for rank 16"}
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]},
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": mine},
    }
    try:
        for each in (policy, binding):
            kubectl("apply", "--filename=-", stdin=json.dumps(each))

        def refuses() -> bool:
            said = person("run", "probe", "-f", base, "--set", "lora.rank=16")
            if said.code == 0:
                person("delete", "probe")
            return "no room for rank 16" in said.err

        kubectl.wait_for("the policy holds", refuses)
        said = person("sweep", "-f", base, *GRID)
        assert said.code == 1
        assert "no room for rank 16" in said.err
        assert "what was made of the sweep is deleted again" in said.err
        assert runs(kubectl) == {}
    finally:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            kubectl("delete", kind, name, "--ignore-not-found")


def test_so_many_train_at_once_and_the_same_command_goes_on(
    person: Person, kubectl: Kubectl, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("sweep", "-f", base, *GRID, "--parallel=2")
    said = person(*command)
    assert said.code == 0, said.err
    assert "2 wait for their turn" in said.out
    order = [line.split()[0] for line in said.out.splitlines()[:4]]

    def waiting() -> list[str]:
        found = runs(kubectl)
        assert {name: each["spec"]["suspend"] for name, each in found.items()} == {
            name: HELD_ANNOTATION in each["metadata"].get("annotations", {}) for name, each in found.items()
        }
        return [name for name in order if found[name]["spec"]["suspend"]]

    assert waiting() == order[2:]
    assert person(*command).code == 0
    assert waiting() == order[2:]
    put_phase(kubectl, order[0], "Succeeded", "1.7")
    assert person(*command).code == 0
    assert waiting() == order[3:]
    stop = threading.Event()

    def operator() -> None:
        """Ends what has begun; the last one fails."""
        while not stop.wait(0.05):
            for name, each in runs(kubectl).items():
                if not each["spec"]["suspend"] and "phase" not in each.get("status", {}):
                    put_phase(kubectl, name, "Failed" if name == order[3] else "Succeeded", f"1.{order.index(name)}")

    monkeypatch.setattr(sweeping, "POLL_SECONDS", 0.05)
    thread = threading.Thread(target=operator)
    thread.start()
    try:
        watched = person(*command, "--watch")
    finally:
        stop.set()
        thread.join()
    assert watched.code == 0, watched.err
    assert waiting() == []
    ranking = watched.out.rpartition("\n\n")[2].splitlines()
    assert ranking[0].split() == ["NAME", "STATE", "LEARNINGRATE", "RANK", "LOSS", "VS", "BASE", "ADAPTER"]
    assert [line.split()[0] for line in ranking[1:]] == [order[1], order[2], order[0], order[3]]
    assert ranking[1].split()[1:] == ["Succeeded", "1e-4", "16", "1.1", "-45", "%", "support/1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "rank=8,16", "--set", "scheduling.queueName=gpus", "--parallel=2"), "the queue gpus says how many"),
        (("--set", "rank=8,16", "--dry-run", "--parallel=2"), "in Git, name a queue"),
        (("--set", "rank=8,16", "--seed=2"), "--seed is for random choices"),
        (("--set", "rank=8"), "nothing varies"),
    ],
)
def test_what_makes_no_sense_is_refused(person: Person, base: str, arguments: tuple[str, ...], said: str) -> None:
    refused = person("sweep", "-f", base, *arguments)
    assert refused.code == 2
    assert said in refused.err


def finished(
    registry: Installed, namespace: str, name: str, loss: str, *, experiment: str = "tune", adapter: str = "support"
) -> None:
    """Record a run that has made a version of an adapter, as the operator does."""
    uid, operator = str(uuid.uuid4()), {"Authorization": f"Bearer {registry.token('operator')}"}
    made = adapter_document(uid, name=adapter)
    made["result"]["evaluationLoss"] = loss
    made["dataset"]["sha256"] = sha256(experiment)
    root = f"{registry.url}/api/v1/namespaces/{namespace}/runs/{uid}"
    for path, body in (
        ("", run_document(name=name, experiment=experiment)),
        ("/adapter", made),
        ("/status", {"phase": "Succeeded", "evaluationLoss": loss, "ended": True, "version": 1}),
    ):
        answer = httpx.put(root + path, json=body, headers=operator, timeout=30)
        assert answer.status_code < 300, answer.text


def test_the_best_of_an_experiment_is_promoted_unless_it_is_worse(
    person: Person, kubectl: Kubectl, registry: Installed
) -> None:
    assert person("login", "--create").code == 0
    assert "knows no runs of experiment tune" in person("promote", "tune", "--alias=production").err
    for name, loss, experiment in (
        ("a", "1.50", "tune"),
        ("b", "1.40", "tune"),
        ("c", "1.60", "tune"),
        ("d", "1.00", "other"),
    ):
        finished(registry, kubectl.namespace, name, loss, experiment=experiment)
    would = person("promote", "tune", "--alias=production", "--dry-run")
    assert would.out == "support@production would be version 2 of b: heldOutLoss 1.4\n"
    assert person("adapters", "alias", "support", "production").code == 1
    assert person("promote", "tune", "--alias=production").out.startswith("support@production is version 2 of b")
    assert "already" in person("promote", "tune", "--alias=production").out
    assert person("adapters", "alias", "support", "production", "4").code == 0
    for guard in ("0", "39%", "0.39"):
        kept = person("promote", "tune", "--alias=production", f"--guard={guard}")
        assert kept.code == 1
        assert "stays at version 4: its heldOutLoss is 1, and that of the best other one, version 2, is 1.4" in kept.err
    moved = person("promote", "tune", "--alias=production", "--by=heldOutLoss", "--guard=40%", "-o", "json")
    assert json.loads(moved.out) == {
        "adapter": "support",
        "alias": "production",
        "version": 2,
        "run": "b",
        "measure": "heldOutLoss",
        "value": 1.4,
        "versionBefore": 4,
        "valueBefore": 1.0,
    }
    all_of_it = person("adapters", "promote", "support", "production")
    assert all_of_it.out == "support@production is version 4 of d: heldOutLoss 1, before version 2 (1.4)\n"
    assert "the versions were trained on 2 datasets" in all_of_it.err
    finished(registry, kubectl.namespace, "e", "1.0", adapter="another")
    several = person("promote", "tune", "--alias=candidate")
    assert several.code == 2
    assert "another, support: choose one with --adapter" in several.err
    assert person("promote", "tune", "--alias=candidate", "--adapter=another").code == 0


class Documented:
    """The objects of docs/sweeps.md in a namespace: what an account there may do, and how its pod calls the command."""

    def __init__(self, kubectl: Kubectl, registry: Installed, api_server: ApiServerOnly, folder: Path) -> None:
        self.kubectl, self.registry, self.folder = kubectl, registry, folder
        self.objects = [document for _, document in documents.manifests(PAGE)]
        self._config = yaml.safe_load(api_server.kubeconfig.read_text())
        for each in self.objects:
            for subject in each.get("subjects", ()):
                subject["namespace"] = kubectl.namespace
            if each["kind"] in {"ServiceAccount", "Role", "RoleBinding"}:
                kubectl.apply(each)

    def arguments(self, kind: str) -> list[str]:
        (found,) = (each for each in self.objects if each["kind"] == kind)
        job = found["spec"].get("jobTemplate", found)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        return [
            each.replace("$(NAMESPACE)", self.kubectl.namespace).replace("/sweep/", f"{self.folder}/")
            for each in container["args"]
        ]

    def token(self, account: str, *audiences: str) -> str:
        path = f"/api/v1/namespaces/{self.kubectl.namespace}/serviceaccounts/{account}/token"
        return str(self.registry.create(path, {"spec": {"audiences": list(audiences)}})["status"]["token"])

    def account(self, name: str) -> Person:
        """Somebody with nothing but the account."""
        config = {**self._config, "users": [{"name": "pod", "user": {"token": self.token(name)}}]}
        for each in config["contexts"]:
            each["context"] |= {"user": "pod", "namespace": self.kubectl.namespace}
        (self.folder / f"{name}.conf").write_text(yaml.safe_dump(config))
        return Person({"KUBECONFIG": str(self.folder / f"{name}.conf"), "HOME": str(self.folder), "NO_COLOR": "1"})


def test_the_accounts_of_the_page_may_do_what_their_pods_do_and_no_more(
    kubectl: Kubectl, registry: Installed, api_server: ApiServerOnly, tmp_path: Path
) -> None:
    page = Documented(kubectl, registry, api_server, tmp_path)
    (files,) = (each for each in page.objects if each["kind"] == "ConfigMap")
    (tmp_path / "run.yaml").write_text(files["data"]["run.yaml"])
    sweeper = page.account("sweeper")
    command = [each for each in page.arguments("Job") if each != "--watch"]
    said = sweeper(*command)
    assert said.code == 0, said.err
    assert "10 runs made" in said.out
    assert "8 wait for their turn" in said.out
    assert kubectl.items("trainingruns")[0]["spec"]["experiment"] == "support"
    assert sweeper("promote", "support", "--alias=production", f"--registry-url={registry.url}").code == 1

    (tmp_path / "token").write_text(page.token("promoter", REGISTRY_AUDIENCE))
    promoter = Person(
        {
            "KUBECONFIG": "/nowhere",
            "HOME": str(tmp_path),
            "FINETUNE_TOKEN_FILE": str(tmp_path / "token"),
            "FINETUNE_REGISTRY_URL": registry.url,
        }
    )
    finished(registry, kubectl.namespace, "a", "1.5", experiment="support")
    moved = promoter(*page.arguments("CronJob"))
    assert moved.code == 0, moved.err
    assert moved.out.startswith("support@production is version 1 of a: heldOutLoss 1.5")
    refused = promoter("adapters", "delete", "support@1", f"--namespace={kubectl.namespace}")
    assert refused.code == 1
    assert "may not delete" in refused.err
