"""Adapters on models whose layers are not called, or not held, as in their files: mixtures of experts, Gemma 3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from model import exits
from model.exits import FailureError
from model.training.commands.chat import Conversation, Pair
from model.training.commands.merge import merge
from model.training.commands.verify import load_adapter, verify
from model.training.config import TrainSettings
from model.training.weights import adapters
from tests.training.harness import Run
from tests.training.programs import run_program

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def mixtral(tokens: int) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    experts = {"num_local_experts": 4, "output_router_logits": True}
    return MixtralForCausalLM(MixtralConfig(vocab_size=tokens, **experts, **SIZES))


def qwen3_moe(tokens: int) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=tokens, head_dim=8, **experts, **SIZES))


def qwen2_moe(tokens: int) -> Any:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    shared = {"shared_expert_intermediate_size": 24}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=tokens, **experts, **shared, **SIZES))


def gpt_oss(tokens: int) -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return GptOssForCausalLM(GptOssConfig(vocab_size=tokens, head_dim=8, **experts, **SIZES))


def gemma3(tokens: int) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"vocab_size": tokens, "head_dim": 8, **SIZES}
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)
    return Gemma3ForConditionalGeneration(config)


MODELS: dict[str, Callable[[int], Any]] = {
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
    "gpt_oss": gpt_oss,
    "gemma3": gemma3,
}
ONE_MORE = ("qwen2_moe", "qwen3_moe")
"""Further mixtures of experts."""


def write_model(directory: Path, kind: str, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    MODELS[kind](len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=pytest.mark.long if name in ONE_MORE else ()) for name in MODELS]
)
def test_an_adapter_with_the_defaults_is_trained_and_used(
    kind: str, tokenizer: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    base = write_model(tmp_path / "base", kind, tokenizer)
    run = Run(tmp_path, base, lora_dropout_percent=None, max_steps=2).export(rows)
    assert run.train() == 0, run.said()
    found = verify(run.directory, str(base))
    assert (found.problems, found.warnings) == ([], [])
    names = set(found.facts["targetModules"])
    assert {"q_proj", "o_proj"} <= names
    plan = json.loads(run_program(tmp_path, "plan", "--no-probe", *run.arguments()[1:]).output)
    assert plan["parameters"]["trainable"] == found.facts["parameters"]
    merged = merge(run.directory, str(base), tmp_path / "merged", "Auto")
    assert merged.difference < 1e-3
    pair = Pair(str(base), run.directory, max_new_tokens=2, system=None)
    assert set(pair.ask("What?", Conversation())) == {"prompt", "base", "adapter"}


def make_settings(directory: Path, **changes: Any) -> TrainSettings:
    values = {"method": "SFT", "run_directory": directory, "run_uid": "u", "base_model": "base", **changes}
    return adapters.with_parent(TrainSettings.model_validate(values).resolved())


@pytest.mark.parametrize(
    ("kind", "targets", "said"),
    [
        ("mixtral", ["q_proj", "gate"], "gate of base belongs to the experts"),
        ("mixtral", ["w1"], "w1 of base belongs to the experts"),
        ("qwen3_moe", ["mlp.gate_proj"], "mlp.gate_proj of base belongs to the experts"),
        ("gpt_oss", ["router"], "router of base is no linear layer; those that can be are k_proj, o_proj"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused(kind: str, targets: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(FailureError, match=said) as caught:
        adapters.new_adapter(make_settings(tmp_path, lora_target_modules=targets), MODELS[kind](32))
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")


def test_shared_experts_are_adapted_where_they_are_named(tmp_path: Path) -> None:
    model = qwen2_moe(32)
    named = adapters.new_adapter(make_settings(tmp_path, lora_target_modules=["up_proj"]), model)
    trained = {name for name, weight in get_peft_model(model, named).named_parameters() if weight.requires_grad}
    assert len(trained) == 4
    assert all(".shared_expert.up_proj.lora_" in name for name in trained)


def of_experts(directory: Path) -> Path:
    """Write an adapter with the names that each expert's own layers had."""
    torch.manual_seed(3)
    config = LoraConfig(target_modules=["q_proj", "w1", "w2", "w3"], r=4, init_lora_weights=False)
    get_peft_model(mixtral(32), config).save_pretrained(directory)
    path = directory / "adapter_config.json"
    saved = json.loads(path.read_text())
    assert saved["target_parameters"]
    return directory


@pytest.mark.parametrize("dropout", [0, 5])
def test_a_parent_that_adapts_experts_is_refused(dropout: int, tmp_path: Path) -> None:
    parent = of_experts(tmp_path / "parent")
    with pytest.raises(FailureError, match="adapts the experts or the router"):
        make_settings(tmp_path, parent_adapter=parent)
    path = parent / "adapter_config.json"
    older = {"target_parameters": None, "target_modules": ["q_proj", "w1", "w2", "w3"], "rank_pattern": {}}
    path.write_text(json.dumps(json.loads(path.read_text()) | older))
    settings = make_settings(tmp_path, parent_adapter=parent, lora_dropout_percent=dropout)
    with pytest.raises(FailureError, match="adapts the experts or the router"):
        adapters.attach_parent(mixtral(32), settings)


def test_an_adapter_of_experts_can_be_looked_at_and_loaded(tmp_path: Path) -> None:
    loaded = load_adapter(mixtral(32), "base", of_experts(tmp_path / "adapter"))
    assert any("experts" in name for name, _ in loaded.named_parameters() if "lora_" in name)


def rename(adapter: Path, old: str, new: str) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace(old, new): tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("kind", "old", "new", "said"),
    [
        ("gemma3", "self_attn.q_proj", "attention.query", "no layer model.language_model.layers.0.attention.query"),
        ("gemma3", "layers.1.", "layers.7.", "no layer model.language_model.layers.7.self_attn.q_proj"),
        ("mixtral", "self_attn.q_proj", "attention.query", "missing adapter keys"),
    ],
)
def test_weights_that_have_no_place_in_the_model_are_told(
    kind: str, old: str, new: str, said: str, tmp_path: Path
) -> None:
    model = MODELS[kind](32)
    layers = r".*layers\.\d+\.self_attn\.q_proj" if kind == "mixtral" else r".*language_model.*q_proj"
    config = LoraConfig(target_modules=layers)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    rename(tmp_path / "adapter", old, new)
    with pytest.raises(FailureError, match=said):
        load_adapter(MODELS[kind](32), "base", tmp_path / "adapter")
