"""Asks the base model and the adapter the same questions, to see what the training has changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.training import basemodel


def answer(base_model: str, adapter: Path, prompts: Sequence[str], max_new_tokens: int) -> Iterator[dict[str, str]]:
    """Yield `{prompt, base, adapter}` for each prompt; the answers are the likeliest ones, without chance.

    Raises
    ------
    FailureError
        When the base model or the adapter cannot be loaded.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise FailureError(
            exits.DOES_NOT_EXIST, "AdapterInvalid", f"{adapter} holds no adapter: it has no adapter_config.json"
        )
    basemodel.check(base_model)
    from peft import PeftModel

    tokenizer = basemodel.load_tokenizer(base_model, None)
    model = PeftModel.from_pretrained(basemodel.load_model(base_model, None, bfloat16=True), str(adapter))
    model.eval()
    for prompt in prompts:
        tuned = _generate(model, tokenizer, prompt, max_new_tokens)
        with model.disable_adapter():
            base = _generate(model, tokenizer, prompt, max_new_tokens)
        yield {"prompt": prompt, "base": base, "adapter": tuned}


def _generate(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    import torch

    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    answered: str = tokenizer.decode(output[0, length:], skip_special_tokens=True)
    return answered.strip()
