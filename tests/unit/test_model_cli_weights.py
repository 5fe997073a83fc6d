"""What is read from a model's files without loading it, and what an adapter's files must be like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.training.commands import verify
from model.training.commands.verify import Findings
from model.training.weights.files import FilesError, lora_parameters, read_header, read_model
from tests.support.safetensors_files import base_shapes, write_adapter, write_base, write_safetensors


def test_a_model_s_files_tell_its_size_and_its_layers(tmp_path: Path) -> None:
    files = read_model(write_base(tmp_path / "base"))
    assert files.parameters == sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in base_shapes().values())
    assert (files.vocabulary, files.positions, files.has_tokenizer) == (32, 64, True)
    assert len(files.layers(["all-linear"])) == 8
    assert set(files.layers(["v_proj"])) == {f"model.layers.{n}.self_attn.v_proj" for n in (0, 1)}
    assert lora_parameters(files, ["q_proj", "up_proj"], 4) == 2 * (4 * (8 + 8) + 4 * (16 + 8))
    assert lora_parameters(files, ["q_proj"], 4, dora=True) == 2 * (4 * (8 + 8) + 8)


def test_experts_and_what_is_called_like_them_are_left_out(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    shapes = base_shapes()
    moe = {name: shape for name, shape in shapes.items() if "layers.1.mlp" not in name} | {
        "model.layers.1.mlp.gate.weight": (4, 8),
        "model.layers.1.mlp.experts.0.up_proj.weight": (16, 8),
        "model.layers.1.mlp.shared_expert.up_proj.weight": (16, 8),
    }
    write_safetensors(base / "model.safetensors", moe)
    files = read_model(base)
    assert {name.rpartition(".")[2] for name in files.layers(["all-linear"])} == {"q_proj", "v_proj"}
    assert set(files.layers(["up_proj"])) == {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.shared_expert.up_proj"}
    assert not files.layers(["gate"])


@pytest.mark.parametrize(
    ("language", "tower"),
    [
        ("language_model.model.", "vision_tower.encoder."),
        ("model.language_model.", "model.visual."),
        ("model.", "model.vision_tower."),
        ("model.", "multi_modal_projector."),
    ],
)
def test_what_sees_pictures_is_left_out(language: str, tower: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    shapes = renamed(base_shapes(), "model.", language) | {f"{tower}layers.0.self_attn.q_proj.weight": (8, 8)}
    write_safetensors(base / "model.safetensors", shapes)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"text_config": config}))
    found = read_model(base).layers(["all-linear"])
    assert len(found) == 8
    assert all(name.startswith(f"{language}layers.") for name in found)


def test_embeddings_are_known_by_name(tmp_path: Path) -> None:
    files = read_model(write_base(tmp_path / "base"))
    assert files.has_embeddings("embed_tokens")
    assert files.has_embeddings("model.embed_tokens")
    assert not any(map(files.has_embeddings, ("lm_head", "tokens", "input_layernorm")))


def test_a_model_in_several_files(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    names = list(base_shapes())
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for part, members in parts.items():
        write_safetensors(base / part, {name: base_shapes()[name] for name in members}, "BF16")
    index = {"weight_map": {name: part for part, members in parts.items() for name in members}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(read_model(base).tensors) == set(names)
    for changed, said in (
        (
            {"weight_map": index["weight_map"] | {"model.more": "a.safetensors"}},
            r"lacks model\.more, which .*index\.json",
        ),
        ({}, r"index\.json names no weights"),
    ):
        (base / "model.safetensors.index.json").write_text(json.dumps(changed))
        with pytest.raises(FilesError, match=said):
            read_model(base)
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(base / "b.safetensors", {name: base_shapes()[name] for name in names[2:]}, "BF16")
    with pytest.raises(FilesError, match=rf"b\.safetensors holds {names[2]}, as another file"):
        read_model(base)
    (base / "b.safetensors").unlink()
    with pytest.raises(FilesError, match=r"lacks b\.safetensors"):
        read_model(base)
    write_safetensors(base / "model.safetensors", {"x": (2, 2)}, "BF16")
    assert set(read_model(base).tensors) == {"x"}  # which the library takes, too
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").unlink()
    with pytest.raises(FilesError, match=r"has a\.safetensors, but neither .*: name a\.safetensors so"):
        read_model(base)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda base: (base / "config.json").unlink(), "config.json cannot be read: No such file"),
        (lambda base: (base / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda base: (base / "config.json").write_text("{}"), "names no model_type"),
        (lambda base: (base / "config.json").write_text("[]"), "must hold a JSON object"),
        (lambda base: (base / "model.safetensors").unlink(), "has no weights"),
        (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "it has pytorch_model.bin"),
        (lambda base: (base / "model.safetensors").write_bytes(b"abc"), "is no safetensors file, or is cut off"),
        (lambda base: (base / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"x{"), "is no safetensors file"),
        (lambda base: cut(base / "model.safetensors"), "bytes, its header says"),
    ],
)
def test_damaged_models_are_told(damage: Any, said: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    damage(base)
    with pytest.raises(FilesError, match=said):
        read_model(base)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_header_is_read_without_the_weights(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"x": (2, 3)}, "BF16")
    tensor = read_header(tmp_path / "a.safetensors")["x"]
    assert (tensor.dtype, tensor.shape, tensor.elements) == ("BF16", (2, 3), 6)


def look(adapter: Path, base: Path | None = None) -> Findings:
    findings = Findings()
    verify.check_files(adapter, read_model(base) if base else None, findings)
    return findings


def test_an_adapter_that_belongs_to_its_base(tmp_path: Path) -> None:
    findings = look(write_adapter(tmp_path / "adapter"), write_base(tmp_path / "base"))
    assert (findings.problems, findings.warnings) == ([], [])
    assert findings.facts["parameters"] == 2 * 2 * 8 * 8


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    shapes = {name: (9, 9) if "layers.1.self_attn.q" in name else shape for name, shape in base_shapes().items()}
    write_safetensors(base / "model.safetensors", {n: s for n, s in shapes.items() if "layers.0.self_attn.q" not in n})
    problems = look(write_adapter(tmp_path / "adapter"), base).problems
    assert any("has 8 inputs, the base model's layer has 9" in problem for problem in problems)
    assert any("the base model has no layer model.layers.0.self_attn.q_proj" in problem for problem in problems)


def renamed(shapes: dict[str, tuple[int, ...]], old: str, new: str) -> dict[str, tuple[int, ...]]:
    return {name.replace(old, new): shape for name, shape in shapes.items()}


def test_files_may_wrap_the_names_otherwise_than_the_model(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    wrapped = renamed(base_shapes(), "model.layers.", "language_model.model.layers.")
    write_safetensors(base / "model.safetensors", wrapped)
    path = adapter / "adapter_model.safetensors"
    shapes = {name: tensor.shape for name, tensor in read_header(path).items()}
    write_safetensors(path, renamed(shapes, "model.layers.", "model.language_model.layers."))
    findings = look(adapter, base)
    assert (findings.problems, findings.warnings) == ([], [])
    write_safetensors(base / "model.safetensors", renamed(wrapped, "layers.1", "layers.0"))
    assert "no layer model.language_model.layers.1.self_attn.q_proj" in look(adapter, base).problems[0]


def test_names_that_the_files_do_not_have_are_no_proof(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    write_safetensors(base / "model.safetensors", renamed(base_shapes(), "self_attn.q_proj", "attention.query"))
    findings = look(adapter, base)
    assert findings.problems == []
    assert "2 of its layers, as model.layers.0.self_attn.q_proj, are not in the base" in findings.warnings[0]


def test_half_an_adapter(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    write_safetensors(adapter / "adapter_model.safetensors", {f"{name}.lora_A.weight": (8, 8)})
    assert "is there without" in look(adapter).problems[0]
    write_safetensors(adapter / "adapter_model.safetensors", {})
    assert look(adapter).problems == ["it holds no weights"]
    assert "type IA3" in look(write_adapter(tmp_path / "other", peft_type="IA3")).problems[0]


@pytest.mark.parametrize(
    ("rank", "config", "said"),
    [
        (16, {}, None),
        (12, {}, None),
        (24, {}, "--max-lora-rank=32"),
        (64, {}, "--max-lora-rank=64"),
        (1000, {}, "up to rank 512, this one has 1000"),
        (8, {"use_dora": True}, "DoRA"),
        (8, {"bias": "all"}, "biases"),
        (8, {"modules_to_save": ["lm_head"]}, "whole layers (lm_head)"),
    ],
)
def test_what_vllm_cannot_load_is_a_warning(
    rank: int, config: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    findings = look(write_adapter(tmp_path / "adapter", rank, **config))
    assert not findings.problems
    assert [said in warning for warning in findings.warnings] == ([True] if said else [])


def test_an_unfinished_run_is_told_from_what_is_no_run(tmp_path: Path) -> None:
    from model.exits import FailureError

    (tmp_path / "run/dataset").mkdir(parents=True)
    with pytest.raises(FailureError, match="has not finished"):
        verify.find_adapter(tmp_path / "run")
    with pytest.raises(FailureError, match=": name a run"):
        verify.find_adapter(tmp_path)
    adapter = write_adapter(tmp_path / "run/adapter")
    assert verify.find_adapter(tmp_path / "run") == verify.find_adapter(adapter) == adapter
