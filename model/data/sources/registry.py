"""The dataset version that the registry has recorded for the run."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from model import exits
from model.data.readers import json_lines
from model.data.records import Record
from model.data.sources.base import SourceInterruptedError, access_denied, does_not_exist, invalid_spec
from model.exits import FailureError
from model.registry import RegistryRefusedError, RegistryUnavailableError, RunRegistry, retry


@dataclass
class RegistrySource:
    """The dataset version that the registry has recorded for the run."""

    registry: RunRegistry
    passed_over: tuple[str, ...] = ()
    _metadata: dict[str, Any] | None = field(default=None, init=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """The dataset version's name, version, rows, bytes and sha256, asked for once."""
        if self._metadata is None:
            try:
                self._metadata = retry(self.registry.dataset, warn=_warn)
            except RegistryUnavailableError as error:
                raise FailureError(
                    exits.UNAVAILABLE, "DatasetUnavailable", f"the registry is unavailable: {error}"
                ) from error
            except RegistryRefusedError as error:
                raise self._refusal(error) from error
        return self._metadata

    @property
    def name(self) -> str:
        """The dataset's name and version."""
        return f"dataset {self.metadata['name']} version {self.metadata['version']}"

    @property
    def version(self) -> int | None:
        """The dataset's version."""
        version: int = self.metadata["version"]
        return version

    def request(self) -> dict[str, Any]:
        """Return the kind of source: which version it is, the registry has recorded for good."""
        return {"type": "registry"}

    def description(self) -> dict[str, Any]:
        """Return the name, version and digest that the registry gave."""
        return {**self.request(), **{key: self.metadata.get(key) for key in ("name", "version", "sha256")}}

    def records(self) -> Iterator[Record]:
        """Yield the version's rows, and check at the end that nothing was cut off or changed."""
        yield from json_lines(self._lines())

    def _lines(self) -> Iterator[bytes]:
        digest = hashlib.sha256()
        try:
            for line in self.registry.dataset_rows():
                digest.update(line)
                yield line
        except RegistryUnavailableError as error:
            raise SourceInterruptedError(f"the registry is unavailable: {error}") from error
        except RegistryRefusedError as error:
            raise self._refusal(error) from error
        if digest.hexdigest() != self.metadata["sha256"]:
            raise SourceInterruptedError(f"{self.name} arrived with another SHA-256 than the registry names")

    def _refusal(self, error: RegistryRefusedError) -> FailureError:
        where = f"the registry at {self.registry.url} answered {error.status}: {error.message}"
        if error.status in (401, 403):
            return access_denied(where)
        return does_not_exist(where) if error.status == 404 else invalid_spec(where)


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
