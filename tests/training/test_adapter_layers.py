"""LoRA's fused layers against peft's own: the same numbers, and a dropout that is one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear

from model.training.weights import adapter_layers
from model.training.weights.adapter_layers import FusedLinear


class Layer(torch.nn.Module):
    """A model of one linear layer."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(24, 40, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def adapted(*, bias: bool = False, dtype: torch.dtype = torch.float64, **lora: Any) -> torch.nn.Module:
    """The layer with an adapter that is no longer the identity."""
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["layer"], r=4, lora_alpha=12, init_lora_weights=False, **lora)
    return get_peft_model(Layer(bias=bias).to(dtype), config, autocast_adapter_dtype=False)


def fused_copy(model: torch.nn.Module) -> torch.nn.Module:
    copied = copy.deepcopy(model)
    adapter_layers.fuse(copied)
    assert any(type(module) is FusedLinear for module in copied.modules())
    return copied


def outcome(model: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output and all gradients of a loss that depends on each output differently."""
    x = x.clone().requires_grad_()
    output = model(x)
    (output * torch.linspace(-1, 2, output.numel(), dtype=x.dtype).view(output.shape)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"output": output, "x": x.grad, **gradients}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_outputs_and_gradients_are_pefts(bias: bool, lora: dict[str, Any]) -> None:
    model = adapted(bias=bias, **lora)
    x = torch.randn(3, 5, 24, dtype=torch.float64)
    assert_close(outcome(fused_copy(model), x), outcome(model, x))


def test_without_its_adapter_it_is_the_base() -> None:
    model = fused_copy(adapted())
    x = torch.randn(3, 5, 24, dtype=torch.float64)
    with model.disable_adapter():
        assert torch.equal(model(x), model.get_base_model().layer.base_layer(x))


def test_dropout_drops_its_share_and_scales_the_rest() -> None:
    model = fused_copy(adapted(dtype=torch.float32, lora_dropout=0.25))
    keep, kept_share = adapter_layers._keep(torch.empty(400, 1000), 0.25)
    assert keep is not None
    assert kept_share == 0.75
    assert keep.float().mean().item() == pytest.approx(0.75, abs=0.005)
    assert keep.float().mean(0).std().item() == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.1)
    x = torch.randn(1, 2, 24)
    model.train()
    mean = torch.stack([model(x).detach() for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, model.eval()(x).detach(), rtol=0, atol=0.25)


def test_with_dropout_the_gradients_are_those_of_what_was_kept() -> None:
    model = fused_copy(adapted(lora_dropout=0.5)).train()
    x = torch.randn(3, 5, 24, dtype=torch.float64)
    torch.manual_seed(7)
    keep, kept_share = adapter_layers._keep(x, 0.5)
    assert keep is not None
    torch.manual_seed(7)
    found = outcome(model, x)

    layer = model.get_base_model().layer
    weights = {
        name: p.detach().clone().requires_grad_()
        for name, p in (("A", layer.lora_A.default.weight), ("B", layer.lora_B.default.weight))
    }
    plain = x.clone().requires_grad_()
    output = layer.base_layer(plain) + 3 * (plain * keep / kept_share) @ weights["A"].T @ weights["B"].T
    (output * torch.linspace(-1, 2, output.numel(), dtype=x.dtype).view(output.shape)).sum().backward()
    expected = [output, plain.grad, weights["A"].grad, weights["B"].grad]
    for tensor, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-12, atol=1e-12)


def test_layers_that_it_cannot_do_better_stay_as_they_are() -> None:
    class Special(torch.nn.Linear):
        """Another kind of base layer, as quantised ones are."""

    model = adapted()
    base = model.get_base_model()
    base.layer.base_layer.__class__ = Special
    adapter_layers.fuse(model)
    assert type(base.layer) is Linear
