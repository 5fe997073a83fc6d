"""Loading the base model and its tokenizer, from a directory or from the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

from model import exits, hubcache
from model.exits import FailureError
from model.training.config import TrainSettings
from model.training.weights import hub, origin, stored

_READ_AHEAD_BYTES = 8 << 30
_CHUNK_BYTES = 8 << 20
_TAIL_BYTES = 1 << 20
_NO_ADAPTER = {"subfolder": "no-adapter"}
"""Where transformers is told to look for an adapter: nowhere. It would put one that lies beside the weights on them."""
_LAYER_LISTS = ("layers", "h", "blocks", "block")
"""What families call the list of their decoder's layers."""
_NOT_NEEDED = frozenset(
    {
        *("inv_freq", "cos_cached", "sin_cached", "position_ids", "causal_mask", "masked_bias"),  # computed now
        *("k_scale", "v_scale", "kv_scale"),  # of a cache that serves
        "_extra_state",  # Transformer Engine's
    }
)
_DRAFT_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
"""Settings for layers behind the last that guess ahead; nothing of them is trained or needed."""
_SERVING_SCALES = ("input_scale", "activation_scale", "input_global_scale", "input_zero_point")


def digest_of_files(directory: Path) -> str:
    """Return a digest by which another model in the same directory is noticed, without reading its weights whole.

    It is that of the configuration and of each weights' file's name, size and last mebibyte.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - _TAIL_BYTES))
            digest.update(f"{path.name} {size} ".encode() + file.read())
    return digest.hexdigest()[:16]


def read_ahead(directory: Path) -> None:
    """Read the weights once from a thread, so that they are in memory when the imports are done."""

    def read() -> None:
        left = _READ_AHEAD_BYTES
        for path in sorted(directory.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                while left > 0 and (chunk := file.read(_CHUNK_BYTES)):
                    left -= len(chunk)

    threading.Thread(target=read, name="read-ahead", daemon=True).start()


def load_tokenizer(base_model: str, revision: str | None, chat_template: Path | None = None) -> Any:
    """Return the base model's tokenizer; the first thing that may be downloaded, in every process.

    Parameters
    ----------
    base_model, revision
        As for `load_model`.
    chat_template
        File of a chat template to take in place of the tokenizer's own.

    Raises
    ------
    FailureError
        When it is not there, refused, out of reach or broken, or the file is no chat template.
    """
    from huggingface_hub import constants
    from transformers import AutoTokenizer

    if origin.check(base_model) is None:
        hubcache.prepare(Path(constants.HF_HUB_CACHE))
    template = None if chat_template is None else read_chat_template(chat_template)
    tokenizer = origin.translated(
        base_model, revision, lambda: AutoTokenizer.from_pretrained(base_model, revision=revision)
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def read_chat_template(path: Path) -> str:
    """Return a chat template, after making sure that it is one.

    Raises
    ------
    FailureError
        When it cannot be read, or is no template of Jinja that shows messages.
    """
    problem = None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem, text = f"cannot be read ({error}): name a text file in UTF-8", ""
    else:
        problem = _problem_of_template(text)
    if problem:
        raise FailureError(
            exits.INVALID_CONFIGURATION, "InvalidSpec", f"--chat-template={path} (baseModel.chatTemplate): {problem}"
        )
    return text


def _problem_of_template(text: str) -> str | None:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(text)
    except TemplateSyntaxError as error:
        return f"line {error.lineno} is no Jinja: {error.message}"
    if "messages" not in text:
        return "it does not show messages: give the template's text, as in a model's chat_template.jinja"
    return None


def warnings_of(tokenizer: Any, base_model: str, *, texts: bool = False) -> list[str]:
    """Return what a person should know about a tokenizer before training with it, sentences without full stop.

    Rows that are `texts`, learned as they stand, need no chat template.
    """
    found = []
    if not tokenizer.chat_template and not texts:
        found.append(
            f"{base_model} has no chat template: prompt and answer are joined as plain text, and a server must be "
            "asked in the same way; give one with --chat-template (baseModel.chatTemplate), or train an instruct model"
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if getattr(backend, "fix_mistral_regex", None) is False:  # set by transformers where it finds the wrong one
        found.append(
            f"{base_model} has a tokenizer.json with Mistral's wrong pattern, which cuts words otherwise than the "
            'model was trained with: put "fix_mistral_regex": true into its tokenizer_config.json, here and where '
            "it is served, or get the model's files again"
        )
    return found


def leave_out_bitsandbytes() -> None:
    """Keep a training without a GPU from importing bitsandbytes, of which it can use nothing.

    peft imports it wherever it is installed, which takes more than a second.
    """
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def check_quantization(quantization: str, *, cuda: bool) -> None:
    """Refuse a quantized base where it cannot be trained on, before anything is loaded.

    Parameters
    ----------
    quantization
        None, NF4 or Int8.
    cuda
        Whether the training will be on a GPU.

    Raises
    ------
    FailureError
        Without a GPU, or without the library that quantizes.
    """
    if quantization == "None":
        return
    problem = None
    if not cuda:
        problem = "needs a GPU with CUDA: train on one, or leave it out to train on the full weights"
    elif not importlib.util.find_spec("bitsandbytes"):
        problem = "needs the Python package bitsandbytes: install it"
    if problem:
        text = f"--quantization={quantization} {problem}"
        raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)


def quantization_config(quantization: str, *, bfloat16: bool) -> Any:
    """Return the `BitsAndBytesConfig` for NF4 or Int8, None without quantization.

    NF4 follows QLoRA (https://arxiv.org/abs/2305.14314): its scales are quantized once more, and matrices are
    multiplied in bfloat16 where the device can.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "None":
        return None
    if quantization == "Int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bfloat16 else torch.float32,
    )


def load_model(base_model: str, revision: str | None, *, bfloat16: bool, quantization: str = "None") -> Any:
    """Return the base model, complete, in bfloat16 or float32 on the CPU, or quantized on the GPU.

    Weights that are stored quantized come back in full where the library can do that.

    Raises
    ------
    FailureError
        When it is not there, refused, out of reach, broken, incomplete, or stored in a form that is not trained on.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = hub.stored_config(base_model, revision)
    stored.check_config(base_model, config, quantization=quantization, cuda=torch.cuda.is_available())
    options: dict[str, Any] = {"config": _model_config(base_model, revision, config)}
    wanted = stored.dequantizing(config) or quantization_config(quantization, bfloat16=bfloat16)
    if wanted is not None:  # None, too, would be taken for an order to forget what the file says
        options["quantization_config"] = wanted
    model, report = origin.translated(
        base_model,
        revision,
        lambda: AutoModelForCausalLM.from_pretrained(
            base_model,
            revision=revision,
            dtype=torch.bfloat16 if bfloat16 else torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            adapter_kwargs=_NO_ADAPTER,
            **options,
        ),
    )
    _check_complete(base_model, model, report)
    if stored.is_dequantized(config):
        _finish_dequantizing(model, torch.bfloat16 if bfloat16 else torch.float32)
    return model


def _finish_dequantizing(model: Any, dtype: Any) -> None:
    """Give all weights the model's type, for they come in that of the file or of their scales.

    And forget how they came: else saving would undo it, and write scales again.
    """
    kept = tuple(model._keep_in_fp32_modules_strict or ())  # noqa: SLF001 - the library keeps it there
    for name, weight in model.named_parameters():
        if weight.dtype != dtype and not any(part in name.split(".") for part in kept):
            weight.data = weight.data.to(dtype)
    model._weight_conversions = None  # noqa: SLF001 - as above


def _model_config(base_model: str, revision: str | None, config: dict[str, Any]) -> Any:
    """Return the library's form of a configuration; it is told of no quantization that `config` does not have."""
    from transformers import AutoConfig

    found = origin.translated(base_model, revision, lambda: AutoConfig.from_pretrained(base_model, revision=revision))
    if stored.quantization_of(config) is None:
        for part in (found, found.get_text_config()):
            for name in stored.BLOCKS:
                part.__dict__.pop(name, None)
    return found


def _check_complete(base_model: str, model: Any, report: dict[str, Any]) -> None:
    """Refuse a model of which weights are missing or of another shape, or more than it has a place for.

    The library fills what is missing with random numbers, passes over the rest, and only warns.
    """
    if mismatched := sorted(report["mismatched_keys"]):
        name, there, wanted = mismatched[0]
        raise origin.missing(
            f"{base_model} holds {name} of shape {tuple(there)}, but its config.json makes it {tuple(wanted)}: they do "
            "not belong together, get its files again"
        )
    if missing := sorted(report["missing_keys"]):
        raise origin.missing(f"{base_model} lacks weights: {_some(missing)}")
    if stray := sorted(name for name in report["unexpected_keys"] if _is_stray(name, model)):
        raise origin.missing(
            f"{base_model} holds weights that its config.json has no place for: {_some(stray)}; without them it is "
            "another model: get its files again, or one that transformers knows"
        )


def _is_stray(name: str, model: Any) -> bool:
    """Whether a weight without a place belongs to a layer that the model has, or stands in a row with its layers.

    Beside the language model files may hold towers, projectors, heads and draft layers, none of which it needs; and in
    its layers buffers that are computed now, and the scales of what is quantized while a model is served.
    """
    path, _, leaf = name.rpartition(".")
    if leaf in _NOT_NEEDED or leaf.endswith(_SERVING_SCALES):
        return False
    if name in dict(model.named_buffers()):
        return False  # computed, not loaded
    modules = dict(model.named_modules())
    if path in modules and not any(modules[path].children()):
        return True
    while path and path not in modules:
        path = path.rpartition(".")[0]
    parts = path.split(".")
    if parts[-1] in _LAYER_LISTS and any(model.config.get_text_config().to_dict().get(key) for key in _DRAFT_LAYERS):
        return False
    return any(part in _LAYER_LISTS for part in parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_fit(model: Any, settings: TrainSettings, *, largest_token: int, longest_row: int) -> None:
    """Check that the rows and the settings suit the model.

    Raises
    ------
    FailureError
        When tokens or positions are beyond what the model has, or it has no layers of the names to adapt.
    """
    known = model.get_input_embeddings().num_embeddings
    if largest_token >= known:
        raise origin.missing(
            f"{settings.base_model}: its tokenizer gives token {largest_token}, its weights know {known}: they do not "
            "belong together"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest_row > positions:
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            f"a row has {longest_row} tokens, {settings.base_model} reads {positions}: lower maxLength to that",
        )
    # A parent's targets are checked when it is put on the model.
    wanted = set(settings.lora_target_modules or []) - {"all-linear"} if settings.parent_adapter is None else set()
    matrices = {name for name, weight in model.named_parameters() if weight.ndim == 2 and name.endswith(".weight")}
    names = {name.split(".")[-2] for name in matrices} - {"lm_head"}
    if absent := sorted(name for name in wanted if name.rpartition(".")[2] not in names):
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            f"--lora-target-modules (lora.targetModules): {settings.base_model} has no layer {', '.join(absent)}; its "
            f"layers are {', '.join(sorted(names))}",
        )
