"""The fixtures of the trainer's tests, and the runs that the killed ones are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.kills import Uninterrupted
from tests.training.conftest import base_model, tokenizer

__all__ = ["base_model", "tokenizer"]


@pytest.fixture(scope="session")
def uninterrupted(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """Runs that nobody interrupts."""
    return Uninterrupted(tmp_path_factory.mktemp("uninterrupted"), base_model)
