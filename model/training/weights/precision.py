"""In which type of numbers a training computes: bfloat16 where the hardware multiplies it, else float32.

torch calls bfloat16 supported on GPUs before Ampere, too (V100, T4), which emulate it, slower than they compute in
float32. float16 is not offered in its place: without a scaled loss its small gradients are zeros, and the activations
of some families (Gemma, T5) go beyond it. TF32 stays off: transformers computes the angles of rotary positions as a
float32 product, and TF32's ten bits are too few for positions above 2,048.
"""

from __future__ import annotations

from dataclasses import dataclass

from model import exits
from model.exits import FailureError
from model.training.processes import process


@dataclass(frozen=True)
class Device:
    """What a training computes on: its name, None for a CPU, and whether it multiplies bfloat16 itself."""

    gpu: str | None
    bfloat16: bool


@dataclass(frozen=True)
class Choice:
    """BFloat16 or Float32, and what a person should know about it, sentences without full stop."""

    precision: str
    warnings: tuple[str, ...] = ()


def device(gpus: int) -> Device:
    """Return what a run that asked for so many GPUs computes on."""
    import torch

    if process.uses_cuda(gpus):
        return Device(torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False))
    return Device(None, process.cpu_has_bfloat16())


def choose(asked: str, device: Device) -> Choice:
    """Return what to compute in.

    Parameters
    ----------
    asked
        Auto, BFloat16 or Float32.
    device
        What the training computes on.

    Raises
    ------
    FailureError
        When bfloat16 was asked of a GPU that emulates it.
    """
    if asked == "BFloat16" and device.gpu and not device.bfloat16:
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            f"--precision=BFloat16 (training.precision): {device.gpu} does not multiply bfloat16, it emulates it more "
            "slowly than it computes in float32: set it to Auto or Float32, or use a GPU from Ampere on",
        )
    if asked != "Auto":
        return Choice(asked)
    if device.bfloat16:
        return Choice("BFloat16")
    slow = (
        f"{device.gpu} does not multiply bfloat16, so that the training computes in float32, also on a quantized base: "
        "several times slower, with twice the memory for what a token leaves behind; a GPU from Ampere on (A10, L4, "
        "A100, H100) computes in bfloat16"
    )
    return Choice("Float32", (slow,) if device.gpu else ())
