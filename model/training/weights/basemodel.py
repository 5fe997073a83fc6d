"""Loading the base model: from a directory or from the hub, with every way to fail put into words."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model import exits, hubcache
from model.exits import FailureError
from model.flags import suggest
from model.training.config import TrainSettings
from model.training.weights import stored

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


def check(base_model: str) -> Path | None:
    """Return the base model's directory, None for a name on the hub.

    Raises
    ------
    FailureError
        When it is a path and there is no model.
    """
    path = Path(base_model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise _missing(f"{path} holds no model: it has no config.json")
        return path
    if path.exists():
        raise _missing(f"{path} is a file: name the directory with a model's config.json and weights")
    if path.is_absolute() or base_model.startswith((".", "~")) or base_model.count("/") > 1:
        raise _missing(f"{path} does not exist{_neighbours(path)}")
    return None


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

    if check(base_model) is None:
        hubcache.prepare(Path(constants.HF_HUB_CACHE))
    template = None if chat_template is None else read_chat_template(chat_template)
    tokenizer = translated(base_model, revision, lambda: AutoTokenizer.from_pretrained(base_model, revision=revision))
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


def warnings_of(tokenizer: Any, base_model: str) -> list[str]:
    """Return what a person should know about a tokenizer before training with it, sentences without full stop."""
    found = []
    if not tokenizer.chat_template:
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

    config = read_config(base_model, revision)
    stored.check_config(base_model, config, quantization=quantization, cuda=torch.cuda.is_available())
    options: dict[str, Any] = {}
    wanted = stored.dequantizing(config) or quantization_config(quantization, bfloat16=bfloat16)
    if wanted is not None:  # None, too, would be taken for an order to forget what the file says
        options["quantization_config"] = wanted
    model, report = translated(
        base_model,
        revision,
        lambda: AutoModelForCausalLM.from_pretrained(
            base_model,
            revision=revision,
            dtype=torch.bfloat16 if bfloat16 else torch.float32,
            output_loading_info=True,
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


def read_config(base_model: str, revision: str | None) -> dict[str, Any]:
    """Return a model's config.json as it is, from its directory or the hub.

    Raises
    ------
    FailureError
        When it is not there, refused, out of reach or broken.
    """
    from huggingface_hub import constants
    from transformers import PretrainedConfig

    if check(base_model) is None:
        hubcache.prepare(Path(constants.HF_HUB_CACHE))
    config: dict[str, Any] = translated(
        base_model, revision, lambda: PretrainedConfig.get_config_dict(base_model, revision=revision)[0]
    )
    return config


def _check_complete(base_model: str, model: Any, report: dict[str, Any]) -> None:
    """Refuse a model of which weights are missing, or whose files hold more than it has a place for.

    The library fills what is missing with random numbers, passes over the rest, and only warns.
    """
    if missing := sorted(report["missing_keys"]):
        raise _missing(f"{base_model} lacks weights: {_some(missing)}")
    if stray := sorted(name for name in report["unexpected_keys"] if _is_stray(name, model)):
        raise _missing(
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
        raise _missing(
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


def translated(base_model: str, revision: str | None, load: Callable[[], Any]) -> Any:
    """Return what `load` gives, with the errors of hub and libraries put into words.

    Raises
    ------
    FailureError
        When the model is not there, refused, out of reach or broken.
    """
    from huggingface_hub import errors

    where = f"{base_model} at revision {revision}" if revision else base_model
    try:
        return load()
    except Exception as error:
        chain = _chain(error)
        if any(isinstance(link, errors.GatedRepoError) for link in chain):
            text = f"{where}: access to it must be granted to the owner of the token first"
            raise FailureError(exits.ACCESS_DENIED, "AccessDenied", text) from error
        if isinstance(error, errors.RemoteEntryNotFoundError):
            raise _missing(f"{where} on the hub is no model that can be trained: it has no config.json") from error
        if status := _http_status(chain):
            raise _refused(base_model, where, status) from error
        if any(isinstance(link, ConnectionError | TimeoutError) or _is_transport(link) for link in chain):
            text = (
                f"{where} cannot be downloaded, for the hub is out of reach, {_nowhere(base_model)}: try again when it "
                f"answers, or get it elsewhere (hf download {base_model} --local-dir DIRECTORY) and name the directory"
            )
            raise FailureError(exits.UNAVAILABLE, "BaseModelUnavailable", text) from error
        if known := exits.storage_failure(error):
            raise known from error
        if isinstance(error, ImportError):
            text = f"{where} needs a Python package that is not here: {str(error).strip()}"
            raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text) from error
        if isinstance(error, OSError | ValueError | KeyError) or _is_broken_file(error):
            raise _missing(f"{where} cannot be loaded: {error}") from error
        raise


def _is_broken_file(error: Exception) -> bool:
    from safetensors import SafetensorError

    return isinstance(error, SafetensorError)


def _is_transport(error: BaseException) -> bool:
    """Whether the hub's client could not get through."""
    from huggingface_hub import errors

    return isinstance(error, errors.LocalEntryNotFoundError) or (
        isinstance(error, errors.HTTPError) and not isinstance(error, errors.HfHubHTTPError)
    )


def _nowhere(base_model: str) -> str:
    """Return that there is no such directory, and the model's that may have been meant."""
    path = Path(base_model)
    models = {str(entry.parent): None for entry in path.parent.glob("*/config.json")}
    return f"and here is no directory of that name{suggest(str(path), models)}"


def _refused(base_model: str, where: str, status: int) -> FailureError:
    nowhere = _nowhere(base_model)
    if status in (401, 403):
        # The hub answers so for what does not exist, too, so as not to tell which private names exist.
        text = (
            f"{where}: the hub answered {status}: it is private, gated or does not exist; check the name and the "
            f"token; {nowhere.removeprefix('and ')}"
        )
        return FailureError(exits.ACCESS_DENIED, "AccessDenied", text)
    if status == 404:
        return _missing(f"{where} does not exist on the hub, {nowhere}")
    text = f"{where}: the hub answered {status}: try again later"
    return FailureError(exits.UNAVAILABLE, "BaseModelUnavailable", text)


def _http_status(chain: list[BaseException]) -> int | None:
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _neighbours(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    try:
        names = sorted(entry.name for entry in os.scandir(parent) if not entry.name.startswith("."))
    except OSError:
        return ""
    return f"; {parent} holds {', '.join(names[:10]) or 'nothing'}"


def _missing(text: str) -> FailureError:
    return FailureError(exits.DOES_NOT_EXIST, "BaseModelUnavailable", text)
