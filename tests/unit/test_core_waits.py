"""What a run waits for, in whose words, for how long, and what of it may end the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from finetune.api.trainingrun import TrainingRun
from finetune.controller.core.case import Case
from finetune.controller.core.manifests import build_job
from tests.support import objects as o
from tests.support.cases import action, again, expires, failed, failure, look, waiting

TRAINED: dict[str, Any] = {"phase": "Training", "jobName": o.JOB, "jobUid": "job-uid", "trainingStartTime": o.stamp(30)}


def mount_event(message: str, seconds: float = 20) -> dict[str, Any]:
    return o.event("FailedMount", message, seconds)


def claim_event(message: str) -> dict[str, Any]:
    """As `gather` gives it: with the claim's name in front."""
    return o.event("ProvisioningFailed", f'PersistentVolumeClaim "adapters": {message}')


UNBOUND = "pod has unbound immediate PersistentVolumeClaims"
NO_ROWS = 'MountVolume.SetUp failed for volume "source" : configmap "rows" not found'
ROWS: dict[str, Any] = {"dataset": {"configMap": {"name": "rows", "key": "train.jsonl"}}}
TEMPLATE: dict[str, Any] = {
    "baseModel": {"hub": {"repository": "org/m"}, "chatTemplate": {"configMap": {"name": "templates", "key": "a"}}}
}
HUB: dict[str, Any] = {"baseModel": {"hub": {"repository": "org/m", "tokenSecretRef": {"name": "hub", "key": "token"}}}}
MIX: dict[str, Any] = {
    "dataset": {
        "mix": [
            {"configMap": {"name": "rows", "key": "train.jsonl"}},
            {"volume": {"claimName": "data", "path": "a"}},
            {"configMap": {"name": "more", "key": "b.jsonl"}},
            {"sql": {"urlSecretRef": {"name": "db", "key": "url"}, "query": "select 1"}},
        ]
    }
}
DATABASE: dict[str, Any] = {"dataset": {"sql": {"urlSecretRef": {"name": "db", "key": "url"}, "query": "select 1"}}}


@dataclass(frozen=True)
class Row:
    """Parts of the spec, the pod, the Events; the reason, words of the message, and whether it may end the run."""

    spec: dict[str, Any]
    pod: dict[str, Any] | None
    events: list[dict[str, Any]]
    reason: str
    text: str
    ends: bool

    def look(self, run: TrainingRun, *pods: dict[str, Any]) -> Case:
        """A look at a run in this trouble."""
        return look(run, o.job(), *pods, *([self.pod] if self.pod else []), events=self.events)


NO_MESH = 'MountVolume.SetUp failed for volume "istiod-ca-cert" : configmap "istio-ca-root-cert" not found'
TABLE = (
    # Images: the reason with which a kubelet says it, and its words.
    Row({}, o.pending(o.waiting("ErrImagePull", "not found: x")), [], "ImagePullFailed", "not found: x", True),
    Row(
        {},
        o.pending(o.waiting("ImagePullBackOff", "Back-off pulling")),
        [],
        "ImagePullFailed",
        "Back-off pulling",
        True,
    ),
    Row({}, o.pending(o.waiting("InvalidImageName", "bad")), [], "ImagePullFailed", "bad", True),
    Row({}, o.pending(o.waiting("ErrImageNeverPull", "never")), [], "ImagePullFailed", "never", True),
    # What the spec names and does not exist.
    Row(
        HUB,
        o.pod(
            "p1",
            "Pending",
            export=o.ended(0),
            trainer=o.waiting("CreateContainerConfigError", 'secret "hub" not found'),
        ),
        [],
        "AccessDenied",
        'Secret "hub"',
        True,
    ),
    Row(
        DATABASE,
        o.pending(o.waiting("CreateContainerConfigError", 'secret "db" not found')),
        [],
        "AccessDenied",
        '"db"',
        True,
    ),
    Row(
        DATABASE,
        o.pending(o.waiting("CreateContainerConfigError", "couldn't find key url in Secret ml/db")),
        [],
        "AccessDenied",
        'key "url" not found in Secret "db"',
        True,
    ),
    Row(
        ROWS,
        o.pending(o.waiting("PodInitializing")),
        [mount_event(NO_ROWS)],
        "DatasetUnavailable",
        'ConfigMap "rows" not found in namespace "ml"',
        True,
    ),
    Row(
        ROWS,
        o.pending(o.waiting("PodInitializing")),
        [mount_event('MountVolume.SetUp failed for volume "source" : references non-existent config key: train.jsonl')],
        "DatasetUnavailable",
        'key "train.jsonl" not found in ConfigMap "rows"',
        True,
    ),
    Row(
        ROWS | TEMPLATE,
        o.pending(o.waiting("PodInitializing")),
        [mount_event('MountVolume.SetUp failed for volume "chat-template" : references non-existent config key: a')],
        "BaseModelUnavailable",
        'key "a" not found in ConfigMap "templates"',
        True,
    ),
    Row(
        ROWS | TEMPLATE,
        o.pending(o.waiting("PodInitializing")),
        [mount_event('MountVolume.SetUp failed for volume "chat-template" : configmap "templates" not found')],
        "BaseModelUnavailable",
        'ConfigMap "templates" not found in namespace "ml"',
        True,
    ),
    Row(
        {},
        o.unschedulable('persistentvolumeclaim "base-models" not found'),
        [],
        "BaseModelUnavailable",
        '"base-models"',
        True,
    ),
    Row({}, o.unschedulable('persistentvolumeclaim "adapters" not found'), [], "Unschedulable", '"adapters"', True),
    Row(
        {"dataset": {"volume": {"claimName": "data", "path": "a"}}},
        o.unschedulable('0/3 nodes are available: persistentvolumeclaim "data" not found. preemption: 0/3 nodes'),
        [],
        "DatasetUnavailable",
        'PersistentVolumeClaim "data" not found',
        True,
    ),
    Row(
        MIX,
        o.unschedulable('0/3 nodes are available: persistentvolumeclaim "data" not found. preemption: 0/3 nodes'),
        [],
        "DatasetUnavailable",
        'PersistentVolumeClaim "data" not found',
        True,
    ),
    Row(
        MIX,
        o.pending(o.waiting("PodInitializing")),
        [mount_event('MountVolume.SetUp failed for volume "source-2" : references non-existent config key: b.jsonl')],
        "DatasetUnavailable",
        'key "b.jsonl" not found in ConfigMap "more"',
        True,
    ),
    Row(
        MIX,
        o.pending(o.waiting("CreateContainerConfigError", "couldn't find key url in Secret ml/db")),
        [],
        "AccessDenied",
        'key "url" not found in Secret "db"',
        True,
    ),
    # What somebody else put into the pod, or what the kubelet cannot do for now.
    Row(
        {},
        o.pending(o.waiting("PodInitializing")),
        [
            mount_event(
                'MountVolume.SetUp failed for volume "istiod-ca-cert" : configmap "istio-ca-root-cert" not found'
            )
        ],
        "PodNotStarted",
        'ConfigMap "istio-ca-root-cert" not found',
        False,
    ),
    Row(
        ROWS,
        o.pending(o.waiting("PodInitializing")),
        [
            mount_event(
                'MountVolume.SetUp failed for volume "istiod-ca-cert" : configmap "istio-ca-root-cert" not found'
            )
        ],
        "PodNotStarted",
        "nothing in the spec names it",
        False,
    ),
    Row(
        HUB,
        o.pending(o.waiting("CreateContainerConfigError", 'secret "mesh-identity" not found')),
        [],
        "PodNotStarted",
        "mesh-identity",
        False,
    ),
    Row(
        HUB,
        o.pending(
            o.waiting("CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition")
        ),
        [],
        "PodNotStarted",
        "failed to sync secret cache",
        False,
    ),
    Row({}, o.pending(o.waiting("CreateContainerError", "no space")), [], "PodNotStarted", "no space", False),
    Row({}, o.pending(o.waiting("RunContainerError", "no runtime")), [], "PodNotStarted", "no runtime", False),
    Row(
        {},
        o.pending({}),
        [o.event("FailedAttachVolume", "Multi-Attach error for volume")],
        "VolumeNotMounted",
        "Multi-Attach",
        False,
    ),
    Row({}, o.pending({}), [mount_event("rpc error: code = Internal")], "VolumeNotMounted", "rpc error", False),
    Row({}, o.pending({}), [o.event("FailedMapVolume", "device is busy")], "VolumeNotMounted", "device is busy", False),
    Row(
        {},
        o.pending({}),
        [o.event("FailedCreatePodSandBox", "failed to set up network: no IPs left")],
        "PodNotStarted",
        "no IPs left",
        False,
    ),
    # Nodes and claims.
    Row(
        {},
        o.unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        [],
        "Unschedulable",
        "Insufficient nvidia.com/gpu",
        False,
    ),
    Row(
        {},
        o.unschedulable('failed to get target node: node "ip-10-0-0-7" not found'),
        [],
        "Unschedulable",
        "ip-10-0-0-7",
        False,
    ),
    Row({}, o.unschedulable(UNBOUND), [], "Unschedulable", "adapters", False),
    Row(
        {},
        o.unschedulable(UNBOUND),
        [claim_event('storageclass.storage.k8s.io "nope" not found')],
        "Unschedulable",
        '"adapters": storageclass.storage.k8s.io "nope" not found',
        True,
    ),
    Row(
        {},
        o.unschedulable(UNBOUND),
        [
            claim_event(
                'failed to provision volume with StorageClass "fast": failed to get target node: '
                'node "ip-10-0-0-7" not found'
            )
        ],
        "Unschedulable",
        "ip-10-0-0-7",
        False,
    ),
    Row(
        {},
        o.unschedulable(UNBOUND),
        [claim_event("no space left in the pool")],
        "Unschedulable",
        "no space left in the pool",
        False,
    ),
    # The Job may not make its pod.
    Row(
        {},
        None,
        [o.event("FailedCreate", 'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: ...')],
        "QuotaExceeded",
        "exceeded quota: gpus",
        False,
    ),
    Row(
        {},
        None,
        [
            o.event(
                "FailedCreate",
                'Error creating: pods "x" is forbidden: failed quota: cpus: must specify limits.cpu for: trainer',
            )
        ],
        "PodCreationRefused",
        "must specify limits.cpu",
        True,
    ),
    Row(
        {},
        None,
        [o.event("FailedCreate", 'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": x')],
        "PodCreationRefused",
        "PodSecurity",
        True,
    ),
    Row(
        {},
        None,
        [o.event("FailedCreate", 'Error creating: admission webhook "a.b" denied the request: no')],
        "PodCreationRefused",
        "denied",
        True,
    ),
    Row(
        {},
        None,
        [
            o.event(
                "FailedCreate",
                'Error creating: Internal error occurred: failed calling webhook "pods.example.com": failed to call '
                'webhook: Post "https://x.y.svc:443/?timeout=10s": dial tcp 10.0.0.1:443: connect: connection refused',
            )
        ],
        "WebhookUnavailable",
        "pods.example.com",
        False,
    ),
    Row(
        {},
        None,
        [o.event("FailedCreate", 'Error creating: pods "x" is forbidden: error looking up service account ml/gone')],
        "PodCreationRefused",
        "service account ml/gone",
        True,
    ),
)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.text[:40])
def test_what_a_pending_run_waits_for(row: Row) -> None:
    case = row.look(o.run(**row.spec))
    found = waiting(case)
    assert found.reason == row.reason
    assert row.text in found.message
    assert found.object
    assert "Error creating" not in found.message
    assert action(case) is None
    assert failure(again(case, 359)) is None
    assert expires(case) is row.ends
    if row.ends:
        assert failed(again(case, 360)).reason == row.reason
        assert failed(again(case, 360)).message.endswith("(waited 300 s)")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.text[:40])
def test_nothing_of_it_ends_a_run_that_has_trained(row: Row) -> None:
    """An attempt has reached its trainer: what may pass is waited for, and said, for as long as it takes."""
    case = row.look(o.run(TRAINED, **row.spec), o.failed_pod("p0", 137, created=-60))
    assert (waiting(case).reason, row.text in waiting(case).message) == (row.reason, True)
    assert not expires(case)
    assert failure(again(case, 10**7)) is None


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        ('persistentvolumeclaim "parents" not found', "ParentAdapterUnavailable", 'PersistentVolumeClaim "parents"'),
        (UNBOUND, "Unschedulable", "adapters, base-models, parents"),
    ],
)
def test_the_parents_claim_is_one_of_those_that_a_pod_waits_for(message: str, reason: str, text: str) -> None:
    run = o.run(**o.PREFERENCE)
    made = {**o.job(), "spec": build_job(run, o.SETTINGS, o.PARENT)["spec"]}
    found = waiting(look(run, made, o.unschedulable(message)))
    assert (found.reason, text in found.message) == (reason, True), found.message


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        ('persistentvolumeclaim "old" not found', "CheckpointUnavailable", 'PersistentVolumeClaim "old"'),
        (UNBOUND, "Unschedulable", "adapters, base-models, old"),
    ],
)
def test_so_is_the_claim_of_the_run_that_is_gone_on_from(message: str, reason: str, text: str) -> None:
    resumed = {"run": "first", "uid": "u", "claimName": "old", "path": "first/u"}
    run = o.run({"jobName": o.JOB, "resumedFrom": resumed}, resumeFrom={"run": "first"})
    found = waiting(look(run, o.job(), o.unschedulable(message)))
    assert (found.reason, text in found.message) == (reason, True), found.message
