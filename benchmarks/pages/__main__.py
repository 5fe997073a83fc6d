"""How fast the registry's pages are with many runs, in the server and in a browser.

    python -m benchmarks.pages            # 10,000 runs of 1,000 points, 200 viewers
    python -m benchmarks.pages --quick    # 500 runs, 20 viewers: a first look

The registry is a process of its own, over SQLite, on loopback. Figures and aims go to out/bench-pages.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.pages.filling import NAMESPACE, RUNNING, fill, uid_of
from tests.support.pages import post_points
from tests.support.ports import free_port

OUT = Path("out/bench-pages.json")
AIMS = {
    "list_p99_ms": 50,
    "run_p99_ms": 50,
    "compare_p99_ms": 100,
    "first_view_bytes": 60_000,
    "largest_contentful_paint_ms": 500,
    "viewers_cpu_percent": 5,
    "viewers_bytes": 20_000_000,
    "redraw_ms": 16,
}
"""The most that each may be."""
WATCH_SECONDS = 20


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 runs and 20 viewers")
    quick = parser.parse_args().quick
    count, viewers, rounds = (500, 20, 30) if quick else (10_000, 200, 200)
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        database = f"sqlite:///{scratch}/registry.db"
        asyncio.run(fill(database, runs=count, points=1000))
        with registry(database) as (url, process):
            figures: dict[str, Any] = {"runs": count, "points": 1000, "viewers": viewers, "cores": os.cpu_count()}
            figures |= times(url, rounds)
            figures |= transferred(url)
            figures |= asyncio.run(watched(url, process.pid, viewers))
            figures |= in_browser(url)
    figures["missed"] = [name for name, most in AIMS.items() if (figures.get(name) or 0) > most]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"aims": AIMS, **figures}, indent=2) + "\n")
    print(OUT.read_text())  # noqa: T201 - the command's answer


@contextmanager
def registry(database: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A registry process over a database; gives its address."""
    port = free_port()
    command = (sys.executable, "-m", "finetune.cli.main", "registry", "serve", "--port", str(port))
    process = subprocess.Popen(  # noqa: S603 - our own command
        (*command, "--database-url", database), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the registry did not start")
            time.sleep(0.1)
        yield url, process
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def times(url: str, rounds: int) -> dict[str, float]:
    """Milliseconds from request to whole answer, over one connection; the first three are left out."""
    compared = "&".join(f"run={uid_of(number)}" for number in range(1, 9))
    pages = {
        "list": "runs",
        "filtered": "runs?state=Failed&text=row&sort=evaluationLoss",
        "run": f"runs/{uid_of(5)}",
        "compare": f"compare?{compared}",
    }
    found = {}
    with httpx.Client(base_url=f"{url}/ui/{NAMESPACE}/") as http:
        for name, path in pages.items():
            taken = []
            for _ in range(rounds + 3):
                started = time.perf_counter()
                http.get(path).raise_for_status()
                taken.append(1000 * (time.perf_counter() - started))
            kept = sorted(taken[3:])
            found[f"{name}_p50_ms"] = round(statistics.median(kept), 1)
            found[f"{name}_p99_ms"] = round(kept[min(len(kept) - 1, int(len(kept) * 0.99))], 1)
    return found


def transferred(url: str) -> dict[str, int]:
    """Bytes of a run's page with all files that it links, as they go over the wire."""
    import re

    with httpx.Client(base_url=url, headers={"Accept-Encoding": "gzip"}) as http:
        page = http.get(f"/ui/{NAMESPACE}/runs/{uid_of(5)}")
        paths = re.findall(r'(?:src|href)="(/ui/static/[^"]+)"', page.text)
        sizes = [int(http.get(path).headers["content-length"]) for path in paths]
    return {"first_view_bytes": int(page.headers["content-length"]) + sum(sizes)}


async def watched(url: str, pid: int, viewers: int) -> dict[str, float]:
    """What viewers of one run cost the registry while its trainer posts every five seconds."""
    address = f"{url}/ui/{NAMESPACE}/runs/{uid_of(RUNNING)}/events"
    cpu, memory = _used(pid)
    await _posts(url, 0, WATCH_SECONDS)
    alone = _used(pid)[0] - cpu
    limits = httpx.Limits(max_connections=viewers)
    async with httpx.AsyncClient(timeout=None, limits=limits) as http:  # noqa: S113 - streams have no end
        reading = [asyncio.create_task(_read(http, address)) for _ in range(viewers)]
        await asyncio.sleep(3)
        cpu, grown = _used(pid)
        await _posts(url, 1, WATCH_SECONDS)
        together = _used(pid)[0] - cpu
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    return {
        "viewers_cpu_percent": round(100 * max(0.0, together - alone) / WATCH_SECONDS, 1),
        "viewers_bytes": grown - memory,
    }


async def _posts(url: str, turn: int, seconds: int) -> None:
    with httpx.Client(base_url=f"{url}/api/v1/namespaces/{NAMESPACE}/") as http:
        for number in range(seconds // 5):
            first = 1001 + 5 * (turn * seconds // 5 + number)
            await asyncio.to_thread(post_points, http, uid_of(RUNNING), first, first + 4)
            await asyncio.sleep(5)


async def _read(http: httpx.AsyncClient, address: str) -> None:
    async with http.stream("GET", address) as answer:
        async for _ in answer.aiter_bytes():
            pass


def _used(pid: int) -> tuple[float, int]:
    """Seconds of a core that a process has used, and the bytes of memory that it has."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return cpu, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def in_browser(url: str) -> dict[str, float]:
    """Largest contentful paint of the list, and how long eight curves of 600 points take to be drawn again."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        return {}
    compared = "&".join(f"run={uid_of(number)}" for number in range(1, 9))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{url}/ui/{NAMESPACE}/runs")
        paint = page.evaluate(
            "new Promise(done => new PerformanceObserver(list => done(list.getEntries().at(-1).startTime))"
            ".observe({type: 'largest-contentful-paint', buffered: true}))"
        )
        page.goto(f"{url}/ui/{NAMESPACE}/compare?{compared}")
        page.locator("canvas").first.wait_for()
        redraw = page.evaluate(
            "async () => { const chart = [...charts.values()].find(each => each.uplot);"
            " const start = performance.now();"
            " for (let i = 0; i < 20; i++) { chart.draw(); await null; }"  # uPlot paints in a microtask
            " return (performance.now() - start) / 20; }"
        )
        browser.close()
    return {"largest_contentful_paint_ms": round(paint, 1), "redraw_ms": round(redraw, 2)}


if __name__ == "__main__":
    main()
