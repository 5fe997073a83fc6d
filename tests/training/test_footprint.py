"""What a token takes on its way through the model and back, calculated from the shape and seen in a real step."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from model.training.loop.footprint import LOGITS_CHUNK_BYTES, Passes
from model.training.rows.tokens import IGNORED, TokenRows
from tests.training.trainers import make_settings, make_trainer

ROW = 64
FEW, MANY = 2, 8


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int

    def write(self, directory: Path, tokenizer: Any) -> Path:
        """Write a model with random weights."""
        config = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=512,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory


DEEP = Shape(256, 768, 6, 4, 2, 512)
WIDE = Shape(128, 256, 2, 4, 4, 20_000)
NARROW = Shape(192, 256, 12, 3, 1, 512)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Attention on a CPU has a buffer for each thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same_rows(count: int) -> TokenRows:
    draw, rows = random.Random(2), TokenRows()
    for _ in range(count):
        ids = [draw.randrange(3, 400) for _ in range(ROW)]
        rows.append(ids, [IGNORED, *ids[1:]])
    return rows


def peak(trainer: Any, rows: int) -> int:
    """The most that tensors hold at once, in bytes, of what a step takes for so many examples."""
    trainer.try_backward(range(rows))  # the adapter's weights in the base's type, and the like, stay
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        trainer.try_backward(range(rows))
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (DEEP, {}),
        (WIDE, {}),
        (NARROW, {"lora_rank": 64}),
        (DEEP, {"lora_dropout_percent": 5}),
        (DEEP, {"gradient_checkpointing": "Enabled"}),
        (WIDE, {"precision": "BFloat16"}),
    ],
)
def test_a_token_takes_what_is_calculated(
    shape: Shape, changes: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    base = shape.write(tmp_path / "base", tokenizer)
    settings = make_settings(base, tmp_path, batch_size=MANY, micro_batch_size=MANY, **changes)
    trainer = make_trainer(settings, tokenizer, same_rows(MANY))
    passes = Passes.of(
        trainer.model.config.to_dict(),
        item_bytes=2 if settings.precision == "BFloat16" else 4,
        rank=settings.lora_rank or 0,
        dropout=bool(settings.lora_dropout_percent),
        checkpointing=settings.gradient_checkpointing == "Enabled",
        chunk=LOGITS_CHUNK_BYTES[False],
    )
    few, many = (peak(trainer, rows) for rows in (FEW, MANY))
    assert passes.total(MANY * ROW) - passes.total(FEW * ROW) == pytest.approx(many - few, rel=0.15)
    assert passes.total(MANY * ROW) == pytest.approx(many, rel=0.2)  # what the adapter's gradients take is beside that
