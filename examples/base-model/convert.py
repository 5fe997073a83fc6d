"""Makes Hugging Face folders of the SmolLM2 that a Python package carries as GGUF, and of a tiny random model.

    python convert.py PACKAGE_FOLDER MODELS_FOLDER

writes MODELS_FOLDER/smollm2-135m-instruct (dense, bfloat16) and MODELS_FOLDER/tiny (two layers of random weights with
the same tokenizer and chat template: it learns nothing of worth, but in seconds).
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(package: Path, models: Path) -> None:
    """Write both folders."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig, LlamaForCausalLM

    file = next(package.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file)
    dequantized = GgufConfig(gguf_file=file, dequantize=True)  # a model that stays quantized cannot be saved
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=file, dtype=torch.bfloat16, quantization_config=dequantized
    )
    model.config.rms_norm_eps = 1e-5  # single precision in the file made 9.9999997e-06 of it
    save(model, tokenizer, models / "smollm2-135m-instruct")

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save(LlamaForCausalLM(shape).to(torch.bfloat16), tokenizer, models / "tiny")


def save(model: object, tokenizer: object, folder: Path) -> None:
    """Save model and tokenizer, readable by everybody: safetensors files are made for their owner alone."""
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    for path in folder.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
