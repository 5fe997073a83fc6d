"""Every reason with which a run can fail, on the real API server and Job controller: what people then read.

One world, one run a row, all at once. Each row says what happens to the run, and what message and hint must name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.api import reasons
from tests.support.admission import AdmissionServer, Deny, Inject
from tests.support.kubectl import Kubectl, is_true
from tests.support.kubelet import Attempt, Document, Play, Trouble
from tests.support.managed import Managed, a_managed_world
from tests.support.world import eventually, manifest, stamp

ELSEWHERE: Mapping[str, str] = {}
"""Reasons whose proof needs more than this, with the test that has it."""

HUB = {"hub": {"repository": "org/m", "tokenSecretRef": {"name": "hub", "key": "token"}}}
ROWS_OF_A_CONFIG_MAP = {"configMap": {"name": "rows", "key": "rows.jsonl"}}
UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
KUBELET_CONFIG = "CreateContainerConfigError"


@dataclass(frozen=True)
class Row:
    """One run: what it asks for, what happens to its pods, and what is then said.

    Parameters
    ----------
    message, hint: words that must be in it; `{node}` and `{claim}` are the node's and the output claim's names.
    """

    reason: str
    message: tuple[str, ...]
    hint: tuple[str, ...]
    attempts: tuple[Attempt, ...] = ()
    collect: tuple[Attempt, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    row: int | None = None


def said(reason: str, message: str, **more: Any) -> Document:
    """Last words of export or trainer."""
    return {"failure": {"reason": reason, "message": message, **more}}


def trainer(code: int, words: Document | str = "", *, reason: str = "") -> Attempt:
    """A trainer that ends so."""
    return Attempt(trainer=Play(code=code, words=words, reason=reason))


ONCE = {"retries": 0}
TABLE: dict[str, Row] = {
    "invalid-spec": Row(
        reasons.INVALID_SPEC,
        ("spec.training.targetModules", "q_prog"),
        ("names the field", "under a new name"),
        (trainer(2, said("InvalidSpec", "spec.training.targetModules: no module of the model fits q_prog")),),
        exit_code=2,
    ),
    "dataset-registry": Row(
        reasons.DATASET_UNAVAILABLE,
        ("nothing-here",),
        ("spec.dataset",),
        spec={"dataset": {"registry": {"name": "nothing-here"}}},
    ),
    "dataset-config-map": Row(
        reasons.DATASET_UNAVAILABLE,
        ('ConfigMap "rows" not found in namespace',),
        ("spec.dataset",),
        (Attempt(mounts='MountVolume.SetUp failed for volume "source" : configmap "rows" not found'),),
        spec={"dataset": ROWS_OF_A_CONFIG_MAP},
    ),
    "dataset-key": Row(
        reasons.DATASET_UNAVAILABLE,
        ('key "rows.jsonl"', 'ConfigMap "rows"'),
        ("spec.dataset",),
        (
            Attempt(
                mounts='MountVolume.SetUp failed for volume "source" : configmap references non-existent config key: '
                "rows.jsonl"
            ),
        ),
        spec={"dataset": ROWS_OF_A_CONFIG_MAP},
    ),
    "dataset-claim": Row(
        reasons.DATASET_UNAVAILABLE,
        ('PersistentVolumeClaim "team-data" not found',),
        ("spec.dataset",),
        (Attempt(unschedulable='persistentvolumeclaim "team-data" not found'),),
        spec={"dataset": {"volume": {"claimName": "team-data", "path": "rows.jsonl"}}},
    ),
    "dataset-invalid": Row(
        reasons.DATASET_INVALID,
        ("row 17", '"prompt"'),
        ("spec.dataset.columns", "invalidRows"),
        (Attempt(export=Play(code=3, words=said("DatasetInvalid", 'row 17: the column "prompt" is missing', row=17))),),
        exit_code=3,
        row=17,
    ),
    "model-claim": Row(
        reasons.BASE_MODEL_UNAVAILABLE,
        ('PersistentVolumeClaim "base-models" not found',),
        ("spec.baseModel",),
        (Attempt(unschedulable='persistentvolumeclaim "base-models" not found'),),
    ),
    "model-files": Row(
        reasons.BASE_MODEL_UNAVAILABLE,
        ("/models/base/m", "config.json"),
        ("spec.baseModel", "config.json"),
        (trainer(10, said("BaseModelUnavailable", "/models/base/m holds no config.json")),),
        exit_code=10,
    ),
    "parent": Row(
        reasons.PARENT_ADAPTER_UNAVAILABLE,
        ("adapter 'nobody'",),
        ("spec.parentAdapter", "finetune adapters list"),
        spec={"method": "DPO", "parentAdapter": {"name": "nobody"}},
    ),
    "secret": Row(
        reasons.ACCESS_DENIED,
        ('Secret "hub" not found in namespace',),
        ("spec.baseModel.hub.tokenSecretRef",),
        (Attempt(trouble=Trouble("trainer", KUBELET_CONFIG, 'secret "hub" not found')),),
        spec={"baseModel": HUB},
    ),
    "secret-key": Row(
        reasons.ACCESS_DENIED,
        ('key "token"', 'Secret "hub"'),
        ("spec.baseModel.hub.tokenSecretRef",),
        (Attempt(trouble=Trouble("trainer", KUBELET_CONFIG, "couldn't find key token in Secret ml/hub")),),
        spec={"baseModel": HUB},
    ),
    "denied": Row(
        reasons.ACCESS_DENIED,
        ("org/m", "gated"),
        ("tokenSecretRef", "gated"),
        (trainer(5, said("AccessDenied", "huggingface.co refuses org/m: the repository is gated")),),
        spec={"baseModel": {"hub": {"repository": "org/m"}}},
        exit_code=5,
    ),
    "gpu-broken": Row(
        reasons.GPU_UNAVAILABLE,
        ("driver", "on node {node}"),
        ("nvidia-smi", "spec.scheduling.nodeSelector"),
        (trainer(9, said("GPUUnavailable", "CUDA 13.0 needs a newer driver than 550.54")),),
        spec=ONCE,
        exit_code=9,
    ),
    "gpu-memory": Row(
        reasons.GPU_OUT_OF_MEMORY,
        ("row 3", "on node {node}"),
        ("spec.training.maxLength",),
        (trainer(8, said("GPUOutOfMemory", "row 3 (8192 tokens) does not fit 24 GiB")),),
        exit_code=8,
    ),
    "memory": Row(
        reasons.OUT_OF_MEMORY,
        ("container trainer", "spec.resources.memory: 3Gi"),
        ("spec.resources.memory", "spec.resumeFrom.run"),
        (trainer(137, reason="OOMKilled"),),
        spec={**ONCE, "resources": {"memory": "3Gi"}},
        exit_code=137,
    ),
    "storage": Row(
        reasons.STORAGE_FULL,
        ("/output", "PersistentVolumeClaim {claim}"),
        ("kubectl edit pvc", "spec.output.claim.size"),
        (trainer(7, said("StorageFull", "/output is full: 12 MiB are free, 40 MiB are needed")),),
        spec=ONCE,
        exit_code=7,
    ),
    "output-claim": Row(
        reasons.UNSCHEDULABLE,
        ('PersistentVolumeClaim "mine" not found',),
        ("spec.output",),
        (Attempt(unschedulable='persistentvolumeclaim "mine" not found'),),
        spec={"output": {"claimName": "mine"}},
    ),
    "storage-class": Row(
        reasons.UNSCHEDULABLE,
        ('storageclass.storage.k8s.io "fast" not found', '"{claim}"'),
        ("StorageClass", "spec.output"),
        (Attempt(unschedulable=UNBOUND),),
        spec={"output": {"claim": {"storageClassName": "fast"}}},
    ),
    "image": Row(
        reasons.IMAGE_PULL_FAILED,
        ('"trainer:1"', "not found"),
        ("trainer.image",),
        (Attempt(trouble=Trouble("export", "ErrImagePull", 'failed to pull "trainer:1": not found')),),
    ),
    "deadline": Row(
        reasons.DEADLINE_EXCEEDED,
        ("activeDeadlineSeconds (3)",),
        ("spec.activeDeadlineSeconds", "spec.resumeFrom"),
        (Attempt(trainer=Play(seconds=None, sigterm_code=75)),),
        spec={"activeDeadlineSeconds": 3},
    ),
    "diverged": Row(
        reasons.DIVERGED,
        ("step 12",),
        ("spec.training.learningRate",),
        (trainer(6, said("Diverged", "the loss became NaN at step 12")),),
        exit_code=6,
    ),
    "hung": Row(
        reasons.HUNG,
        ("no step for 612 s", "on node {node}"),
        ("kubectl logs", "spec.resumeFrom"),
        (trainer(11, said("Hung", "no step for 612 s after step 840")),),
        spec=ONCE,
        exit_code=11,
    ),
    "locked": Row(
        reasons.DIRECTORY_LOCKED,
        ("has held /runs/e/u/.lock for 300 s",),
        ("kubectl delete pod", "spec.resumeFrom"),
        (trainer(1, said("DirectoryLocked", "another process has held /runs/e/u/.lock for 300 s")),),
        spec=ONCE,
        exit_code=1,
    ),
    "resume": Row(
        reasons.CHECKPOINT_UNAVAILABLE,
        ('TrainingRun "nobody" not found in namespace',),
        ("spec.resumeFrom.run",),
        spec={"resumeFrom": {"run": "nobody"}},
    ),
    "no-checkpoint": Row(
        reasons.CHECKPOINT_UNAVAILABLE,
        ("run earlier", "no whole checkpoint"),
        ("spec.resumeFrom",),
        (trainer(10, said("CheckpointUnavailable", "run earlier has no whole checkpoint below /resume")),),
        exit_code=10,
    ),
    "adapter": Row(
        reasons.ADAPTER_INVALID,
        ("training_config.json",),
        ("claim's storage",),
        (trainer(0),),
        collect=(Attempt(plays={"collect": Play(words="the folder is empty")}),),
    ),
    "policy": Row(
        reasons.POD_CREATION_REFUSED,
        ("label cost-center is required",),
        ("spec.scheduling", "administrator"),
    ),
    "node": Row(
        reasons.NODE_LOST,
        ("on node {node}", "NodeShutdown", "shutting down"),
        ("spec.resumeFrom", "spec.retries"),
        (Attempt(rejected=("NodeShutdown", "Pod was rejected as the node is shutting down.")),),
        spec=ONCE,
    ),
    "job": Row(
        reasons.JOB_LOST,
        ('Job "', "does not exist any more"),
        ("spec.resumeFrom", "spec.suspend"),
        (Attempt(trainer=Play(seconds=None, sigterm_code=75)),),
    ),
    "retries": Row(
        reasons.RETRIES_EXHAUSTED,
        ("on {node}: InternalError (exit code 1)", "on {node}: OutOfMemory (exit code 137)"),
        ("status.attemptHistory", "kubectl logs", "spec.retries"),
        (trainer(1), trainer(137, reason="OOMKilled")),
        spec={"retries": 1},
    ),
    "sidecar": Row(
        reasons.SIDECAR_FAILED,
        ('init container "vault"', "exit code 1", "permission denied"),
        ("finetune.dev/run", "spec.resumeFrom"),
        (Attempt(plays={"vault": Play(code=1, words="permission denied")}),),
        spec=ONCE,
        exit_code=1,
    ),
    "internal": Row(
        reasons.INTERNAL_ERROR,
        ("container trainer of pod", "exit code 1", "KeyError"),
        ("kubectl logs",),
        (trainer(1, "Traceback (most recent call last):\nKeyError: 'x'"),),
        spec=ONCE,
        exit_code=1,
    ),
}


def test_no_reason_is_without_a_proof() -> None:
    shown = {row.reason for row in TABLE.values()}
    assert shown | set(ELSEWHERE) == reasons.FAILURE_REASONS
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (Path(__file__).parents[2] / file).read_text()


async def test_every_reason_is_said_with_what_to_change(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with (
        AdmissionServer(tmp_path).serving() as cluster,
        a_managed_world(managed_kubectl, tmp_path, FINETUNE_PENDING_SECONDS="1") as managed,
    ):
        cluster.rules |= {"policy": Deny("label cost-center is required", 403), "sidecar": Inject("vault", init=True)}
        await cluster.register(managed_kubectl, "pods", mutating=True)
        for name, row in TABLE.items():
            managed.kubelet.script(name, *row.attempts)
            managed.kubelet.script(name, *row.collect, role="collect")
        managed_kubectl.apply(*(manifest(name, **row.spec) for name, row in TABLE.items()))
        await deny_a_storage_class(managed, "storage-class", "fast")
        await delete_the_job(managed, "job")
        finished = {name: await managed.world.phase("Failed", name) for name in TABLE}
        table = lines(managed_kubectl("get", "trun"))
        wide = lines(managed_kubectl("get", "trun", "--output=wide"))
    problems = [
        f"{name}: {problem}"
        for name, row in TABLE.items()
        for problem in [*missing(row, finished[name]), *missing_in_table(row, finished[name], table[name], wide[name])]
    ]
    assert not problems, "\n".join(problems)


async def deny_a_storage_class(managed: Managed, name: str, storage_class: str) -> None:
    """Write the claim's Event that the volume controller writes for a StorageClass that does not exist."""
    run = await eventually("the run", lambda: (r := managed.world.run(name)) and r["metadata"]["uid"] and r)
    selector = f"finetune.dev/run-uid={run['metadata']['uid']}"
    [claim] = await eventually("the claim", lambda: managed.world.kubectl.items("persistentvolumeclaims", selector))
    about = {key: claim["metadata"][key] for key in ("name", "namespace", "uid")}
    managed.world.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{about['name']}.1"},
            "involvedObject": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **about},
            "type": "Warning",
            "reason": "ProvisioningFailed",
            "message": f'storageclass.storage.k8s.io "{storage_class}" not found',
            "firstTimestamp": stamp(),
            "lastTimestamp": stamp(),
        }
    )


async def delete_the_job(managed: Managed, name: str) -> None:
    """Delete the Job of a run that trains, as a person might."""
    await managed.world.phase("Training", name)
    job = managed.world.job_of(name)
    assert job is not None
    managed.world.kubectl("delete", "job", job["metadata"]["name"], "--cascade=background", "--wait=false")


def missing(row: Row, run: Document) -> list[str]:
    """What the status of a failed run does not say and should."""
    status, failure = run["status"], run["status"]["failure"]
    node = next((each["node"] for each in status.get("attemptHistory") or () if each.get("node")), "node-1")
    facts = {"node": node, "claim": status["output"]["claimName"]}
    problems = [
        f"{key} is {failure.get(key)!r} and not {wanted!r}: {failure['message']}"
        for key, wanted in (("reason", row.reason), ("exitCode", row.exit_code), ("row", row.row))
        if failure.get(key) != wanted
    ]
    problems += [
        f"{word!r} is not in the {key}: {failure[key]}"
        for key, words in (("message", row.message), ("hint", row.hint))
        for word in words
        if (word.format(**facts) if key == "message" else word) not in failure[key]
    ]
    problems += [f"{each} is not True" for each in ("Finished", "Stalled") if not is_true(run, each)]
    return problems


def missing_in_table(row: Row, run: Document, line: str, wide: str) -> list[str]:
    """What `kubectl get trun` does not show of it."""
    message = re.split(r"\s*\n", run["status"]["failure"]["message"])[0]
    problems = [] if "Failed" in line.split() and message in line else [f"the table says {line}"]
    return problems if row.reason in wide.split() else [*problems, f"the wide table says {wide}"]


def lines(table: str) -> dict[str, str]:
    """The lines of a table by the first word of each."""
    return {line.split()[0]: line for line in table.splitlines() if line.strip()}
