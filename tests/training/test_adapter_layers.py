"""LoRA's fused layers against peft's own, in whole models: the same numbers, one product for each input, dropout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from model.training.weights import adapter_products, adapter_trial

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
IDS = torch.tensor([[5, 9, 13, 17, 21, 25, 29], [8, 4, 2, 7, 6, 1, 3]])
LAYERS = 2 * 7
CLOSE = 1e-9


def adapted(*, biases: bool = False, dtype: torch.dtype = torch.float64, **lora: Any) -> Any:
    """A tiny model with an adapter that is no longer the identity; in bfloat16, with an adapter in float32."""
    torch.manual_seed(0)
    base = Qwen2ForCausalLM(Qwen2Config(**SIZES)) if biases else LlamaForCausalLM(LlamaConfig(**SIZES))
    for name, weight in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    options = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "init_lora_weights": False, **lora}
    return get_peft_model(base.to(dtype), LoraConfig(task_type="CAUSAL_LM", **options)).eval()


def fused_copy(model: Any) -> Any:
    copied = copy.deepcopy(model)
    adapter_trial.fuse(copied)
    return copied


def outcome(model: Any, *, again: bool = False) -> dict[str, torch.Tensor]:
    """The logits and all gradients of a loss; `again` with the forward pass of each block computed twice."""
    if again:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        model.train()
    model.zero_grad()
    found = model(IDS, labels=IDS)
    found.loss.backward()
    return {"logits": found.logits.detach()} | {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference between tensors, each relative to the tensor's norm."""
    assert found.keys() == expected.keys()
    return max(float((found[n].double() - t.double()).norm() / t.double().norm()) for n, t in expected.items())


@pytest.mark.parametrize("again", [False, True], ids=["once", "recomputed"])
@pytest.mark.parametrize(
    "lora", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "v_proj", "up_proj"]}], ids=str
)
@pytest.mark.parametrize("biases", [False, True], ids=["llama", "qwen2"])
def test_logits_and_gradients_are_pefts(biases: bool, lora: dict[str, Any], again: bool) -> None:
    model = adapted(biases=biases, **lora)
    fused = fused_copy(model)
    assert adapter_trial.description(fused)["peft"] == 0
    assert furthest(outcome(fused, again=again), outcome(model, again=again)) < CLOSE


def test_layers_that_share_an_input_are_joined() -> None:
    model = fused_copy(adapted())
    block = model.get_base_model().model.layers[0]
    attention, mlp = block.self_attn, block.mlp
    assert attention.q_proj.group.layers == [attention.q_proj, attention.k_proj, attention.v_proj]
    assert mlp.up_proj.group.layers == [mlp.gate_proj, mlp.up_proj]
    assert attention.o_proj.group.layers == [attention.o_proj]
    assert adapter_trial.description(model) == {"fused": LAYERS, "joined": 2 * 5, "peft": 0}


class Products(TorchDispatchMode):
    """Notes the type of each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm"):
            self.types.append((function.overloadpacket.__name__, args[-1].dtype))
        return function(*args, **(kwargs or {}))


def test_on_a_base_in_bfloat16_products_are_bfloat16_and_gradients_float32() -> None:
    """Within 2 % of float32's logits and 10 % of its gradients on the same rounded base, and as near as peft."""
    exact = adapted(dtype=torch.bfloat16).float()
    expected = outcome(exact)
    model = adapted(dtype=torch.bfloat16)
    adapter_trial.fuse(model)
    assert adapter_trial.description(model) == {"fused": LAYERS, "joined": 2 * 5, "peft": 0}
    with Products() as products:
        found = outcome(model)
    assert {dtype for _, dtype in products.types} == {torch.bfloat16}
    gradients = {name: tensor for name, tensor in found.items() if name != "logits"}
    assert {tensor.dtype for tensor in gradients.values()} == {torch.float32}
    peft = outcome(adapted(dtype=torch.bfloat16))
    assert furthest({"logits": found["logits"]}, {"logits": expected["logits"]}) < 0.02
    assert furthest(gradients, {name: expected[name] for name in gradients}) < 0.1
    assert furthest(found, expected) < 1.5 * furthest(peft, expected)


def test_a_and_b_are_cast_once_a_step() -> None:
    model = fused_copy(adapted(dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    casts = model.get_base_model().model.layers[0].self_attn.q_proj.group.casts("default")
    seen = []
    for _ in range(2):
        for _ in range(2):
            model(IDS, labels=IDS).loss.backward()
            seen.append(casts._down)
        optimizer.step()
        optimizer.zero_grad()
    assert seen[0] is seen[1]
    assert seen[2] is seen[3]
    layer = model.get_base_model().model.layers[0].self_attn
    expected = torch.cat([getattr(layer, f"{name}_proj").lora_A.default.weight for name in "qkv"]).bfloat16()
    model(IDS)
    assert torch.equal(casts._down, expected)
    assert not torch.equal(seen[2], seen[0])


def test_without_its_adapter_it_is_the_base() -> None:
    model = fused_copy(adapted())
    with model.disable_adapter():
        found = model(IDS).logits
    torch.manual_seed(0)
    assert torch.equal(found, LlamaForCausalLM(LlamaConfig(**SIZES)).double().eval()(IDS).logits)


def test_layers_called_with_other_inputs_than_in_the_trial_compute_their_own() -> None:
    model = adapted()
    fused = fused_copy(model)
    x, other = torch.randn(2, 1, 3, 32, dtype=torch.float64)
    ours, pefts = (m.get_base_model().model.layers[0].self_attn for m in (fused, model))
    for calls in ([("q", x), ("k", other), ("v", x)], [("v", x), ("k", x)], [("q", x), ("q", other), ("k", x)]):
        for name, given in calls:
            found, expected = (getattr(layer, f"{name}_proj")(given) for layer in (ours, pefts))
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share_is_wrong", [True, False])
def test_layers_whose_numbers_differ_stay_pefts(monkeypatch: pytest.MonkeyPatch, share_is_wrong: bool) -> None:
    """Of products that are wrong for several layers those of single ones remain; of wrong ones, none."""
    plain = adapter_products._of_input

    def off(x: Any, keep: Any, matrices: Any, gradients: Any, of_inner: Any) -> torch.Tensor:
        exact = plain(x, keep, matrices, gradients, of_inner)
        return exact * 1.001 if len(gradients) > 1 or not share_is_wrong else exact

    monkeypatch.setattr(adapter_products, "_of_input", off)
    model = adapted()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    adapter_trial.fuse(model)
    fused = LAYERS if share_is_wrong else 0
    assert adapter_trial.description(model) == {"fused": fused, "joined": 0, "peft": LAYERS - fused}
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def special(model: Any) -> None:
    class Special(torch.nn.Linear):
        """Another kind of base layer, as quantized ones are."""

    for module in model.modules():
        if type(module) is Linear:
            module.base_layer.__class__ = Special


@pytest.mark.parametrize(("lora", "change"), [({"use_dora": True}, None), ({}, special)], ids=["dora", "other base"])
def test_layers_that_it_cannot_do_better_stay_as_they_are(
    lora: dict[str, Any], change: Callable[[Any], None] | None
) -> None:
    model = adapted(**lora)
    if change:
        change(model)
    state = torch.get_rng_state()
    adapter_trial.fuse(model)
    assert adapter_trial.description(model) == {"fused": 0, "joined": 0, "peft": LAYERS}
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_drops_its_share_and_scales_the_rest() -> None:
    keep, kept_share = adapter_products.dropout_mask(torch.empty(400, 1000), 0.25)
    assert keep is not None
    assert kept_share == 0.75
    assert keep.float().mean().item() == pytest.approx(0.75, abs=0.005)
    assert keep.float().mean(0).std().item() == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.1)
    model = fused_copy(adapted(dtype=torch.float32, lora_dropout=0.25))
    layer, x = model.get_base_model().model.layers[0].mlp.down_proj, torch.randn(1, 2, 48)
    layer.train()
    mean = torch.stack([layer(x).detach() for _ in range(4000)]).mean(0)
    exact = layer.eval()(x).detach()
    assert float((mean - exact).norm() / exact.norm()) < 0.05


def test_with_dropout_the_gradients_are_those_of_what_was_kept() -> None:
    """The layers of an input share one mask, and so does its way back."""
    model = fused_copy(adapted(lora_dropout=0.5)).train()
    layers = model.get_base_model().model.layers[0].self_attn.q_proj.group.layers
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    torch.manual_seed(7)
    keep, kept_share = adapter_products.dropout_mask(x, 0.5)
    assert keep is not None
    weights = [side.default.weight for layer in layers for side in (layer.lora_A, layer.lora_B)]

    def gradients(given: torch.Tensor, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        weighed = [torch.linspace(-1, 2, output.numel(), dtype=x.dtype).view(output.shape) for output in outputs]
        return [*outputs, *torch.autograd.grad(outputs, [given, *weights], weighed)]

    torch.manual_seed(7)
    given = x.clone().requires_grad_()
    found = gradients(given, [layer(given) for layer in layers])
    plain = x.clone().requires_grad_()
    expected = gradients(
        plain,
        [
            layer.base_layer(plain)
            + 3 * (plain * keep / kept_share) @ layer.lora_A.default.weight.T @ layer.lora_B.default.weight.T
            for layer in layers
        ],
    )
    for tensor, other in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-12, atol=1e-12)
