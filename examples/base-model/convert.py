"""Puts a base model on a volume, as the directory that transformers and vLLM load.

    python convert.py --directory=/models smollm2-135m-instruct    the real one, from the GGUF file beside this script
    python convert.py --directory=/models tiny                     random weights and the same tokenizer, for tests

The directory appears under its name only when it is complete; when it is there, nothing is done. A model that was made
when the image was built lies in `made` beside this script and is only copied.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
RMS_NORM_EPS = 1e-5
"""What the model was trained with; the GGUF file holds it rounded to 9.9999997e-06."""


def real_model(gguf_directory: Path, target: Path) -> None:
    """Write SmolLM2-135M-Instruct with its weights in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    # Without dequantize the weights stay packed, and such a model can be neither saved nor trained.
    model = AutoModelForCausalLM.from_pretrained(
        gguf_directory,
        gguf_file=GGUF_FILE,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=GGUF_FILE, dequantize=True),
    )
    model.config.rms_norm_eps = RMS_NORM_EPS
    save(model, tokenizer(gguf_directory), target)


def tiny_model(gguf_directory: Path, target: Path) -> None:
    """Write a Llama of 3 million parameters that knows nothing, with SmolLM2's tokenizer and chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokens = tokenizer(gguf_directory)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    save(LlamaForCausalLM(config), tokens, target)


MODELS = {"smollm2-135m-instruct": real_model, "tiny": tiny_model}


def tokenizer(gguf_directory: Path) -> Any:
    """Return the tokenizer that the GGUF file holds, with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gguf_directory, gguf_file=GGUF_FILE)


def save(model: Any, tokens: Any, target: Path) -> None:
    """Write model and tokenizer to the target, whole or not at all."""
    temporary = temporary_directory(target)
    model.save_pretrained(temporary)
    tokens.save_pretrained(temporary)
    publish(temporary, target)


def copy(made: Path, target: Path) -> None:
    """Copy a model that was made before, whole or not at all."""
    temporary = temporary_directory(target)
    shutil.copytree(made, temporary)
    publish(temporary, target)


def temporary_directory(target: Path) -> Path:
    """Return the name that a target has until it is complete, free of what an earlier attempt left there."""
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def publish(temporary: Path, target: Path) -> None:
    """Bring the files to the disk, readable for everybody, and give the directory its name."""
    for path in temporary.iterdir():
        path.chmod(0o644)  # the weights come out 0600, and pods under another user read them, too
        with path.open("rb") as file:
            os.fsync(file.fileno())
    temporary.rename(target)


def main() -> None:
    """Make the model that the command line names, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--directory", type=Path, required=True, help="where the model's directory is made")
    parser.add_argument("--gguf-directory", type=Path, default=Path(__file__).parent, help=f"where {GGUF_FILE} is")
    options = parser.parse_args()
    target = options.directory / options.model
    if target.exists():
        print(f"{target} is there already")
        return
    started = time.monotonic()
    if (made := Path(__file__).parent / "made" / options.model).is_dir():
        copy(made, target)
        print(f"{target} copied in {time.monotonic() - started:.1f} s")
        return
    if not (options.gguf_directory / GGUF_FILE).is_file():
        sys.exit(f"{options.gguf_directory / GGUF_FILE} does not exist: give its place with --gguf-directory")
    MODELS[options.model](options.gguf_directory, target)
    print(f"{target} made in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
