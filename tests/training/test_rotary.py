"""Rows on both sides of the border at which LongRoPE takes other angles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config, Phi3ForCausalLM

from model.training.loop import rotary
from tests.training.harness import Run
from tests.training.trainers import make_settings

SIZES = {"vocab_size": 90, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def long(factors: int = 4) -> dict[str, Any]:
    """What `config.json` says of two sets of angles; new each time, for the library writes into it."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * factors,
        "long_factor": [4.0] * factors,
        "original_max_position_embeddings": 16,
    }


def phi3(**options: Any) -> Any:
    return Phi3Config(
        **SIZES, max_position_embeddings=64, original_max_position_embeddings=16, pad_token_id=0, **options
    )


@pytest.mark.parametrize(
    ("config", "lengths", "changes", "told"),
    [
        (phi3(rope_parameters=long()), (16, 40), {}, True),
        (phi3(rope_parameters=long()), (5, 16), {}, False),
        (phi3(rope_parameters=long()), (17, 40), {}, False),
        (phi3(rope_parameters=long()), (5, 40), {"micro_batch_size": 1}, False),
        (phi3(rope_parameters=long()), (5, 40), {"micro_batch_size": 1, "method": "DPO"}, True),
        (phi3(), (5, 40), {}, False),
        (LlamaConfig(**SIZES), (5, 40), {}, False),
    ],
)
def test_rows_on_both_sides_are_told_of(
    config: Any, lengths: tuple[int, int], changes: dict[str, Any], told: bool, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path, tmp_path, **{"micro_batch_size": None, **changes})
    found = rotary.warning(config, settings, *lengths)
    assert (found is not None) == told
    if found is not None:
        assert "more than 16 tokens" in found
        assert "has 40 tokens" in found
        assert ("--micro-batch-size" in found) == (settings.method == "SFT")


def test_a_run_says_it(base_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(base_model, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"] = long(8)
    (base / "config.json").write_text(json.dumps(config))
    run = Run(tmp_path, base, max_steps=1).export([{"text": "word " * count} for count in (1, 2, 30, 31)], percent=0)
    assert run.train() == 0
    assert ["longrope" in warning["message"] for warning in run.events("warning")].count(True) == 1


def test_the_border_may_be_told_by_kind_of_layer() -> None:
    config = LlamaConfig(**SIZES)
    config.rope_parameters = {"full_attention": long(), "sliding_attention": {"rope_type": "default"}}
    assert rotary.first_positions(config) == 16


def test_the_border_is_where_the_library_has_it() -> None:
    """A row's logits are others when the positions of a row beside it go beyond: the day they are not, say nothing."""
    torch.manual_seed(0)
    model = Phi3ForCausalLM(phi3(rope_parameters=long(), initializer_range=0.3)).eval()
    ids = torch.arange(3, 43)
    with torch.no_grad():
        rows = [model(torch.stack([ids[:width], ids[:width].flip(0)])).logits[0, :5] for width in (16, 17)]
        alone = model(ids[None, :5]).logits[0]
    assert torch.allclose(rows[0], alone, atol=1e-5)
    assert not torch.allclose(rows[1], alone, atol=1e-2)
