"""Bases that are stored quantized, written here by hand: what is loaded is what was meant, and nothing else trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import exits
from model.exits import FailureError
from model.training.commands.merge import merge
from model.training.weights import basemodel
from tests.training.harness import Run
from tests.training.programs import run_program

Weights = dict[str, torch.Tensor]
BLOCK = 16


def write(base: Path, directory: Path, weights: Weights, **config: Any) -> Path:
    """Write a model like `base` with other weights and settings."""
    shutil.copytree(base, directory)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / "model.safetensors")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return directory


def is_layer(name: str) -> bool:
    return ".layers." in name and name.endswith("_proj.weight")


def grid(weight: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A weight in blocks of this size: (blocks down, rows, blocks across, columns)."""
    return weight.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)


def in_fp8(base: Path, directory: Path) -> tuple[Path, Path]:
    """Write a base in FP8 with a scale for each block, as DeepSeek's and Qwen's are, and the same in float32."""
    full = load_file(base / "model.safetensors")
    quantized: Weights = {}
    for name, weight in list(full.items()):
        if not is_layer(name):
            quantized[name] = weight
            continue
        blocks = grid(weight, BLOCK, BLOCK)
        scales = blocks.abs().amax((1, 3)) / 448
        values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        quantized[name] = values.reshape(weight.shape)
        quantized[f"{name}_scale_inv"] = scales
        full[name] = (values.float() * scales[:, None, :, None]).reshape(weight.shape)
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    return write(base, directory / "fp8", quantized, quantization_config=config), write(base, directory / "full", full)


def in_fp8_per_tensor(base: Path, directory: Path) -> tuple[Path, Path]:
    """The same with one scale for each weight, and scales for what comes in, which training has no use for."""
    full = load_file(base / "model.safetensors")
    quantized = dict(full)
    for name, weight in list(full.items()):
        if is_layer(name):
            scale = weight.abs().max() / 448
            quantized[name] = (weight / scale).to(torch.float8_e4m3fn)
            quantized[f"{name}_scale_inv"] = scale
            quantized[name.replace(".weight", ".activation_scale")] = torch.tensor(0.5)
            full[name] = quantized[name].float() * scale
    config = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    return write(base, directory / "fp8", quantized, quantization_config=config), write(base, directory / "full", full)


def in_mxfp8(base: Path, directory: Path) -> tuple[Path, Path]:
    """The same with a power of two for every 32 weights of a row."""
    full = load_file(base / "model.safetensors")
    quantized = dict(full)
    for name, weight in list(full.items()):
        if is_layer(name):
            blocks = grid(weight, 1, 32)
            exponents = torch.ceil(torch.log2(blocks.abs().amax((1, 3)) / 448)).clamp(-127, 127)
            scales = exponents.exp2()
            values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            quantized[name] = values.reshape(weight.shape)
            quantized[f"{name}_scale_inv"] = (exponents + 127).to(torch.uint8)
            full[name] = (values.float() * scales[:, None, :, None]).reshape(weight.shape)
    config = {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}
    return write(base, directory / "fp8", quantized, quantization_config=config), write(base, directory / "full", full)


KINDS: dict[str, Callable[[Path, Path], tuple[Path, Path]]] = {
    "blocks": in_fp8,
    "tensors": in_fp8_per_tensor,
    "mxfp8": in_mxfp8,
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_fp8_becomes_the_weights_that_it_stands_for(kind: str, base_model: Path, tmp_path: Path) -> None:
    quantized, full = KINDS[kind](base_model, tmp_path)
    loaded = basemodel.load_model(str(quantized), None, bfloat16=False)
    expected = basemodel.load_model(str(full), None, bfloat16=False).state_dict()
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == dict.fromkeys(
        expected, torch.float32
    )
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert {w.dtype for w in basemodel.load_model(str(quantized), None, bfloat16=True).parameters()} == {torch.bfloat16}


def test_a_run_on_fp8_is_a_run_on_what_it_stands_for(
    base_model: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    results = []
    for base in in_fp8(base_model, tmp_path):
        run = Run(tmp_path / f"run-{base.name}", base, max_steps=4, precision="Float32")
        run.path.mkdir()
        assert run.export(rows).train() == 0, run.said()
        results.append(run.said()["result"])
    for key in ("baseEvaluationLoss", "evaluationLoss", "finalLoss"):
        assert results[0][key] == results[1][key]
    merged = merge(run.directory, str(tmp_path / "fp8"), tmp_path / "merged", "Float32")
    assert merged.difference < 1e-3
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


def test_mxfp4_experts_become_the_weights_that_they_stand_for(tokenizer: Any, tmp_path: Path) -> None:
    """As gpt-oss has them: 16 bytes with two numbers of four bits each, and a power of two for the 32."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(tmp_path / "full")
    tokenizer.save_pretrained(tmp_path / "full")
    full = load_file(tmp_path / "full/model.safetensors")
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    quantized = dict(full)
    for name in [name for name in full if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = full[name].shape
        codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32))
        scales = torch.randint(120, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
        quantized[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        quantized[f"{name}_scales"] = scales
        del quantized[name]
        values = levels[codes] * (scales.float() - 127).exp2()[..., None]
        full[name] = values.reshape(experts, outputs, inputs).transpose(1, 2)
    stored = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    base = write(tmp_path / "full", tmp_path / "mxfp4", quantized, quantization_config=stored)
    expected = basemodel.load_model(str(write(tmp_path / "full", tmp_path / "dense", full)), None, bfloat16=False)
    loaded = basemodel.load_model(str(base), None, bfloat16=False)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "stored quantized (gptq with 4 bits)"),
        ({"quant_method": "awq", "bits": 4}, "stored quantized (awq with 4 bits)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "(bitsandbytes NF4)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "(bitsandbytes Int8), which needs a GPU with CUDA"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "Python package compressed-tensors"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_train_as_by_validate(
    quantization: dict[str, Any], said: str, base_model: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    weights = load_file(base_model / "model.safetensors")
    packed = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, 8, dtype=torch.int32)}
    base = write(base_model, tmp_path / "base", weights | packed, quantization_config=quantization)
    run = Run(tmp_path, base, max_steps=2).export(rows)
    assert run.train() == exits.INVALID_CONFIGURATION
    failure = run.said()["failure"]
    assert failure["reason"] == "InvalidSpec"
    assert said in failure["message"]
    validated = run_program(tmp_path, "validate", *run.arguments()[1:])
    assert validated.code == exits.INVALID_CONFIGURATION
    assert failure["message"] in validated.output


@pytest.mark.parametrize(
    "left",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
    ],
)
def test_full_weights_are_trained_on_whatever_config_says_of_those_before(
    left: dict[str, Any], base_model: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """As a model has it that was merged or dequantized."""
    weights = {name: tensor.bfloat16() for name, tensor in load_file(base_model / "model.safetensors").items()}
    told, plain = (
        write(base_model, tmp_path / name, weights, **config)
        for name, config in (("told", {"quantization_config": left}), ("plain", {}))
    )
    expected = basemodel.load_model(str(plain), None, bfloat16=True).state_dict()
    for name, tensor in basemodel.load_model(str(told), None, bfloat16=True).state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name]), name
    run = Run(tmp_path, told, max_steps=2).export(rows)
    assert run.train() == 0, run.said()
    merge(run.directory, str(told), tmp_path / "merged", "Auto")
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


def _drop_what_it_says(base: Path) -> None:
    path = base / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "quantization_config"}))


def _call_the_scales_otherwise(base: Path) -> None:
    path = base / "model.safetensors"
    save_file({name.replace("scale_inv", "scale"): t for name, t in load_file(path).items()}, path)


def test_fp8_without_a_word_about_it_is_refused(base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    base, _ = in_fp8(base_model, tmp_path)
    _drop_what_it_says(base)
    run = Run(tmp_path, base, max_steps=2).export(rows)
    assert run.train() == exits.INVALID_CONFIGURATION
    assert "as F8_E4M3, and its config.json has no quantization_config" in run.said()["failure"]["message"]


def test_fp8_without_its_scales_is_refused(base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """The library would take the numbers of eight bits for the weights."""
    base, _ = in_fp8(base_model, tmp_path)
    path = base / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.endswith("scale_inv")}, path)
    run = Run(tmp_path, base, max_steps=2).export(rows)
    assert run.train() == exits.INVALID_CONFIGURATION
    assert "as F8_E4M3 and no scale for it: get its files again" in run.said()["failure"]["message"]
    with pytest.raises(FailureError, match="no scale for it"):
        basemodel.load_model(str(base), None, bfloat16=False)


def test_weights_without_a_place_are_named(base_model: Path, tmp_path: Path) -> None:
    base, _ = in_fp8(base_model, tmp_path)
    _call_the_scales_otherwise(base)
    with pytest.raises(FailureError, match=r"has no place for: model\.layers\.0\..*_scale, .* and \d+ more") as caught:
        basemodel.load_model(str(base), None, bfloat16=False)
    assert (caught.value.code, caught.value.reason) == (exits.DOES_NOT_EXIST, "BaseModelUnavailable")


@pytest.mark.parametrize(
    ("name", "shape", "refused"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (32,), True),  # config.json says that there is none
        ("model.layers.2.mlp.up_proj.weight", (64, 32), True),  # one layer more than config.json says
        ("lm_head.bias", (4,), True),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (8,), False),
        ("model.layers.0.self_attn.k_proj.k_scale", (1,), False),
        ("vision_tower.encoder.layers.0.mlp.fc1.weight", (4, 4), False),
        ("multi_modal_projector.linear.weight", (4, 4), False),
        ("v_head.summary.weight", (1, 32), False),
        ("mtp.layers.0.mlp.up_proj.weight", (4, 4), False),
    ],
)
def test_a_weight_more_matters_where_it_belongs_to_the_layers(
    name: str, shape: tuple[int, ...], refused: bool, base_model: Path, tmp_path: Path
) -> None:
    weights = load_file(base_model / "model.safetensors") | {name: torch.zeros(shape)}
    base = write(base_model, tmp_path / "base", weights)
    if refused:
        with pytest.raises(FailureError, match=f"has no place for: {name}"):
            basemodel.load_model(str(base), None, bfloat16=False)
    else:
        basemodel.load_model(str(base), None, bfloat16=False)


def test_weights_of_another_shape_are_named(base_model: Path, tmp_path: Path) -> None:
    base = write(base_model, tmp_path / "base", load_file(base_model / "model.safetensors"), vocab_size=600)
    said = (
        r"lm_head\.weight of shape \(\d+, 32\), but its config\.json makes it \(600, 32\): they do not belong together"
    )
    with pytest.raises(FailureError, match=said) as caught:
        basemodel.load_model(str(base), None, bfloat16=False)
    assert (caught.value.code, caught.value.reason) == (exits.DOES_NOT_EXIST, "BaseModelUnavailable")


def test_layers_that_guess_ahead_are_not_needed(base_model: Path, tmp_path: Path) -> None:
    weights = load_file(base_model / "model.safetensors") | {"model.layers.2.eh_proj.weight": torch.zeros(4, 4)}
    base = write(base_model, tmp_path / "base", weights, num_nextn_predict_layers=1)
    basemodel.load_model(str(base), None, bfloat16=False)


def test_tied_weights_may_be_stored_twice_or_once(base_model: Path, tmp_path: Path) -> None:
    weights = load_file(base_model / "model.safetensors")
    once = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    for number, stored in enumerate((once, once | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()})):
        base = write(base_model, tmp_path / str(number), stored, tie_word_embeddings=True)
        model = basemodel.load_model(str(base), None, bfloat16=False)
        assert torch.equal(model.get_output_embeddings().weight, weights["model.embed_tokens.weight"])


def test_an_adapter_beside_the_weights_is_left_where_it_is(base_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tmp_path / "base"
    shutil.copytree(base_model, base)
    plain = basemodel.load_model(str(base), None, bfloat16=False)
    expected = dict(plain.state_dict())
    get_peft_model(plain, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(base)
    loaded = basemodel.load_model(str(base), None, bfloat16=False).state_dict()
    assert loaded.keys() == {name.replace(".base_layer", "") for name in expected if "lora_" not in name}
