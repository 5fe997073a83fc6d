"""Uploads hold memory and a turn: who falls silent is given up, who comes when all turns are taken waits in bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from finetune.registry.blobs.errors import TooManyUploads
from finetune.registry.service import pacing
from finetune.registry.service.errors import SlowSender
from finetune.registry.store import turns


async def test_a_sender_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "BLOCK_SECONDS", 0.05)

    async def silent() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    blocks = aiter(pacing.paced(silent()))
    assert await anext(blocks) == b"first"
    with pytest.raises(SlowSender):
        await anext(blocks)


async def test_more_uploads_than_turns_wait_and_are_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.05)
    uploads = asyncio.Semaphore(1)
    async with turns.turn(uploads, 1):
        with pytest.raises(TooManyUploads, match="1 files are being sent"):
            async with turns.turn(uploads, 1):
                raise AssertionError("there was no turn")
    async with turns.turn(uploads, 1):
        pass
