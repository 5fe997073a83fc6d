"""Attention by segments gives each joined row the numbers that it gets alone, forwards and backwards."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402 - torch first, or there is nothing to import
from torch.nn.attention.varlen import varlen_attn  # noqa: E402 - as above

from model.training.loop import attention  # noqa: E402 - as above
from model.training.loop.attention import inputs_of, use_segments, uses_segments  # noqa: E402 - as above
from model.training.loop.layout import Collator, Layout, Segments  # noqa: E402 - as above
from tests.training.kernels import stand_in  # noqa: E402 - as above

SMALL = {"vocab_size": 403, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
HEADS = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
LONGEST = 100


def make(name: str, attention: str = "sdpa", **options: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}{'Text' if name == 'Gemma3' else ''}Config")(**SMALL, **options)
    config._attn_implementation = attention
    return getattr(transformers, f"{name}ForCausalLM")(config)


KERNELS = pytest.mark.parametrize("kernel", [None, stand_in], ids=["by row", "at once"])


def test_the_stand_in_is_called_as_torchs_kernel_is() -> None:
    ours, theirs = (inspect.signature(kernel).parameters for kernel in (stand_in, varlen_attn))
    assert {name: one.kind for name, one in ours.items()}.items() <= {n: one.kind for n, one in theirs.items()}.items()
    assert list(ours)[:7] == list(theirs)[:7]
    assert attention.varlen_kernel() is varlen_attn


@KERNELS
@pytest.mark.parametrize("window", [None, 1, 3, 8])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_each_token_sees_its_row_and_what_the_row_shares(kernel: Any, window: int | None, kv_heads: int) -> None:
    """Against one attention over the whole joined sequence under a mask, in float64, with gradients."""
    rows = [(7, 0), (4, 5), (6, 0), (1, 0), (9, 1)]
    total = sum(own for own, _ in rows)
    sees, start, before = torch.zeros(total, total, dtype=torch.bool), 0, 0
    for own, shared in rows:
        places = torch.tensor([*range(before, before + shared), *range(start, start + own)])
        for index in range(own):
            reach = places[: shared + index + 1]
            sees[start + index, reach if window is None else reach[-window:]] = True
        start, before = start + own, start
    draw = torch.Generator().manual_seed(0)
    sizes = [(1, heads, total, 8) for heads in (4, kv_heads, kv_heads)]
    parts = [torch.randn(size, generator=draw, dtype=torch.float64).requires_grad_() for size in sizes]
    options = {"scaling": 0.3, "sliding_window": window}
    found = attention.attend(torch.nn.Module(), *parts, None, kernel=kernel, segments=Segments.of(rows), **options)[0]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *parts, attn_mask=sees, scale=0.3, enable_gqa=kv_heads != 4
    ).transpose(1, 2)
    assert float((found - expected).detach().abs().max()) < 1e-12
    slopes = [torch.autograd.grad(output.sin().sum(), parts) for output in (found, expected)]
    assert max(float((one - other).abs().max()) for one, other in zip(*slopes, strict=True)) < 1e-12


@KERNELS
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Phi3", "Olmo2", "Gemma3"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_families_that_attend_by_segments(name: str, dtype: torch.dtype, kernel: Any) -> None:
    options = {"pad_token_id": 0} if name in {"Phi3", "SmolLM3"} else {}
    if name in {"Mistral", "Gemma3"}:
        options |= {"sliding_window": 6}
    if name == "Gemma3":
        options |= {"head_dim": 8}
    model = make(name, **HEADS, **options).to(dtype)
    assert use_segments(model, longest_row=LONGEST, kernel=kernel) is None
    assert uses_segments(model)


@KERNELS
@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("Llama", {**HEADS, "layer_types": ["full_attention", "linear_attention"]}, "layers of the kind linear_att"),
        ("Llama", {**HEADS, "attention_chunk_size": LONGEST - 1}, "within chunks"),
        ("Llama", {**HEADS, "sliding_window": LONGEST - 1}, "does not tell its attention how far"),
        ("Gemma2", {**HEADS, "head_dim": 8, "attention": "eager"}, "its attention is eager"),
        *(("Falcon", {"num_attention_heads": 4, "alibi": alibi}, "") for alibi in (False, True)),
        ("StableLm", HEADS, ""),
        ("Mamba", {"state_size": 8, "attention": "eager"}, "its attention is eager"),
    ],
)
def test_models_that_do_not(name: str, options: dict[str, Any], reason: str, kernel: Any) -> None:
    model = make(name, **options)
    before = model.config._attn_implementation
    found = use_segments(model, longest_row=LONGEST, kernel=kernel)
    assert found is not None
    assert reason in found
    assert model.config._attn_implementation == before


def test_dropout_in_the_attention_is_left_to_torchs() -> None:
    model = make("Llama", **HEADS, attention_dropout=0.1)
    reason = use_segments(model, longest_row=LONGEST, kernel=stand_in)
    assert reason == "its attention has dropout, and that for joined rows has none"
    assert use_segments(model, longest_row=LONGEST) is None


def test_an_attention_that_ours_cannot_compute_is_refused() -> None:
    parts = [torch.zeros(1, 1, 3, 8)] * 3
    with pytest.raises(ValueError, match="its attention asks for softcap, s_aux"):
        attention.attend(
            torch.nn.Module(), *parts, None, segments=Segments.of([(3, 0)]), softcap=30.0, s_aux=torch.zeros(1)
        )


def test_a_model_that_sees_what_follows_is_told_by_the_trial() -> None:
    model = make("Llama", **HEADS)
    assert not attention.sees_what_follows(model)
    model.config.is_causal = False
    assert use_segments(model, longest_row=LONGEST) == "its logits of a row depend on the rows that are joined with it"
    assert not uses_segments(model)
    assert attention.sees_what_follows(model)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    assert not attention.sees_what_follows(model)  # the training says what is wrong with it


@pytest.mark.parametrize("wrong", ["refuses", "forgets the window", "looks ahead", "forgets a gradient"])
def test_a_kernel_that_a_device_lacks_or_computes_wrongly_is_not_used(wrong: str) -> None:
    def kernel(*arguments: Any, **options: Any) -> Any:
        if wrong == "refuses":
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")
        if wrong == "looks ahead":
            options["window_size"] = (-1, -1)
        output = stand_in(*arguments, **options)
        return output.detach() if wrong == "forgets a gradient" else output

    model = make("Mistral", **HEADS, sliding_window=2 if wrong == "forgets the window" else None)
    if wrong == "forgets the window":
        layer = model.model.layers[0].self_attn
        layer.forward = functools.partial(layer.forward, sliding_window=None)
    reason = use_segments(model, longest_row=LONGEST, kernel=kernel)
    assert reason is not None
    assert "\n" not in reason
    assert not uses_segments(model)


def test_joined_rows_ask_for_no_mask_and_padded_ones_for_none() -> None:
    """It would be a whole square, made in each pass; looking for borders in the positions waits for a GPU."""
    rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}, {"input_ids": [3, 4], "labels": [3, 4]}]
    assert set(inputs_of(Collator(0, Layout.PADDED)(rows))) == {"input_ids"}
    joined = inputs_of(Collator(0, Layout.SEGMENTED)(rows))
    assert joined["attention_mask"].shape == (1, 1, 1, 1)
    model = make("Llama", **HEADS)
    assert use_segments(model, longest_row=LONGEST) is None
    searched: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.masking_utils, "find_packed_sequence_indices", searched.append)
        model(**joined, use_cache=False)
    assert not searched


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
    assert use_segments(model, longest_row=LONGEST) is not None
    assert not uses_segments(model)


@KERNELS
@pytest.mark.usefixtures("exact_norms")
def test_gradients_are_those_of_the_rows_alone(kernel: Any) -> None:
    """Two pairs that share their prompts, and a row that shares nothing."""
    torch.manual_seed(1)
    listed: list[dict[str, Any]] = []
    for shared, chosen, rejected in ((9, 5, 8), (4, 6, 1)):
        prompt = torch.randint(3, 400, (shared,)).tolist()
        answers = [torch.randint(3, 400, (length,)).tolist() for length in (chosen, rejected)]
        listed += [{"input_ids": prompt + answers[0]}, {"input_ids": prompt + answers[1], "shared": shared}]
    listed.append({"input_ids": torch.randint(3, 400, (11,)).tolist()})
    batch = Collator(0, Layout.SEGMENTED)([row | {"labels": row["input_ids"]} for row in listed])
    model = make("Llama", **HEADS).double()

    def gradients(logits: Any) -> list[Any]:
        model.zero_grad()
        weights = torch.linspace(0.1, 1, logits.numel(), dtype=torch.float64).view(logits.shape)
        (logits.sin() * weights).sum().backward()
        return [weight.grad.clone() for weight in model.parameters()]

    expected_logits = torch.cat(
        [model(torch.tensor([row["input_ids"]])).logits[0][row.get("shared", 0) :] for row in listed]
    )
    expected = gradients(expected_logits)
    assert use_segments(model, longest_row=LONGEST, kernel=kernel) is None
    logits = model(**inputs_of(batch), use_cache=False).logits[0]
    assert float((logits - expected_logits).detach().abs().max()) < 1e-9
    for gradient, other in zip(gradients(logits), expected, strict=True):
        assert float((gradient - other).abs().max()) < 1e-9


@KERNELS
def test_the_trial_leaves_model_and_random_numbers_as_they_were(kernel: Any) -> None:
    model = make("Llama", **HEADS, attention_dropout=0.5 if kernel is None else 0.0).train()
    before = torch.get_rng_state()
    assert use_segments(model, longest_row=LONGEST, kernel=kernel) is None
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(before, torch.get_rng_state())
