"""The documents about adapters' files, their states and aliases; see `finetune.api.registry`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from .registry import AdapterFile, Count, Decimal, Document, Request, Time, VersionNumber

ALIAS_PATTERN = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
"""Begins with a letter: a number is a version."""
TAG_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?$"
MAX_NOTES = 16 * 1024

ADAPTER_FILE_NAMES = re.compile(
    r"adapter_config\.json"
    r"|[A-Za-z0-9_][A-Za-z0-9_.-]{0,90}\.safetensors"
    r"|README\.md"
    r"|(generation|tokenizer|preprocessor|processor)_config\.json"
    r"|tokenizer\.json|tokenizer\.model|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt"
    r"|chat_template\.(jinja|json)"
)
"""The files that the store takes: weights as safetensors, and text. Nothing that a loader would execute."""

AdapterState = Literal["Registered", "Ready", "Deprecated", "Archived", "Quarantined", "Deleted"]
"""`Registered`: its files are on the run's claim only. `Ready`: the store has them too. The others were said by people:
`Deprecated` warns, `Archived` is not the newest any more, `Quarantined` is not given out, `Deleted` has no files."""
AdapterMark = Literal["Deprecated", "Archived", "Quarantined"]


Tag = Annotated[str, StringConstraints(pattern=TAG_PATTERN)]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=MAX_NOTES)]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=256)]


class RunFiles(Request):
    """The files of the adapter that a run has made, announced before they are sent."""

    files: list[AdapterFile] = Field(min_length=1, max_length=256)


class MissingFiles(Document):
    """What of the announced files the store does not have."""

    missing: list[str]
    """Digests; each is to be sent with `PUT blobs/{sha256}`."""
    stored: bool
    """The adapter is registered, and the store has all of it."""


class InterimRequest(Request):
    """The adapter of a run that still trains, with what an evaluation has measured; announced before it is sent."""

    attempt: Annotated[int, Field(ge=1, le=2**31)] = 1
    """Which start of the trainer in its run directory this is, from 1."""
    start_step: Count = 0
    """The step that the attempt went on from: what earlier ones made of later steps is made again."""
    train_loss: Decimal | None = None
    """Mean over the last steps."""
    evaluation_loss: Decimal
    base_evaluation_loss: Decimal | None = None
    """The base model's (or the reference's) on the same held-out rows."""
    files: list[AdapterFile] = Field(min_length=1, max_length=256)


class InterimAdapter(Document):
    """The adapter of a run as it was after a step; it has no number, and is pulled as `name@run/step`."""

    name: str
    """The adapter that the run makes a version of."""
    run_name: str
    run_uid: str
    step: int
    train_loss: str | None = None
    evaluation_loss: str
    base_evaluation_loss: str | None = None
    newest: bool
    best: bool
    """It has the lowest evaluation loss of the run; of equal ones the newest."""
    sha256: str
    bytes: int
    files: list[AdapterFile]
    created_time: Time

    @property
    def reference(self) -> str:
        """What people call it."""
        return f"{self.name}@{self.run_name}/{self.step}"


class InterimAdapters(Document):
    """What is kept of a run that still trains, or that ended without an adapter; by step."""

    items: list[InterimAdapter]


class VersionChange(Request):
    """What people say of an adapter version; what is left out stays as it is."""

    mark: AdapterMark | None = None
    """Null lifts the mark that is there."""
    reason: Line | None = None
    """Why; shown with the mark."""
    tags: dict[Tag, Line] | None = Field(default=None, max_length=64)
    """All tags, instead of those that are there."""
    notes: Text | None = None


class AliasRequest(Request):
    """Where an alias shall point."""

    version: VersionNumber
    expected: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """Only if it points to this version now; 0: only if there is no such alias."""
    protected: bool | None = None
    """Whether only those may move it who may `protect` adapters; left out: as it is."""


class AdapterAlias(Document):
    """A name for one version of an adapter, which can be moved."""

    alias: str
    version: int
    protected: bool
    moved_time: Time


class AdapterAliases(Document):
    """The aliases of an adapter, sorted by name."""

    items: list[AdapterAlias]
