"""The last words of a container: one small JSON object that the operator reads from the pod's status."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError

MAX_BYTES = 4096
"""Kubernetes cuts a termination message at this size, which would leave broken JSON."""

_RESULT_KEYS = ("result", "dataset", "baseModel", "parentAdapter", "timings", "lossHistory")


def termination_log() -> Path:
    """Path of the termination message; `TERMINATION_LOG` overrides Kubernetes' default."""
    return Path(os.environ.get("TERMINATION_LOG", "/dev/termination-log"))


def write_termination_message(document: Mapping[str, Any]) -> None:
    """Write the container's last words; outside a pod, where nobody reads them, do nothing.

    The kubelet mounts the file: it is written in place, for it can be neither created nor replaced.
    """
    text = fit(document)
    mode = "w" if "TERMINATION_LOG" in os.environ else "r+"
    try:
        with termination_log().open(mode, encoding="utf-8") as file:
            file.truncate()
            file.write(text)
    except FileNotFoundError:
        return
    except OSError as error:
        print(f"cannot write the termination message to {termination_log()}: {error}", file=sys.stderr)


def fit(document: Mapping[str, Any]) -> str:
    """Return the document as JSON of at most `MAX_BYTES` bytes.

    A long failure message is cut at its end; a long loss history is thinned, its last point kept; then what became of
    the sources of a mix, and the adapter's files, are left out.
    """
    text = _dump(document)
    while len(text.encode()) > MAX_BYTES:
        document = _shorten(document, len(text.encode()) - MAX_BYTES)
        text = _dump(document)
    return text


def failure_document(failure: FailureError) -> dict[str, Any]:
    """Return the termination message of a failed container."""
    document: dict[str, Any] = {"reason": failure.reason, "message": failure.message}
    if failure.row is not None:
        document["row"] = failure.row
    return {"failure": document}


def interrupted_document(step: int) -> dict[str, Any]:
    """Return the termination message of a trainer that was stopped after `step` saved steps."""
    return {"interrupted": {"step": step}}


def result_document(training_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the termination message of a finished trainer: the part of its `training_config.json`."""
    return {key: training_config[key] for key in _RESULT_KEYS if key in training_config}


def decimal(value: float) -> str:
    """Return a number as the decimal string that JSON documents carry, six significant digits or more."""
    return f"{value:.6f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:.6g}"


def as_failure(error: BaseException) -> FailureError:
    """Translate any exception that ends a process; the traceback of an unexpected one goes to stderr."""
    if isinstance(error, FailureError):
        return error
    if (known := exits.storage_failure(error) or exits.gpu_failure(error)) is not None:
        return known
    traceback.print_exception(error)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return FailureError(exits.CRASH, "InternalError", text)


def _dump(document: Mapping[str, Any]) -> str:
    # A file name or a flag that is not UTF-8 holds lone surrogates, which no reader of the pod's status would take.
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode()


def _shorten(document: Mapping[str, Any], excess: int) -> dict[str, Any]:
    if (history := document.get("lossHistory")) and len(history) > 1:
        return {**document, "lossHistory": _every_other(history)}
    failure = document.get("failure")
    if failure and len(failure["message"]) > 1:
        # A character takes up to six bytes here: the caller asks again when too few went.
        keep = max(0, len(failure["message"]) - max(1, excess // 4) - 3)
        return {**document, "failure": {**failure, "message": failure["message"][:keep] + "..."}}
    if "sources" in (dataset := document.get("dataset") or {}):
        return {**document, "dataset": {key: value for key, value in dataset.items() if key != "sources"}}
    if (result := document.get("result")) and "files" in result.get("adapter", {}):
        adapter = {key: value for key, value in result["adapter"].items() if key != "files"}
        return {**document, "result": {**result, "adapter": adapter}}
    raise ValueError(f"a termination message of {MAX_BYTES + excess} bytes cannot be shortened to {MAX_BYTES}")


def _every_other(points: Sequence[Any]) -> list[Any]:
    return list(points[::-1][::2][::-1])
