"""How fast the export is, and how much memory it takes.

    python -m benchmarks.export                                    100,000 rows of JSON lines
    python -m benchmarks.export --format=parquet --rows=1000000    another source; also json, csv, jsonl.gz, sqlite

The rows are made up, about 1 KB each, all different. Time runs from the start of the process to its end. Memory is
the process's peak resident size as the kernel counts it: what a container's limit has to allow.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROWS = 100_000
FORMATS = ("jsonl", "jsonl.gz", "json", "csv", "parquet", "sqlite")
WORDS = 2_000
PROMPT_WORDS, COMPLETION_WORDS = 30, 110


def measure() -> dict[str, float]:
    """Export 100,000 rows of JSON lines: `exportRowsPerSecond`, `exportSeconds`, `exportMiB`."""
    # In a process of its own: see _make.
    command = [sys.executable, "-m", "benchmarks.export"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout)
    return {key: figures[key] for key in ("exportRowsPerSecond", "exportSeconds", "exportMiB")}


def run(form: str, rows: int) -> dict[str, Any]:
    """Make the source, export it once, and return the figures."""
    with tempfile.TemporaryDirectory(prefix="bench-export-") as name:
        folder = Path(name)
        path = folder / f"rows.{form}"
        _make(path, form, rows)
        command = [sys.executable, "-m", "model.data.export", f"--run-directory={folder}/run", "--method=SFT"]
        environment = dict(os.environ)
        if form == "sqlite":
            command += ["--source=sql", "--query=select prompt, completion from rows"]
            environment["DATASET_URL"] = f"sqlite:///{path}"
        else:
            command += ["--source=volume", f"--path={path}"]
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)  # noqa: S603 - our own module
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        manifest = json.loads((folder / "run/dataset/manifest.json").read_text())
        assert manifest["rows"] + manifest["evaluationRows"] == rows
        return {
            "format": form,
            "rows": rows,
            "sourceMiB": round(path.stat().st_size / 2**20, 1),
            "exportRowsPerSecond": round(rows / seconds),
            "exportSeconds": round(seconds, 2),
            "exportCpuSeconds": round(usage.ru_utime + usage.ru_stime, 2),
            "exportMiB": round(usage.ru_maxrss / 2**10, 1),
        }


def _make(path: Path, form: str, rows: int) -> None:
    """Write the source in a process of its own.

    The kernel counts the size of whoever starts a process towards that process's peak, so the one that starts the
    export has to stay small.
    """
    command = [sys.executable, "-m", "benchmarks.export", f"--format={form}", f"--rows={rows}", f"--write={path}"]
    subprocess.run(command, check=True)  # noqa: S603 - our own module


def _rows(count: int) -> Iterator[dict[str, str]]:
    chance = random.Random(0)  # noqa: S311 - no secret
    letters = "etaoinshrdlcumwfgypbvk"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(WORDS)]
    for number in range(count):
        prompt, completion = (" ".join(chance.choices(words, k=k)) for k in (PROMPT_WORDS, COMPLETION_WORDS))
        yield {"prompt": f"{number}: {prompt}\nWhy?", "completion": completion}


def _write(path: Path, form: str, count: int) -> None:
    rows = _rows(count)
    if form in ("jsonl", "jsonl.gz"):
        with gzip.open(path, "wt", compresslevel=1) if form.endswith("gz") else path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    elif form == "json":
        with path.open("w") as file:
            file.write("[\n")
            file.writelines(f"{',' if number else ''}{json.dumps(row)}\n" for number, row in enumerate(rows))
            file.write("]\n")
    elif form == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ("prompt", "completion"))
            writer.writeheader()
            writer.writerows(rows)
    elif form == "sqlite":
        with sqlite3.connect(path) as database:
            database.execute("create table rows (prompt text, completion text)")
            database.executemany("insert into rows values (:prompt, :completion)", rows)
        database.close()
    else:
        _write_parquet(path, rows)


def _write_parquet(path: Path, rows: Iterator[dict[str, str]]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with ParquetWriter(path, pa.schema([("prompt", pa.string()), ("completion", pa.string())])) as writer:
        while group := list(islice(rows, 100_000)):
            writer.write_table(pa.Table.from_pylist(group, schema=writer.schema))


def main() -> None:
    """Run the benchmark that the command line asks for, and print its figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=FORMATS, default="jsonl")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--write", type=Path, help="only write the source, to this file")
    arguments = parser.parse_args()
    if arguments.write is not None:
        _write(arguments.write, arguments.format, arguments.rows)
        return
    print(json.dumps(run(arguments.format, arguments.rows)))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
