"""Makes a run's tokens, or finds those that an earlier attempt has made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import RunDirectory, sha256_of_files
from model.locks import alone
from model.training.config import TrainSettings
from model.training.rows import store
from model.training.rows.store import Tokens
from model.training.rows.tokens import DigestedLines, RowEncoder

LOCK = ".tokens.lock"
TELL_SECONDS = 10.0
"""How often is told how far it has come."""

_NAME = "the dataset's"
_WORDS = {
    "schemaVersion": "how this version of the trainer makes them",
    "tokenizer": "the base model's tokenizer",
    "chatTemplate": "its chat template",
    "dataset": "the dataset's rows",
    "method": "method (--method)",
    "maxLength": "training.maxLength (--max-length)",
    "tooLong": "dataset.tooLong (--too-long)",
    "invalidRows": "dataset.invalidRows (--invalid-rows)",
}
_DIGESTS = frozenset({"tokenizer", "chatTemplate", "dataset"})

Tell = Callable[..., None]


def key_for(settings: TrainSettings, manifest: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return what decides which tokens the run's rows become."""
    return store.key_of(
        tokenizer,
        dataset=manifest["sha256"],
        method=settings.method,
        maxLength=settings.max_length,
        tooLong=settings.too_long,
        invalidRows=_invalid_rows(manifest),
    )


def encoder_for(settings: TrainSettings, manifest: Mapping[str, Any], tokenizer: Any, moment: datetime) -> RowEncoder:
    """Return what makes the run's tokens; templates take `moment` for now."""
    return RowEncoder(
        tokenizer,
        max_length=settings.max_length,
        too_long=settings.too_long,
        drops_refused=_invalid_rows(manifest) == "Drop",
        moment=moment,
    )


def _invalid_rows(manifest: Mapping[str, Any]) -> str:
    return str(manifest["source"].get("invalidRows", "Fail"))


def make(
    settings: TrainSettings, directory: RunDirectory, manifest: Mapping[str, Any], tokenizer: Any, tell: Tell
) -> Tokens:
    """Return the run's tokens; only when there are none yet, or others, the rows are tokenised.

    Parameters
    ----------
    settings
        The run's settings.
    directory
        The run's directory, with the exported rows.
    manifest
        What the export wrote about the rows.
    tokenizer
        The base model's.
    tell
        Is called with `tokens` and what is to be told: how far it has come, and why tokens are made again.

    Raises
    ------
    FailureError
        When the rows are not those that were exported, or some cannot be trained on.
    """
    folder, key = store.tokens_directory(directory), key_for(settings, manifest, tokenizer)
    with alone(directory.dataset / LOCK, f"waiting for another process that makes the tokens in {directory.dataset}"):
        if (before := store.kept_key(folder)) is not None:
            _check_rows(directory, manifest, sha256_of_files([directory.train_rows, directory.evaluation_rows]))
            if (tokens := store.read(folder, key, whole=True)) is not None:
                tell("tokens", rows=len(tokens.rows) + len(tokens.held_out), kept=True)
                return tokens
            tell("tokens", again=_differences(before, key))
        _tokenise(settings, directory, manifest, tokenizer, tell)
        tokens = store.read(folder, key, whole=False)
        assert tokens is not None
        return tokens


def _tokenise(
    settings: TrainSettings, directory: RunDirectory, manifest: Mapping[str, Any], tokenizer: Any, tell: Tell
) -> None:
    folder, key = store.tokens_directory(directory), key_for(settings, manifest, tokenizer)
    moment = _moment(settings, folder)
    encoder = encoder_for(settings, manifest, tokenizer, moment)
    progress = _Progress(tell, manifest["rows"] + manifest["evaluationRows"])
    lines = DigestedLines()
    with store.Writer(folder, pairs=settings.method == "DPO") as writer:
        sides = ((writer.rows, directory.train_rows), (writer.held_out, directory.evaluation_rows))
        for rows, path in sides:
            encoder.add(rows, progress.of(lines.read(path)), _NAME, method=settings.method)
        _check_rows(directory, manifest, lines.sha256())
        encoder.check([rows.outcomes for rows, _ in sides])
        if not len(writer.rows):
            raise writer.rows.outcomes.nothing_left(settings.max_length)
        writer.publish(key, moment, tokenizer.chat_template)
    progress.end()


def _moment(settings: TrainSettings, folder: Path) -> datetime:
    """Return what the templates take for now: what this run has shown before, or the run that it goes on from."""
    places = [folder]
    if settings.resume_from is not None:
        places.append(store.tokens_directory(RunDirectory(settings.resume_from)))
    found = [moment for place in places if (moment := store.kept_moment(place)) is not None]
    return found[0] if found else datetime.now().astimezone().replace(microsecond=0)


def _check_rows(directory: RunDirectory, manifest: Mapping[str, Any], sha256: str) -> None:
    if sha256 != manifest["sha256"]:
        raise FailureError(
            exits.DATASET_INVALID, "DatasetInvalid", f"the files in {directory.dataset} were changed after the export"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say why the tokens that are there are not those that are needed."""
    changed = [name for name in now if before.get(name) != now[name]]
    told = [
        f"{_WORDS[name]} {'has changed' if name in _DIGESTS else f'was {before.get(name)} and is {now[name]}'}"
        for name in changed
    ]
    return "; ".join(told) or "the files are not as they were written"


class _Progress:
    """Tells from time to time how many rows have been read."""

    def __init__(self, tell: Tell, total: int) -> None:
        self._tell = tell
        self._total = total
        self._rows = 0
        self._began = self._told = time.monotonic()

    def of(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines."""
        for line in lines:
            self._rows += 1
            if time.monotonic() - self._told >= TELL_SECONDS:
                self._told = time.monotonic()
                self._tell("tokens", rows=self._rows, totalRows=self._total, seconds=round(self._told - self._began))
            yield line

    def end(self) -> None:
        """Tell that all is done."""
        seconds = round(time.monotonic() - self._began, 2)
        self._tell("tokens", rows=self._rows, totalRows=self._total, seconds=seconds)
