"""What people's commands ask the registry beside what the operator asks: files, aliases, deletion, curves.

async with PeopleClient(base_url="http://127.0.0.1:8080") as registry:
    version = await registry.pull("ml", "support", "production", Path("support"))
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from yarl import URL

from finetune.api.files import AdapterAlias, AliasRequest, InterimAdapter, InterimAdapters
from finetune.api.registry import AdapterVersion, Document, Run, Runs, SeriesList, adapter_digest

from .kubeconfig import Connection
from .registry import RegistryClient, path_of
from .registry_errors import RegistryError, RegistryNotFound

Adapter = AdapterVersion | InterimAdapter
"""What has files and a digest: a version, or what a run that still trains has sent."""
TOKEN_HEADER = "X-Finetune-Token"  # noqa: S105 - the name of a header
PAGE_SIZE = 100


class AdapterDamaged(RegistryError):  # noqa: N818 - reads as the condition that it is
    """Files are not those that the registry recorded."""


class Sample(Document):
    """A held-out prompt, and what was answered: by its row, by the base model, and with the adapter."""

    row: int
    file: str | None = None
    prompt: str
    reference: str | None = None
    base: str
    adapter: str
    truncated: tuple[str, ...] = ()
    """Names of the texts that are not whole."""


class _Samples(Document):
    """What is read of a run's training_config.json."""

    samples: tuple[Sample, ...] = ()


class PeopleClient(RegistryClient):
    """A registry as people use it. Raises what `RegistryClient` raises, and `AdapterDamaged`.

    `through` is the API server whose service proxy `base_url` is: it keeps `Authorization` for itself, so that the
    registry's own token goes in a header of its own.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: Callable[[], str] | None = None,
        token_file: Path | None = None,
        through: Connection | None = None,
    ) -> None:
        super().__init__(
            base_url=base_url, token=token, token_file=token_file, timeout=30, ssl=through.tls if through else None
        )
        self._through = through
        if through is not None:
            self._transport = {"server_hostname": through.server_hostname, "proxy": through.proxy}

    def _credentials(self) -> dict[str, str]:
        if self._through is None:
            return super()._credentials()
        own = {} if self._token is None else {TOKEN_HEADER: self._token()}
        return {**self._through.credentials(), **own}

    @asynccontextmanager
    async def passed_on(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The registry's answer to somebody else's request, whatever it is, as it comes: neither unpacked nor followed.

        `path` is as it is sent, with its query.
        """
        async with aiohttp.ClientSession(timeout=self._streaming, auto_decompress=False) as http:
            sent = {**headers, **self._credentials()}
            tls = self._ssl if self._ssl is not None else True
            url = URL(self._base_url + path, encoded=True)
            async with http.request(
                method, url, data=body or None, headers=sent, ssl=tls, allow_redirects=False, **self._transport
            ) as answer:
                yield answer

    async def probe(self) -> None:
        """Ask whether a registry answers; raises when it does not."""
        await self._request("GET", "/healthz")

    async def newest_runs(self, namespace: str, *, limit: int, **wanted: str) -> tuple[list[Run], bool]:
        """The first runs that fit, newest first unless `sort` is given, and whether there are more."""
        found: list[Run] = []
        async for page in self._pages(Runs, namespace, "runs", **wanted, limit=str(min(limit, PAGE_SIZE))):
            found += page.items
            if len(found) >= limit:
                return found[:limit], len(found) > limit or page.continue_ is not None
        return found, False

    async def series(self, namespace: str, run: str, metrics: str, *, points: int = 240) -> SeriesList:
        """The curves of a run (uid or name), at most so many points each; `metrics` are separated by commas."""
        query = {"runs": run, "metric": metrics, "points": str(points)}
        return await self._call(SeriesList, "GET", path_of(namespace, "series"), query=query)

    async def rows(self, namespace: str, name: str, version: int | None) -> AsyncIterator[bytes]:
        """The rows of a version, one by one; blank lines are none."""
        rest = b""
        async for block in self.read_dataset_rows(namespace, name, version):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if line.strip():
                    yield line.strip()
        if rest.strip():
            yield rest.strip()

    async def count_rows(self, namespace: str, name: str, version: int | None) -> Counter[bytes]:
        """How often each row of a version occurs, by a digest of it."""
        return Counter([row_digest(row) async for row in self.rows(namespace, name, version)])

    async def find_adapter(self, namespace: str, name: str, reference: str) -> AdapterVersion:
        """A version by number, by alias, or `latest`."""
        return await self._call(AdapterVersion, "GET", path_of(namespace, "adapters", name, "versions", reference))

    async def samples(self, namespace: str, uid: str) -> tuple[Sample, ...]:
        """The sample answers of a run; none where it made none, or has no result."""
        try:
            return (await self._call(_Samples, "GET", path_of(namespace, "runs", uid, "result"))).samples
        except RegistryNotFound:
            return ()

    async def interim_adapters(self, namespace: str, run: str) -> list[InterimAdapter]:
        """What is kept of a run (uid or name) that still trains, or that ended without an adapter; by step."""
        return (await self._call(InterimAdapters, "GET", path_of(namespace, "runs", run, "adapters"))).items

    async def find_interim(self, namespace: str, name: str, run: str, step: str) -> InterimAdapter:
        """The adapter of a run after a step, the `best` or the `latest` of it."""
        return await self._call(InterimAdapter, "GET", _interim_path(namespace, name, run, step))

    async def delete_interim(self, namespace: str, name: str, run: str, step: str) -> InterimAdapter:
        """Delete the files of one of these."""
        return await self._call(InterimAdapter, "DELETE", _interim_path(namespace, name, run, step))

    async def pull(self, namespace: str, name: str, reference: str, target: Path) -> AdapterVersion:
        """Fetch all files of a version into the new directory `target`, as `fetch` does."""
        version = await self.find_adapter(namespace, name, reference)
        await self.fetch(namespace, version, target)
        return version

    async def fetch(self, namespace: str, adapter: Adapter, target: Path) -> None:
        """Fetch all files of an adapter into the new directory `target`, which appears once all of them were compared.

        Raises `FileExistsError` when `target` is there already, and `AdapterDamaged`.
        """
        temporary = _directory_beside(target)
        try:
            for file in adapter.files:
                await self._fetch(f"{_path_of(namespace, adapter)}/files/{file.path}", temporary / file.path)
            await asyncio.to_thread(_publish, temporary, target, adapter)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    async def _fetch(self, path: str, to: Path) -> None:
        """Fetch a file, from where the registry sends its readers if that can be reached, else from itself."""
        to.parent.mkdir(parents=True, exist_ok=True)
        async with self._open("GET", path, streaming=True, redirected=True) as response:
            elsewhere = response.headers.get("Location", "") if response.status == 307 else None
            if elsewhere is None:
                await _write(response, to)
        if elsewhere is not None and not await self._fetch_elsewhere(elsewhere, to):
            async with self._open("GET", path, query={"redirect": "false"}, streaming=True) as response:
                await _write(response, to)

    async def _fetch_elsewhere(self, url: str, to: Path) -> bool:
        """Fetch from another server, which gets no credentials of ours; whether that went well.

        The digest decides whether it is the right file, wherever it comes from.
        """
        try:
            async with (
                aiohttp.ClientSession(timeout=self._streaming, trust_env=True) as http,
                http.get(URL(url, encoded=True), allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return False
                await _write(response, to)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        return True

    async def point_alias(
        self, namespace: str, name: str, alias: str, version: int, *, expected: int | None, protected: bool | None
    ) -> AdapterAlias:
        """Point an alias to a version; with `expected` only from there (0: only if it is new)."""
        request = AliasRequest(version=version, expected=expected, protected=protected)
        path = path_of(namespace, "adapters", name, "aliases", alias)
        return await self._call(AdapterAlias, "PUT", path, body=request)

    async def remove_alias(self, namespace: str, name: str, alias: str, *, expected: int | None) -> None:
        """Remove an alias, with `expected` only if it points there; the version stays."""
        query = {} if expected is None else {"expected": str(expected)}
        await self._request("DELETE", path_of(namespace, "adapters", name, "aliases", alias), query=query)

    async def delete_adapter(self, namespace: str, name: str, version: int) -> AdapterVersion:
        """Delete the files of a version."""
        path = path_of(namespace, "adapters", name, "versions", str(version))
        return await self._call(AdapterVersion, "DELETE", path)

    async def delete_dataset(self, namespace: str, name: str, version: int) -> None:
        """Delete the rows of a version."""
        await self._request("DELETE", path_of(namespace, "datasets", name, "versions", str(version)))


async def _write(response: aiohttp.ClientResponse, to: Path) -> None:
    with to.open("wb") as out:
        async for block in response.content.iter_chunked(1024 * 1024):
            await asyncio.to_thread(out.write, block)


def _path_of(namespace: str, adapter: Adapter) -> str:
    if isinstance(adapter, InterimAdapter):  # by uid: the name may be another run's by now
        return _interim_path(namespace, adapter.name, adapter.run_uid, str(adapter.step))
    return path_of(namespace, "adapters", adapter.name, "versions", str(adapter.version))


def _interim_path(namespace: str, name: str, run: str, step: str) -> str:
    return path_of(namespace, "adapters", name, "runs", run, "steps", step)


def row_digest(row: bytes) -> bytes:
    """What tells rows apart; 16 bytes of a dataset's every row are kept in memory."""
    return hashlib.blake2b(row, digest_size=16).digest()


def _directory_beside(target: Path) -> Path:
    """A new directory in the one that `target` is to be in. Raises `FileExistsError` when there is a `target`."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "it exists already; give another directory with --to", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def _publish(temporary: Path, target: Path, version: Adapter) -> None:
    check_files(temporary, version)
    temporary.chmod(0o755)
    temporary.rename(target)


def check_files(directory: Path, version: Adapter) -> None:
    """Compare each file with its digest, and all with the adapter's. Raises `AdapterDamaged`, naming the file."""
    for file in version.files:
        path = directory / file.path
        if not path.is_file():
            raise AdapterDamaged(f"{path} is missing")
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != file.sha256:
            raise AdapterDamaged(f"{path} is damaged: its SHA-256 is {found}, and {file.sha256} was recorded")
    if adapter_digest(version.files) != version.sha256:
        raise AdapterDamaged(f"the registry's list of files does not give the adapter's SHA-256 {version.sha256}")
