"""The output layer's losses in chunks, against each model's own logits: numbers, gradients, and what they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from model.training.loop import head
from model.training.loop.head import Logits

SIZES = {
    "vocab_size": 90,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
RECURRENT = {**SIZES, "num_hidden_layers": 3, "lru_width": 16}
MODELS: dict[str, tuple[Any, Logits]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES)), Logits()),
    "granite": (lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)), Logits(scale=0.25)),
    "cohere": (lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.0625)), Logits(scale=0.0625)),
    "gemma2": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=1.5, sliding_window=64)),
        Logits(cap=1.5),
    ),
    "recurrent_gemma": (
        lambda: RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**RECURRENT, logits_soft_cap=1.5)),
        Logits(cap=1.5),
    ),
}
IDS = torch.tensor([[5, 9, 13, 17, 21, 25, 29], [8, 4, 2, 7, 6, 1, 3]])
PLACES = torch.tensor([1, 2, 3, 5, 8, 11, 12])
TARGETS = torch.tensor([13, 88, 0, 29, 2, 1, 3])
WEIGHTS = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, 1.0, -1.0])
"""What each loss counts, as with preferences and labels."""


class Own(LlamaForCausalLM):  # type: ignore[misc]
    """A model that makes its logits in a way of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        found.logits = found.logits * 2 + torch.arange(SIZES["vocab_size"]) / 9
        return found


def adapted(base: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A model with an adapter that is no longer the identity, the same for each type."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=options.pop("target_modules", ["q_proj", "up_proj"]))
    model = get_peft_model(base, config)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                weight.copy_(torch.randn(weight.shape, generator=draws) * 0.3)
    return model.to(dtype).eval()


def outcome(model: Any, losses: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    (losses * WEIGHTS.to(losses.dtype)).sum().backward()
    return [losses.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


def by_logits(model: Any) -> torch.Tensor:
    logits = model(IDS).logits.flatten(0, 1)[PLACES]
    return -log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1).gather(1, TARGETS[:, None])[
        :, 0
    ]


def by_head(model: Any) -> torch.Tensor:
    return head.losses(model, TARGETS, PLACES, lambda: model(IDS, use_cache=False))


def small_chunks(monkeypatch: pytest.MonkeyPatch, rows: int, item: int = 8) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": rows * SIZES["vocab_size"] * (4 + 2 * item)})


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_the_models_own_logits(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch, rows)
    torch.manual_seed(0)
    make, how = MODELS[name]
    model = adapted(make())
    assert head.in_chunks(model) == how
    for found, expected in zip(outcome(model, by_head(model)), outcome(model, by_logits(model)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["own", "adapted", "trained"])
def test_what_cannot_be_done_in_chunks_is_left_to_the_model(kind: str) -> None:
    torch.manual_seed(0)
    base = (Own if kind == "own" else LlamaForCausalLM)(LlamaConfig(**SIZES))
    model = adapted(base, target_modules=["q_proj", "lm_head"] if kind == "adapted" else ["q_proj"])
    if kind == "trained":
        model.get_output_embeddings().weight.requires_grad_()
    assert head.in_chunks(model) is None
    for found, expected in zip(outcome(model, by_head(model)), outcome(model, by_logits(model)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16_losses_are_as_near_to_float32s_as_those_of_the_models_logits(name: str) -> None:
    """Within 2 % of the losses' norm and 10 % of the gradients', on the same rounded weights."""
    torch.manual_seed(0)
    model = adapted(MODELS[name][0](), torch.bfloat16)
    assert head.in_chunks(model) == MODELS[name][1]
    found, plain = outcome(model, by_head(model)), outcome(model, by_logits(model))
    expected = outcome(model.float(), by_logits(model.float()))

    def distance(those: list[torch.Tensor]) -> list[float]:
        return [float((a.float() - b).norm() / b.norm()) for a, b in zip(those, expected, strict=True)]

    assert distance(found)[0] < max(0.02, 1.2 * distance(plain)[0])
    assert max(distance(found)[1:]) < max(0.1, 1.2 * max(distance(plain)[1:]))


class Largest(TorchDispatchMode):
    """The most elements of a tensor that was made, and how many matrix products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.products = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket.__name__ in ("mm", "addmm")
        if isinstance(found, torch.Tensor) and "view" not in str(function):
            self.elements = max(self.elements, found.numel())
        return found


def test_a_chunk_is_all_that_the_vocabulary_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is more than a chunk's logits made at once, nor anything of the vocabulary's size kept."""
    vocabulary, hidden_size, positions, rows = 5000, 8, 64, 16
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": rows * vocabulary * 4})
    layer = torch.nn.Linear(hidden_size, vocabulary, bias=False).requires_grad_(requires_grad=False)
    hidden = torch.randn(positions, hidden_size, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    targets = torch.arange(positions)
    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = head._losses(hidden, targets, layer, Logits())
    assert kept == [positions * hidden_size]
    with largest:
        found.sum().backward()
    assert largest.elements == rows * vocabulary


def test_without_gradients_one_product_is_made() -> None:
    layer = torch.nn.Linear(8, 50, bias=False).requires_grad_(requires_grad=False)
    with Largest() as largest, torch.no_grad():
        head._losses(torch.randn(6, 8), torch.arange(6), layer, Logits())
    assert largest.products == 1


def test_no_targets_have_no_losses() -> None:
    layer = torch.nn.Linear(8, 50, bias=False).requires_grad_(requires_grad=False)
    hidden = torch.randn(0, 8, requires_grad=True)
    found = head._losses(hidden, torch.arange(0), layer, Logits())
    assert found.shape == (0,)
    found.sum().backward()
    assert hidden.grad is not None
