"""Chat templates in the manner of the models that people fine-tune, and tokenizers that go with them."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from model.training.rows.tokens import RowEncoder, TokenRows

CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}<|im_start|>system\n"
    "Be brief.<|im_end|>\n{% endif %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('After the optional system message, roles must alternate user/assistant') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PHI = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
THINKING = (
    "{% set last = namespace(user=0) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% set parts = message.content.split('</think>') %}{% if loop.index0 > last.user %}<think>\n"
    "{{ parts[0].replace('<think>', '').strip() if parts | length > 1 else '' }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].strip() }}{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}\n{% else %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>"
    "<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    '{% for call in message.tool_calls or [] %}<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BEGINS_THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
NO_END = (
    "{% for message in messages %}### {{ message.role }}:\n{{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


@dataclass(frozen=True)
class Style:
    """A template, and the tokens of a tokenizer that goes with it."""

    template: str | None
    end: str
    begin: str | None = None
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    eats_spaces: tuple[str, ...] = ()
    begins_by_itself: bool = False
    metaspace: bool = False
    closing: str | None = None


IM = ("<|im_start|>", "<|im_end|>")
STYLES = {
    "chatml": Style(CHATML, "<|im_end|>", "<|im_start|>", IM),
    "llama3": Style(
        LLAMA3, "<|eot_id|>", "<|begin_of_text|>", ("<|start_header_id|>", "<|end_header_id|>"), begins_by_itself=True
    ),
    "mistral": Style(MISTRAL, "</s>", "<s>", begins_by_itself=True),
    "mistral-metaspace": Style(MISTRAL, "</s>", "<s>", begins_by_itself=True, metaspace=True),
    "gemma": Style(GEMMA, "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>"), begins_by_itself=True),
    "zephyr": Style(ZEPHYR, "</s>", "<s>", begins_by_itself=True),
    "phi": Style(
        PHI,
        "<|endoftext|>",
        special=("<|user|>", "<|assistant|>", "<|end|>"),
        eats_spaces=("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "thinking": Style(THINKING, "<|im_end|>", special=IM, added=("<think>", "</think>")),
    "marked": Style(MARKED, "<|im_end|>", special=IM),
    "tools": Style(TOOLS, "<|im_end|>", special=IM, added=("<tool_call>", "</tool_call>")),
    "begins-thinking": Style(BEGINS_THINKING, "<|im_end|>", special=IM, added=("<think>", "</think>")),
    "no-end": Style(NO_END, "</s>", "<s>"),
    "plain": Style(None, "</s>", "<s>", begins_by_itself=True),
}

SHIPPED = {
    "qwen2_5": Style(None, "<|im_end|>", added=("<tool_call>", "</tool_call>"), closing="<|im_end|>"),
    "qwen3": Style(
        None, "<|im_end|>", added=("<think>", "</think>", "<tool_call>", "</tool_call>"), closing="<|im_end|>"
    ),
    "qwen3_instruct_2507": Style(None, "<|im_end|>", added=("<tool_call>", "</tool_call>"), closing="<|im_end|>"),
    "qwen3_5_think": Style(
        None, "<|im_end|>", added=("<think>", "</think>", "<tool_call>", "</tool_call>"), closing="<|im_end|>"
    ),
    "qwen3_8": Style(
        None, "<|im_end|>", added=("<think>", "</think>", "<tool_call>", "</tool_call>"), closing="<|im_end|>"
    ),
    "llama3": Style(None, "<|eot_id|>", "<|begin_of_text|>", begins_by_itself=True, closing="<|eot_id|>"),
    "llama3_1": Style(None, "<|eot_id|>", "<|begin_of_text|>", begins_by_itself=True, closing="<|eot_id|>"),
    "llama3_2": Style(None, "<|eot_id|>", "<|begin_of_text|>", begins_by_itself=True, closing="<|eot_id|>"),
    "gemma": Style(
        None, "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>"), begins_by_itself=True, closing="<end_of_turn>"
    ),
    "gemma3": Style(
        None, "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>"), begins_by_itself=True, closing="<end_of_turn>"
    ),
    "phi3": Style(None, "<|endoftext|>", "<s>", closing="<|end|>"),
    "phi3_5": Style(None, "<|endoftext|>", "<s>", closing="<|end|>"),
    "glm4moe": Style(None, "<|endoftext|>", special=("[gMASK]", "<sop>"), added=("<think>", "</think>")),
    "gptoss": Style(None, "<|return|>", "<|startoftext|>", closing="<|return|>"),
    "deepseekv3": Style(
        None,
        "<\uff5cend▁of▁sentence\uff5c>",
        "<\uff5cbegin▁of▁sentence\uff5c>",
        begins_by_itself=True,
        closing="<\uff5cend▁of▁sentence\uff5c>",
    ),
    "deepseek_r1_distill": Style(
        None,
        "<\uff5cend▁of▁sentence\uff5c>",
        "<\uff5cbegin▁of▁sentence\uff5c>",
        begins_by_itself=True,
        closing="<\uff5cend▁of▁sentence\uff5c>",
    ),
    "cohere": Style(
        None, "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", begins_by_itself=True, closing="<|END_OF_TURN_TOKEN|>"
    ),
    "cohere2": Style(
        None, "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", begins_by_itself=True, closing="<|END_OF_TURN_TOKEN|>"
    ),
    "lfm2": Style(None, "<|im_end|>", "<|startoftext|>", closing="<|im_end|>"),
    "nemotron_3_nano": Style(None, "<|im_end|>", added=("<think>", "</think>"), closing="<|im_end|>"),
}
"""Tokenizers for chat templates that TRL ships; other tokens that they need are in the template."""

_TOKENS = re.compile(r"<\|[\w ]+\|>|<\uff5c[^\uff5c\s]+\uff5c>")

_WORDS = "the answer is yes and no or what why because it so. user assistant system Be brief. Hi! Yes? No."


@cache
def make_tokenizer(name: str) -> Any:
    """Return a tokenizer of the style: byte-level BPE, or BPE with ▁ for spaces; it pads with its end token."""
    return _build(STYLES[name])


@cache
def shipped_tokenizer(name: str) -> Any:
    """Return a tokenizer with a template that TRL ships, and the tokens that it writes."""
    package = importlib.util.find_spec("trl")
    assert package is not None
    assert package.submodule_search_locations is not None
    template = (Path(package.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text()
    style = SHIPPED[name]
    special = tuple(dict.fromkeys((*style.special, *_TOKENS.findall(template))))
    own = (style.begin, style.end)
    return _build(replace(style, template=template, special=tuple(token for token in special if token not in own)))


def _build(style: Style) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    if style.metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Metaspace(prepend_scheme="always")
        alphabet = [chr(code) for code in range(32, 127)] + ["\n"]
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    own = [token for token in ("<unk>", style.begin, style.end) if token]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=own, initial_alphabet=alphabet, show_progress=False)
    words = [*_WORDS.split(), "\n\n"]
    backend.train_from_iterator([f"{first} {second}" for first in words for second in words], trainer)
    backend.add_special_tokens([AddedToken(t, rstrip=t in style.eats_spaces, normalized=False) for t in style.special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in style.added])
    if style.begins_by_itself and style.begin:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{style.begin} $A", special_tokens=[(style.begin, backend.token_to_id(style.begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token=style.begin,
        eos_token=style.end,
        pad_token=style.end,
        chat_template=style.template,
    )


def encode(tokenizer: Any, *contents: dict[str, Any]) -> TokenRows:
    """Tokenise rows as a run does; the first is row 7, and a fault in one fails."""
    lines = (json.dumps({"row": number, **content}).encode() for number, content in enumerate(contents, 7))
    return RowEncoder(tokenizer, max_length=4096, too_long="Fail").encode(lines, "the dataset's")
