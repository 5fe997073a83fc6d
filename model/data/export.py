r"""Copies a run's dataset to its claim, checked row by row and split into training and held-out rows.

    python -m model.data.export --run-directory=/output/demo/<uid> --method=SFT --seed=42 \
        --evaluation-percent=5 --source=configMap --path=/source/train.jsonl

Each line is read, checked and written before the next one is read: memory does not grow with the dataset.
The files appear under their names only when complete, `manifest.json` last; a second start with the same
request finds it and does nothing. SIGTERM ends the process at once with 143, nothing is worth saving.
"""

from __future__ import annotations

import os
import signal

from model import exits

if __name__ == "__main__":
    # First of all: the kernel ignores SIGTERM for a process that is PID 1 and has no handler of its own.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(exits.TERMINATED))

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import Field, model_validator

from model import flags
from model.data.checks import Report, empty_failure
from model.data.formats import CANONICAL_FIELDS, Row, Shape, parse_value
from model.data.records import InvalidRowError
from model.data.sources import FileSource, RegistrySource, Source, SourceInterruptedError
from model.data.split import SmallestHashes, percent_threshold, row_hash
from model.exits import FailureError
from model.files import SCHEMA_VERSION, RunDirectory, fsync_path, sha256_of_files, write_json
from model.registry import RunRegistry
from model.result import as_failure, failure_document, write_termination_message

USAGE = "python -m model.data.export --run-directory=PATH --source=registry|configMap|volume [--flag=value ...]"
READ_ATTEMPTS = 3
READ_DELAY_SECONDS = 1.0
DATASET_KEYS = ("version", "rows", "evaluationRows", "dropped", "bytes", "sha256")


class ExportSettings(flags.Settings):
    """What to export and how."""

    run_directory: Path = Field(description="The run's directory on the output volume")
    method: Literal["SFT"] = Field("SFT", description="Training method, which decides what a row looks like")
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of the split")
    evaluation_percent: int | None = Field(
        None, ge=0, le=50, description="Share of the rows to hold out; 5 when nothing else is said"
    )
    evaluation_max_rows: int | None = Field(None, ge=0, description="How many rows to hold out, half at most")
    invalid_rows: Literal["Fail", "Drop"] = Field("Fail", description="What to do when a row is invalid")
    column: dict[str, str] = Field(
        default_factory=dict, description="Where a field is found: prompt=question, once per field"
    )
    source: Literal["registry", "configMap", "volume"] = Field(description="Where the dataset comes from")
    path: Path | None = Field(None, description="A JSON-lines file, for configMap and volume")
    registry_url: str | None = Field(None, description="Base URL of the registry, for registry")
    registry_token_file: Path | None = Field(None, description="File with the token for the registry")
    namespace: str | None = Field(None, description="The run's namespace, for registry")
    run_uid: str | None = Field(None, description="The run's uid, for registry")

    @model_validator(mode="after")
    def _check_together(self) -> ExportSettings:
        problems = []
        if self.evaluation_percent is not None and self.evaluation_max_rows is not None:
            problems.append("give --evaluation-percent or --evaluation-max-rows, not both")
        if unknown := set(self.column) - set(CANONICAL_FIELDS):
            problems.append(f"--column={min(unknown)}=...: no such field, use one of {', '.join(CANONICAL_FIELDS)}")
        needed = {"registry": ("registry_url", "namespace", "run_uid")}.get(self.source, ("path",))
        problems += [
            f"--source={self.source} needs {flags.flag(name)}" for name in needed if getattr(self, name) is None
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def build_source(self) -> Source:
        """Return the source that the flags name."""
        if self.source == "registry":
            assert self.registry_url is not None
            assert self.namespace is not None
            assert self.run_uid is not None
            return RegistrySource(
                RunRegistry(self.registry_url, self.namespace, self.run_uid, self.registry_token_file)
            )
        assert self.path is not None
        return FileSource(self.source, self.path)

    def request(self) -> dict[str, Any]:
        """Return what, beside the source's content and the seed, decides what the files hold."""
        return {
            "columns": self.column,
            "invalidRows": self.invalid_rows,
            "evaluationPercent": self.held_out_percent,
            "evaluationMaxRows": self.evaluation_max_rows,
        }

    @property
    def held_out_percent(self) -> int | None:
        """The share of rows to hold out, None when a number of rows is given instead."""
        if self.evaluation_max_rows is not None:
            return None
        return 5 if self.evaluation_percent is None else self.evaluation_percent


class RowFiles:
    """The two files under their temporary names, and which row goes into which.

    With a share to hold out, each row's own hash decides at once. With a number of rows to hold out, that
    depends on all rows: they are first written to one file and dealt out afterwards.
    """

    def __init__(self, directory: RunDirectory, settings: ExportSettings, stack: ExitStack) -> None:
        self._seed = settings.seed
        self._train = stack.enter_context(_temporary(directory.train_rows))
        self._evaluation = stack.enter_context(_temporary(directory.evaluation_rows))
        self._all: BinaryIO | None = None
        self._threshold = percent_threshold(settings.held_out_percent or 0)
        self._smallest = SmallestHashes(settings.evaluation_max_rows or 0)
        if settings.evaluation_max_rows:
            self._all = stack.enter_context(_temporary(directory.dataset / "rows.jsonl"))
        self.rows = 0
        self.evaluation_rows = 0

    def add(self, number: int, row: Row) -> None:
        """Write one row with its 1-based number in the source."""
        value = row_hash(row.content, self._seed)
        line = _encode({**row.content, "row": number})
        if self._all is None:
            self._deal(value, line)
        else:
            self._smallest.add(value)
            self._all.write(b"%d " % value + line)

    def finish(self) -> None:
        """Deal out the rows that waited for it, and bring both files to the disk."""
        if self._all is not None:
            self._threshold = self._smallest.threshold()
            self._all.seek(0)
            for entry in self._all:
                value, _, line = entry.partition(b" ")
                self._deal(int(value), line)
            self._all.close()
            Path(self._all.name).unlink()
        for file in (self._train, self._evaluation):
            file.flush()
            os.fsync(file.fileno())

    def _deal(self, value: int, line: bytes) -> None:
        if value < self._threshold:
            self._evaluation.write(line)
            self.evaluation_rows += 1
        else:
            self._train.write(line)
            self.rows += 1


def export(settings: ExportSettings) -> dict[str, Any]:
    """Export the dataset unless that has been done, and return its manifest.

    Raises
    ------
    FailureError
        When the dataset is not there, is refused, is invalid, or has no rows.
    """
    directory = RunDirectory(settings.run_directory)
    source = settings.build_source()
    if (manifest := finished_manifest(directory, settings, source)) is not None:
        return manifest
    directory.dataset.mkdir(parents=True, exist_ok=True)
    directory.manifest.unlink(missing_ok=True)
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return _export_once(settings, directory, source)
        except SourceInterruptedError as error:
            if attempt == READ_ATTEMPTS:
                raise FailureError(exits.UNAVAILABLE, "DatasetUnavailable", str(error)) from error
            print(f"reading again from the start: {error}", file=sys.stderr, flush=True)
            time.sleep(READ_DELAY_SECONDS * attempt)
    raise AssertionError("the loop returns or raises")


def finished_manifest(directory: RunDirectory, settings: ExportSettings, source: Source) -> dict[str, Any] | None:
    """Return the manifest of an earlier export of the same request whose files are complete, else None."""
    try:
        manifest: dict[str, Any] = json.loads(directory.manifest.read_text(encoding="utf-8"))
        size = directory.train_rows.stat().st_size + directory.evaluation_rows.stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    same = (
        manifest.get("schemaVersion") == SCHEMA_VERSION
        and manifest.get("source") == {**source.description(), **settings.request()}
        and manifest.get("seed") == settings.seed
        and manifest.get("bytes") == size
    )
    return manifest if same else None


def _export_once(settings: ExportSettings, directory: RunDirectory, source: Source) -> dict[str, Any]:
    report = Report(source.name)
    shape: Shape | None = None
    with ExitStack() as stack:
        files = RowFiles(directory, settings, stack)
        for record in source.records():
            try:
                if isinstance(record.value, InvalidRowError):
                    raise record.value
                row = parse_value(record.value, settings.column, shape)
            except InvalidRowError as error:
                report.add(record.number, error)
                continue
            shape = row.shape
            files.add(record.number, row)
        if report.invalid_rows and settings.invalid_rows == "Fail":
            raise report.failure()
        files.finish()
    if shape is None:
        raise empty_failure(source.name, report.invalid_rows)
    if files.rows == 0:
        raise FailureError(
            exits.DATASET_INVALID,
            "DatasetInvalid",
            f"{source.name} has no rows left to train on: all {files.evaluation_rows} are held out; add rows "
            "or hold out fewer",
        )
    for path in (directory.train_rows, directory.evaluation_rows):
        _temporary_name(path).replace(path)
    fsync_path(directory.dataset)
    manifest = {
        "schemaVersion": SCHEMA_VERSION,
        "source": {**source.description(), **settings.request()},
        "rows": files.rows,
        "evaluationRows": files.evaluation_rows,
        "dropped": report.invalid_rows,
        "bytes": directory.train_rows.stat().st_size + directory.evaluation_rows.stat().st_size,
        "sha256": sha256_of_files([directory.train_rows, directory.evaluation_rows]),
        "shape": shape,
        "seed": settings.seed,
        "version": source.version,
    }
    write_json(directory.manifest, manifest)
    return manifest


def _temporary(path: Path) -> BinaryIO:
    return _temporary_name(path).open("w+b")


def _temporary_name(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; the last words are in the termination message."""
    if "--help" in arguments:
        print(flags.help_text(ExportSettings, USAGE))
        return exits.OK
    started = time.monotonic()
    try:
        manifest = export(flags.parse(ExportSettings, arguments))
    except BaseException as error:  # noqa: BLE001 - the process ends here, and its last words must say why
        failure = as_failure(error)
        write_termination_message(failure_document(failure))
        print(f"{failure.reason}: {failure.message}", file=sys.stderr)
        return failure.code
    dataset = {key: manifest[key] for key in DATASET_KEYS if manifest[key] is not None}
    write_termination_message({"dataset": dataset})
    print(
        _encode({"event": "export", **dataset, "seconds": round(time.monotonic() - started, 3)}).decode(),
        end="",
    )
    return exits.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
