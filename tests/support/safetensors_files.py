"""Model and adapter directories with safetensors files that are written by hand: nothing needs torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

LAYER = {
    "self_attn.q_proj": (8, 8),
    "self_attn.v_proj": (4, 8),
    "mlp.up_proj": (16, 8),
    "mlp.down_proj": (8, 16),
}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> None:
    """Write a file of zeros with these tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = prod(shape) * {"F32": 4, "BF16": 2, "I32": 4, "U8": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def base_shapes() -> dict[str, tuple[int, ...]]:
    """Return the weights of a small Llama."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, 8), "lm_head.weight": (32, 8)}
    for layer in range(2):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in LAYER.items()}
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (8,)
    return shapes


def write_base(directory: Path) -> Path:
    """Write a base model's directory."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    write_safetensors(directory / "model.safetensors", base_shapes())
    return directory


def write_adapter(directory: Path, rank: int = 8, **config: Any) -> Path:
    """Write an adapter of `write_base`'s model on its q_proj layers."""
    directory.mkdir(parents=True)
    document = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(document | config))
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        shapes |= {f"{name}.lora_A.weight": (rank, 8), f"{name}.lora_B.weight": (8, rank)}
    write_safetensors(directory / "adapter_model.safetensors", shapes)
    return directory
