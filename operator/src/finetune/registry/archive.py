"""A tar archive of files, made while it is sent. The same files give the same bytes: nothing of a clock or a user."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from finetune.api.registry import AdapterFile

_END = bytes(2 * tarfile.BLOCKSIZE)

Reader = Callable[[AdapterFile], Awaitable[AsyncIterator[bytes]]]


def archive_size(files: Sequence[AdapterFile]) -> int:
    """How many bytes `archive` gives."""
    return sum(tarfile.BLOCKSIZE + file.bytes + _padding(file) for file in files) + len(_END)


async def archive(folder: str, files: Sequence[AdapterFile], read: Reader) -> AsyncIterator[bytes]:
    """The files below `folder/`, sorted by path, as POSIX ustar."""
    for file in sorted(files, key=lambda file: file.path):
        yield _header(folder, file)
        async for block in await read(file):
            yield block
        yield bytes(_padding(file))
    yield _END


def _header(folder: str, file: AdapterFile) -> bytes:
    member = tarfile.TarInfo(f"{folder}/{file.path}")
    member.size = file.bytes
    member.mode = 0o644
    return member.tobuf(tarfile.USTAR_FORMAT)


def _padding(file: AdapterFile) -> int:
    return -file.bytes % tarfile.BLOCKSIZE
