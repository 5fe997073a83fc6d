"""Makes the model's directory with random weights, and the rows to train on: nothing is downloaded.

python -m benchmarks.gpu.base DIRECTORY SHAPE DEVICE
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.shape import SHAPES, Shape

SPECIAL = ["<unknown>", "<end>"]
WORDS = 1000
SEED = 42


def make_model(directory: Path, shape: Shape, *, device: str) -> None:
    """Write a model of a shape in bfloat16 and a tokenizer of whole words, unless they are there."""
    if directory.is_dir():
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(SEED)
    config = AutoConfig.for_model(
        shape.family.lower(),
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
        dtype="bfloat16",
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    word_tokenizer().save_pretrained(temporary)
    temporary.rename(directory)


def word_tokenizer() -> Any:
    """Return a tokenizer that makes a token of each word w0 ... w997, so that lengths are exact."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[1]
    )


def words() -> list[str]:
    """Return the words that rows are made of."""
    return [f"w{index}" for index in range(WORDS - len(SPECIAL))]


def make_rows(path: Path, *, method: str, rows: int, prompt: int, answer: int, ragged: bool = False) -> None:
    """Write rows of random words: `prompt` tokens, and `answer` tokens with the end token.

    Ragged rows have between a quarter and seven quarters of both, and as much on average.
    """
    drawn = random.Random(SEED)  # noqa: S311 - text, not a secret
    known = words()

    def text(count: int) -> str:
        return " ".join(drawn.choices(known, k=count))

    def length(mean: int) -> int:
        return drawn.randint(max(2, mean // 4), mean * 7 // 4) if ragged else mean

    def row() -> dict[str, str]:
        answers = ("completion",) if method == "SFT" else ("chosen", "rejected")
        return {"prompt": text(length(prompt))} | {name: " " + text(length(answer) - 1) for name in answers}

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row()) + "\n" for _ in range(rows)), encoding="utf-8")


def count_tokens(row: dict[str, str]) -> int:
    """Return the tokens of a row's sequences, each with its prompt and its end token."""
    answers = [text for name, text in row.items() if name != "prompt"]
    return sum(len(row["prompt"].split()) + len(answer.split()) + 1 for answer in answers)


if __name__ == "__main__":
    make_model(Path(sys.argv[1]), SHAPES[sys.argv[2]], device=sys.argv[3])
