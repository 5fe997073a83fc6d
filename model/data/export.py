r"""Copies a run's dataset to its claim, checked row by row and split into training and held-out rows.

    python -m model.data.export --run-directory=/output/demo/<uid> --method=SFT --seed=42 \
        --evaluation-percent=5 --source=configMap --path=/source/train.jsonl

Each line is read, checked and written before the next one is read: memory does not grow with the dataset.
The files appear under their names only when complete, `manifest.json` last; a second start with the same
request finds it and does nothing, and one that comes while the first still writes waits for it. SIGTERM ends the
process at once with 143, nothing is worth saving.
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from model import disks, flags
from model.data.checks import Problems, empty_failure
from model.data.drawing import Drawing
from model.data.formats import Content
from model.data.parts import Part, check_shapes
from model.data.records import InvalidRowError
from model.data.report import Report, render, source_line
from model.data.rowfiles import Row, RowFiles, encode_line
from model.data.settings import ExportSettings
from model.data.sources import Source, SourceInterruptedError
from model.data.split import RowHash, encode
from model.exits import FailureError
from model.files import SCHEMA_VERSION, RunDirectory, sha256_of_files, write_json
from model.locks import alone
from model.result import as_failure, failure_document, write_termination_message

USAGE = (
    "python -m model.data.export --run-directory=PATH "
    "--source=registry|configMap|volume|sql|objectStore|hub|--mix=JSON ... [--flag=value ...]"
)
LOCK = ".lock"
READ_ATTEMPTS = 3
READ_DELAY_SECONDS = 1.0
DATASET_KEYS = ("version", "rows", "evaluationRows", "dropped", "duplicates", "bytes", "sha256", "sources")

__all__ = ["ExportSettings", "examine", "export", "main"]

T = TypeVar("T")


def export(settings: ExportSettings) -> dict[str, Any]:
    """Export the dataset unless that has been done, and return its manifest.

    Raises
    ------
    FailureError
        When the dataset is not there, is refused, is invalid, or has no rows.
    """
    directory = RunDirectory(settings.run_directory)
    disks.writes_to(directory.path)
    request = {**settings.source_request(), **settings.request()}
    directory.dataset.mkdir(parents=True, exist_ok=True)
    with alone(directory.dataset / LOCK, f"waiting for another export into {directory.dataset}"):
        if (manifest := finished_manifest(directory, request, settings.seed)) is not None:
            print(f"exported before, for the same request: {directory.manifest}", file=sys.stderr, flush=True)
            if settings.report and directory.report.exists():
                print(render(json.loads(directory.report.read_text(encoding="utf-8"))), flush=True)
            return manifest
        directory.manifest.unlink(missing_ok=True)
        directory.report.unlink(missing_ok=True)
        sources = settings.sources()
        return _again(lambda: _export_once(settings, directory, sources))


def examine(report: Report, take: Callable[[Row, Content], None], *, seed: int = 42) -> None:
    """Read all sources of a dataset, each once.

    `take` is called for each valid row; the report gets those that are not.

    Raises
    ------
    SourceInterruptedError
        When a source broke off.
    FailureError
        When one is not there, its rows are for another method, or of another kind than those of another source.
        Invalid rows raise nothing.
    """
    row_hash = RowHash(seed)
    for index, part in enumerate(report.parts):
        for record in part.records():
            try:
                content = part.shaper.content(record)
            except InvalidRowError as error:
                part.invalid += 1
                report.problems.add(record, error)
                continue
            if not part.found:
                check_shapes(report.parts[: index + 1], record)
            part.found += 1
            encoded = encode(content)
            take(Row(index, *row_hash(content, encoded), record, encoded), content)


def finished_manifest(directory: RunDirectory, request: dict[str, Any], seed: int) -> dict[str, Any] | None:
    """Return the manifest of an earlier export of the same request whose files are complete, else None."""
    try:
        manifest: dict[str, Any] = json.loads(directory.manifest.read_text(encoding="utf-8"))
        size = directory.train_rows.stat().st_size + directory.evaluation_rows.stat().st_size
        same = (
            manifest["schemaVersion"] == SCHEMA_VERSION
            and manifest["source"].items() >= request.items()
            and manifest["seed"] == seed
            and manifest["bytes"] == size
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None  # not there, or not what this module writes
    return manifest if same else None


def _export_once(settings: ExportSettings, directory: RunDirectory, sources: Sequence[Source]) -> dict[str, Any]:
    with ExitStack() as stack:
        parts = settings.parts(sources)
        files = RowFiles(directory, share=settings.share, parts=len(parts), stack=stack)
        report = Report(parts)

        def take(row: Row, content: Content) -> None:
            report.duplicates.add(row.value, row.record)
            report.measure(content)
            files.add(row)

        if any(part.is_bounded for part in parts):
            drawing = Drawing(directory.dataset / "mix.jsonl.tmp", parts, stack)
            examine(report, drawing.add, seed=settings.seed)
            drawing.deal(take)
        else:
            examine(report, take, seed=settings.seed)
        files.deal()
        report.counts, report.example = files.counts, files.example
        report.warnings += _warnings(report, settings)
        document = report.document()
        failure = _verdict(report, settings)
        _tell(directory, document, settings, failed=failure is not None)
        if failure is not None:
            raise failure
        files.publish()
    manifest = {
        "schemaVersion": SCHEMA_VERSION,
        "source": {**_description(settings, sources), **settings.request()},
        "rows": report.rows,
        "evaluationRows": report.evaluation_rows,
        "dropped": report.problems.invalid_rows,
        "duplicates": document["duplicates"],
        "bytes": directory.train_rows.stat().st_size + directory.evaluation_rows.stat().st_size,
        "sha256": sha256_of_files([directory.train_rows, directory.evaluation_rows]),
        "shape": report.shape,
        "detected": report.detected,
        "seed": settings.seed,
        "version": next((source.version for source in sources if source.version is not None), None),
        **({"sources": report.sources()} if settings.mix else {}),
    }
    write_json(directory.manifest, manifest)
    return manifest


def _description(settings: ExportSettings, sources: Sequence[Source]) -> dict[str, Any]:
    """Return what was asked for, and what was found for it."""
    if not settings.mix:
        return sources[0].description()
    return {**settings.source_request(), "found": [source.description() for source in sources]}


def _verdict(report: Report, settings: ExportSettings) -> FailureError | None:
    """Return why the dataset cannot be trained on, None when it can."""
    problems, name = report.problems, report.name
    if problems.invalid_rows and settings.invalid_rows == "Fail":
        return problems.failure()
    if not any(part.found for part in report.parts):
        return empty_failure(problems)
    # Beside an empty source all weights come to nothing: it alone is to be named.
    unused = [part for part in report.parts if not part.found] or [
        part for part, counts in zip(report.parts, report.counts, strict=True) if not any(counts)
    ]
    if unused:
        return _invalid("; ".join(_why_unused(part, problems) for part in unused))
    if report.duplicates.all_equal():
        return _invalid(f"{name} has {report.duplicates.rows} usable rows, all of them the same: check the source")
    if len(report.labels) == 1:
        label, count = next(iter(report.labels.items()))
        return _invalid(
            f"{name} has {count} usable rows, all of them labelled {str(label).lower()}: KTO learns from good answers "
            "(true) and bad ones (false), and needs some of each; good ones alone can be learned with method SFT"
        )
    if report.rows == 0:
        held_out = report.evaluation_rows
        return _invalid(f"{name} has no rows left to train on: all {held_out} are held out; add rows or hold out fewer")
    return None


def _why_unused(part: Part, problems: Problems) -> str:
    """Say why a source of a mix gives nothing: it would be missed by nobody until the model answers."""
    if part.found:
        return f"{part.label} gives no row of its {part.found}: its weight is too small beside the others'"
    first = next((f" ({text})" for text in problems.shown if text.startswith(f"{part.label} ")), "")
    invalid = f", {part.invalid} invalid{first}" if part.invalid else ""
    return f"{part.label} has no usable row{invalid}: mend it, or leave it out of the mix"


def _invalid(text: str) -> FailureError:
    return FailureError(exits.DATASET_INVALID, "DatasetInvalid", text)


def _warnings(report: Report, settings: ExportSettings) -> list[str]:
    warnings = []
    if dropped := report.problems.invalid_rows:
        shown = report.problems.first(3)
        warnings.append(f"{_rows(dropped, 'invalid row is', 'invalid rows are')} left out: {shown}")
    if duplicates := report.duplicates.count:
        at_least = "at least " if report.duplicates.is_lower_bound else ""
        shown = "; ".join(report.duplicates.examples())
        warnings.append(f"{at_least}{_rows(duplicates, 'row repeats', 'rows repeat')} another: {shown}")
    if report.evaluation_rows == 0 and not settings.share.is_nothing:
        warnings.append(f"no row is held out: {report.rows} are too few for that, there will be no evaluation loss")
    return warnings


def _rows(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _tell(directory: RunDirectory, document: dict[str, Any], settings: ExportSettings, *, failed: bool) -> None:
    """Keep the report beside the rows, and tell people what it says."""
    try:
        write_json(directory.report, document)
    except OSError as error:
        if not failed:
            raise
        print(f"cannot write {directory.report}: {error}", file=sys.stderr)  # the dataset's failure matters more
    if settings.report:
        print(render(document), flush=True)
        return
    if document["detected"]:
        print(f"{document['source']}: {document['detected']}", file=sys.stderr)
    for index, source in enumerate(document.get("sources", ())):
        print(source_line(index, source), file=sys.stderr)
    if document["passedOver"]:
        print(f"{document['source']}: passed over {', '.join(document['passedOver'])}", file=sys.stderr)
    if not failed:
        for warning in document["warnings"]:
            print(f"warning: {warning}", file=sys.stderr, flush=True)


def _again(read: Callable[[], T]) -> T:
    """Call what reads the source, again from the start when the source broke off."""
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return read()
        except SourceInterruptedError as error:
            if attempt == READ_ATTEMPTS:
                raise FailureError(exits.UNAVAILABLE, "DatasetUnavailable", str(error)) from error
            print(f"reading again from the start: {error}", file=sys.stderr, flush=True)
            time.sleep(READ_DELAY_SECONDS * attempt)
    raise AssertionError("the loop returns or raises")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; the last words are in the termination message."""
    if "--help" in arguments:
        print(flags.help_text(ExportSettings, USAGE))
        return exits.OK
    started = time.monotonic()
    try:
        manifest = export(flags.parse(ExportSettings, arguments))
    except KeyboardInterrupt:
        print("\nstopped: nothing was exported", file=sys.stderr)
        return 128 + signal.SIGINT
    except BaseException as error:  # noqa: BLE001 - the process ends here, and its last words must say why
        failure = as_failure(error)
        write_termination_message(failure_document(failure))
        print(f"{failure.reason}: {failure.message}", file=sys.stderr)
        return failure.code
    dataset = {key: manifest[key] for key in DATASET_KEYS if manifest.get(key) is not None}
    words = {key: manifest[key] for key in ("shape", "detected")}
    write_termination_message({"dataset": dataset})
    print(
        encode_line({"event": "export", **dataset, **words, "seconds": round(time.monotonic() - started, 3)}).decode(),
        end="",
    )
    return exits.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
