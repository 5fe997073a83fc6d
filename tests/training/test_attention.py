"""Attention by segments gives each joined row the numbers that it gets alone, forwards and backwards."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402 - torch first, or there is nothing to import
from transformers.masking_utils import create_causal_mask  # noqa: E402 - as above

from model.training.loop.attention import use_segments, uses_segments  # noqa: E402 - as above

SMALL = {"vocab_size": 403, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
HEADS = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
LONGEST = 100


def make(name: str, attention: str = "sdpa", **options: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **options)
    config._attn_implementation = attention
    return getattr(transformers, f"{name}ForCausalLM")(config)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Phi3", "Olmo2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_families_that_attend_by_segments(name: str, dtype: torch.dtype) -> None:
    options = {"pad_token_id": 0} if name in {"Phi3", "SmolLM3"} else {}
    model = make(name, **HEADS, **options).to(dtype)
    assert use_segments(model, longest_row=LONGEST)
    assert uses_segments(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mistral", {**HEADS, "sliding_window": LONGEST - 1}),  # what is further away must not be seen
        ("Llama", {**HEADS, "layer_types": ["full_attention", "linear_attention"]}),
        ("Llama", {**HEADS, "attention_chunk_size": LONGEST}),
        ("Gemma2", {**HEADS, "head_dim": 8, "attention": "eager"}),  # it caps its scores, which torch's cannot
        *(("Falcon", {"num_attention_heads": 4, "alibi": alibi}) for alibi in (False, True)),  # told by the trial
        ("StableLm", HEADS),
    ],
)
def test_models_that_do_not(name: str, options: dict[str, Any]) -> None:
    model = make(name, **options)
    before = model.config._attn_implementation
    assert before == options.get("attention", "sdpa")
    assert not use_segments(model, longest_row=LONGEST)
    assert model.config._attn_implementation == before


def test_a_model_that_sees_what_follows_is_told_by_the_trial() -> None:
    model = make("Llama", **HEADS)
    model.config.is_causal = False
    assert not use_segments(model, longest_row=LONGEST)
    assert not uses_segments(model)


def test_joined_rows_need_no_mask() -> None:
    """It would be a whole square, made in each pass and thrown away."""
    model = make("Llama", **HEADS)
    assert use_segments(model, longest_row=LONGEST)
    inputs = torch.ones((1, 9, 32))
    options = {"config": model.config, "inputs_embeds": inputs, "past_key_values": None}
    joined = torch.tensor([[*range(5), *range(4)]])
    assert create_causal_mask(attention_mask=None, position_ids=joined, **options) is None
    padded = torch.ones((1, 9), dtype=torch.long)
    padded[0, 6:] = 0
    mask = create_causal_mask(attention_mask=padded, position_ids=None, **options)
    assert not mask[..., 6:].any()


@pytest.mark.parametrize("refusal", [None, TypeError, ValueError])
def test_a_model_that_hands_no_segments_on_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, refusal: type[Exception] | None
) -> None:
    plain = transformers.LlamaModel.forward

    def without_segments(self: Any, *arguments: Any, segments: Any = None, **options: Any) -> Any:
        if segments is not None and refusal is not None:
            raise refusal("segments")
        return plain(self, *arguments, **options)

    monkeypatch.setattr(transformers.LlamaModel, "forward", without_segments)
    model = make("Llama", **HEADS)
    assert not use_segments(model, longest_row=LONGEST)
    assert not uses_segments(model)


@pytest.mark.usefixtures("exact_norms")
def test_gradients_are_those_of_the_rows_alone() -> None:
    """Two pairs that share their prompts, and a row that shares nothing."""
    torch.manual_seed(1)
    ids, positions, segments, rows = [], [], [], []
    for shared, chosen, rejected in ((9, 5, 8), (4, 6, 1)):
        prompt, first, second = (torch.randint(3, 400, (length,)) for length in (shared, chosen, rejected))
        ids += [prompt, first, second]
        positions += [torch.arange(shared + chosen), torch.arange(shared, shared + rejected)]
        segments += [(shared + chosen, 0), (rejected, shared)]
        rows += [(torch.cat([prompt, first]), 0), (torch.cat([prompt, second]), shared)]
    alone = torch.randint(3, 400, (11,))
    ids, positions, segments = [*ids, alone], [*positions, torch.arange(11)], [*segments, (11, 0)]
    rows.append((alone, 0))
    model = make("Llama", **HEADS).double()

    def gradients(logits: Any) -> list[Any]:
        model.zero_grad()
        weights = torch.linspace(0.1, 1, logits.numel(), dtype=torch.float64).view(logits.shape)
        (logits.sin() * weights).sum().backward()
        return [weight.grad.clone() for weight in model.parameters()]

    expected_logits = torch.cat([model(row[None]).logits[0][shared:] for row, shared in rows])
    expected = gradients(expected_logits)
    assert use_segments(model, longest_row=LONGEST)
    logits = model(torch.cat(ids)[None], position_ids=torch.cat(positions)[None], segments=segments).logits[0]
    assert float((logits - expected_logits).detach().abs().max()) < 1e-9
    for gradient, other in zip(gradients(logits), expected, strict=True):
        assert float((gradient - other).abs().max()) < 1e-9


def test_the_trial_leaves_model_and_random_numbers_as_they_were() -> None:
    model = make("Llama", **HEADS, attention_dropout=0.5).train()
    before = torch.get_rng_state()
    assert use_segments(model, longest_row=LONGEST)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
