"""Which type of numbers a training computes in, on the hardware that there is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from model import exits
from model.exits import FailureError
from model.training.weights import precision
from model.training.weights.precision import Device

T4, A100, OLD_CPU, NEW_CPU = Device("Tesla T4", False), Device("A100", True), Device(None, False), Device(None, True)


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("Auto", A100, "BFloat16"),
        ("Auto", T4, "Float32"),
        ("Auto", NEW_CPU, "BFloat16"),
        ("Auto", OLD_CPU, "Float32"),
        ("Float32", A100, "Float32"),
        ("Float32", T4, "Float32"),
        ("BFloat16", A100, "BFloat16"),
        ("BFloat16", OLD_CPU, "BFloat16"),
    ],
)
def test_bfloat16_is_for_hardware_that_multiplies_it(asked: str, device: Device, expected: str) -> None:
    choice = precision.choose(asked, device)
    assert choice.precision == expected
    assert [device.gpu in warning for warning in choice.warnings] == ([True] if (asked, device) == ("Auto", T4) else [])


def test_bfloat16_on_a_gpu_that_emulates_it_is_refused_with_what_to_set() -> None:
    with pytest.raises(FailureError, match=r"--precision=BFloat16.*Tesla T4.*set it to Auto or Float32") as raised:
        precision.choose("BFloat16", T4)
    assert (raised.value.code, raised.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")


@pytest.mark.parametrize(("generation", "expected"), [(7, False), (8, True), (9, True)])
def test_emulation_does_not_count(monkeypatch: pytest.MonkeyPatch, generation: int, expected: bool) -> None:
    """torch says of a V100 and a T4 that they can."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(major=generation))
    assert precision.device(gpus=1) == Device("a card", expected)
