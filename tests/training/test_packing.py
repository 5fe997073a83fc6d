"""Joined rows: which models keep them apart, and what happens with those that do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402 - torch first, or there is nothing to import

from model import exits  # noqa: E402 - as above
from model.exits import FailureError  # noqa: E402 - as above
from model.training import build  # noqa: E402 - as above
from model.training.loop.attention import mixes_joined_rows  # noqa: E402 - as above
from model.training.loop.layout import Layout  # noqa: E402 - as above
from model.training.weights import basemodel  # noqa: E402 - as above
from tests.training.trainers import make_settings, make_trainer, random_pairs, random_rows  # noqa: E402 - as above

SMALL = {"vocab_size": 403, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
ATTENTION = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    implementation = options.pop("attention", "sdpa")
    config = getattr(transformers, f"{name}Config")(**SMALL, **options)
    config._attn_implementation = implementation
    return getattr(transformers, f"{name}ForCausalLM")(config)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "Llama", **ATTENTION},
        {"name": "Llama", **ATTENTION, "attention": "eager"},
        {"name": "Mistral", **ATTENTION, "sliding_window": 4},
        {"name": "Qwen2", **ATTENTION},
        {"name": "Gemma2", **ATTENTION, "head_dim": 16, "sliding_window": 4, "attention": "eager"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_keep_joined_rows_apart(options: dict[str, Any], dtype: torch.dtype) -> None:
    assert mixes_joined_rows(make(**options).to(dtype)) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "Mamba", "state_size": 8, "attention": "eager"}, "change what the model says about the next row"),
        (
            {"name": "Bloom", "n_head": 2, "attention": "eager"},
            "takes no positions|change what the model says|depend on where",
        ),
        ({"name": "OPT", "ffn_dim": 64, "num_attention_heads": 2}, "change what the model says|depend on where"),
    ],
)
def test_models_that_mix_them_up(options: dict[str, Any], reason: str) -> None:
    found = mixes_joined_rows(make(**options))
    assert found is not None

    assert re.search(reason, found)


def test_trying_leaves_model_and_random_numbers_as_they_were() -> None:
    model = make("Llama", **ATTENTION, attention_dropout=0.5).train()
    before = torch.get_rng_state()
    assert mixes_joined_rows(model) is None
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_packing_is_refused_for_a_model_that_mixes_rows_up(
    base_model: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    examples = random_pairs(8) if method == "DPO" else random_rows(8)
    plain = transformers.LlamaForCausalLM.forward

    def without_positions(self: Any, *arguments: Any, position_ids: Any = None, **options: Any) -> Any:
        del position_ids
        return plain(self, *arguments, **options)

    settings = make_settings(base_model, tmp_path, method=method, packing="Enabled")
    assert make_trainer(settings, tokenizer, examples).parts.collator.layout is Layout.SEGMENTED
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", without_positions)
    with pytest.raises(
        FailureError, match=r"--packing=Enabled: .* cannot train on joined rows, a row's tokens"
    ) as caught:
        make_trainer(settings, tokenizer, examples)
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")


def test_auto_joins_where_it_pays(base_model: Path, tmp_path: Path) -> None:
    model = basemodel.load_model(str(base_model), None, bfloat16=False)
    for packing, cuda, layout in (
        ("Disabled", False, Layout.PADDED),
        ("Auto", True, Layout.PADDED),  # sdpa would compute the whole square of the joined sequence
        ("Auto", False, Layout.SEGMENTED),
    ):
        settings = make_settings(base_model, tmp_path, packing=packing)
        assert build.choose_layout(model, settings, 100, cuda=cuda) is layout


def test_eager_attention_pads_unless_told_otherwise(base_model: Path, tmp_path: Path) -> None:
    model = basemodel.load_model(str(base_model), None, bfloat16=False)
    model.set_attn_implementation("eager")
    for packing, layout in (("Auto", Layout.PADDED), ("Enabled", Layout.JOINED)):
        settings = make_settings(base_model, tmp_path, packing=packing)
        assert build.choose_layout(model, settings, 100, cuda=False) is layout
