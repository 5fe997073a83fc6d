"""A run that has trained is never ended by what may pass, and no kind of trouble uses up another one's time.

`referenceTimeoutSeconds` is a few seconds here; each trouble is waited out for longer, then mended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune.api import reasons
from tests.support.admission import AdmissionServer
from tests.support.faults import Answer
from tests.support.heard import all_of, for_seconds, has_waited, in_phase, pulls, until, waiting
from tests.support.kubectl import Kubectl
from tests.support.kubelet import PULLING, Attempt, Document, Play, Trouble
from tests.support.managed import Managed, a_managed_world
from tests.support.scenes import Scene, Step, admit_pods, heal, nothing, refuse_pods, webhook_away, webhook_back
from tests.support.world import ROWS, eventually, manifest

TIMEOUT = 2
"""The operator's referenceTimeoutSeconds in the first test, and in seconds how much longer each trouble goes on."""

TRAINS = Attempt(trainer=Play(seconds=None, sigterm_code=75, sigterm_words={"interrupted": {"step": 3}}))
HUB = {"hub": {"repository": "org/m", "tokenSecretRef": {"name": "hub", "key": "token"}}}
ONE_CONFIG_MAP = {"configMap": {"name": "rows", "key": "rows.jsonl"}}


async def the_registry_refuses(scene: Scene, name: str) -> None:
    uid = (scene.managed.world.run(name) or {})["metadata"]["uid"]
    words = {"error": {"reason": "Invalid", "message": "files: a field of another version", "hint": "upgrade it"}}
    scene.managed.world.registry.faults.append(
        Answer("PUT", f"/runs/{uid}/adapter", status=422, body=json.dumps(words))
    )


async def the_registry_takes_it(scene: Scene, name: str) -> None:
    uid = (scene.managed.world.run(name) or {})["metadata"]["uid"]
    faults = scene.managed.world.registry.faults
    faults[:] = [each for each in faults if uid not in each.path]


async def heal_the_reader(scene: Scene, name: str) -> None:
    for life in scene.managed.kubelet.of(name, "collect"):
        life.healed = True
        life.wake()


@dataclass(frozen=True)
class Row:
    """What happens to the pod that follows the first, and what is said of it meanwhile."""

    reason: str
    words: str
    second: Attempt = field(default_factory=Attempt)
    spec: Mapping[str, Any] = field(default_factory=dict)
    begin: Step = nothing
    end: Step = heal


TABLE: dict[str, Row] = {
    "secret": Row(
        reasons.ACCESS_DENIED,
        'Secret "hub" not found',
        Attempt(trouble=Trouble("trainer", "CreateContainerConfigError", 'secret "hub" not found')),
        {"baseModel": HUB},
    ),
    "config-map": Row(
        reasons.DATASET_UNAVAILABLE,
        'ConfigMap "rows" not found',
        Attempt(mounts='MountVolume.SetUp failed for volume "source" : configmap "rows" not found'),
        {"dataset": ONE_CONFIG_MAP},
    ),
    "image": Row(
        reasons.IMAGE_PULL_FAILED,
        '"trainer:1": i/o timeout',
        Attempt(trouble=Trouble("export", "ErrImagePull", 'failed to pull "trainer:1": i/o timeout')),
    ),
    "output-claim": Row(
        reasons.UNSCHEDULABLE,
        'PersistentVolumeClaim "mine" not found',
        Attempt(unschedulable='persistentvolumeclaim "mine" not found'),
        {"output": {"claimName": "mine"}},
    ),
    "model-claim": Row(
        reasons.BASE_MODEL_UNAVAILABLE,
        'PersistentVolumeClaim "base-models" not found',
        Attempt(unschedulable='persistentvolumeclaim "base-models" not found'),
    ),
    "node": Row(
        reasons.UNSCHEDULABLE,
        "Insufficient nvidia.com/gpu",
        Attempt(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
    ),
    "policy": Row(reasons.POD_CREATION_REFUSED, "label cost-center is required", begin=refuse_pods, end=admit_pods),
    "webhook": Row(
        reasons.WEBHOOK_UNAVAILABLE, "failed calling webhook", begin=webhook_away("pods"), end=webhook_back("pods")
    ),
    "registration": Row(
        reasons.REGISTRY_REFUSED,
        "a field of another version",
        begin=the_registry_refuses,
        end=the_registry_takes_it,
    ),
    "reader": Row(
        reasons.IMAGE_PULL_FAILED,
        '"trainer:1": i/o timeout',
        Attempt(trainer=Play()),
        end=heal_the_reader,
    ),
}


OF_EACH_KIND = ("secret", "output-claim", "policy", "registration", "reader")


@pytest.mark.parametrize("others", [False, pytest.param(True, marks=pytest.mark.long)], ids=["each kind", "others"])
async def test_what_may_pass_does_not_end_a_run_that_has_trained(
    managed_kubectl: Kubectl, tmp_path: Path, others: bool
) -> None:
    chosen = {name: row for name, row in TABLE.items() if (name not in OF_EACH_KIND) is others}
    async with (
        AdmissionServer(tmp_path).serving() as admission,
        a_managed_world(
            managed_kubectl,
            tmp_path,
            FINETUNE_REFERENCE_TIMEOUT_SECONDS=str(TIMEOUT),
            FINETUNE_PENDING_SECONDS="1",
        ) as managed,
    ):
        await admission.register(managed_kubectl, "pods", mutating=True)
        for name, row in chosen.items():
            managed.kubelet.script(name, TRAINS, row.second)
        away = Trouble("collect", "ErrImagePull", 'failed to pull "trainer:1": i/o timeout')
        managed.kubelet.script("reader", Attempt(trouble=away), role="collect")
        managed_kubectl.apply(*(manifest(name, **row.spec) for name, row in chosen.items()))
        scene = Scene(managed, admission, tmp_path)
        await all_of(*(waited_out(scene, name) for name in chosen))
        await managed.check(names=tuple(chosen))


async def waited_out(scene: Scene, name: str) -> list[str]:
    """Train, be evicted, get into trouble, wait longer than any timeout, and go on when it is over."""
    row, record = TABLE[name], scene.managed.record
    await until(record, name, "it trains", in_phase("Training"))
    await row.begin(scene, name)
    await scene.managed.kubelet.evict(name)
    run = await until(
        record, name, f"it waits for {row.reason}", has_waited(seconds=2 * TIMEOUT + 1, reason=row.reason)
    )
    problems = [] if row.words in waiting(run)["message"] else [f"{name}: says {waiting(run)['message']}"]
    await row.end(scene, name)
    await until(record, name, "it succeeds", in_phase("Succeeded"))
    return problems


CLOCK = 6
"""referenceTimeoutSeconds in the second test."""
MOST_OF_IT = 4.0


async def test_each_trouble_has_its_own_clock(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_managed_world(
        managed_kubectl, tmp_path, FINETUNE_REFERENCE_TIMEOUT_SECONDS=str(CLOCK), FINETUNE_PENDING_SECONDS="1"
    ) as managed:
        no_claim = Attempt(unschedulable='persistentvolumeclaim "base-models" not found')
        pulling = Attempt(trouble=Trouble("export", PULLING))
        late = Attempt(
            mounts='MountVolume.SetUp failed for volume "source" : configmap "rows" not found',
            trouble=Trouble("export", PULLING),
        )
        managed.kubelet.script("two-troubles", no_claim)
        managed.kubelet.script("slow-pull", pulling)
        managed.kubelet.script("late-map", late)
        managed_kubectl.apply(
            manifest("two-troubles", dataset={"registry": {"name": "later"}}),
            manifest("slow-pull"),
            manifest("late-map", dataset=ONE_CONFIG_MAP),
        )
        await all_of(
            two_troubles_together_last_longer_than_either_may(managed, tmp_path),
            a_pull_slower_than_the_timeout_may_fail_once(managed),
            a_late_config_map_is_history_once_it_is_mounted(managed),
        )


async def two_troubles_together_last_longer_than_either_may(managed: Managed, folder: Path) -> list[str]:
    record, name = managed.record, "two-troubles"
    missing = has_waited(seconds=MOST_OF_IT, reason="DatasetUnavailable")
    await until(record, name, "its dataset is missing for long", missing)
    rows = folder / "later.jsonl"
    rows.write_bytes(ROWS)
    await managed.world.client.push_dataset(managed.world.kubectl.namespace, "later", rows)
    missing = has_waited(seconds=MOST_OF_IT, reason="BaseModelUnavailable")
    await until(record, name, "its base model is missing for long", missing)
    managed.kubelet.heal(name)
    await until(record, name, "it succeeds", in_phase("Succeeded"))
    return []


async def a_pull_slower_than_the_timeout_may_fail_once(managed: Managed) -> list[str]:
    record, name = managed.record, "slow-pull"
    [life] = await eventually("its pod", lambda: managed.kubelet.of(name))
    await until(record, name, "it pulls", pulls)
    await until(record, name, "it pulls for long", for_seconds(CLOCK + 1))
    life.states["export"] = waits("ErrImagePull", 'failed to pull "trainer:1": unexpected EOF')
    await life.write("Pending")
    await until(record, name, "the pull has failed", lambda run: waiting(run).get("reason") == "ImagePullFailed")
    life.states["export"] = waits(PULLING)
    await life.write("Pending")
    await until(record, name, "it pulls again", lambda run: not waiting(run))
    managed.kubelet.heal(name)
    await until(record, name, "it succeeds", in_phase("Succeeded"))
    return []


async def a_late_config_map_is_history_once_it_is_mounted(managed: Managed) -> list[str]:
    record, name = managed.record, "late-map"
    await until(record, name, "it waits", lambda run: waiting(run).get("reason") == "DatasetUnavailable")
    managed.kubelet.heal(name)
    await until(record, name, "it waits for nothing", lambda run: not waiting(run))
    await until(record, name, "it pulls for long", for_seconds(CLOCK + 2))
    managed.kubelet.heal(name)
    await until(record, name, "it succeeds", in_phase("Succeeded"))
    return []


def waits(reason: str, message: str = "") -> Document:
    """The state of a container that waits."""
    return {"waiting": {"reason": reason, "message": message}}
