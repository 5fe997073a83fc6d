"""The registry under load: `make bench-registry BENCH=--quick` writes out/bench-registry.json.

A database of 10,000 runs with 1,000 points of three metrics each and 5,000 adapters; 20 readers ask for a list or a
curve twice a second while 200 trainers post every five. Then rows and files go in and out. Latencies are of one process
on this machine, over loopback; they need a quiet one.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.pages.__main__ import registry
from benchmarks.pages.filling import METRICS, NAMESPACE, START, fill, uid_of
from finetune.registry.database import Database, parse_url
from finetune.registry.schema import adapter_versions, adapters
from tests.support.adapters import announce, registered, safetensors
from tests.support.registry import pairs, run_document

READERS = 20
POSTERS = 200
POST_SECONDS = 5.0
"""Between two posts of a trainer."""
READ_SECONDS = 0.5
"""Between an answer and a reader's next question: without a pause twenty readers would measure this client."""
TARGETS = {
    "p99Milliseconds": "<= 100 for lists and series",
    "exportSeconds": "<= 5 for 100,000 rows",
    "pullMegabytesPerSecond": ">= 200",
    "memoryMiB": "<= 250",
    "bytesPerPoint": "<= 30",
    "cores": "<= 0.5 for 200 trainers",
}


def main() -> int:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(prog="benchmarks.registry", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows, and five seconds")
    parser.add_argument("--output", type=Path, default=Path("out/bench-registry.json"))
    arguments = parser.parse_args()
    runs, points, versions, seconds, rows, megabytes = (
        (500, 200, 250, 5.0, 5_000, 5) if arguments.quick else (10_000, 1_000, 5_000, 60.0, 100_000, 100)
    )
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "registry.db"
        url = f"sqlite:///{database}"
        asyncio.run(fill(url, runs=runs, points=points))
        size = database.stat().st_size
        asyncio.run(add_adapters(url, versions))
        with registry(url) as (address, process):
            loaded = asyncio.run(under_load(address, process.pid, runs=runs, seconds=seconds))
            moved = transfers(address, rows=rows, megabytes=megabytes)
            moved["memoryMiB"] = memory(process.pid)
    document = {
        "quick": arguments.quick,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "runs": runs,
        "points": points,
        "adapters": versions,
        # All of the file: runs, specs and indexes among it, so that many points of few runs are the lower bound.
        "bytesPerPoint": round(size / (runs * points * len(METRICS)), 1),
        "load": loaded,
        "transfers": moved,
        "targets": TARGETS,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    sys.stdout.write(arguments.output.read_text())
    return 0


async def add_adapters(url: str, count: int) -> None:
    """Give the first runs adapters, ten versions of each."""
    database = Database(parse_url(url))

    async def transaction(connection: AsyncConnection) -> None:
        names = range(1, count // 10 + 1)
        common = {"namespace": NAMESPACE, "last_version": 10, "created_time": START}
        await connection.execute(insert(adapters), [{**common, "id": n, "name": f"adapter-{n}"} for n in names])
        await connection.execute(insert(adapter_versions), [_version(number) for number in range(1, count + 1)])

    await database.write(transaction)
    await database.close()


def _version(number: int) -> dict[str, Any]:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    facts = {"rows": 400, "evaluationRows": 40, "dropped": 0, "duplicates": 0, "bytes": 100_000, "sha256": digest}
    return {
        "id": number,
        "public_id": str(uuid.UUID(int=number)),
        "adapter_id": 1 + (number - 1) // 10,
        "version": 1 + (number - 1) % 10,
        "run_id": number,
        "claim_name": "adapters",
        "base_model_name": "meta-llama/Llama-3.1-8B",
        "dataset_sha256": digest,
        "dataset": facts,
        "sha256": digest,
        "bytes": 40_000_000,
        "final_loss": "1.5",
        "evaluation_loss": f"{1 + number % 97 / 97:.4f}",
        "steps": 1000,
        "resumed_from_step": 0,
        "created_time": START,
        "tags": {},
        "notes": "",
    }


async def under_load(url: str, pid: int, *, runs: int, seconds: float) -> dict[str, Any]:
    """Readers and trainers at once; milliseconds by call, and the share of a core that the process took."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    base = f"{url}/api/v1/namespaces/{NAMESPACE}"
    limits = httpx.Limits(max_connections=READERS + POSTERS)
    async with httpx.AsyncClient(timeout=30, limits=limits) as http:

        async def timed(name: str, call: Callable[[], Awaitable[httpx.Response]]) -> None:
            began = time.perf_counter()
            answer = await call()
            took[name].append((time.perf_counter() - began) * 1000)
            assert answer.status_code < 300, f"{name}: {answer.status_code} {answer.text[:300]}"

        async def read(reader: int) -> None:
            number = reader
            while True:
                for name, path in readings(number % runs + 1).items():
                    await timed(name, partial(http.get, f"{base}/{path}"))
                    await asyncio.sleep(READ_SECONDS)
                number += READERS

        async def post(poster: int, uid: str) -> None:
            await asyncio.sleep(POST_SECONDS * poster / POSTERS)
            for turn in range(1, 1000):
                status = progress(turn)
                await timed("POST status", partial(http.post, f"{base}/runs/{uid}/status", json=status))
                await asyncio.sleep(POST_SECONDS)

        uids = [str(uuid.uuid4()) for _ in range(POSTERS)]
        for number, uid in enumerate(uids):
            await http.put(f"{base}/runs/{uid}", json=run_document(name=f"live-{number}"))
        trainers = [asyncio.create_task(post(number, uid)) for number, uid in enumerate(uids)]
        await asyncio.sleep(POST_SECONDS)
        alone = used(pid), time.monotonic()
        await asyncio.sleep(seconds / 2)
        cores = (used(pid) - alone[0]) / (time.monotonic() - alone[1])
        readers = [asyncio.create_task(read(number)) for number in range(READERS)]
        await asyncio.sleep(seconds)
        for task in (*readers, *trainers):
            task.cancel()
        ended = await asyncio.gather(*readers, *trainers, return_exceptions=True)
        failed = [each for each in ended if not isinstance(each, asyncio.CancelledError)]
        assert not failed, failed[0]
    return {
        "coresWithTrainersAlone": round(cores, 3),
        "milliseconds": {
            name: {
                "calls": len(values),
                "p50": round(statistics.median(values), 1),
                "p99": round(sorted(values)[int(len(values) * 0.99)], 1),
            }
            for name, values in sorted(took.items())
        },
    }


def readings(number: int) -> dict[str, str]:
    """What a reader asks for, by name."""
    some = ",".join(uid_of(each) for each in range(number, number + 8))
    return {
        "GET runs": "runs?limit=50",
        "GET runs by loss": "runs?sort=evaluationLoss&limit=50",
        "GET runs that failed": "runs?state=Failed&limit=50",
        "GET runs with a text": f"runs?text=run-{number}&limit=50",
        "GET run": f"runs/{uid_of(number)}",
        "GET series of 1": f"series?runs={uid_of(number)}&metric=loss&points=500",
        "GET series of 8": f"series?runs={some}&metric=loss,evaluationLoss&points=500",
        "GET adapters": "adapters",
        "GET adapter": "adapters/adapter-1/versions/latest",
        "GET datasets": "datasets",
    }


def progress(turn: int) -> dict[str, Any]:
    """A trainer's post of five steps."""
    steps = range(5 * turn - 4, 5 * turn + 1)
    points = [{"step": step, "values": {"loss": 2 / step, "learningRate": 1e-4, "gradientNorm": 1.0}} for step in steps]
    metrics = [{"name": "step", "value": str(5 * turn)}, {"name": "loss", "value": "1.5"}]
    return {
        "trainerStatus": {"progressPercentage": 5, "metrics": metrics},
        "attempt": 1,
        "startStep": 0,
        "points": points,
    }


def transfers(url: str, *, rows: int, megabytes: int) -> dict[str, float]:
    """Rows and a file, in and out."""
    figures: dict[str, float] = {}
    with httpx.Client(base_url=f"{url}/api/v1/namespaces/bytes", timeout=600) as http:
        content = pairs(rows)
        began = time.perf_counter()
        http.post("datasets/many/versions", content=content).raise_for_status()
        figures["uploadRowsPerSecond"] = round(rows / (time.perf_counter() - began))
        began = time.perf_counter()
        assert len(http.get("datasets/many/versions/1/rows").content) == len(content)
        figures["exportSeconds"] = round(time.perf_counter() - began, 2)
        figures["exportRowsPerSecond"] = round(rows / (time.perf_counter() - began))
        uid = str(uuid.uuid4())
        files = {"adapter_config.json": b"{}", "adapter_model.safetensors": safetensors({"a": megabytes * 250_000})}
        http.put(f"runs/{uid}", json=run_document()).raise_for_status()
        announce(http, uid, files).raise_for_status()
        began = time.perf_counter()
        for content in files.values():
            http.put(f"runs/{uid}/blobs/{hashlib.sha256(content).hexdigest()}", content=content).raise_for_status()
        figures["sendMegabytesPerSecond"] = round(megabytes / (time.perf_counter() - began), 1)
        http.put(f"runs/{uid}/adapter", json=registered(uid, files)).raise_for_status()
        began, size = time.perf_counter(), 0
        with http.stream("GET", "adapters/support/versions/1/files/adapter_model.safetensors") as answer:
            for block in answer.iter_raw():
                size += len(block)
        assert size > megabytes * 10**6
        figures["pullMegabytesPerSecond"] = round(megabytes / (time.perf_counter() - began), 1)
    return figures


def used(pid: int) -> float:
    """The CPU seconds that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """The most memory that a process has had, in MiB."""
    peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1024, 1)


if __name__ == "__main__":
    raise SystemExit(main())
