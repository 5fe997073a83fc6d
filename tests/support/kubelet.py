"""A stand-in for scheduler and kubelet: it binds the pods of one namespace and moves them on as a script says.

Nothing runs. The real Job controller makes the pods and reads what is written here, so a run's life takes a second:

    async with kubelet.serving():
        kubelet.script("support", Attempt(trainer=Play(code=1)), Attempt())  # crashes once, then ends well

What a script leaves open ends well at once. Attempts are used up one a pod; the last one is for all further pods.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

Document = dict[str, Any]
Words = Document | str | Callable[[Document], Document]
"""A termination message; a function makes it from the pod."""

NODE = "node-1"
MERGE = "application/merge-patch+json"
RUN_LABEL, ROLE_LABEL = "finetune.dev/run", "finetune.dev/role"
SIGTERM = 128 + 15
PULLING = "ContainerCreating"
"""The reason of a container whose image is being pulled."""


@dataclass(frozen=True)
class Play:
    """What one container does.

    Parameters
    ----------
    seconds: how long it runs; None until `Kubelet.tell`, or SIGTERM.
    code, words, reason: how it ends; the reason is Completed or Error where none is given.
    after_sigterm: seconds that it takes to end after SIGTERM; None: it does not hear it, and is killed with the grace.
    sigterm_code, sigterm_words: how it ends then.
    """

    seconds: float | None = 0.0
    code: int = 0
    words: Words = ""
    reason: str = ""
    after_sigterm: float | None = 0.0
    sigterm_code: int = SIGTERM
    sigterm_words: Words = ""


@dataclass(frozen=True)
class Trouble:
    """Why a container does not start: its state's reason and message; the pod waits until `Kubelet.heal`."""

    container: str
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Attempt:
    """What happens to one pod.

    Parameters
    ----------
    plays: by name of a container; those of export and trainer are set apart.
    unschedulable: what the scheduler says; the pod waits until `Kubelet.heal`.
    events: reason and message of Events that the pod gets once it is on a node.
    mounts: a volume of it cannot be mounted: the message; the pod waits until `Kubelet.heal`.
    trouble: a container that cannot start.
    rejected: reason and message with which the kubelet refuses the pod before any of its containers starts.
    """

    export: Play | None = None
    trainer: Play | None = None
    plays: Mapping[str, Play] = field(default_factory=dict)
    unschedulable: str = ""
    events: tuple[tuple[str, str], ...] = ()
    mounts: str = ""
    trouble: Trouble | None = None
    rejected: tuple[str, str] = ("", "")
    node: str = NODE

    def play(self, container: str) -> Play | None:
        """What a container does; None where the script leaves it open."""
        return {"export": self.export, "trainer": self.trainer}.get(container) or self.plays.get(container)


Key = tuple[str, str]


class Kubelet:
    """The scheduler and kubelet of one namespace.

    Parameters
    ----------
    server, tls: the API server.
    defaults: what containers do whose script is open, by name; others end at once with 0.
    skew: seconds by which this node's clock is ahead.
    """

    def __init__(
        self,
        *,
        server: str,
        tls: ssl.SSLContext,
        namespace: str,
        defaults: Mapping[str, Play] | None = None,
        skew: float = 0.0,
    ) -> None:
        self._server, self._tls, self._namespace = server, tls, namespace
        self._defaults = dict(defaults or {})
        self._scripts: dict[Key, list[Attempt]] = defaultdict(list)
        self.lives: dict[str, Life] = {}
        self.lost_nodes: set[str] = set()
        self.skew = skew
        self.seen: list[str] = []
        """The uids of all pods that there have been."""

    def script(self, run: str, *attempts: Attempt, role: str = "train") -> None:
        """Say what becomes of the next pods of a run, or of a Job that belongs to none."""
        self._scripts[run, role] = list(attempts)

    def tell(self, run: str, container: str = "trainer", *, code: int = 0, words: Words | None = None) -> None:
        """Let a container end now, as its script says or as is said here."""
        for life in self.of(run):
            life.orders[container] = (code, words)
            life.wake()

    def heal(self, run: str) -> None:
        """What a pod waits for is there now; one that waits for two things, one after the other, is healed twice."""
        for life in self.of(run):
            life.healed = True
            life.wake()

    def of(self, run: str, role: str = "train") -> list[Life]:
        """The pods of a run that have not ended."""
        return [life for life in self.lives.values() if life.key == (run, role) and not life.over]

    def lose_node(self, node: str = NODE) -> None:
        """Nobody hears of this node's pods any more: they stay as they are, also when they are deleted."""
        self.lost_nodes.add(node)

    async def evict(self, run: str) -> None:
        """Drain: ask the API server to evict the run's pods, which marks them as disrupted and deletes them."""
        for life in self.of(run):
            name = life.pod["metadata"]["name"]
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            await self.patch_conditions(
                life, "DisruptionTarget", reason="EvictionByEvictionAPI", message="Eviction API: evicting"
            )
            await self.call("POST", f"pods/{name}/eviction", {**eviction, "deleteOptions": {"gracePeriodSeconds": 30}})

    async def patch_conditions(self, life: Life, type_: str, *, reason: str, message: str) -> None:
        """Add a condition that is true to a pod."""
        life.conditions[type_] = {"type": type_, "status": "True", "reason": reason, "message": message}
        await life.write()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Kubelet]:
        """Be the kubelet for the time of the block."""
        async with ClientSession(connector=TCPConnector(ssl=self._tls, limit=0)) as self._session:
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
            await self._request("POST", "/api/v1/nodes", node)
            task = asyncio.create_task(self._follow(), name="kubelet")
            try:
                yield self
            finally:
                task.cancel()
                tasks = [task, *(life.task for life in self.lives.values() if life.task)]
                for each in tasks:
                    each.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result

    async def call(self, method: str, path: str, body: Document | None = None) -> Document:
        """One request about an object of the namespace; a refusal is a Status document."""
        return await self._request(method, f"/api/v1/namespaces/{self._namespace}/{path}", body)

    async def _request(self, method: str, path: str, body: Document | None = None) -> Document:
        headers = {"Content-Type": MERGE} if method == "PATCH" else {}
        async with self._session.request(method, f"{self._server}{path}", json=body, headers=headers) as answer:
            found: Document = await answer.json()
            return found

    async def _follow(self) -> None:
        while True:
            listed = await self.call("GET", "pods")
            for pod in listed["items"]:
                self._notice("ADDED", pod)
            with contextlib.suppress(ClientError, TimeoutError):
                await self._watch(listed["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        url = f"{self._server}/api/v1/namespaces/{self._namespace}/pods"
        query = {"watch": "1", "resourceVersion": version}
        limit = ClientTimeout(total=None)
        async with self._session.get(url, params=query, timeout=limit, read_bufsize=2**22) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                self._notice(event["type"], event["object"])

    def _notice(self, type_: str, pod: Document) -> None:
        uid = pod["metadata"]["uid"]
        life = self.lives.get(uid)
        if type_ == "DELETED":
            if life is not None and life.task is not None:
                life.over = True
                life.task.cancel()
            return
        if life is None and pod["spec"].get("nodeName"):
            return  # a pod that a test has bound itself, it also moves on itself
        if life is None:
            self.lives[uid] = life = self._born(pod)
            self.seen.append(uid)
            life.task = asyncio.create_task(life.run(), name=pod["metadata"]["name"])
        elif pod["metadata"].get("deletionTimestamp") and not life.deleted:
            life.pod = pod
            life.deleted = True
            life.wake()

    def _born(self, pod: Document) -> Life:
        labels = pod["metadata"].get("labels") or {}
        name = labels.get(RUN_LABEL) or labels.get("job-name") or pod["metadata"]["name"]
        key = (name, labels.get(ROLE_LABEL, "train"))
        left = self._scripts[key]
        attempt = (left.pop(0) if len(left) > 1 else left[0]) if left else Attempt()
        return Life(self, pod, key, attempt)

    def default(self, container: str) -> Play:
        """What a container does whose script is open."""
        return self._defaults.get(container, Play())

    def stamp(self) -> str:
        """The time by this node's clock."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.skew))


class Life:
    """One pod, from its binding to its end."""

    def __init__(self, kubelet: Kubelet, pod: Document, key: Key, attempt: Attempt) -> None:
        self._kubelet = kubelet
        self.pod, self.key, self.attempt = pod, key, attempt
        self.task: asyncio.Task[None] | None = None
        self.deleted = bool(pod["metadata"].get("deletionTimestamp"))
        self.healed = self.over = False
        self.orders: dict[str, tuple[int, Words | None]] = {}
        self.conditions: dict[str, Document] = {}
        self.states: dict[str, Document] = {}
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()
        spec = pod["spec"]
        self._init: list[Document] = spec.get("initContainers") or []
        self._main: list[Document] = spec["containers"]

    def wake(self) -> None:
        """Look again at what was said."""
        self._changed.set()

    async def run(self) -> None:
        """Live. What the API server refuses because the pod is gone meanwhile is its end."""
        if self.pod["status"].get("phase") in ("Succeeded", "Failed"):
            return  # ended under another stand-in
        if not await self._scheduled():
            return
        phase = await self._played()
        if phase is None:  # the node is lost
            return
        self.conditions.pop("Ready", None)
        await self.write(phase)
        self.over = True
        while not self.deleted:
            await self._wait(None)
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.pod["metadata"]["uid"]}}
        await self._kubelet.call("DELETE", f"pods/{self.pod['metadata']['name']}", options)

    async def _scheduled(self) -> bool:
        """Whether the pod got onto a node; without one it goes at once when it is deleted."""
        if self.attempt.unschedulable:
            message = {"reason": "Unschedulable", "message": self.attempt.unschedulable}
            self.conditions["PodScheduled"] = {"type": "PodScheduled", "status": "False", **message}
            await self.write("Pending", bound=False)
            if not await self._is_healed():
                return False
        name = self.pod["metadata"]["name"]
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}
        target = {"apiVersion": "v1", "kind": "Node", "name": self.attempt.node}
        if not self.pod["spec"].get("nodeName"):
            answer = await self._kubelet.call("POST", f"pods/{name}/binding", {**binding, "target": target})
            if answer.get("status") == "Failure":
                return False
        self.conditions["PodScheduled"] = {"type": "PodScheduled", "status": "True"}
        for reason, message_ in self.attempt.events:
            await self.say(reason, message_)
        return True

    async def _played(self) -> str | None:
        """The phase at the end of all containers; None where nobody will ever hear of it."""
        if any(self.attempt.rejected):
            return "Failed"
        if self.attempt.mounts:
            await self.say("FailedMount", self.attempt.mounts)
            await self.write("Pending")
            await self._is_healed()
        sidecars: dict[str, asyncio.Task[int | None]] = {}
        try:
            for container in self._init:
                name = container["name"]
                if container.get("restartPolicy") == "Always":
                    sidecars[name] = asyncio.create_task(self._play(name, "Pending"))
                elif code := await self._play(name, "Pending"):
                    return "Failed"
                elif code is None:
                    return None
            self.conditions["Initialized"] = {"type": "Initialized", "status": "True"}
            self.conditions["Ready"] = {"type": "Ready", "status": "True"}
            codes = await asyncio.gather(*(self._play(each["name"], "Running") for each in self._main))
            if None in codes:
                return None
            await self._end_sidecars(sidecars)
            return "Failed" if any(codes) else "Succeeded"
        finally:
            for sidecar in sidecars.values():
                sidecar.cancel()
            await asyncio.gather(*sidecars.values(), return_exceptions=True)

    async def _end_sidecars(self, sidecars: Mapping[str, asyncio.Task[int | None]]) -> None:
        """SIGTERM for the native sidecars, once all else has ended."""
        for name in sidecars:
            play = self.attempt.play(name)
            self.orders.setdefault(name, (play.sigterm_code if play else 0, None))
        self.wake()
        await asyncio.gather(*sidecars.values())

    async def _play(self, name: str, phase: str) -> int | None:
        """Let one container live; its exit code."""
        play = self.attempt.play(name) or self._kubelet.default(name)
        trouble = self.attempt.trouble
        if trouble is not None and trouble.container == name:
            self.states[name] = {"waiting": {"reason": trouble.reason, "message": trouble.message}}
            await self.write("Pending")
            if trouble.reason == PULLING:
                await self.say("Pulling", f"Pulling image for {name}")
            await self._is_healed()
        if self.deleted:
            return SIGTERM  # never started
        began = self._kubelet.stamp()
        self.states[name] = {"running": {"startedAt": began}}
        await self.write(phase)
        end = None if play.seconds is None else time.monotonic() + play.seconds
        while not self.deleted and name not in self.orders and (end is None or time.monotonic() < end):
            await self._wait(end)
        if self.attempt.node in self._kubelet.lost_nodes:
            return None
        code, words, reason = play.code, play.words, play.reason
        if name in self.orders:
            code, said = self.orders.pop(name)
            words = words if said is None else said
        elif self.deleted:
            code, words, reason = await self._terminated(play)
        told = words(self.pod) if callable(words) else words
        self.states[name] = {
            "terminated": {
                "exitCode": code,
                "reason": reason or ("Error" if code else "Completed"),
                "message": told if isinstance(told, str) else json.dumps(told),
                "startedAt": began,
                "finishedAt": self._kubelet.stamp(),
            }
        }
        await self.write(phase)
        return code

    async def _terminated(self, play: Play) -> tuple[int, Words, str]:
        grace = float(self.pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        if play.after_sigterm is None or play.after_sigterm > grace:
            await asyncio.sleep(grace)
            return 128 + 9, "", "Error"
        await asyncio.sleep(play.after_sigterm)
        return play.sigterm_code, play.sigterm_words, ""

    async def _is_healed(self) -> bool:
        """Wait until the trouble is over; False when the pod is deleted before."""
        while not self.healed and not self.deleted:
            await self._wait(None)
        self.healed = False
        return not self.deleted

    async def _wait(self, end: float | None) -> None:
        """Wait until something is said, or for the end of a container."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if end is None else max(0.0, end - time.monotonic())):
                await self._changed.wait()

    async def say(self, reason: str, message: str) -> None:
        """Write an Event about the pod."""
        about = {key: self.pod["metadata"][key] for key in ("name", "namespace", "uid")}
        now = self._kubelet.stamp()
        event = {
            "metadata": {
                "name": f"{self.pod['metadata']['name']}.{time.time_ns():x}"
            },  # sorts by time, as kubelet's do
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", **about},
            "type": "Warning" if reason.startswith(("Failed", "BackOff")) else "Normal",
            "source": {"component": "kubelet", "host": self.attempt.node},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "reason": reason,
            "message": message,
        }
        await self._kubelet.call("POST", "events", event)

    async def write(self, phase: str = "", *, bound: bool = True) -> None:
        """Write the pod's status as a kubelet does: one after the other, whatever its containers do at once."""
        async with self._writing:
            await self._write(phase, bound=bound)

    async def _write(self, phase: str, *, bound: bool) -> None:
        now = self._kubelet.stamp()
        for condition in self.conditions.values():
            condition.setdefault("lastTransitionTime", now)
        status: Document = {"conditions": list(self.conditions.values())}
        if phase:
            status["phase"] = phase
        if phase == "Failed" and any(self.attempt.rejected):
            status["reason"], status["message"] = self.attempt.rejected
        elif bound:
            status |= {
                "startTime": self.pod["status"].setdefault("startTime", now),
                "initContainerStatuses": [self._container(each["name"]) for each in self._init],
                "containerStatuses": [self._container(each["name"]) for each in self._main],
            }
        guard = {"uid": self.pod["metadata"]["uid"]}
        path = f"pods/{self.pod['metadata']['name']}/status"
        await self._kubelet.call("PATCH", path, {"metadata": guard, "status": status})

    def _container(self, name: str) -> Document:
        state = self.states.get(name) or {"waiting": {"reason": "PodInitializing"}}
        ready = "running" in state
        return {"name": name, "image": "i", "imageID": "", "ready": ready, "restartCount": 0, "state": state}
