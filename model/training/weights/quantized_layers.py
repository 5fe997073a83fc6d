"""LoRA's layers on bitsandbytes' weights: the library makes the base's product, the adapters' are ours."""

from __future__ import annotations

from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt

from model.training.weights.adapter_layers import FusedLayer


class FusedLinear4bit(FusedLayer, Linear4bit):
    """peft's adapted layer on NF4 or FP4."""

    multiplies_base = False


class FusedLinear8bit(FusedLayer, Linear8bitLt):
    """peft's adapted layer on Int8."""

    multiplies_base = False


KINDS: dict[type, type] = {Linear4bit: FusedLinear4bit, Linear8bitLt: FusedLinear8bit}
