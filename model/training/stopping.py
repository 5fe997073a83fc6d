"""Where answers end: the token that is learned there, and those at which the base model's servers stop.

A base model often has a chat template whose turns end with a token that it was never told to stop at. Trained on it,
and served as the base is, it goes on with the user's next question.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.training.rows.template import PROBE, ChatTemplate, Markers, turn
from model.training.weights import hub

FILE = "generation_config.json"


@dataclass(frozen=True)
class Stopping:
    """What ends an answer, as token ids.

    Attributes
    ----------
    learned
        What training puts at the end of an answer; None when the tokenizer has no such token.
    text
        The learned token as text.
    generation
        What the base model's generation configuration stops at.
    tokenizer
        The tokenizer's end token, at which vLLM stops in any case.
    """

    learned: int | None
    text: str
    generation: tuple[int, ...]
    tokenizer: int | None

    @property
    def all(self) -> list[int]:
        """All of them, those of the generation configuration first."""
        more = (one for one in (self.learned, self.tokenizer) if one is not None)
        return list(dict.fromkeys((*self.generation, *more)))

    @property
    def runs_on(self) -> bool:
        """Whether a server that knows nothing but the base's files would not stop at the learned token."""
        return self.learned is not None and self.learned not in (*self.generation, self.tokenizer)

    def generation_config(self, directory: Path | None) -> dict[str, Any]:
        """Return the base's generation configuration with all of them."""
        config: dict[str, Any] = {}
        if directory is not None and (directory / FILE).is_file():
            config = json.loads((directory / FILE).read_text(encoding="utf-8"))
        return config | {"eos_token_id": self.all}

    def warning(self) -> str | None:
        """Return what to set to serve the adapter, without full stop; None when nothing is to be set."""
        if not self.runs_on:
            return None
        known = ", ".join(map(str, dict.fromkeys(one for one in (*self.generation, self.tokenizer) if one is not None)))
        return (
            f"answers end with {self.text} (token {self.learned}), and the base model stops at {known or 'no token'} "
            f"only, so that a server of base and adapter would not stop: start vLLM with --generation-config=DIRECTORY "
            f'(the adapter\'s directory, whose {FILE} names it), or send "stop_token_ids": [{self.learned}] with '
            "each request; merge writes it into the merged model"
        )


def find(tokenizer: Any, base_model: str, revision: str | None, *, texts: bool = False) -> Stopping:
    """Return what ends an answer of a base model with this tokenizer and its chat template.

    Rows that are `texts`, learned as they stand, end with the tokenizer's end token.
    """
    learned = tokenizer.eos_token_id if texts else learned_end(tokenizer)
    text = "" if learned is None else str(tokenizer.convert_ids_to_tokens(learned))
    return Stopping(learned, text, _of_base(base_model, revision), tokenizer.eos_token_id)


def learned_end(tokenizer: Any) -> int | None:
    """Return the token that rows close an answer with: the chat template's, or else the tokenizer's end token."""
    end: int | None = tokenizer.eos_token_id
    if not tokenizer.chat_template:
        return end
    markers = Markers(tokenizer)
    template = ChatTemplate(tokenizer, markers, datetime.now(UTC))
    text = template.tries([turn("user", "question"), turn("assistant", PROBE)]) or ""
    after = text.rpartition(PROBE)[2].strip()
    found = []
    while marker := markers.at_start(after):
        found.append(marker)
        after = after[len(marker) :].strip()
    if template.closing in found:
        return markers.ids[str(template.closing)]
    if found and markers.ids[found[-1]] in markers.special_ids:
        return markers.ids[found[-1]]
    return end


def _of_base(base_model: str, revision: str | None) -> tuple[int, ...]:
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(base_model, revision=revision).eos_token_id
    except (OSError, ValueError):  # it has none, and the library takes what config.json says
        config = hub.read_config(base_model, revision)
        found = (config.get("text_config") or {}).get("eos_token_id", config.get("eos_token_id"))
    if found is None:
        return ()
    return tuple(map(int, found)) if isinstance(found, list) else (int(found),)


def untrained(model: Any, stopping: Stopping) -> str | None:
    """Return that the base model was never trained to say the learned end token, None unless it can be known.

    The output layer's row of a token that no text of the pre-training held is zero, or that of other such tokens.
    """
    head = model.get_output_embeddings()
    rows = getattr(head, "weight", None)
    if stopping.learned is None or rows is None or not rows.is_floating_point() or rows.ndim != 2:
        return None
    row = rows[stopping.learned]
    alike = (rows[:, 0] == row[0]).nonzero().flatten()
    if bool(row.any()) and int((rows[alike] == row).all(1).sum()) < 2:
        return None
    return (
        f"the base model was never trained to say {stopping.text} (token {stopping.learned}), with which answers end: "
        "its output layer gives that token no weights of its own, and the adapter leaves the output layer alone, so "
        "that answers may not end: train the instruct model of the same family, or give a chat template "
        "(--chat-template, baseModel.chatTemplate) that ends turns with a token that the base knows"
    )
