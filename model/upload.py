"""Sending a finished adapter's files to the registry, so that they outlive the claim.

It is never what a run fails by: the adapter is on the claim, and the registry knows it as `Registered`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.registry import RegistryRefusedError, RegistryUnavailableError, RunRegistry

DELAYS_SECONDS = (1.0, 5.0, 15.0)
"""Waits between attempts; what an earlier one has sent is not sent again."""
SECONDS = 120.0
SLOWEST_BYTES_PER_SECOND = 1_000_000
"""No attempt begins after two minutes and the time that this speed takes: a GPU must not wait for a registry."""


def send(
    registry: RunRegistry, directory: Path, files: Sequence[dict[str, Any]], *, warn: Callable[[str], None]
) -> bool:
    """Send the files that the registry does not have; return whether it has all of them then.

    Parameters
    ----------
    registry
        The run's part of the registry.
    directory
        The adapter's directory.
    files
        Path, bytes and sha256 of each file, as in `training_config.json`.
    warn
        Told why files are not sent; a registry that keeps no files is not worth a word.
    """
    until = time.monotonic() + SECONDS + sum(file["bytes"] for file in files) / SLOWEST_BYTES_PER_SECOND
    for delay in (*DELAYS_SECONDS, None):
        try:
            send_missing(registry, directory, files)
        except RegistryRefusedError as error:
            if error.reason != "NoStore":
                warn(f"the registry does not take the adapter's files, which stay on the claim: {error}")
            return False
        except (RegistryUnavailableError, OSError) as error:
            if delay is None or time.monotonic() + delay > until:
                warn(f"the adapter's files could not be sent to the registry, and stay on the claim: {error}")
                return False
            warn(f"the adapter's files could not be sent to the registry, next attempt in {delay:g} s: {error}")
            time.sleep(delay)
        else:
            return True
    raise AssertionError("unreachable: the last attempt returns")


def send_later(registry: RunRegistry, directory: Path, files: Sequence[dict[str, Any]]) -> None:
    """Send the files of a run that has ended without that; the Job that does so tries again after a while.

    Raises
    ------
    FailureError
        When the registry is away, or refuses them for good.
    """
    try:
        send_missing(registry, directory, files)
    except RegistryRefusedError as error:
        message = f"the registry does not take the adapter's files, which stay on the claim: {error}"
        raise FailureError(exits.INVALID_CONFIGURATION, "RegistryRefused", message) from error
    except RegistryUnavailableError as error:
        message = f"the adapter's files could not be sent to the registry yet: {error}"
        raise FailureError(exits.UNAVAILABLE, "RegistryUnavailable", message) from error


def send_missing(
    registry: RunRegistry,
    directory: Path,
    files: Sequence[dict[str, Any]],
    *,
    announce: Callable[[list[dict[str, Any]]], list[str]] | None = None,
) -> None:
    """Announce files, and send those that the registry lacks, the smallest first, each once.

    Parameters
    ----------
    registry, directory, files
        As of `send`.
    announce
        Takes the list of files and returns the digests to send; None announces them as the run's finished adapter.

    Raises
    ------
    RegistryRefusedError, RegistryUnavailableError, OSError
        What is sent by then stays sent.
    """
    listed = [{key: file[key] for key in ("path", "bytes", "sha256")} for file in files]
    missing = set((announce or registry.announce_files)(listed))
    for file in sorted(listed, key=lambda file: file["bytes"]):
        if file["sha256"] in missing:
            registry.send_file(directory / file["path"], sha256=file["sha256"], size=file["bytes"])
            missing.discard(file["sha256"])
