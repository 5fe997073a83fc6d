"""Where the loads run: an API server and controller manager, a registry, a stand-in for the kubelet, the operator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from benchmarks.operator import audit
from finetune.clients.kubernetes import USER_AGENT
from finetune.clients.registry import RegistryClient
from tests.cluster.api_server import ApiServerOnly
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Kubelet
from tests.support.managed import USUAL
from tests.support.ports import free_port
from tests.support.processes import Server, client_tls
from tests.support.proxy import RecordingProxy
from tests.support.watching import Record, recording
from tests.support.world import ROWS, manifest, wait_until_ready

Document = dict[str, Any]

NAMESPACE = "load"
CRD = Path(__file__).parents[2] / "crds" / "finetune.dev_trainingruns.yaml"
RUNS = f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/trainingruns"
PARALLEL = 16
"""Objects that are made at once."""
PATIENCE_SECONDS = 3600.0
SHARES = {
    "kube-apiserver": "apiServer",
    "etcd": "etcd",
    "kube-controller-manager": "controllerManager",
    "registry": "registry",
    "bench": "bench",
}
"""The processes whose CPU time is told beside the operator's; the last is this one: kubelet's stand-in and clients."""
QUEUE_METRIC = "finetune_operator_queue_oldest_seconds "


@dataclass
class Seen:
    """When what was first seen by a watch, in seconds of the monotonic clock, by the run's name."""

    jobs: dict[str, float] = field(default_factory=dict)
    phases: dict[tuple[str, str], float] = field(default_factory=dict)
    """By name and phase."""
    queue_seconds: float = 0.0
    """The longest that a run has waited for its pass, by the operator's own word."""


@dataclass
class Cluster:
    """One namespace under load."""

    session: ClientSession
    server: str
    etcd: str
    processes: dict[str, int]
    """Process numbers by the names of `SHARES`."""
    kubelet: Kubelet
    operator: Server
    registry: str
    """URL of the registry."""
    proxy: RecordingProxy | None
    """What stands between it and the operator, where something does."""
    log: Path
    seen: Seen
    created: dict[str, float] = field(default_factory=dict)

    async def call(self, method: str, path: str, body: Document | None = None) -> Document:
        """One request as the administrator."""
        headers = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
        async with self.session.request(method, f"{self.server}{path}", json=body, headers=headers) as answer:
            document: Document = await answer.json()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {document.get('message')}")
            return document

    async def create(self, name: str, **spec: Any) -> Document:
        """Make a run, and note when."""
        self.created[name] = time.monotonic()
        return await self.call("POST", RUNS, manifest(name, **spec))

    async def create_all(self, names: list[str], **spec: Any) -> None:
        """Make many runs at once."""
        free = asyncio.Semaphore(PARALLEL)

        async def one(name: str) -> None:
            async with free:
                await self.create(name, **spec)

        await asyncio.gather(*(one(name) for name in names))

    async def suspend(self, name: str) -> float:
        """Seconds from the wish that a run rests to the Job's `suspend`."""
        job = next(iter((await self.call("GET", f"{self.jobs}?labelSelector=finetune.dev/run={name}"))["items"]))
        path, began = f"{self.jobs}/{job['metadata']['name']}", time.monotonic()
        await self.call("PATCH", f"{RUNS}/{name}", {"spec": {"suspend": True}})
        await self.until(f"{name} rests", lambda: self.call("GET", path), lambda job: bool(job["spec"]["suspend"]))
        return time.monotonic() - began

    @property
    def jobs(self) -> str:
        """Path of the Jobs."""
        return f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"

    async def in_phase(self, names: list[str], phase: str) -> float:
        """Wait until all these runs have been in a phase; returns the time of the last."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not all((name, phase) in self.seen.phases for name in names):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{phase}: only {sum(each[1] == phase for each in self.seen.phases)} runs")
            await asyncio.sleep(0.1)
        return max((self.seen.phases[name, phase] for name in names), default=time.monotonic())

    async def until(self, what: str, look: Any, check: Any) -> Any:
        """Ask again and again until it is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = await look()
            if check(found):
                return found
            await asyncio.sleep(0.02)
        raise TimeoutError(what)

    async def requests(self) -> Counter[str]:
        """The operator's requests so far; the log is a moment behind."""
        await asyncio.sleep(0.5)
        with self.log.open() as lines:
            return audit.count(lines, USER_AGENT.partition("/")[0])

    def requests_naming(self, start: str) -> int:
        """The operator's requests so far about objects whose names begin so."""
        with self.log.open() as lines:
            return audit.naming(lines, USER_AGENT.partition("/")[0], start)

    def cpu_seconds(self) -> float:
        """CPU seconds that the operator has used."""
        return _cpu_seconds(self.operator.pid)

    def other_cpu_seconds(self) -> dict[str, float]:
        """The same of all other processes, by the words of `SHARES`."""
        return {word: _cpu_seconds(self.processes[name]) for name, word in SHARES.items()}

    def peak_mib(self) -> float:
        """The most memory that the operator has had, in MiB."""
        status = Path(f"/proc/{self.operator.pid}/status").read_text()
        line = next(each for each in status.splitlines() if each.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def database_kib(self) -> float:
        """The size of the registry's database, in KiB."""
        return sum(each.stat().st_size for each in self.log.parent.glob("registry.db*")) / 1024

    def rss_mib(self) -> float:
        """The memory that the operator has now, in MiB."""
        pages = int(Path(f"/proc/{self.operator.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def a_cluster(*, start: bool = True, proxied: bool = False) -> AsyncIterator[Cluster]:
    """Everything for one load; with `start`, the operator runs from the beginning.

    `proxied`: the registry may be made to hang. A proxy costs each call some milliseconds, so that it is left out else.
    """
    folder = Path(tempfile.mkdtemp(prefix="bench-operator-"))
    try:
        with ApiServerOnly(audit.flags(folder)) as server:
            kubectl = Kubectl(kubeconfig=server.kubeconfig, bin_dir=server.bin_dir, namespace=NAMESPACE)
            kubectl("apply", "--server-side", f"--filename={CRD}")
            kubectl("wait", "--for=condition=Established", f"--filename={CRD}")
            server.start_controllers()
            kubectl("create", "namespace", NAMESPACE)
            async with _in_namespace(server, folder, proxied=proxied) as cluster:
                if start:
                    await cluster.operator.start()
                yield cluster
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def _in_namespace(server: ApiServerOnly, folder: Path, *, proxied: bool) -> AsyncIterator[Cluster]:
    url, tls = client_tls(server.kubeconfig)
    port = free_port()
    database = f"--database-url=sqlite:///{folder}/registry.db"
    arguments = ["registry", "serve", database, "--host=127.0.0.1", f"--port={port}", "--auth=none"]
    environment = {"KUBECONFIG": str(server.kubeconfig), "FINETUNE_TRAINER_IMAGE": "trainer:1"}
    environment["FINETUNE_WATCH_NAMESPACES"] = NAMESPACE
    health = free_port()
    environment["FINETUNE_HEALTH_PORT"] = str(health)
    async with contextlib.AsyncExitStack() as stack:
        registry = Server(*arguments, environment={}, log=folder / "registry.log", fresh=True)
        await stack.enter_async_context(registry.serving())
        direct = f"http://127.0.0.1:{port}"
        proxy = await stack.enter_async_context(RecordingProxy(upstream=direct).serving()) if proxied else None
        address = proxy.url if proxy is not None else direct
        await wait_until_ready(f"{address}/readyz")
        client = RegistryClient(base_url=address)
        stack.push_async_callback(client.close)
        rows = folder / "rows.jsonl"
        rows.write_bytes(ROWS)
        await client.push_dataset(NAMESPACE, "tickets", rows)
        environment["FINETUNE_REGISTRY_URL"] = address
        operator = Server("operator", environment=environment, log=folder / "operator.log", fresh=True)
        stack.push_async_callback(operator.kill)
        kubelet = Kubelet(server=url, tls=tls, namespace=NAMESPACE, defaults=USUAL)
        await stack.enter_async_context(kubelet.serving())
        record = await stack.enter_async_context(recording(url, tls, NAMESPACE))
        seen = Seen()
        for task in (_note(record, seen), _note_queue(f"http://127.0.0.1:{health}/metrics", seen)):
            stack.callback(asyncio.create_task(task).cancel)
        connector = TCPConnector(ssl=tls, limit=0)
        session = await stack.enter_async_context(ClientSession(connector=connector, timeout=ClientTimeout(total=60)))
        processes = {**server.programs, "registry": registry.pid, "bench": os.getpid()}
        yield Cluster(
            session=session,
            server=url,
            etcd=server.etcd,
            processes=processes,
            kubelet=kubelet,
            operator=operator,
            registry=address,
            proxy=proxy,
            log=audit.log_of(folder),
            seen=seen,
        )


async def _note(record: Record, seen: Seen) -> None:
    """Note what comes, and forget the objects: thousands of them are many."""
    while True:
        await asyncio.sleep(0.005)
        now = time.monotonic()
        versions, record.versions = record.versions, []
        for kind, _, each in versions:
            if kind == "jobs":
                seen.jobs.setdefault((each["metadata"].get("labels") or {}).get("finetune.dev/run", ""), now)
            elif kind == "trainingruns":
                phase = (each.get("status") or {}).get("phase") or ""
                seen.phases.setdefault((each["metadata"]["name"], phase), now)


async def _note_queue(url: str, seen: Seen) -> None:
    """Note how long the first in the operator's queue has waited."""
    async with ClientSession(timeout=ClientTimeout(total=10)) as session:
        while True:
            await asyncio.sleep(5)  # seldom enough to cost an idle operator nothing that is seen
            with contextlib.suppress(ClientError, TimeoutError):
                async with session.get(url) as answer:
                    lines = (await answer.text()).splitlines()
                found = [float(each.split()[1]) for each in lines if each.startswith(QUEUE_METRIC)]
                seen.queue_seconds = max(seen.queue_seconds, *found, 0.0)
