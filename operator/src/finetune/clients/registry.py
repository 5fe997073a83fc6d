"""The registry over HTTP, for the operator and for people's commands.

    async with RegistryClient(base_url="http://127.0.0.1:8080") as registry:
        dataset = await registry.get_dataset_version("ml", "tickets")

Every method raises `RegistryUnavailable` when the answer may be different later (`RegistryDenied` when that needs
an administrator), `RegistryNotFound` when the thing does not exist, and `RegistryRefused` when the registry says no
and will say so again.
"""

from __future__ import annotations

import asyncio
import ssl as ssl_module
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import JsonValue, TypeAdapter, ValidationError

from finetune.api.registry import (
    AdapterFile,
    AdapterRequest,
    AdapterVersion,
    AdapterVersions,
    BaseModelReference,
    DatasetFacts,
    DatasetVersion,
    DatasetVersions,
    Document,
    OutcomeRequest,
    Run,
    RunOutcome,
    RunRequest,
    RunResult,
    Runs,
    TrainerStatus,
    UnfinishedRun,
    UnfinishedRuns,
)

from .breaker import Breaker, Turn
from .registry_answers import FileToken, failure_of, first_problem, parse
from .registry_errors import (
    RegistryDenied,
    RegistryError,
    RegistryNotFound,
    RegistryRefused,
    RegistrySilent,
    RegistryUnavailable,
)

__all__ = [
    "AdapterFile",
    "AdapterVersion",
    "BaseModelReference",
    "DatasetFacts",
    "DatasetVersion",
    "RegistryClient",
    "RegistryDenied",
    "RegistryError",
    "RegistryNotFound",
    "RegistryRefused",
    "RegistryUnavailable",
    "Run",
    "RunResult",
    "TrainerStatus",
]

UPLOAD_BLOCK_BYTES = 256 * 1024
PROGRESS_BATCH = 100  # uids in one URL; 2,000 of them would not fit a request line

CALL_SECONDS = 5.0
"""How long the operator waits for an answer: a worker that waits serves nobody."""
PROBE_SECONDS = 15.0
"""How long the one call waits that finds out whether a silent registry is back, so that a slow one serves at all."""
CALLS_AT_ONCE = 4
TURN_SECONDS = 1.0
"""How long a call waits for one of these to end before it gives up, too."""

_JSON_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_T = TypeVar("_T", bound=Document)


class RegistryClient:
    """A connection pool to one registry.

    Parameters: `base_url` like `http://registry.finetune:8080`; `token`, called before each request, or
    `token_file`, read again when it changes (a projected token is replaced every hour), or neither for a
    registry that takes no tokens; `timeout` in seconds for a whole call, streamed bodies excepted; `ssl` for
    a registry behind a private certificate authority; `breaker` for a caller with many calls: after one without an
    answer they fail at once for a while, at most `CALLS_AT_ONCE` are under way, and `CALL_SECONDS` is their timeout.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: Callable[[], str] | None = None,
        token_file: Path | None = None,
        timeout: float = 10.0,
        ssl: ssl_module.SSLContext | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        if token is not None and token_file is not None:
            raise ValueError("give the registry client either token or token_file, not both")
        self._base_url = base_url.rstrip("/")
        self._token = FileToken(token_file) if token_file is not None else token
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._streaming = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=60)
        self._ssl = ssl
        self._breaker = breaker
        self.on_answered: Callable[[str, BaseException | None, float], None] | None = None
        """Told of every call: its method, its error, and how many seconds it took."""
        self._turns = asyncio.Semaphore(CALLS_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None
        self._transport: dict[str, Any] = {}  # more of aiohttp's words for each request

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_silent(self) -> bool:
        """Calls fail at once for now, because the registry did not answer; never without a breaker."""
        return self._breaker is not None and self._breaker.is_open

    async def close(self) -> None:
        """Close the connections; the client may be used again afterwards."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # What the operator asks

    async def get_dataset_version(self, namespace: str, name: str, version: int | None = None) -> DatasetVersion:
        """Facts about one version of a dataset; without a number, the newest."""
        path = path_of(namespace, "datasets", name, "versions", _version(version))
        return await self._call(DatasetVersion, "GET", path)

    async def put_run(
        self,
        namespace: str,
        uid: str,
        *,
        name: str,
        experiment: str,
        method: str,
        spec: Mapping[str, JsonValue],
        dataset_name: str | None = None,
        dataset_version: int | None = None,
        dataset_sha256: str | None = None,
        parent_adapter_name: str | None = None,
        parent_adapter_version: int | None = None,
        parent_adapter_sha256: str | None = None,
    ) -> Run:
        """Record a run. Idempotent: the first call pins dataset and parent adapter, later ones answer the same run.

        Without a version the newest is pinned; read it from the answer's `dataset_version` and `parent_adapter`.
        Raises `RegistryNotFound` when the dataset or the parent does not exist; for the parent its `reason` is
        `PARENT_ADAPTER_NOT_FOUND`. `dataset_sha256` and `parent_adapter_sha256` are the digests where they are known
        already: another one is a `RegistryRefused` with the reason `DATASET_CHANGED` or `PARENT_ADAPTER_CHANGED`.
        """
        try:
            request = RunRequest(
                name=name,
                experiment=experiment,
                method=method,
                dataset_name=dataset_name,
                dataset_version=dataset_version,
                dataset_sha256=dataset_sha256,
                parent_adapter_name=parent_adapter_name,
                parent_adapter_version=parent_adapter_version,
                parent_adapter_sha256=parent_adapter_sha256,
                spec=dict(spec),
            )
        except ValidationError as error:
            raise RegistryRefused(
                status=422,
                reason="Invalid",
                message=f"the run cannot be recorded: {first_problem(error)}",
                hint="use an operator and a CustomResourceDefinition of one release",
            ) from error
        return await self._call(Run, "PUT", path_of(namespace, "runs", uid), body=request)

    async def get_run(self, namespace: str, uid: str) -> Run:
        """A run with its latest progress and its adapter."""
        return await self._call(Run, "GET", path_of(namespace, "runs", uid))

    async def put_outcome(self, namespace: str, uid: str, outcome: OutcomeRequest) -> RunOutcome:
        """Say what became of a run so far. Idempotent; the answer is what the registry knows now."""
        return await self._call(RunOutcome, "PUT", path_of(namespace, "runs", uid, "status"), body=outcome)

    async def list_unfinished(self) -> list[UnfinishedRun]:
        """The runs of all namespaces of which the registry knows no end, oldest first."""
        found: list[UnfinishedRun] = []
        query: dict[str, str] = {}
        while True:
            page = await self._call(UnfinishedRuns, "GET", "/api/v1/unfinished", query=query)
            found += page.items
            if page.continue_ is None:
                return found
            query = {"continue": page.continue_}

    async def get_result(self, namespace: str, uid: str) -> dict[str, Any]:
        """The training_config.json that the run's trainer stored; `RegistryNotFound` while there is none."""
        text = await self._request("GET", path_of(namespace, "runs", uid, "result"))
        return parse(_JSON_OBJECT.validate_json, text)

    async def put_adapter(
        self,
        namespace: str,
        uid: str,
        *,
        adapter_name: str,
        claim_name: str,
        base_model: BaseModelReference,
        dataset: DatasetFacts | Mapping[str, Any],
        result: RunResult | Mapping[str, Any],
    ) -> AdapterVersion:
        """Register the adapter of a finished run. Idempotent: one run makes one version.

        `dataset` and `result` are the objects of that name in the trainer's termination message.
        Raises `RegistryRefused` with reason `DigestMismatch` when the digest does not follow from the files,
        `Invalid` when the documents are not what they should be.
        """
        try:
            request = AdapterRequest(
                adapter_name=adapter_name,
                claim_name=claim_name,
                base_model=base_model,
                dataset=DatasetFacts.model_validate(dataset),
                result=RunResult.model_validate(result),
            )
        except ValidationError as error:
            raise RegistryRefused(
                status=422,
                reason="Invalid",
                message=f"the trainer's result cannot be registered: {first_problem(error)}",
                hint="the trainer image does not fit this operator: use images of one release",
            ) from error
        return await self._call(AdapterVersion, "PUT", path_of(namespace, "runs", uid, "adapter"), body=request)

    async def latest_progress(self, uids: Iterable[str]) -> dict[str, TrainerStatus]:
        """The latest progress of many runs of any namespace, by uid; runs without any are left out."""
        wanted = sorted(set(uids))
        found: dict[str, TrainerStatus] = {}
        for start in range(0, len(wanted), PROGRESS_BATCH):
            batch = ",".join(wanted[start : start + PROGRESS_BATCH])
            text = await self._request("GET", "/api/v1/progress", query={"runs": batch})
            found.update(_readable(parse(_ProgressItems.model_validate_json, text).items))
        return found

    # What people ask

    async def push_dataset(self, namespace: str, name: str, path: Path) -> tuple[DatasetVersion, bool]:
        """Store a file of JSON lines as a new version, streamed.

        Returns the version and whether it is new; the same content twice is one version.
        """

        async def blocks() -> AsyncIterator[bytes]:
            with path.open("rb") as file:
                while block := file.read(UPLOAD_BLOCK_BYTES):
                    yield block

        url = path_of(namespace, "datasets", name, "versions")
        size = path.stat().st_size  # noqa: ASYNC240 - one call on a local file
        headers = {"Content-Type": "application/jsonl", "Content-Length": str(size)}
        async with self._open("POST", url, data=blocks(), headers=headers, streaming=True) as response:
            version = parse(DatasetVersion.model_validate_json, await response.text())
            return version, response.status == 201

    async def list_datasets(self, namespace: str) -> list[DatasetVersion]:
        """The newest version of every dataset, sorted by name."""
        return [item async for page in self._pages(DatasetVersions, namespace, "datasets") for item in page.items]

    async def list_dataset_versions(self, namespace: str, name: str) -> list[DatasetVersion]:
        """All versions of one dataset, newest first."""
        pages = self._pages(DatasetVersions, namespace, "datasets", name)
        return [item async for page in pages for item in page.items]

    async def read_dataset_rows(self, namespace: str, name: str, version: int | None = None) -> AsyncIterator[bytes]:
        """The rows as they were uploaded, in blocks of bytes that do not end at line ends."""
        url = path_of(namespace, "datasets", name, "versions", _version(version), "rows")
        async with self._open("GET", url, streaming=True) as response:
            async for block in response.content.iter_any():
                yield block

    async def list_runs(self, namespace: str, **wanted: str) -> list[Run]:
        """All runs that fit, newest first; `wanted` are the query's words: `name`, `state`, `experiment`, `sort`."""
        return [item async for page in self._pages(Runs, namespace, "runs", **wanted) for item in page.items]

    async def list_adapters(self, namespace: str) -> list[AdapterVersion]:
        """The newest version of every adapter, sorted by name."""
        return [item async for page in self._pages(AdapterVersions, namespace, "adapters") for item in page.items]

    async def list_adapter_versions(self, namespace: str, name: str) -> list[AdapterVersion]:
        """All versions of one adapter, newest first."""
        pages = self._pages(AdapterVersions, namespace, "adapters", name)
        return [item async for page in pages for item in page.items]

    async def get_adapter_version(self, namespace: str, name: str, version: int | None = None) -> AdapterVersion:
        """One version of an adapter with its files; without a number, the newest."""
        path = path_of(namespace, "adapters", name, "versions", _version(version))
        return await self._call(AdapterVersion, "GET", path)

    # How it is asked

    async def _pages(self, kind: type[_T], namespace: str, *parts: str, **wanted: str) -> AsyncIterator[_T]:
        query = wanted
        while True:
            page = await self._call(kind, "GET", path_of(namespace, *parts), query=query)
            yield page
            token = getattr(page, "continue_", None)
            if token is None:
                return
            query = {**wanted, "continue": token}

    async def _call(
        self,
        kind: type[_T],
        method: str,
        path: str,
        *,
        body: Document | None = None,
        query: Mapping[str, str] | None = None,
    ) -> _T:
        text = await self._request(method, path, body=body, query=query)
        return parse(kind.model_validate_json, text)

    async def _request(
        self, method: str, path: str, *, body: Document | None = None, query: Mapping[str, str] | None = None
    ) -> str:
        try:
            data = None if body is None else body.model_dump_json(by_alias=True, exclude_none=True).encode()
        except ValueError as error:  # half a surrogate pair
            hint = "remove characters that are no text"
            raise RegistryRefused(status=422, reason="Invalid", message=str(error), hint=hint) from error
        headers = {} if body is None else {"Content-Type": "application/json"}
        started, failure = time.monotonic(), None
        try:
            async with (
                self._turn() as limits,
                self._open(method, path, data=data, headers=headers, query=query, limits=limits) as response,
            ):
                return await response.text()
        except BaseException as error:
            failure = error
            raise
        finally:
            if self.on_answered is not None:
                self.on_answered(method, failure, time.monotonic() - started)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[aiohttp.ClientTimeout]:
        """Wait for a turn; yields the call's limits. Raises RegistryUnavailable at once while there is silence."""
        if self._breaker is None:
            yield self._timeout
            return
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError as error:
            raise RegistryUnavailable(self._silence("no answer in time")) from error
        try:
            turn = self._breaker.turn()
            if turn is Turn.FAIL:
                raise RegistryUnavailable(self._breaker.error)
            try:
                yield aiohttp.ClientTimeout(total=PROBE_SECONDS if turn is Turn.PROBE else CALL_SECONDS)
            except RegistrySilent as error:
                self._breaker.silent(turn, str(error))
                raise
            except RegistryError:
                self._breaker.answered()
                raise
            except BaseException:
                self._breaker.abandoned(turn)
                raise
            self._breaker.answered()
        finally:
            self._turns.release()

    def _silence(self, why: str) -> str:
        """The same words for every call: they end up in the status of runs, and must not change with each pass."""
        return f"{self._base_url} does not answer: {why}; is the registry up?"

    def _credentials(self) -> dict[str, str]:
        """The headers that say who calls."""
        return {} if self._token is None else {"Authorization": f"Bearer {self._token()}"}

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        data: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        streaming: bool = False,
        limits: aiohttp.ClientTimeout | None = None,
        redirected: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and yield the answer if it is a success. Converts every error of the transport.

        No redirection is followed, for the credentials are the registry's alone; `redirected` yields one, too.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, raise_for_status=False)
        sent = {**(headers or {}), **self._credentials()}
        url = self._base_url + path
        try:
            async with self._session.request(
                method,
                url,
                data=data,
                headers=sent,
                params=query,
                timeout=self._streaming if streaming else limits or self._timeout,
                ssl=self._ssl if self._ssl is not None else True,
                allow_redirects=False,
                **self._transport,
            ) as response:
                if response.status >= 300 and not (redirected and response.status == 307):
                    raise failure_of(method, url, response.status, await response.text())
                yield response
        except TimeoutError as error:
            raise RegistrySilent(self._silence("no answer in time")) from error
        except (aiohttp.ClientError, OSError) as error:
            raise RegistrySilent(self._silence(str(error) or type(error).__name__)) from error
        except ValueError as error:  # text in no known encoding, a header that cannot be sent
            raise RegistryUnavailable(f"{method} {url}: {error}; is the address right?") from error


class _ProgressItems(Document):
    """Progress by run, read one by one: what another version posted for one run must not hide the others'."""

    items: dict[str, JsonValue]


def _readable(items: Mapping[str, JsonValue]) -> dict[str, TrainerStatus]:
    found: dict[str, TrainerStatus] = {}
    for uid, item in items.items():
        with suppress(ValidationError):
            found[uid] = TrainerStatus.model_validate(item)
    return found


def path_of(namespace: str, *parts: str) -> str:
    """The path of something in a namespace."""
    return "/".join(["/api/v1/namespaces", *(quote(part, safe="") for part in (namespace, *parts))])


def _version(version: int | None) -> str:
    return "latest" if version is None else str(version)
