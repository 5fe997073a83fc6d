"""Runs in a queue, with the real Kueue, the real Job controller and a stand-in for the kubelet."""

from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kueue import EVERY, NAMED, Kueue
from tests.support import queues
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Play
from tests.support.managed import Managed, a_managed_world, result_of_pod
from tests.support.world import Document, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

IN_QUEUE = {"resources": {"gpus": 1}, "scheduling": {"queueName": queues.QUEUE}}
URGENT = {**IN_QUEUE, "scheduling": {"queueName": queues.QUEUE, "workloadPriorityClassName": "urgent"}}
NO_QUOTA = "insufficient unused quota for nvidia.com/gpu"
TRAINER = Play(
    seconds=None,
    words=result_of_pod,
    sigterm_code=75,
    sigterm_words={"interrupted": {"step": 12}},
)
"""It trains until it is told to end; SIGTERM interrupts it."""


@pytest.fixture(scope="module")
def kueue(managed_server: ApiServerOnly, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kueue]:
    """Kueue, stopped at the end: what it has registered goes with the API server."""
    made = Kueue(
        kubeconfig=managed_server.kubeconfig, bin_dir=managed_server.bin_dir, folder=tmp_path_factory.mktemp("kueue")
    )
    try:
        made.up()
        kubectl = Kubectl(kubeconfig=managed_server.kubeconfig, bin_dir=managed_server.bin_dir)
        kubectl.apply(queues.flavor(), queues.priority("urgent", 100))
        yield made
    finally:
        made.stop()


@pytest.fixture
def team(kueue: Kueue, managed_server: ApiServerOnly) -> Kubectl:
    """kubectl in a namespace with a queue of one GPU."""
    assert kueue.running
    return a_team(managed_server, NAMED)


def a_team(managed_server: ApiServerOnly, jobs: str, queue: str = queues.QUEUE) -> Kubectl:
    """A namespace in which Kueue manages these Jobs, and its queue."""
    name = f"q-{uuid.uuid4().hex[:8]}"
    kubectl = Kubectl(kubeconfig=managed_server.kubeconfig, bin_dir=managed_server.bin_dir, namespace=name)
    kubectl.apply(queues.namespace(name, jobs), queues.cluster_queue(name), queues.local_queue(name, queue))
    return kubectl


@pytest.mark.long
async def test_of_two_jobs_one_waits_for_the_gpu(team: Kubectl) -> None:
    """What all tests below rest on."""
    for name in ("first", "second"):
        team.apply(plain_job(name))
        await eventually(f"a Workload of {name}", functools.partial(workload, team, name))
    await eventually("the first one's pod", lambda: team.items("pods", "job-name=first"))
    assert NO_QUOTA in await eventually("a reason", lambda: reason(team, "second"))
    team("delete", "job", "first")
    await eventually("the second one's pod", lambda: team.items("pods", "job-name=second"))


def plain_job(name: str) -> Document:
    container = {"name": "c", "image": "i", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    spec = {"restartPolicy": "Never", "containers": [container]}
    labels = {"kueue.x-k8s.io/queue-name": queues.QUEUE}
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": spec}}}


def workload(team: Kubectl, job: str) -> Document | None:
    """Kueue's record of a Job."""
    found = [w for w in team.items("workloads") if w["metadata"]["ownerReferences"][0]["name"] == job]
    return found[0] if found else None


def reason(team: Kubectl, job: str) -> str:
    """Why Kueue has no quota for a Job."""
    conditions = ((workload(team, job) or {}).get("status") or {}).get("conditions") or []
    return next((c["message"] for c in conditions if (c["type"], c["status"]) == ("QuotaReserved", "False")), "")


class Team:
    """One namespace with a queue, the operator, and a kubelet; its trainers train until they are told to end."""

    def __init__(self, managed: Managed) -> None:
        self.world, self.kubelet, self.kubectl = managed.world, managed.kubelet, managed.world.kubectl

    def job(self, name: str) -> Document:
        found = self.world.job_of(name)
        assert found is not None
        return found

    def workload(self, name: str) -> Document:
        found = workload(self.kubectl, self.job(name)["metadata"]["name"])
        assert found is not None
        return found

    def writes(self, name: str) -> list[str]:
        """What the operator has done to the Job of a run, in short."""
        job = self.job(name)["metadata"]["name"]
        seen = [w for w in self.world.kubernetes.writes if "/jobs" in w.path]
        return [w.method for w in seen if w.path.endswith(("/jobs", f"/jobs/{job}", f"/jobs/{job}/status"))]

    def pods(self, name: str) -> list[Document]:
        return self.kubectl.items("pods", f"finetune.dev/run={name}")

    def apply(self, name: str, **spec: object) -> None:
        self.kubelet.script(name, Attempt(trainer=TRAINER))
        self.world.apply(name, **(spec or IN_QUEUE))

    async def start(self, name: str, **spec: object) -> Document:
        self.apply(name, **spec)
        return await self.world.phase("Training", name)

    async def end(self, name: str) -> Document:
        self.kubelet.tell(name)
        return await self.world.phase("Succeeded", name)

    async def queued(self, name: str, words: str) -> Document:
        """The status of a run, once it says that it waits in the queue, and why or what to do."""

        def look() -> Document | None:
            status = (self.world.run(name) or {}).get("status") or {}
            waiting = status.get("waiting") or {}
            said = f"{waiting.get('message')} {waiting.get('hint')}"
            return status if status.get("phase") == "Queued" and words in said else None

        try:
            return dict(await eventually(f"{name} is Queued and says {words!r}", look))
        except AssertionError as error:
            raise AssertionError(f"{error}; {(self.world.run(name) or {}).get('status')}") from None

    async def resting(self, name: str) -> Document:
        """The Job of a run that a person suspended, once Kueue has let go of it."""
        await self.world.phase("Suspended", name)
        await eventually(f"the Workload of {name} is not active", lambda: not self.workload(name)["spec"]["active"])
        await eventually(f"no pod of {name}", lambda: not self.pods(name))
        return self.job(name)

    def suspend(self, name: str, wanted: bool = True) -> None:
        patch = f'{{"spec":{{"suspend":{str(wanted).lower()}}}}}'
        self.kubectl("patch", "trainingrun", name, "--type=merge", f"--patch={patch}")

    def stop_queue(self, policy: str) -> None:
        patch = f'{{"spec":{{"stopPolicy":"{policy}"}}}}'
        self.kubectl("patch", "clusterqueue", self.kubectl.namespace, "--type=merge", f"--patch={patch}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    kueue: Kueue, managed_server: ApiServerOnly, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Team]:
    """One operator for all tests that need no queue of their own: starting one takes longer than most of them."""
    assert kueue.running
    async with a_managed_world(a_team(managed_server, NAMED), tmp_path_factory.mktemp("world")) as managed:
        yield Team(managed)


@pytest_asyncio.fixture(loop_scope="module")
async def runs(shared: Team) -> AsyncIterator[Team]:
    """A namespace with a queue of one GPU, in which there are no runs yet."""
    yield shared
    shared.stop_queue("None")
    shared.kubectl("delete", "trainingruns", "--all")
    await eventually("no Job is left", lambda: not shared.kubectl.items("jobs"))
    await eventually("no pod is left", lambda: not shared.kubectl.items("pods"))


async def test_the_second_run_waits_for_the_first_ones_gpu(runs: Team) -> None:
    await runs.start("first")
    runs.apply("second")
    status = await runs.queued("second", NO_QUOTA)
    assert status["waiting"]["reason"] == "Queued"
    assert not runs.pods("second")
    assert runs.writes("second") == ["POST", "POST"], "the Job of the first, and this one: nothing was changed since"
    await runs.end("first")
    await runs.world.phase("Training", "second")
    assert runs.writes("second").count("PATCH") == 0
    done = await runs.end("second")
    assert done["status"]["attempts"] == 1
    assert "waiting" not in done["status"]


async def test_an_urgent_run_takes_the_gpu_and_the_other_goes_on_later(runs: Team) -> None:
    await runs.start("patient")
    runs.apply("urgent", **URGENT)
    await runs.world.phase("Training", "urgent")
    status = await runs.queued("patient", "Preempted")
    assert status["attemptHistory"][0]["reason"] == "Suspended"
    await runs.end("urgent")
    await runs.world.phase("Training", "patient")
    assert "PATCH" not in runs.writes("patient")
    done = await runs.end("patient")
    assert exit_codes(done) == [75, 0], done["status"]["attemptHistory"]
    assert not runs.job("patient")["status"].get("failed"), "an eviction costs no attempt"


@pytest.mark.long
async def test_a_queue_that_is_stopped_and_started_again(runs: Team) -> None:
    await runs.start("first")
    runs.stop_queue("Hold")
    runs.apply("second")
    await runs.queued("second", "is inactive")
    await runs.end("first")
    runs.stop_queue("None")
    await runs.world.phase("Training", "second")
    runs.stop_queue("HoldAndDrain")
    await runs.queued("second", "ClusterQueueStopped")
    runs.stop_queue("None")
    await runs.world.phase("Training", "second")
    done = await runs.end("second")
    assert exit_codes(done) == [75, 0], done["status"]["attemptHistory"]
    assert "PATCH" not in runs.writes("second")


async def test_a_person_suspends_the_run_that_has_the_gpu(runs: Team) -> None:
    """Its quota is free at once, and nobody wakes it until the person does."""
    await runs.start("first")
    runs.suspend("first")
    job = await runs.resting("first")
    await runs.start("second")
    done = await runs.end("second")
    assert done["status"]["attempts"] == 1
    assert runs.job("first")["metadata"]["generation"] == job["metadata"]["generation"], "somebody woke it"
    runs.suspend("first", wanted=False)
    await runs.world.phase("Training", "first")
    done = await runs.end("first")
    assert exit_codes(done) == [75, 0], done["status"]["attemptHistory"]
    assert "PATCH" not in runs.writes("first"), "Kueue alone suspends and resumes the Job"


async def test_a_person_suspends_a_run_that_waits(runs: Team) -> None:
    await runs.start("first")
    runs.apply("second")
    await runs.queued("second", NO_QUOTA)
    runs.suspend("second")
    job = await runs.resting("second")
    await runs.end("first")
    await runs.start("third")
    await runs.end("third")
    assert runs.job("second")["metadata"]["generation"] == job["metadata"]["generation"], "somebody woke it"
    runs.suspend("second", wanted=False)
    await runs.world.phase("Training", "second")
    await runs.end("second")
    assert "PATCH" not in runs.writes("second")


@pytest.mark.long
async def test_what_an_administrator_deactivates_stays_so(runs: Team) -> None:
    """The operator activates only what it has deactivated itself."""
    await runs.start("first")
    name = runs.workload("first")["metadata"]["name"]
    runs.kubectl("patch", "workload", name, "--type=merge", '--patch={"spec":{"active":false}}')
    await runs.queued("first", "deactivated")
    await runs.start("second")
    await runs.end("second")
    assert not runs.workload("first")["spec"]["active"]
    runs.kubectl("patch", "workload", name, "--type=merge", '--patch={"spec":{"active":true}}')
    await runs.world.phase("Training", "first")
    await runs.end("first")


@pytest.mark.long
async def test_the_deadline_counts_the_time_with_the_gpu_alone(runs: Team) -> None:
    """Waiting in the queue costs nothing of it."""
    limited = {**IN_QUEUE, "activeDeadlineSeconds": 4}
    await runs.start("first")
    runs.apply("second", **limited)
    await runs.queued("second", NO_QUOTA)
    await eventually("the deadline is over", lambda: age(runs.job("second")) > 4)
    await runs.end("first")
    failed = await runs.world.phase("Failed", "second")
    assert failed["status"]["failure"]["reason"] == "DeadlineExceeded"
    assert failed["status"]["attempts"] == 1, "it has waited, and then it has run"


@pytest.mark.long
async def test_a_run_that_waits_is_deleted(runs: Team) -> None:
    await runs.start("first")
    runs.apply("second")
    await runs.queued("second", NO_QUOTA)
    name = runs.workload("second")["metadata"]["name"]
    runs.kubectl("delete", "trainingrun", "second")
    await eventually("no Job", lambda: runs.world.job_of("second") is None)
    await eventually("no Workload", lambda: runs.kubectl.find("workloads", name) is None)
    await runs.end("first")


async def test_a_queue_that_does_not_exist_is_named(runs: Team) -> None:
    runs.apply("lost", **{**IN_QUEUE, "scheduling": {"queueName": "nowhere"}})
    await runs.queued("lost", "LocalQueue nowhere doesn't exist")
    runs.kubectl.apply(queues.local_queue(runs.kubectl.namespace, "nowhere"))
    await runs.world.phase("Training", "lost")
    await runs.end("lost")


@pytest.mark.long
async def test_a_priority_that_does_not_exist_is_named(runs: Team) -> None:
    """Kueue says nothing at all then."""
    priority = f"p-{uuid.uuid4().hex[:8]}"
    runs.apply("lost", scheduling={"queueName": queues.QUEUE, "workloadPriorityClassName": priority})
    await runs.queued("lost", priority)
    runs.kubectl.apply(queues.priority(priority, 5))
    await runs.world.phase("Training", "lost")
    await runs.end("lost")


async def test_a_run_without_a_queue_gets_the_namespaces_default(
    kueue: Kueue, managed_server: ApiServerOnly, tmp_path: Path
) -> None:
    assert kueue.running
    async with a_managed_world(a_team(managed_server, NAMED, "default"), tmp_path) as managed:
        runs = Team(managed)
        await runs.start("first", resources={"gpus": 1})
        runs.apply("second", resources={"gpus": 1})
        await runs.queued("second", NO_QUOTA)
        assert runs.writes("second") == ["POST", "POST"]
        await runs.end("first")
        await runs.world.phase("Training", "second")
        await runs.end("second")
        assert "PATCH" not in runs.writes("second")


@pytest.mark.long
async def test_where_kueue_manages_every_job_a_run_without_a_queue_waits_for_one(
    kueue: Kueue, managed_server: ApiServerOnly, tmp_path: Path
) -> None:
    """Kueue's `manageJobsWithoutQueueName`: there is no label to see, only a Workload."""
    assert kueue.running
    async with a_managed_world(a_team(managed_server, EVERY), tmp_path) as managed:
        runs = Team(managed)
        runs.apply("run", resources={"gpus": 1})
        await runs.queued("run", "queue")
        assert runs.writes("run") == ["POST"]
        label = f"kueue.x-k8s.io/queue-name={queues.QUEUE}"
        runs.kubectl("label", "job", runs.job("run")["metadata"]["name"], label)
        await runs.world.phase("Training", "run")
        await runs.end("run")


@pytest.mark.long
async def test_kueue_dies_and_comes_back(kueue: Kueue, runs: Team) -> None:
    """Its webhook refuses every Job meanwhile: the runs say so; what trains goes on."""
    await runs.start("first")
    kueue.stop()
    try:
        runs.apply("second")

        def said() -> bool:
            status = (runs.world.run("second") or {}).get("status") or {}
            return "failed calling webhook" in (status.get("waiting") or {}).get("message", "")

        await eventually("the run says what refuses its Job", said)
        done = await runs.end("first")
        assert done["status"]["attempts"] == 1
    finally:
        kueue.start()
    await runs.world.phase("Training", "second")
    await runs.end("second")


def exit_codes(run: Document) -> list[int | None]:
    """How the attempts of a run have ended."""
    return [attempt.get("exitCode") for attempt in run["status"]["attemptHistory"]]


def age(document: Document) -> float:
    """Seconds since an object was made."""
    made = datetime.fromisoformat(document["metadata"]["creationTimestamp"])
    return (datetime.now(UTC) - made).total_seconds()
