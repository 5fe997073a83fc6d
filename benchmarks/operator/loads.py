"""The loads, each on a fresh cluster; each returns what it measures and leaves out what it does not."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from benchmarks.operator import history
from benchmarks.operator.cluster import RUNS, Cluster, a_cluster
from finetune.controller.core import names
from tests.support.faults import Hang
from tests.support.kubelet import Attempt, Play
from tests.support.world import result_of

Entry = dict[str, Any]
FOUND_BY = {"g": "f"}
"""Loads that another one measures on its way."""
TOO_MANY_REQUESTS = 429
NO_GPU = Attempt(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
ENDLESS = Attempt(trainer=Play(seconds=None, sigterm_code=75))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1))] if ordered else 0.0


def requests_per_run(before: Mapping[str, int], after: Mapping[str, int], runs: int) -> Entry:
    """Requests by kind since `before`, for each run."""
    each = {kind: round((after.get(kind, 0) - before.get(kind, 0)) / runs, 2) for kind in after}
    return {
        "apiReadsPerRun": each.get("read", 0.0),
        "statusWritesPerRun": each.get("status", 0.0),
        "otherWritesPerRun": each.get("write", 0.0),
        "eventsPerRun": each.get("event", 0.0),
    }


def shares(before: Mapping[str, float], after: Mapping[str, float], runs: int) -> Entry:
    """CPU seconds of each process since `before`, for each run."""
    return {f"{name}CpuSecondsPerRun": round((after[name] - before[name]) / runs, 4) for name in after}


def to_job(cluster: Cluster, runs: Sequence[str]) -> Entry:
    """How long it took from a run's creation to its Job's, as a watcher saw both."""
    waited = [1000 * (cluster.seen.jobs[run] - cluster.created[run]) for run in runs]
    return {
        "createToJobP50Ms": round(statistics.median(waited), 1),
        "createToJobP99Ms": round(percentile(waited, 99), 1),
    }


async def _is_listed(cluster: Cluster) -> None:
    """The operator has started and does its work."""
    await cluster.create("warm-up")
    await cluster.in_phase(["warm-up"], "Succeeded")


async def short_runs(load: str, count: int, pause: float, endless: int = 0) -> Entry:
    """`count` runs, one each `pause` seconds; the last `endless` of them go on for ever."""
    async with a_cluster() as cluster:
        await _is_listed(cluster)
        runs = [f"r{n:05}" for n in range(count)]
        going_on, ending = runs[count - endless :], runs[: count - endless]
        for run in going_on:
            cluster.kubelet.script(run, ENDLESS)
        before, cpu, memory = await cluster.requests(), cluster.cpu_seconds(), cluster.rss_mib()
        stored, others = cluster.database_kib(), cluster.other_cpu_seconds()
        began, cluster.seen.queue_seconds = time.monotonic(), 0.0
        if pause:
            for run in runs:
                await asyncio.gather(cluster.create(run), asyncio.sleep(pause))
        else:
            await cluster.create_all(runs)
        ended = await cluster.in_phase(ending, "Succeeded")
        await cluster.in_phase(going_on, "Training")
        await _all_marked(cluster, len(ending))
        return {
            "load": load,
            "runs": count,
            **to_job(cluster, runs),
            **requests_per_run(before, await cluster.requests(), count),
            "queueSeconds": round(cluster.seen.queue_seconds, 1),
            "cpuSecondsPerRun": round((cluster.cpu_seconds() - cpu) / count, 4),
            **shares(others, cluster.other_cpu_seconds(), count),
            "rssMiB": round(cluster.peak_mib(), 1),
            "rssKiBPerRun": round(1024 * (cluster.peak_mib() - memory) / count, 1),
            "databaseKiBPerRun": round((cluster.database_kib() - stored) / count, 1),
            "runsPerMinute": round(60 * len(ending) / (ended - began), 1),
            "seconds": round(ended - began, 1),
        }


async def _all_marked(cluster: Cluster, count: int) -> None:
    """Every finished run has been cleaned up: its mark is there."""

    async def marked() -> int:
        found, token = 0, ""
        while True:
            page = await cluster.call("GET", f"{RUNS}?limit=500&continue={token}")
            found += sum(names.FINISHED_ANNOTATION in (e["metadata"].get("annotations") or {}) for e in page["items"])
            token = page["metadata"].get("continue") or ""
            if not token:
                return found

    await cluster.until("the marks", marked, lambda found: found >= count)


async def waiting_runs(waiting: int, training: int, seconds: float) -> Entry:
    """Runs that wait for a GPU, beside some that train."""
    async with a_cluster() as cluster:
        await _is_listed(cluster)
        idle, busy = [f"w{n:04}" for n in range(waiting)], [f"t{n:04}" for n in range(training)]
        for run in idle:
            cluster.kubelet.script(run, NO_GPU)
        for run in busy:
            cluster.kubelet.script(run, ENDLESS)
        await cluster.create_all([*busy, *idle])
        await cluster.in_phase(busy, "Training")
        await cluster.until("all wait", lambda: _waiting(cluster), lambda found: found >= waiting)
        before, cpu = await cluster.requests(), cluster.cpu_seconds()
        await asyncio.sleep(seconds)
        made = sum((await cluster.requests() - before).values())
        used = cluster.cpu_seconds() - cpu
        suspended = [await cluster.suspend(run) for run in busy]
        return {
            "load": "d",
            "runs": waiting + training,
            "waitSeconds": seconds,
            "requestsPerWaitingRunPerMinute": round(60 * made / seconds / waiting, 2),
            "suspendP99Ms": round(1000 * percentile(suspended, 99), 1),
            "idleCpuPercent": round(100 * used / seconds, 2),
            "rssMiB": round(cluster.peak_mib(), 1),
        }


async def _waiting(cluster: Cluster) -> int:
    page = await cluster.call("GET", RUNS)
    return sum(bool((run.get("status") or {}).get("waiting")) for run in page["items"])


async def training_runs(count: int, seconds: float) -> Entry:
    """Runs that train and post a step every second, and nothing else."""
    async with a_cluster() as cluster:
        runs = [f"t{n:04}" for n in range(count)]
        for run in runs:
            cluster.kubelet.script(run, ENDLESS)
        await cluster.create_all(runs)
        await cluster.in_phase(runs, "Training")
        uids = {run["metadata"]["name"]: run["metadata"]["uid"] for run in (await cluster.call("GET", RUNS))["items"]}
        posting = asyncio.create_task(_post_steps(cluster, list(uids.values()), seconds))
        before = await cluster.requests()
        await posting
        made = sum((await cluster.requests() - before).values())
        return {
            "load": "training",
            "runs": count,
            "waitSeconds": seconds,
            "requestsPerTrainingRunPerMinute": round(60 * made / seconds / count, 2),
        }


async def _post_steps(cluster: Cluster, uids: Sequence[str], seconds: float) -> None:
    """One step a second of ten thousand, as a trainer posts it."""
    began = time.monotonic()
    step = 0
    while time.monotonic() - began < seconds:
        step += 1
        for uid in uids:
            path = f"{cluster.registry}/api/v1/namespaces/load/runs/{uid}/status"
            metrics = [{"name": "loss", "value": f"{2 / step:.4f}"}, {"name": "step", "value": str(step)}]
            body = {"trainerStatus": {"progressPercentage": step // 100, "metrics": metrics}}
            async with cluster.session.post(path, json=body, ssl=False) as answer:
                if answer.status >= 300 and answer.status != TOO_MANY_REQUESTS:
                    raise RuntimeError(f"{path}: {answer.status} {await answer.text()}")
        await asyncio.sleep(max(0.0, began + step - time.monotonic()))


async def hanging_registry(count: int, seconds: float) -> Entry:
    """The registry answers nobody while runs end; others are suspended meanwhile."""
    async with a_cluster(proxied=True) as cluster:
        if cluster.proxy is None:
            raise RuntimeError("the registry is not behind a proxy")
        await _is_listed(cluster)
        ending, going_on = [f"e{n:04}" for n in range(count)], [f"t{n:04}" for n in range(10)]
        for run in [*ending, *going_on]:
            cluster.kubelet.script(run, ENDLESS)
        await cluster.create_all([*ending, *going_on])
        await cluster.in_phase([*ending, *going_on], "Training")
        with cluster.proxy.faulty(Hang(".*", "")):
            began = time.monotonic()
            for run in ending:
                cluster.kubelet.tell(run, "trainer", words=_words)
            suspended = [await cluster.suspend(run) for run in going_on]
            await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))
        back = time.monotonic()
        ended = await cluster.in_phase(ending, "Succeeded")
        return {
            "load": "e",
            "runs": count,
            "suspendP99Ms": round(1000 * percentile(suspended, 99), 1),
            "secondsAfter": round(ended - back, 1),
            "rssMiB": round(cluster.peak_mib(), 1),
        }


def _words(pod: Mapping[str, Any]) -> dict[str, Any]:
    return result_of(pod["metadata"]["labels"][names.RUN_UID_LABEL])


async def restart(count: int, idle_seconds: float) -> list[Entry]:
    """A start with a history of finished runs, and the time after it."""
    async with a_cluster(start=False) as cluster:
        await _finished_runs(cluster, count)
        before, began = await cluster.requests(), time.monotonic()
        await cluster.operator.start()
        await cluster.create("probe")
        await cluster.in_phase(["probe"], "Succeeded")
        steady = await _steady(cluster)
        after = await cluster.requests()
        entry = {
            "load": "f",
            "runs": count,
            **to_job(cluster, ["probe"]),
            "steadySeconds": round(steady - began, 1),
            "requests": sum((after - before).values()),
            "requestsForFinishedRuns": cluster.requests_naming("h0") + cluster.requests_naming("t-h0"),
            "cpuSeconds": round(cluster.cpu_seconds(), 2),
            "rssMiB": round(cluster.peak_mib(), 1),
        }
        cpu, began = cluster.cpu_seconds(), time.monotonic()
        await asyncio.sleep(idle_seconds)
        used = (cluster.cpu_seconds() - cpu) / (time.monotonic() - began)
        idle = {"load": "g", "runs": count, "idleCpuPercent": round(100 * used, 2)}
        idle["rssMiB"] = round(cluster.rss_mib(), 1)
        return [entry, idle]


async def _steady(cluster: Cluster) -> float:
    """The time at which a second begins in which the operator uses less than a twentieth of a core."""
    while True:
        began, cpu = time.monotonic(), cluster.cpu_seconds()
        await asyncio.sleep(1)
        if cluster.cpu_seconds() - cpu < 0.05:
            return began


async def _finished_runs(cluster: Cluster, count: int) -> None:
    """Runs that have ended long ago: what one real run leaves, many times."""
    await cluster.operator.start()
    await cluster.create("model")
    await cluster.in_phase(["model"], "Succeeded")
    await _all_marked(cluster, 1)
    model = await cluster.call("GET", f"{RUNS}/model")
    await cluster.operator.kill()
    names = [f"h{n:05}" for n in range(count - 1)]
    await history.write(cluster.session, cluster.etcd, [history.ended_like(model, name) for name in names])

    async def last_in_memory() -> int:
        # The API server takes up what it finds in etcd one after the other, for half a minute: a start before that
        # would measure how long the operator waits for it.
        query = f"resourceVersion=0&fieldSelector=metadata.name%3D{names[-1]}"
        return len((await cluster.call("GET", f"{RUNS}?{query}"))["items"])

    await cluster.until("the API server has taken up the history", last_in_memory, lambda found: found == 1)


Load = Callable[[], Coroutine[Any, Any, Entry | list[Entry]]]


def loads(*, quick: bool, runs: int | None = None, wait_seconds: float = 600) -> dict[str, Load]:
    """The loads by name; quick ones are for a first look.

    `runs` instead of each load's own number, and `wait_seconds` for what is measured while nothing happens.
    """

    def some(full: int, few: int) -> int:
        return runs or (few if quick else full)

    wait = min(60.0, wait_seconds) if quick else wait_seconds
    return {
        "alone": lambda: short_runs("alone", some(20, 5), 3),
        "a": lambda: short_runs("a", some(100, 20), 0.1),
        "b": lambda: short_runs("b", some(2_000, 200), 0),
        "c": lambda: short_runs("c", some(10_000, 1_000), 0, endless=some(10_000, 1_000) // 10),
        "d": lambda: waiting_runs(some(500, 50), 20, wait),
        "training": lambda: training_runs(some(20, 20), min(300.0, wait)),
        "e": lambda: hanging_registry(some(100, 20), 20 if quick else 60),
        "f": lambda: restart(some(10_000, 1_000), 60),
    }


def spread(entries: Sequence[Entry]) -> Entry:
    """Of several rounds of one load: the median of each figure, with the lowest and the highest."""
    first = entries[0]
    return {
        key: value
        if key in ("load", "runs", "waitSeconds")
        else {
            "median": statistics.median(values := [entry[key] for entry in entries]),
            "low": min(values),
            "high": max(values),
        }
        for key, value in first.items()
    }
