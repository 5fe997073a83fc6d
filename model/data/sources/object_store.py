"""Objects of an S3 bucket: one, a glob's, or all data files directly under a prefix."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, BinaryIO, TypeVar, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from model.data.readers import DataFile, has_data_extension, read
from model.data.records import Record
from model.data.sources import metadata, patterns
from model.data.sources.base import SourceInterruptedError, access_denied, does_not_exist, invalid_spec
from model.data.sources.gate import Gate, proxy_to

REQUEST_BYTES = 8 << 20
ATTEMPTS = 3
CONNECT_TIMEOUT_SECONDS = 10
REQUEST_TIMEOUT_SECONDS = 60

AMAZON = "s3.amazonaws.com"

_CREDENTIAL_CHAIN = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_PROFILE",
)
"""Variables that say that the AWS client finds credentials by itself."""
_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?(?: during \w+ operation)?: ?(.*)", re.DOTALL)
_REFUSED = re.compile(r"DENIED|FORBIDDEN|SIGNATURE|ACCESS_KEY|TOKEN|CREDENTIAL|UNAUTHORI[SZ]ED")
_MISSING = re.compile(r"NO_SUCH|NOT_FOUND")

T = TypeVar("T")


@dataclass(frozen=True)
class _Object:
    """An object as a listing shows it; path is `<bucket>/<key>`."""

    path: str
    size: int
    seconds: int


@dataclass
class ObjectStoreSource:
    """The objects that a URI names.

    Parameters
    ----------
    uri
        `s3://<bucket>/<key>`, where the key may be a glob (`**` for any number of folders) or end in a slash.
    endpoint
        URL of a server that speaks S3; None for Amazon's.
    environment
        Where the credentials are looked up.
    """

    uri: str
    endpoint: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    version: int | None = None
    passed_over: list[str] = field(default_factory=list)
    _gate: Gate | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The URI's last part that is not empty."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def request(self) -> dict[str, Any]:
        """Return the URI and the endpoint."""
        return {"type": "objectStore", "uri": self.uri, "endpoint": self.endpoint}

    def description(self) -> dict[str, Any]:
        """Return what was asked for and what was found: the objects' number, size and a digest of their listing."""
        lines = "".join(f"{entry.path}\t{entry.size}\t{entry.seconds}\n" for entry in self._objects)
        found = {
            "objects": len(self._objects),
            "bytes": sum(entry.size for entry in self._objects),
            "listingSha256": hashlib.sha256(lines.encode()).hexdigest(),
        }
        return {**self.request(), **found}

    def records(self) -> Iterator[Record]:
        """Yield the rows of all objects, in the order of their keys."""
        self.__dict__.pop("_objects", None)  # listed anew, since an earlier attempt may have seen others
        known = self._objects
        paths = [entry.path for entry in known]
        for path, label in zip(paths, patterns.labels(paths), strict=True):
            yield from self._object_records(path, label or path.rsplit("/", 1)[-1], label)
        del self._objects
        if self._objects != known:
            raise SourceInterruptedError(f"the objects of {self.uri} changed while they were read")

    @cached_property
    def _objects(self) -> list[_Object]:
        bucket, key = _split_uri(self.uri)
        if key and not key.endswith("/"):
            if (single := self._find(f"{bucket}/{key}")) is not None:
                return [single]
            if not patterns.has_wildcard(key):
                raise does_not_exist(f"{self.uri} does not exist: {self._nearest(bucket, key)}")
            return self._matches(bucket, key)
        listed = self._list(f"{bucket}/{key}", recursive=False)
        if not (found := self._with_rows([entry for entry in listed if has_data_extension(entry.path)])):
            raise does_not_exist(f"{self.uri} holds no data files: {self._nearest(bucket, key)}")
        unread = [name for entry in listed if metadata.may_hold_rows(name := entry.path.rsplit("/", 1)[-1])]
        self.passed_over[:] = sorted([*self.passed_over, *unread])
        if len(splits := patterns.splits(entry.path.rsplit("/", 1)[-1] for entry in found)) > 1:
            raise invalid_spec(
                f"{self.uri} holds objects of several splits ({', '.join(sorted(splits))}): name those to train on, "
                f"for example {self.uri}{min(splits.get('train') or next(iter(splits.values())))}"
            )
        return found

    def _matches(self, bucket: str, key: str) -> list[_Object]:
        folder = patterns.fixed_folder(key)
        regex = patterns.glob_regex(f"{bucket}/{key}")
        deep = "/" in key.removeprefix(folder) or "**" in key
        entries = self._list(f"{bucket}/{folder}", recursive=deep)
        if found := [entry for entry in entries if regex.fullmatch(entry.path)]:
            return self._with_rows(found) or found
        raise does_not_exist(f"no object matches {self.uri}: {self._nearest(bucket, key)}")

    def _with_rows(self, entries: list[_Object]) -> list[_Object]:
        """Leave out objects that only describe others, and remember them."""
        kept: list[_Object] = metadata.without_metadata(entries, lambda entry: str(entry.path), self._head)
        names = (entry.path.rsplit("/", 1)[-1] for entry in set(entries) - set(kept))
        self.passed_over[:] = sorted(name for name in names if not name.startswith("."))
        return kept

    def _head(self, entry: _Object) -> bytes:
        if entry.size > metadata.HEAD_BYTES:
            return bytes(metadata.HEAD_BYTES + 1)
        with self._call(partial(self._store.open_input_file, entry.path)) as stored:
            content: bytes = self._call(stored.read)
        return content

    def _find(self, path: str) -> _Object | None:
        from pyarrow.fs import FileType

        info = self._call(partial(self._store.get_file_info, path))
        return _object(info) if info.type == FileType.File else None

    def _list(self, folder: str, *, recursive: bool) -> list[_Object]:
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(folder.rstrip("/"), recursive=recursive, allow_not_found=True)
        found = self._call(partial(self._store.get_file_info, selector))
        return sorted((_object(info) for info in found if info.type == FileType.File), key=lambda entry: entry.path)

    def _nearest(self, bucket: str, key: str) -> str:
        from pyarrow.fs import FileSelector, FileType

        if self._call(partial(self._store.get_file_info, bucket)).type == FileType.NotFound:
            return f"there is no bucket {bucket}"
        folder = patterns.fixed_folder(key)
        while True:
            selector = FileSelector(f"{bucket}/{folder}".rstrip("/"), allow_not_found=True)
            there = [info.base_name for info in self._call(partial(self._store.get_file_info, selector))]
            name = key.removeprefix(folder).split("/")[0]
            if there or not folder:
                return f"{patterns.neighbours(name, there)} (in s3://{bucket}/{folder})"
            folder = folder[: folder.rstrip("/").rfind("/") + 1]

    def _object_records(self, path: str, name: str, label: str) -> Iterator[Record]:
        tags = []

        def open_object() -> BinaryIO:
            stored = self._call(partial(self._store.open_input_file, path))
            tags.append(_etag(stored))
            return cast(BinaryIO, _Reader(stored, self._translated))

        yield from read(DataFile(name, open_object, label, REQUEST_BYTES))
        with self._call(partial(self._store.open_input_file, path)) as again:
            if [_etag(again)] != tags:
                raise SourceInterruptedError(f"s3://{path} changed while it was read")

    @cached_property
    def _store(self) -> Any:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        variables = self.environment
        options: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "request_timeout": REQUEST_TIMEOUT_SECONDS,
            "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            "region": variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or self._default_region(),
        }
        if self.endpoint is not None:
            scheme, _, host = self.endpoint.rstrip("/").rpartition("://")
            if scheme not in ("http", "https") or not host or "@" in host:
                raise invalid_spec("--endpoint must be http://<host> or https://<host>, without credentials")
            options.update(scheme=scheme, endpoint_override=host)
        if self.endpoint is not None or proxy_to("https", AMAZON):
            self._gate = Gate()  # for as long as this process reads
            options["proxy_options"] = self._gate.url
        # A Secret made of a file ends with a newline.
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        access, secret, session = (variables.get(name, "").strip() for name in names)
        if access:
            options.update(access_key=access, secret_key=secret, session_token=session or None)
        elif not any(variables.get(name) for name in _CREDENTIAL_CHAIN):
            options["anonymous"] = True
        return S3FileSystem(**options)

    def _default_region(self) -> str:
        from pyarrow.fs import resolve_s3_region

        if self.endpoint is not None:
            return "us-east-1"  # what servers other than Amazon's take for their own
        bucket, _ = _split_uri(self.uri)
        if proxy_to("https", AMAZON):
            return self._call(partial(_region, bucket))
        region: str = self._call(partial(resolve_s3_region, bucket))
        return region

    def _call(self, call: Callable[[], T]) -> T:
        with self._translated():
            return call()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the client's errors into failures that say what to do."""
        try:
            yield
        except FileNotFoundError as error:
            raise does_not_exist(f"{self.uri}: {error}") from error
        except OSError as error:
            if self._gate is not None and self._gate.refused is not None:
                raise invalid_spec(
                    f"the endpoint {self.endpoint} leads to {self._gate.refused}, where a node or its cloud hands out "
                    "credentials, and which no run may ask: name the object store's own address"
                ) from error
            match = _AWS_ERROR.search(str(error))
            if match is None:
                raise SourceInterruptedError(f"cannot read {self.uri}: {error}") from error
            word, status, detail = match.groups()
            answer = f"{word} (HTTP {status})" if status else word
            if self._gate is not None and self._gate.trouble is not None:
                detail = self._gate.trouble
            text = f"cannot read {self.uri} from {self.endpoint or 'Amazon S3'}: {answer}: {detail}".rstrip(". ")
            if _REFUSED.search(word) or status in ("401", "403"):
                raise access_denied(f"{text}; {self._credentials_hint()}") from error
            if _MISSING.search(word) or status == "404":
                raise does_not_exist(text) from error
            raise SourceInterruptedError(text) from error

    def _credentials_hint(self) -> str:
        if self.environment.get("AWS_ACCESS_KEY_ID"):
            return "check the access key, its secret and what it may read"
        return "no AWS_ACCESS_KEY_ID was given: name a credentials Secret, or make the objects public"


class _Reader(io.RawIOBase):
    """An object's bytes; every error is told in the source's words."""

    def __init__(self, stored: Any, translated: Callable[[], Any]) -> None:
        self._stored = stored
        self._translated = translated

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._translated():
            data = self._stored.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position: int = self._stored.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._stored.tell()
        return position

    def close(self) -> None:
        if not self.closed:
            self._stored.close()
        super().close()


def _split_uri(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if uri.startswith("s3://") and re.search("[:@]", bucket):
        raise invalid_spec("--uri holds credentials: give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if not uri.startswith("s3://") or not bucket or not (key or uri.endswith("/")):
        raise invalid_spec(f"--uri={uri}: must be s3://<bucket>/<key>, a glob, or a prefix that ends in a slash")
    return bucket, key


def _region(bucket: str) -> str:
    """The region of a bucket of Amazon's, which is named to everybody, whatever else is answered. Raises OSError."""
    request = Request(f"https://{AMAZON}/{bucket}", method="HEAD")
    try:
        with urlopen(request, timeout=CONNECT_TIMEOUT_SECONDS) as answer:  # noqa: S310 - https, as it stands there
            said = answer.headers
    except HTTPError as error:
        said = error.headers
    return str(said.get("x-amz-bucket-region") or "us-east-1")


def _object(info: Any) -> _Object:
    return _Object(info.path, info.size, int(info.mtime.timestamp()) if info.mtime else 0)


def _etag(stored: Any) -> bytes:
    tag: bytes = stored.metadata().get("ETag", b"")
    return tag
