"""A base model as it was loaded, in a line; apart from the harness, which sets this process's environment."""

from __future__ import annotations

from model.training.weights import basemodel


def describe(base_model: str) -> str:
    """Load tokenizer and weights; return what tells them from others."""
    tokenizer = basemodel.load_tokenizer(base_model, None)
    model = basemodel.load_model(base_model, None, bfloat16=False)
    return " ".join([str(len(tokenizer)), *(f"{float(w.detach().double().sum()):.12g}" for w in model.parameters())])
