"""A dataset repository of the Hugging Face Hub: the data files of one split at one commit, through the local cache."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from model import exits, hubcache
from model.data import keys
from model.data.readers import DataFile, bare_name, has_data_extension, read
from model.data.records import Record
from model.data.sources import hub_layout as layout
from model.data.sources import hub_listing, metadata, patterns
from model.data.sources.base import SourceInterruptedError, access_denied, does_not_exist, invalid_spec
from model.data.sources.files import open_file
from model.exits import FailureError

TIMEOUT_SECONDS = 10.0
CARD = "README.md"
_TRUE = {"1", "ON", "YES", "TRUE"}
"""How the hub's client is told that a switch is on."""


@dataclass(frozen=True)
class _Found:
    """What the revision holds: the commit, and the files of the wanted split."""

    commit: str
    files: list[str]


@dataclass
class HubSource:
    """The data files of one split of a dataset repository.

    Parameters
    ----------
    repository
        `<owner>/<name>`.
    revision
        A branch, tag or commit; None for the main branch. It is resolved to a commit once.
    split
        The split's name; `<configuration>.<split>` where the dataset has several configurations.
    environment
        Where `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` are looked up.
    configuration
        The configuration's name, when it does not stand in front of the split.
    """

    repository: str
    revision: str | None = None
    split: str = "train"
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    version: int | None = None
    configuration: str | None = None
    passed_over: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The repository's name."""
        return self.repository

    def request(self) -> dict[str, Any]:
        """Return the repository, the revision as it was given, the configuration if there is one, and the split."""
        chosen = {"configuration": self.configuration} if self.configuration else {}
        return {"type": "hub", "repository": self.repository, "revision": self.revision, **chosen, "split": self.split}

    def description(self) -> dict[str, Any]:
        """Return the request, the commit that the revision was, and the files."""
        return {**self.request(), "commit": self._found.commit, "files": self._found.files}

    def records(self) -> Iterator[Record]:
        """Yield the rows of the split's files, in the order of their names."""
        files = self._found.files
        for path, label in zip(files, patterns.labels(files), strict=True):
            local = self._download(path)
            yield from read(DataFile(label or path, partial(open_file, local), label))

    @cached_property
    def _found(self) -> _Found:
        commit, paths = self._listing()
        configuration, split, files = self._choose(paths, commit)
        if not files:
            raise self._nothing_found(paths)
        return _Found(commit, self._one_format(files, f"{configuration}.{split}" if configuration else split))

    def _listing(self) -> tuple[str, list[str]]:
        """Return the commit that the revision is, and its files; without the hub those that the cache knows of."""
        client = self._client
        if self._offline:
            if (known := hub_listing.recall(self._folder, self.revision)) is None:
                raise does_not_exist(
                    f"HF_HUB_OFFLINE is set, and the cache {self._folder.parent} has no "
                    f"{self.revision or 'main branch'} of dataset {self.repository}: read it once with the hub in reach"
                )
            return known
        with self._translated():
            info = client.dataset_info(self.repository, revision=self.revision, timeout=TIMEOUT_SECONDS)
        paths = [sibling.rfilename for sibling in info.siblings or ()]
        hub_listing.remember(self._folder, self.revision, info.sha, paths)
        return info.sha, paths

    @property
    def _offline(self) -> bool:
        from huggingface_hub import constants

        return constants.HF_HUB_OFFLINE or self.environment.get("HF_HUB_OFFLINE", "").upper() in _TRUE

    @property
    def _folder(self) -> Path:
        """The repository's folder in the cache."""
        from huggingface_hub import constants, file_download

        cache = self._cache or constants.HF_HUB_CACHE
        return Path(cache) / file_download.repo_folder_name(repo_id=self.repository, repo_type="dataset")

    def _choose(self, paths: Sequence[str], commit: str) -> tuple[str, str, list[str]]:
        """Return the configuration, the split's name in it, and its files."""
        data = [path for path in paths if not metadata.named_so(path)]
        configurations = self._configurations(paths, commit)
        configuration, split = self._configuration(configurations)
        splits = layout.configured_splits(configurations.get(configuration, {}), data)
        if not data:
            return configuration, split, []
        wanted = split if split in splits else keys.SPLIT_WORDS.get(split, split)
        if wanted not in splits:
            raise self._no_split(split, sorted(splits), configuration, sorted(configurations))
        return configuration, wanted, splits[wanted]

    def _configurations(self, paths: Sequence[str], commit: str) -> dict[str, Mapping[str, Any]]:
        """Return the configurations that the dataset's card names, or that folders stand for, by name."""
        if CARD not in paths:
            return layout.converted_configurations(path for path in paths if not metadata.named_so(path))
        from huggingface_hub import DatasetCard
        from yaml import YAMLError

        text = self._download(CARD, commit).read_text(encoding="utf-8", errors="replace")
        if not text.lstrip().startswith("---"):
            return {}
        try:
            configurations = DatasetCard(text, ignore_metadata_errors=True).data.to_dict().get("configs") or []
        except (YAMLError, ValueError) as error:
            print(f"the card of {self.repository} is passed over: {self._shown(error)}", file=sys.stderr, flush=True)
            return {}
        return {str(entry.get("config_name", "default")): entry for entry in configurations if isinstance(entry, dict)}

    def _configuration(self, configurations: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
        """Return the configuration to use, empty for none, and the split in it."""
        if (wanted := self.configuration) is not None:
            if wanted not in configurations:
                there = patterns.neighbours(wanted, sorted(configurations))
                raise does_not_exist(f"{self.repository} has no configuration {wanted}: {there}")
            return wanted, self.split.removeprefix(f"{wanted}.")
        for name in sorted(configurations, key=len, reverse=True):  # of a and a.b the longer is meant
            if self.split.startswith(f"{name}."):
                return name, self.split.removeprefix(f"{name}.")
        default = [name for name, entry in configurations.items() if entry.get("default")]
        if not configurations or len(configurations) == 1 or default or "default" in configurations:
            chosen = default or [name for name in configurations if name == "default" or len(configurations) == 1]
            return (chosen[0] if chosen else ""), self.split
        names = sorted(configurations)
        raise invalid_spec(
            f"{self.repository} has several configurations and none is the default: {_how_to_choose(names, self.split)}"
        )

    def _no_split(self, split: str, splits: list[str], configuration: str, configurations: list[str]) -> FailureError:
        """Say which splits there are, and which configurations when the split may be of another."""
        of_which = f" in its configuration {configuration}" if len(configurations) > 1 else ""
        text = f"{self.repository} has no split {split}{of_which}: {patterns.neighbours(split, splits)}"
        if len(configurations) > 1:
            text += f"; for another configuration {_how_to_choose(configurations, split)}"
        return does_not_exist(text)

    def _one_format(self, files: list[str], split: str) -> list[str]:
        """Return the files of the format that most have, as the hub's own tools do: others hold the same rows again."""
        readable = [path for path in files if has_data_extension(path)]
        if not readable:
            text = f"{self.repository} keeps {split} in files such as {files[0]}"
            raise FailureError(
                exits.DATASET_INVALID,
                "DatasetInvalid",
                f"{text}: only JSON lines, JSON, CSV and Parquet can be read; try the revision refs/convert/parquet",
            )
        formats = Counter(PurePosixPath(bare_name(path)).suffix for path in readable)
        chosen = max(formats, key=lambda suffix: (formats[suffix], suffix))
        kept = [path for path in readable if PurePosixPath(bare_name(path)).suffix == chosen]
        if len(kept) < len(files):
            self.passed_over[:] = sorted(set(files) - set(kept))
        return kept

    def _nothing_found(self, paths: Sequence[str]) -> FailureError:
        there = patterns.neighbours("", [path for path in paths if not path.startswith(".")])
        return does_not_exist(
            f"{self.repository} holds no data files (JSON lines, JSON, CSV, Parquet): {there}; "
            "try the revision refs/convert/parquet"
        )

    def _download(self, path: str, commit: str | None = None) -> Path:
        """Return a file of the commit in the cache; the client's lock lets one process download it, the others wait."""
        with self._translated():
            return Path(
                self._client.hf_hub_download(
                    self.repository,
                    path,
                    repo_type="dataset",
                    revision=commit or self._found.commit,
                    cache_dir=self._cache,
                    etag_timeout=TIMEOUT_SECONDS,
                    local_files_only=self._offline,
                )
            )

    @property
    def _cache(self) -> str | None:
        if cache := self.environment.get("HF_HUB_CACHE"):
            return cache
        home = self.environment.get("HF_HOME")
        return str(Path(home) / "hub") if home else None

    @cached_property
    def _client(self) -> Any:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        hubcache.prepare(Path(self._cache or constants.HF_HUB_CACHE))
        return HfApi(endpoint=self.environment.get("HF_ENDPOINT"), token=self._token)

    @property
    def _token(self) -> str | None:
        token = self.environment.get("HF_TOKEN", "").strip()  # a Secret made of a file ends with a newline
        if re.search(r"[^!-~]", token):  # no header could carry it, and the error about that would show it
            raise access_denied(
                "HF_TOKEN holds more than a token (spaces, line breaks or letters with accents): store the token alone "
                "in the Secret, as the hub showed it"
            )
        return token or None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the client's errors into failures that say what to do."""
        from huggingface_hub import errors

        where = f"dataset {self.repository} on {self._client.endpoint}"
        try:
            yield
        except errors.HFValidationError as error:
            raise invalid_spec(f"--repository={self.repository}: {error}") from error
        except errors.GatedRepoError as error:
            hint = "accept its terms with the account whose token HF_TOKEN holds"
            raise access_denied(f"{where} is gated: {hint}") from error
        except errors.RepositoryNotFoundError as error:
            hint = "check the name; a private one needs HF_TOKEN with the right to read it"
            raise does_not_exist(f"{where} does not exist or is private: {hint}") from error
        except errors.RevisionNotFoundError as error:
            raise does_not_exist(f"{where} has no revision {self.revision}: {self._revisions()}") from error
        except errors.HfHubHTTPError as error:
            raise self._refusal(where, error) from error
        except (errors.HTTPError, OSError) as error:
            if self._offline and isinstance(error, errors.LocalEntryNotFoundError):
                lacking = f"the cache {self._folder.parent} lacks files of dataset {self.repository}"
                text = f"HF_HUB_OFFLINE is set, and {lacking}: read it once with the hub in reach"
                raise does_not_exist(text) from error
            cause = error.__cause__ or error
            known = exits.storage_failure(error)
            raise known or SourceInterruptedError(f"cannot read {where}: {self._shown(cause)}") from error

    def _refusal(self, where: str, error: Any) -> Exception:
        status = error.response.status_code
        text = f"{where}: HTTP {status}: {self._shown(error.server_message or error)}"
        if status in (401, 403):
            return access_denied(f"{text}; check HF_TOKEN")
        if status == 404:
            return does_not_exist(text)
        if status in (408, 429) or status >= 500:
            return SourceInterruptedError(text)
        return invalid_spec(text)

    def _revisions(self) -> str:
        with self._translated():
            found = self._client.list_repo_refs(self.repository, repo_type="dataset")
        names = [reference.name for reference in (*found.branches, *found.tags)]
        return patterns.neighbours(self.revision or "", names)

    def _shown(self, error: object) -> str:
        """Return an error's text in one line, without the token."""
        text = " ".join(str(error).split()) or type(error).__name__
        return text.replace(self._token, "***") if self._token else text


def _how_to_choose(configurations: Sequence[str], given: str) -> str:
    """Say how to choose a configuration, by the example of the one that is nearest to what was given."""
    before, dot, after = given.rpartition(".")
    near = difflib.get_close_matches(before if dot else given, configurations, n=1)
    split = after if dot or not near else "train"  # a configuration's name alone says no split
    example = f"{near[0] if near else configurations[0]}.{split}"
    more = f" and {len(configurations) - patterns.SHOWN} more" if len(configurations) > patterns.SHOWN else ""
    there = f"there is {', '.join(configurations[: patterns.SHOWN])}{more}"
    name = example.rpartition(".")[0]
    return f"choose with --configuration={name}, or write --split={example} (split in a TrainingRun); {there}"
