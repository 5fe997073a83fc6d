"""A model and a tokenizer that are made on the spot: no network, and hundredths of a second a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import cpus

cpus.pretend()

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer that pads with its end token, as SmolLM2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[0]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet)
    backend.train_from_iterator([row["completion"] + row["prompt"] for row in make_rows(50)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=SPECIAL_TOKENS[0],
        bos_token=SPECIAL_TOKENS[1],
        eos_token=SPECIAL_TOKENS[2],
        pad_token=SPECIAL_TOKENS[2],
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def base_model(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,  # with the usual 0.02 the frozen output layer could hardly express an answer
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    directory = tmp_path_factory.mktemp("base-model")
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Prompt/completion rows of different lengths."""
    return make_rows(30)


def make_rows(count: int) -> list[dict[str, Any]]:
    """Rows that all differ, with answers of one to seven words."""
    return [
        {"prompt": f"What is {n} times {n}?", "completion": " ".join(["It is", *["really"] * (n % 6), f"{n * n}."])}
        for n in range(count)
    ]


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms in float64: Llama's round to float32, the gradient of a prompt once for both answers or once for each."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        scale = (hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return self.weight * hidden * scale

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
