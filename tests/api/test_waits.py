"""Every wait of a run: said within 15 seconds, in the words of whoever refuses, and over once the trouble is.

One world, one run a row, all at once. Nothing but the trouble's own events wakes the operator: the resync is far off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.api import reasons
from finetune.controller.core.names import job_name
from tests.support.admission import AdmissionServer, Inject
from tests.support.faults import Answer, status_document
from tests.support.heard import all_of, began, in_phase, newest, status, until, versions, waiting
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Document, Play, Trouble
from tests.support.managed import Managed, a_managed_world
from tests.support.scenes import Scene, Step, admit_pods, heal, nothing, refuse_pods, webhook_away, webhook_back
from tests.support.world import ROWS, eventually, manifest

SAID_SECONDS = 15.0
"""How long a trouble may be there before the run says so."""

ELSEWHERE: Mapping[str, str] = {
    reasons.QUOTA_EXCEEDED: "tests/api/test_refusals.py::test_a_full_quota_is_waited_for_and_a_missing_limit_is_named",
    reasons.OPERATOR_FORBIDDEN: "tests/api/test_refusals.py::test_rights_that_are_taken_away_for_a_while_end_nothing",
    reasons.NAMESPACE_TERMINATING: "tests/api/test_refusals.py::test_a_namespace_that_is_being_deleted_is_named",
    reasons.PAUSED: "tests/api/test_operator_lifecycle.py::test_a_paused_operator_starts_no_run_until_later",
    reasons.REGISTRY_UNAVAILABLE: "tests/api/test_waits.py::test_a_registry_that_is_away_is_waited_for",
    reasons.SIDECAR_RUNNING: "tests/api/test_sidecars.py::test_whatever_runs_beside_the_trainer_it_alone_decides",
}
"""Waits whose proof needs more than a run beside others, with the test that has it."""

CONDITIONS_ONLY = frozenset(
    {
        *(reasons.SPEC_ACCEPTED, reasons.WAITING_FOR_REFERENCE, reasons.DATASET_EXPORTED, reasons.DATASET_PENDING),
        *(reasons.PENDING, reasons.EXPORTING, reasons.TRAINING, reasons.REGISTERING, reasons.ADAPTER_REGISTERED),
        *(reasons.SUSPENDED, reasons.SUSPENDING, reasons.NOT_SUSPENDED, reasons.RESUMED),
    }
)
"""Reasons of conditions that nothing is waited for by."""


@dataclass(frozen=True)
class Wait:
    """One run that waits.

    Parameters
    ----------
    words: what the message must name; all of it are words of the server's, the kubelet's, or of the object.
    before, after: what brings the trouble about, before the run is applied and once it is.
    end: what ends it.
    """

    reason: str
    words: tuple[str, ...]
    attempts: tuple[Attempt, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)
    before: Step = nothing
    after: Step = nothing
    end: Step = heal


async def trains(scene: Scene, name: str) -> Document:
    return await until(scene.managed.record, name, "it trains", in_phase("Training"))


async def job_of(scene: Scene, name: str) -> str:
    run = await until(scene.managed.record, name, "it has a Job", lambda run: status(run).get("jobName"))
    return str(status(run)["jobName"])


async def push_the_dataset(scene: Scene, name: str) -> None:
    rows = scene.folder / f"{name}.jsonl"
    rows.write_bytes(ROWS)
    await scene.managed.world.client.push_dataset(scene.kubectl.namespace, name, rows)


async def apply_the_earlier_run(scene: Scene, name: str) -> None:
    scene.kubectl.apply(manifest(f"{name}-earlier"))


async def inject_init(scene: Scene, name: str) -> None:
    scene.admission.rules[name] = Inject("vault", init=True)


async def the_init_container_ends(scene: Scene, name: str) -> None:
    scene.managed.kubelet.tell(name, "vault")


async def the_node_is_silent(scene: Scene, name: str) -> None:
    await trains(scene, name)
    for life in scene.managed.kubelet.of(name):
        life.conditions["Ready"] = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        await life.write()


async def the_node_is_back(scene: Scene, name: str) -> None:
    for life in scene.managed.kubelet.of(name):
        life.conditions["Ready"] = {"type": "Ready", "status": "True"}
        await life.write()
    scene.managed.kubelet.tell(name)


async def its_reader_fails_once(scene: Scene, name: str) -> None:
    fails = Attempt(plays={"collect": Play(code=1, words="PermissionError: /output")})
    scene.managed.kubelet.script(name, fails, Attempt(), role="collect")


async def suspend_the_job(scene: Scene, name: str) -> None:
    await trains(scene, name)
    set_suspend(scene, await job_of(scene, name), "true")


async def resume_the_job(scene: Scene, name: str) -> None:
    set_suspend(scene, await job_of(scene, name), "false")


def set_suspend(scene: Scene, job: str, value: str) -> None:
    scene.kubectl("patch", "job", job, "--type=merge", f'--patch={{"spec":{{"suspend":{value}}}}}')


async def take_its_name(scene: Scene, name: str) -> None:
    run = await until(scene.managed.record, name, "it rests", in_phase("Suspended"))
    container = {"name": "c", "image": "i"}
    template = {"spec": {"containers": [container], "restartPolicy": "Never"}}
    metadata = {"name": job_name(name, run["metadata"]["uid"])}
    spec = {"suspend": True, "template": template}
    scene.kubectl.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
    scene.kubectl("patch", "trun", name, "--type=merge", '--patch={"spec":{"suspend":false}}')


async def give_its_name_back(scene: Scene, name: str) -> None:
    uid = newest(scene.managed.record, name)["metadata"]["uid"]
    scene.kubectl("delete", "job", job_name(name, uid))


async def delete_its_pod(scene: Scene, name: str) -> None:
    await trains(scene, name)
    scene.kubectl("delete", "pod", "--wait=false", f"--selector=finetune.dev/run={name}")


async def its_requests_fail(scene: Scene, name: str) -> None:
    words = status_document(503, "ServiceUnavailable", "etcdserver: no leader")
    scene.managed.world.kubernetes.faults.append(Answer("GET", f"/jobs/t-{name}-", status=503, body=words))


async def its_answers_are_garbled(scene: Scene, name: str) -> None:
    scene.managed.world.kubernetes.faults.append(Answer("GET", f"/jobs/t-{name}-", status=200, body='{"kind": "Job"}'))


async def its_requests_go_well(scene: Scene, name: str) -> None:
    faults = scene.managed.world.kubernetes.faults
    faults[:] = [each for each in faults if f"t-{name}-" not in each.path]


async def the_registry_refuses_it(scene: Scene, name: str) -> None:
    run = await until(scene.managed.record, name, "it rests", in_phase("Suspended"))
    words = {"error": {"reason": "Invalid", "message": "method: not one of SFT", "hint": "use another version"}}
    fault = Answer("PUT", f"/runs/{run['metadata']['uid']}", status=422, body=json.dumps(words))
    scene.managed.world.registry.faults.append(fault)
    scene.kubectl("patch", "trun", name, "--type=merge", '--patch={"spec":{"suspend":false}}')


async def the_registry_takes_it(scene: Scene, name: str) -> None:
    uid = newest(scene.managed.record, name)["metadata"]["uid"]
    faults = scene.managed.world.registry.faults
    faults[:] = [each for each in faults if uid not in each.path]


ONE_CONFIG_MAP = {"configMap": {"name": "rows", "key": "rows.jsonl"}}
HUB = {"hub": {"repository": "org/m", "tokenSecretRef": {"name": "hub", "key": "token"}}}
UNTIL_TOLD = Attempt(trainer=Play(seconds=None, sigterm_code=75, sigterm_words={"interrupted": {"step": 3}}))
CONFIG_ERROR = "CreateContainerConfigError"
NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
MULTI_ATTACH = 'Multi-Attach error for volume "pvc-1": already used by pod(s) other'
NO_SANDBOX = "plugin type bridge failed: no addresses left"

TABLE: dict[str, Wait] = {
    "dataset": Wait(
        reasons.DATASET_UNAVAILABLE,
        ("dataset",),
        spec={"dataset": {"registry": {"name": "dataset"}}},
        end=push_the_dataset,
    ),
    "resume": Wait(
        reasons.CHECKPOINT_UNAVAILABLE,
        ('TrainingRun "resume-earlier" not found',),
        spec={"resumeFrom": {"run": "resume-earlier"}},
        end=apply_the_earlier_run,
    ),
    "config-map": Wait(
        reasons.DATASET_UNAVAILABLE,
        ('ConfigMap "rows" not found',),
        (Attempt(mounts='MountVolume.SetUp failed for volume "source" : configmap "rows" not found'),),
        {"dataset": ONE_CONFIG_MAP},
    ),
    "secret": Wait(
        reasons.ACCESS_DENIED,
        ('Secret "hub" not found',),
        (Attempt(trouble=Trouble("trainer", CONFIG_ERROR, 'secret "hub" not found')),),
        {"baseModel": HUB},
    ),
    "image": Wait(
        reasons.IMAGE_PULL_FAILED,
        ("ImagePullBackOff", '"trainer:1"'),
        (Attempt(trouble=Trouble("export", "ImagePullBackOff", 'Back-off pulling image "trainer:1"')),),
    ),
    "model-claim": Wait(
        reasons.BASE_MODEL_UNAVAILABLE,
        ('PersistentVolumeClaim "base-models" not found',),
        (Attempt(unschedulable='persistentvolumeclaim "base-models" not found'),),
    ),
    "node": Wait(reasons.UNSCHEDULABLE, (NO_NODE,), (Attempt(unschedulable=NO_NODE),)),
    "volume": Wait(reasons.VOLUME_NOT_MOUNTED, (MULTI_ATTACH,), (Attempt(mounts=MULTI_ATTACH),)),
    "container": Wait(
        reasons.POD_NOT_STARTED,
        ('"trainer"', "CreateContainerError", "context deadline exceeded"),
        (Attempt(trouble=Trouble("trainer", "CreateContainerError", "context deadline exceeded")),),
    ),
    "sandbox": Wait(
        reasons.POD_NOT_STARTED,
        ("FailedCreatePodSandBox", NO_SANDBOX),
        (Attempt(events=(("FailedCreatePodSandBox", NO_SANDBOX),), trouble=Trouble("export", "PodInitializing")),),
    ),
    "init": Wait(
        reasons.INIT_CONTAINER_RUNNING,
        ('init container "vault"', "before the export"),
        (Attempt(plays={"vault": Play(seconds=None)}),),
        before=inject_init,
        end=the_init_container_ends,
    ),
    "init-image": Wait(
        reasons.IMAGE_PULL_FAILED,
        ('init container "vault"', "ErrImagePull"),
        (Attempt(trouble=Trouble("vault", "ErrImagePull", 'failed to pull "mesh:1": not found')),),
        before=inject_init,
    ),
    "silent-node": Wait(
        reasons.NODE_NOT_READY,
        ("node node-1 does not report",),
        (UNTIL_TOLD,),
        after=the_node_is_silent,
        end=the_node_is_back,
    ),
    "queue": Wait(
        reasons.QUEUED,
        ("queue gpus", "Kueue has made no Workload"),
        spec={"scheduling": {"queueName": "gpus"}},
        end=resume_the_job,
    ),
    "suspended": Wait(
        reasons.SUSPENDED_BY_OTHER,
        ("is suspended, and not by this run",),
        (UNTIL_TOLD, Attempt()),
        after=suspend_the_job,
        end=resume_the_job,
    ),
    "name": Wait(
        reasons.JOB_NAME_TAKEN,
        ('Job "t-name-', "belongs to another object"),
        spec={"suspend": True},
        after=take_its_name,
        end=give_its_name_back,
    ),
    "away-jobs": Wait(
        reasons.WEBHOOK_UNAVAILABLE,
        ("failed calling webhook", "jobs.webhook.example.com"),
        before=webhook_away("jobs"),
        end=webhook_back("jobs"),
    ),
    "away-pods": Wait(
        reasons.WEBHOOK_UNAVAILABLE,
        ("failed calling webhook", "pods.webhook.example.com"),
        before=webhook_away("pods"),
        end=webhook_back("pods"),
    ),
    "policy": Wait(
        reasons.POD_CREATION_REFUSED,
        ("label cost-center is required", "denied the request"),
        before=refuse_pods,
        end=admit_pods,
    ),
    "stopping": Wait(
        reasons.TERMINATING,
        ("is being stopped",),
        (
            Attempt(trainer=Play(seconds=None, after_sigterm=10, sigterm_code=75)),
            Attempt(),
        ),
        after=delete_its_pod,
        end=nothing,
    ),
    "reader": Wait(
        reasons.RESULT_UNREAD,
        ("PermissionError: /output",),
        (Attempt(trainer=Play(seconds=1)),),
        before=its_reader_fails_once,
        end=nothing,
    ),
    "server-away": Wait(
        reasons.API_SERVER_UNAVAILABLE,
        ("etcdserver: no leader",),
        before=its_requests_fail,
        end=its_requests_go_well,
    ),
    "garbled": Wait(
        reasons.OPERATOR_ERROR,
        ("KeyError",),
        before=its_answers_are_garbled,
        end=its_requests_go_well,
    ),
    "registry": Wait(
        reasons.REGISTRY_REFUSED,
        ("method: not one of SFT",),
        spec={"suspend": True},
        after=the_registry_refuses_it,
        end=the_registry_takes_it,
    ),
}


def test_no_wait_is_without_a_proof() -> None:
    shown = {row.reason for row in TABLE.values()} | set(ELSEWHERE)
    assert set(reasons.OTHER_REASONS) - CONDITIONS_ONLY <= shown
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (Path(__file__).parents[2] / file).read_text()


async def test_every_wait_is_said_in_time_and_goes_on(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with (
        AdmissionServer(tmp_path).serving() as admission,
        a_managed_world(
            managed_kubectl, tmp_path, FINETUNE_RESYNC_SECONDS="60", FINETUNE_REFERENCE_TIMEOUT_SECONDS="300"
        ) as managed,
    ):
        scene = Scene(managed, admission, tmp_path)
        await admission.register(managed_kubectl, "pods", mutating=True)
        for name, row in TABLE.items():
            managed.kubelet.script(name, *row.attempts)
            await row.before(scene, name)
        managed_kubectl.apply(*(manifest(name, **row.spec) for name, row in TABLE.items()))
        await all_of(*(story(scene, name) for name in TABLE))
        await managed.check(names=tuple(TABLE))


async def story(scene: Scene, name: str) -> list[str]:
    """What is wrong with what a run said while it waited."""
    row = TABLE[name]
    await row.after(scene, name)
    start = datetime.now(UTC) if row.after is not nothing else None

    def says(run: Document) -> bool:
        return waiting(run).get("reason") == row.reason and all(word in waiting(run)["message"] for word in row.words)

    run = await until(scene.managed.record, name, f"it says {row.reason} {row.words}", says)
    told = waiting(run)
    late = (datetime.fromisoformat(told["since"]) - (start or there_since(scene, name))).total_seconds()
    problems = [] if late <= said_seconds() else [f"{name}: said only after {late:.0f} s"]
    conditions = {each["type"]: each for each in run["status"]["conditions"]}
    if conditions["Finished"]["message"] != told["message"]:
        problems.append(f"{name}: Finished says {conditions['Finished']['message']!r} and not {told['message']!r}")
    await eventually(f"the Event of {name}", lambda: said_by_an_event(scene, name, row.reason))
    await row.end(scene, name)
    await until(scene.managed.record, name, "it succeeds", in_phase("Succeeded"))
    return problems


def said_seconds() -> float:
    """The same on a machine that has more to do than it can."""
    return SAID_SECONDS * max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1)))


def there_since(scene: Scene, name: str) -> datetime:
    """Since when the trouble is there for all to see: the newest of the run's objects, or what is warned of them."""
    events = scene.kubectl.json("get", "events", "--field-selector=type=Warning")["items"]
    times = [each["firstTimestamp"] for each in events if each["involvedObject"]["name"].startswith(f"t-{name}-")]
    return max([began(scene.managed.record, name), *map(datetime.fromisoformat, times)])


def said_by_an_event(scene: Scene, name: str, reason: str) -> bool:
    """Whether an Event about the run has the reason, and a message, of its wait."""
    selector = f"involvedObject.kind=TrainingRun,involvedObject.name={name},reason={reason}"
    events = scene.kubectl.json("get", "events", f"--field-selector={selector}")["items"]
    said = {waiting(each).get("message", "")[:200] for each in versions(scene.managed.record, name)} - {""}
    return any(message in each["message"] for each in events for message in said)


async def test_a_registry_that_is_away_is_waited_for(managed: Managed) -> None:
    async with managed.world.registry.away():
        managed.world.apply()
        run = await until(
            managed.record, "support", "it waits", lambda run: waiting(run).get("reason") == "RegistryUnavailable"
        )
        late = datetime.fromisoformat(waiting(run)["since"]) - datetime.fromisoformat(
            run["metadata"]["creationTimestamp"]
        )
        assert late.total_seconds() <= said_seconds()
        assert "refused" in waiting(run)["message"] or "connect" in waiting(run)["message"]
    await until(managed.record, "support", "it succeeds", in_phase("Succeeded"))
