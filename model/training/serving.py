"""What a person must know to serve an adapter with vLLM: what it does not load, and what it is to be told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from model.training import stopping
from model.training.config import TrainSettings
from model.training.weights import adapters, basemodel, origin
from model.training.weights.files import EMBEDDINGS

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM knows for --max-lora-rank. It loads adapters of that rank or any lower one."""
VLLM_DEFAULT_RANK = 16
HEADS = frozenset({"lm_head", "embed_out", "output_layer"})
"""What families call the output layer."""


@dataclass(frozen=True)
class Serving:
    """What is to be told, and what goes beside the adapter for a server to read.

    Attributes
    ----------
    warnings
        Sentences without full stop, for the log and the model card.
    files
        Text files by name.
    ends
        Tokens at which answers end.
    """

    warnings: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    ends: tuple[int, ...] = ()


def look(settings: TrainSettings, tokenizer: Any, model: Any = None, *, texts: bool = False) -> Serving:
    """Return what is known about a run's adapter before it is trained.

    Parameters
    ----------
    settings
        Resolved, with what a parent brings.
    tokenizer
        The base model's, with the chat template that is trained with.
    model
        The base model; None where it is not loaded.
    texts
        Whether the rows are learned as they stand: no chat template has a part in them.
    """
    ends = stopping.find(tokenizer, settings.base_model, settings.base_model_revision, texts=texts)
    template = None if texts else settings.chat_template
    warnings = basemodel.warnings_of(tokenizer, settings.base_model, texts=texts)
    warnings += filter(None, [ends.warning(), stopping.untrained(model, ends) if model is not None else None])
    warnings += of_template(template) + serving_warnings(of_settings(settings))
    files: dict[str, str] = {}
    if template is not None:
        files[adapters.CHAT_TEMPLATE] = str(tokenizer.chat_template)
    if ends.runs_on:
        files[stopping.FILE] = json.dumps(ends.generation_config(origin.check(settings.base_model)), indent=2)
    return Serving(warnings, files, tuple(ends.all))


def of_settings(settings: TrainSettings) -> Any:
    """Return the shape of the adapter to come as far as servers care."""
    return SimpleNamespace(
        r=settings.lora_rank or 1,  # none: a parent's, which could not be read
        rank_pattern=None,
        use_dora=settings.lora_variant == "DoRA",
        bias="none",
        modules_to_save=None,
        target_modules=settings.lora_target_modules,
    )


def of_template(chat_template: Path | None) -> list[str]:
    """Return how to serve an adapter that was trained with a chat template of its own."""
    if chat_template is None:
        return []
    text = "it was trained with a chat template that is not its base model's: start vLLM with --chat-template=FILE"
    return [f"{text}, the path of {adapters.CHAT_TEMPLATE} beside the adapter"]


def serving_warnings(config: Any) -> list[str]:
    """Return what stands in the way of serving an adapter with vLLM, for each hindrance a sentence without full stop.

    Parameters
    ----------
    config
        The adapter's `LoraConfig`, or what has the same r, rank_pattern, use_dora, bias, modules_to_save and
        target_modules.
    """
    hindrances = []
    if config.use_dora:
        hindrances.append("vLLM does not load DoRA adapters: merge it into the base model to serve it")
    if config.modules_to_save:
        whole = ", ".join(config.modules_to_save)
        hindrances.append(f"vLLM does not load adapters with whole layers ({whole}): merge it into the base model")
    targets = config.target_modules or ()
    names = {targets} if isinstance(targets, str) else {str(name).rpartition(".")[2] for name in targets}
    if embeddings := sorted(names & EMBEDDINGS):
        hindrances.append(
            f"vLLM loads adapters of the embeddings ({', '.join(embeddings)}) for few models, and not for Qwen's: "
            "merge it into the base model, or adapt the other layers only"
        )
    if head := sorted(names & HEADS):
        hindrances.append(f"vLLM loads adapters of the output layer ({', '.join(head)}) for few models: merge it")
    if config.bias != "none":
        hindrances.append(f"vLLM does not load adapters with biases ({config.bias}): merge it into the base model")
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    if rank > VLLM_RANKS[-1]:
        hindrances.append(f"vLLM loads adapters up to rank {VLLM_RANKS[-1]}, this one has {rank}")
    elif rank > VLLM_DEFAULT_RANK:
        enough = min(known for known in VLLM_RANKS if known >= rank)
        hindrances.append(
            f"vLLM loads adapters up to rank {VLLM_DEFAULT_RANK} unless told otherwise, this one has {rank}: serve it "
            f"with --max-lora-rank={enough}"
        )
    return hindrances
