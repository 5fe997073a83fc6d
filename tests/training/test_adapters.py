"""Adapters on models whose layers are not called, or not held, as in their files: mixtures of experts, Gemma 3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.training.commands.chat import Conversation, Pair
from model.training.commands.merge import merge
from model.training.commands.verify import verify
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

    return MixtralForCausalLM(MixtralConfig(vocab_size=tokens, num_local_experts=4, **SIZES))


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


def write_model(directory: Path, kind: str, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    MODELS[kind](len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", list(MODELS))
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
