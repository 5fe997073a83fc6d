"""Joined rows: where they are had, and what happens where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402 - torch first, or there is nothing to import

from model import exits  # noqa: E402 - as above
from model.exits import FailureError  # noqa: E402 - as above
from model.training.loop.layout import Layout  # noqa: E402 - as above
from tests.training.trainers import make_settings, make_trainer, random_pairs, random_rows  # noqa: E402 - as above


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_packing_is_refused_for_a_model_that_mixes_rows_up(
    base_model: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    examples = random_pairs(8) if method == "DPO" else random_rows(8)
    plain = transformers.LlamaForCausalLM.forward

    def without_positions(self: Any, *arguments: Any, position_ids: Any = None, **options: Any) -> Any:
        del position_ids
        return plain(self, *arguments, **options)

    def layout(packing: str) -> Layout:
        settings = make_settings(base_model, tmp_path / packing, method=method, packing=packing)
        found: Layout = make_trainer(settings, tokenizer, examples).parts.collator.layout
        return found

    assert [layout(packing) for packing in ("Enabled", "Auto", "Disabled")] == [
        Layout.SEGMENTED, Layout.SEGMENTED, Layout.PADDED
    ]  # fmt: skip
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", without_positions)
    assert layout("Auto") is Layout.PADDED
    with pytest.raises(FailureError, match="cannot train on joined rows here, its logits") as caught:
        layout("Enabled")
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")


def test_a_model_that_sees_what_follows_is_no_base_to_train(
    base_model: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind a row would change what is learned of it."""
    monkeypatch.setattr(transformers.LlamaConfig, "is_causal", False, raising=False)
    settings = make_settings(base_model, tmp_path)
    with pytest.raises(FailureError, match="is no causal language model") as caught:
        make_trainer(settings, tokenizer, random_rows(8))
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")
