"""A quantized base model under the adapter. The library can compute on a CPU, slowly: enough for a tiny model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

from peft import get_peft_model_state_dict  # noqa: E402 - torch first, or there is nothing to import
from safetensors.torch import load_file  # noqa: E402 - as above

from model import exits  # noqa: E402 - as above
from model.exits import FailureError  # noqa: E402 - as above
from model.files import RunDirectory  # noqa: E402 - as above
from model.training.result import save_adapter  # noqa: E402 - as above
from model.training.weights import adapter_trial, basemodel  # noqa: E402 - as above
from tests.support.safetensors_files import write_base  # noqa: E402 - as above
from tests.training.harness import Run  # noqa: E402 - as above
from tests.training.trainers import (  # noqa: E402 - as above
    difference,
    events,
    make_settings,
    make_trainer,
    random_pairs,
    random_rows,
    weights,
)

KINDS = ["NF4", "Int8"]


@pytest.mark.parametrize("quantization", KINDS)
def test_quantization_without_cuda_is_refused_before_anything_is_loaded(
    base_model: Path, tmp_path: Path, rows: list[dict[str, Any]], quantization: str
) -> None:
    run = Run(tmp_path, base_model, quantization=quantization, max_steps=2).export(rows)
    run.flags["base_model"] = write_base(tmp_path / "empty")  # it would fail with other words if it were loaded
    assert run.train() == exits.INVALID_CONFIGURATION
    failure = run.said()["failure"]
    assert failure["reason"] == "InvalidSpec"
    for words in (f"--quantization={quantization}", "CUDA", "leave it out"):
        assert words in failure["message"]


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    basemodel.check_quantization("NF4", cuda=True)
    basemodel.check_quantization("None", cuda=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(FailureError, match="needs the Python package bitsandbytes"):
        basemodel.check_quantization("NF4", cuda=True)


def test_nf4_is_that_of_qlora() -> None:
    config = basemodel.quantization_config("NF4", bfloat16=True)
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert basemodel.quantization_config("NF4", bfloat16=False).bnb_4bit_compute_dtype == torch.float32
    assert basemodel.quantization_config("Int8", bfloat16=True).load_in_8bit
    assert basemodel.quantization_config("None", bfloat16=True) is None


@pytest.fixture(params=KINDS)
def quantized(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let `load_model` quantize whatever it loads.

    On a CPU with AVX512_BF16 the library packs 4-bit weights anew when it does not train, and stops at dimensions that
    32 and 64 do not divide, as these; GPUs have no such path, so no CPU shall take it here.
    """
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    plain = basemodel.load_model
    options = {"quantization": request.param}
    monkeypatch.setattr(basemodel, "load_model", lambda *a, **k: plain(*a, **(k | options)))
    return request.param


def test_the_adapter_of_a_quantized_base_is_trained_and_saved_in_float32(
    base_model: Path, tokenizer: Any, tmp_path: Path, quantized: str
) -> None:
    settings = make_settings(base_model, tmp_path, epochs=2, micro_batch_size=3, precision="BFloat16")
    trainer = make_trainer(settings, tokenizer, random_rows(16))
    layer = trainer.model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert type(layer).__name__ == {"NF4": "Linear4bit", "Int8": "Linear8bitLt"}[quantized]
    assert adapter_trial.description(trainer.model) == {"fused": 14, "joined": 10, "peft": 0}
    assert {weight.dtype for weight in weights(trainer.model).values()} == {torch.float32}
    before = trainer.mean_loss(trainer.held_out_sums())
    trainer.train()
    assert trainer.mean_loss(trainer.held_out_sums()) < before
    directory = RunDirectory(tmp_path)
    assert save_adapter(trainer.model, settings, directory, "card")
    assert {tensor.dtype for tensor in load_file(directory.adapter / "adapter_model.safetensors").values()} == {
        torch.float32
    }


def test_a_parent_keeps_every_bit_on_a_quantized_base(
    base_model: Path, tokenizer: Any, tmp_path: Path, quantized: str
) -> None:
    """TRL rounds a quantized model's adapter to bfloat16, after it has copied the reference."""
    variant = "DoRA" if quantized == "NF4" else "LoRA"  # PEFT's DoRA cannot go on with Int8 on a CPU
    first = make_settings(base_model, tmp_path / "first", epochs=1, precision="BFloat16", lora_variant=variant)
    trainer = make_trainer(first, tokenizer, random_rows(16))
    trainer.train()
    save_adapter(trainer.model, first, RunDirectory(first.run_directory), "card")
    parent = first.run_directory / "adapter"
    second = make_settings(
        base_model, tmp_path / "second", method="DPO", epochs=1, precision="BFloat16", parent_adapter=parent
    )
    trainer = make_trainer(second, tokenizer, random_pairs(16))
    saved = load_file(parent / "adapter_model.safetensors")
    assert difference(get_peft_model_state_dict(trainer.model, save_embedding_layers=False), saved) == 0
    trainer.train()
    # On a CPU the library multiplies Int8 in another way when it does not train.
    assert events(trainer, "train")[0]["loss"] == pytest.approx(0.693147, abs=1e-6 if quantized == "NF4" else 0.01)
