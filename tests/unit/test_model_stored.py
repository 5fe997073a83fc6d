"""What a base model says about how its weights are stored, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import exits
from model.exits import FailureError
from model.training.weights import stored
from model.training.weights.files import FilesError, Tensor, read_model
from tests.support.safetensors_files import base_shapes, write_base, write_safetensors

FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
NF4: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
PACKED: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def nothing(_name: str) -> None:
    return None


@pytest.mark.parametrize(
    ("quantization", "cuda", "said"),
    [
        ({}, False, None),
        (None, False, None),
        (FP8, False, None),
        ({"quant_method": "mxfp4"}, False, None),
        (PACKED, True, None),
        (NF4, True, None),
        (INT8, True, None),
        (NF4, False, "is stored quantized (bitsandbytes NF4), which needs a GPU with CUDA"),
        ({"load_in_8bit": True}, False, "is stored quantized (bitsandbytes Int8), which needs a GPU with CUDA"),
        ({"quant_method": "gptq", "bits": 4}, True, "is stored quantized (gptq with 4 bits), and weights in that form"),
        ({"quant_method": "awq", "w_bit": 4}, True, "(awq with 4 bits)"),
        ({"quant_method": "fbgemm_fp8"}, True, "(fbgemm_fp8)"),
        ({"quant_method": "modelopt"}, True, "(modelopt)"),
        ({"quant_method": "a-new-one"}, True, "(a-new-one)"),
        ({"bits": 4}, True, "(unknown with 4 bits)"),
    ],
)
def test_what_is_stored_quantized_is_taken_or_refused_by_name(
    quantization: dict[str, Any] | None, cuda: bool, said: str | None
) -> None:
    for config in ({"quantization_config": quantization}, {"text_config": {"quantization_config": quantization}}):
        problem = stored.problem_of(config, cuda=cuda, find=str)
        assert (problem is None) == (said is None)
        assert said is None or said in str(problem)
        assert said is None or "full-precision model" in str(problem)


def test_a_package_that_is_missing_is_named() -> None:
    assert "needs the Python package bitsandbytes" in str(
        stored.problem_of({"quantization_config": NF4}, cuda=True, find=nothing)
    )
    for config in ({"quantization_config": PACKED}, {"compression_config": PACKED}):
        problem = str(stored.problem_of(config, cuda=True, find=nothing))
        assert "(compressed-tensors, pack-quantized), which needs the Python package compressed-tensors" in problem
    assert stored.problem_of({"quantization_config": FP8}, cuda=True, find=nothing) is None


@pytest.mark.parametrize(
    ("quantization", "asked", "refused"),
    [(NF4, "NF4", False), (INT8, "Int8", False), (NF4, "Int8", True), (FP8, "NF4", True), ({}, "NF4", False)],
)
def test_nothing_is_quantized_twice(quantization: dict[str, Any], asked: str, refused: bool) -> None:
    problem = stored.problem_of({"quantization_config": quantization}, quantization=asked, cuda=True, find=str)
    assert (problem is not None) == refused
    assert not refused or f"leave --quantization={asked} out" in str(problem)


def test_weights_that_are_no_numbers_by_themselves_need_an_explanation() -> None:
    weight = {"model.layers.0.mlp.up_proj.weight": Tensor("F8_E4M3", (8, 8))}
    assert "up_proj.weight as F8_E4M3, and its config.json has no quantization_config" in str(
        stored.problem_of_tensors({}, weight)
    )
    assert stored.problem_of_tensors({"quantization_config": PACKED}, weight) is None
    buffers = {"h.0.attn.bias": Tensor("U8", (1, 1, 8, 8)), "model.position_ids": Tensor("I64", (1, 8))}
    assert stored.problem_of_tensors({}, buffers | {"model.norm.weight": Tensor("BF16", (8,))}) is None


@pytest.mark.parametrize(
    ("scales", "block", "said"),
    [
        ({}, [128, 128], "holds model.layers.0.mlp.up_proj.weight as F8_E4M3 and no scale for it: get its files again"),
        ({"down_proj.weight_scale_inv": (1, 2)}, None, "and no scale for it"),
        (
            {"up_proj.weight_scale_inv": (1, 2)},
            [128, 128],
            "holds 1 x 2 scales for model.layers.0.mlp.up_proj.weight, whose",
        ),
        ({"up_proj.weight_scale_inv": (1, 2)}, [128, 128], "blocks are 2 x 2: get its files again, or name the full"),
        ({"up_proj.weight_scale_inv": (2, 2)}, [128, 128], None),
        ({"up_proj.weight_scale_inv": (1, 1)}, [128, 128], None),  # one for the whole weight
        ({"up_proj.weight_scale_inv": ()}, None, None),
        ({"up_proj.scale": (2, 2)}, [128, 128], None),
        ({"up_proj.weight_scale_inv": (200, 5)}, [1, 32], None),
    ],
)
def test_weights_of_eight_bits_need_their_scales(
    scales: dict[str, tuple[int, ...]], block: list[int] | None, said: str | None
) -> None:
    found = {"quant_method": "fp8", "weight_block_size": block}
    tensors = {"model.layers.0.mlp.up_proj.weight": Tensor("F8_E4M3", (200, 160))}
    tensors |= {f"model.layers.0.mlp.{name}": Tensor("F32", shape) for name, shape in scales.items()}
    problem = stored.problem_of_tensors({"quantization_config": found}, tensors)
    assert (problem is None) == (said is None)
    assert said is None or said in str(problem)


def test_a_base_is_looked_at_before_it_is_loaded(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    assert stored.read_base(base, cuda=False).vocabulary == 32
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert "quantization_config" not in stored.read_base(base, cuda=False).config  # and the weights are not
    write_safetensors(base / "model.safetensors", {"model.layers.0.mlp.up_proj.qweight": (8, 2)}, "I32")
    with pytest.raises(FailureError, match=r"base is stored quantized \(gptq with 4 bits\)") as caught:
        stored.read_base(base, cuda=True)
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")


def test_a_tokenizer_must_be_there_and_readable(tmp_path: Path) -> None:
    files = read_model(write_base(tmp_path / "base"))
    stored.check_tokenizer(files, nothing)
    (files.directory / "tokenizer.json").rename(files.directory / "tokenizer.model")
    stored.check_tokenizer(files, str)
    with pytest.raises(FailureError, match=r"only tokenizer\.model, which needs the Python packages sentencepiece"):
        stored.check_tokenizer(files, nothing)
    (files.directory / "tokenizer.model").unlink()
    with pytest.raises(FailureError, match=r"has no tokenizer: put tokenizer\.json") as caught:
        stored.check_tokenizer(files, str)
    assert (caught.value.code, caught.value.reason) == (exits.DOES_NOT_EXIST, "BaseModelUnavailable")


def test_files_that_may_not_be_read_are_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_base(tmp_path / "base")

    def refuse(*_given: Any, **_named: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read anything
    with pytest.raises(FailureError, match=r"config\.json cannot be read: Permission denied: it must") as caught:
        stored.read_base(base, cuda=False)
    assert (caught.value.code, caught.value.reason) == (exits.ACCESS_DENIED, "AccessDenied")


def test_an_adapter_beside_the_weights_is_not_taken_for_them(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_safetensors(base / "adapter_model.safetensors", {"base_model.model.x.lora_A.weight": (8, 8)})
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/tiny"}')
    assert set(read_model(base).tensors) == set(base_shapes())
    (base / "model.safetensors").rename(base / "weights.safetensors")
    with pytest.raises(
        FilesError, match=r"has weights\.safetensors, but neither model\.safetensors nor .*: name weights"
    ):
        read_model(base)  # nor would the library find them
    (base / "weights.safetensors").unlink()
    with pytest.raises(FilesError, match=r"holds an adapter and no model's weights: .*owner/tiny.*--parent-adapter"):
        read_model(base)


WEIGHT = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("name", stored.BLOCKS)
@pytest.mark.parametrize("left", [NF4, INT8, FP8, PACKED, {"quant_method": "gptq", "bits": 4}, {"load_in_4bit": False}])
@pytest.mark.parametrize(
    ("tensors", "quantized"),
    [
        ({WEIGHT: ("BF16", (8, 8))}, False),
        ({WEIGHT: ("F16", (8, 8)), "model.position_ids": ("I64", (1, 8))}, False),
        ({WEIGHT: ("U8", (32, 1)), f"{WEIGHT}.absmax": ("F32", (1,)), "lm_head.weight": ("BF16", (8, 8))}, True),
        ({WEIGHT: ("I8", (8, 8)), WEIGHT.replace("weight", "SCB"): ("F32", (8,))}, True),
        ({WEIGHT: ("F8_E4M3", (8, 8)), f"{WEIGHT}_scale_inv": ("F32", (1, 1))}, True),
        ({WEIGHT.replace("weight", "qweight"): ("I32", (1, 8))}, True),
    ],
)
def test_the_weights_and_not_a_leftover_word_tell_whether_they_are_quantized(
    name: str, left: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...]]], quantized: bool
) -> None:
    headers = {weight: Tensor(dtype, shape) for weight, (dtype, shape) in tensors.items()}
    for config in ({"model_type": "llama", name: left}, {"model_type": "a", "text_config": {name: left, "x": 1}}):
        settled = stored.settled(config, headers)
        assert (settled == config) == quantized
        assert (stored.quantization_of(settled) is not None) == quantized
        assert settled["model_type"] == config["model_type"]
