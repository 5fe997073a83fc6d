"""An adapter as another account uses it: pulled by an alias into a pod, loaded by plain PEFT; and without its claim."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e import runs
from tests.support.installation import NAMESPACE, RELEASE, TOKEN_AUDIENCE, Installation
from tests.support.kubectl import Kubectl

READER = "adapter-reader"
READ_ADAPTERS = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "Role",
    "metadata": {"name": READER},
    "rules": [{"apiGroups": ["finetune.dev"], "resources": ["adapters"], "verbs": ["get"]}],
}
GENERATE = """
import hashlib, json, pathlib
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

adapter = pathlib.Path("/work/adapter")
tokenizer = AutoTokenizer.from_pretrained("/models/base/tiny")
base = AutoModelForCausalLM.from_pretrained("/models/base/tiny")
question = tokenizer("What is 3 plus 3?", return_tensors="pt")
answer = lambda model: model.generate(**question, max_new_tokens=8, do_sample=False)[0].tolist()
without = answer(base)
with_adapter = answer(PeftModel.from_pretrained(base, adapter))
digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in adapter.iterdir()}
print(json.dumps({"digests": digests, "without": without, "with": with_adapter}))
"""


def pod(installation: Installation, name: str, namespace: str) -> dict[str, Any]:
    """A pod that pulls `questions@production` with a token of its own account, and generates with plain PEFT."""
    container: dict[str, Any] = {
        "env": [{"name": "HOME", "value": "/work"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "work", "mountPath": "/work"},
            {"name": "token", "mountPath": "/token", "readOnly": True},
            {"name": "base", "mountPath": "/models/base", "readOnly": True},
        ],
    }
    pulling = [
        *("adapters", "pull", "questions@production", "--to=/work/adapter", "--token-file=/token/registry"),
        *(f"--registry-url=http://{RELEASE}-registry.{NAMESPACE}.svc:8080", f"--namespace={namespace}"),
    ]
    token = {"serviceAccountToken": {"audience": TOKEN_AUDIENCE, "path": "registry", "expirationSeconds": 3600}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": READER,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [{**container, "name": "pull", "image": installation.images.operator, "args": pulling}],
            "containers": [
                {
                    **container,
                    "name": "generate",
                    "image": installation.images.trainer,
                    "command": ["python", "-c", GENERATE],
                }
            ],
            "volumes": [
                {"name": "work", "emptyDir": {}},
                {"name": "token", "projected": {"sources": [token]}},
                {"name": "base", "persistentVolumeClaim": {"claimName": "base-models", "readOnly": True}},
            ],
        },
    }


def used(installation: Installation, team: Kubectl, name: str) -> dict[str, Any]:
    """What such a pod has found."""
    team.apply(pod(installation, name, team.namespace))

    def ended() -> str | None:
        phase = str(team.json("get", "pod", name)["status"].get("phase"))
        return phase if phase in {"Succeeded", "Failed"} else None

    phase = team.wait_for(f"the end of pod {name}", ended, seconds=runs.FINISH_SECONDS)
    assert phase == "Succeeded", team.log(name, "pull") + team.log(name, "generate")
    found: dict[str, Any] = json.loads(team.log(name, "generate").splitlines()[-1])
    return found


@pytest.mark.usefixtures("registry_needed")
def test_another_account_pulls_an_alias_and_generates_also_when_the_claim_is_gone(
    installation: Installation, tiny: Kubectl
) -> None:
    dataset = runs.config_map(tiny, runs.lines(runs.rows(24)))
    training = {**runs.SHORT, "learningRate": "5e-2"}
    tiny.apply(runs.manifest(dataset=dataset, adapter={"name": "questions"}, training=training))
    done = runs.succeeded(tiny)
    tiny.wait_for(
        "the adapter's files in the store",
        lambda: tiny.json("get", "trainingrun", "run")["status"]["result"]["adapter"].get("stored"),
    )
    with installation.registry(tiny) as registry:
        registry("adapters", "alias", "questions", "production", "1")
        recorded = {file["path"]: file["sha256"] for file in registry.json("adapters", "show", "questions")["files"]}
    subject = {"kind": "ServiceAccount", "name": READER, "namespace": tiny.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": READER}
    tiny.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": READER}},
        READ_ADAPTERS,
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": READER},
            "subjects": [subject],
            "roleRef": role,
        },
    )
    first = used(installation, tiny, "first")
    assert first["digests"] == recorded
    assert first["with"] != first["without"]

    claim = done["status"]["output"]["claimName"]
    tiny("delete", "trainingrun", "run", "--timeout=60s")
    tiny.wait_for("the claim to go", lambda: tiny.find("persistentvolumeclaims", claim) is None)
    assert used(installation, tiny, "second") == first
