"""How a base model's weights are stored, from its config.json and the headers of its files: nothing needs torch.

Many models are published quantized: one integer or eight bits of a float for each weight, and scales beside them. Read
as plain numbers they are noise. What transformers can turn back into full weights is turned back when it is loaded;
bitsandbytes' types are trained on as they are, on a GPU; everything else is refused before it costs anything.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.training.weights.files import FilesError, ModelFiles, Tensor, read_model

DEQUANTIZED = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
"""Methods, as config.json calls them, whose weights transformers can turn back into full ones."""
INSTEAD = (
    "name the full-precision model that it was made from, with --quantization=NF4 (spec.quantization) to save memory"
)
_PACKAGES = {"compressed-tensors": "compressed_tensors", "bitsandbytes": "bitsandbytes"}
BLOCKS = ("quantization_config", "compression_config")
"""Where config.json says how weights are quantized; the latter is how it was called before."""
_FULL = ("F64", "F32", "F16", "BF16")
_BUFFERS = frozenset({"bias", "masked_bias", "position_ids", "token_type_ids", "causal_mask", "tid2eid"})
"""Names of stored tensors of two and more dimensions that are no weights, and may be of any type."""

Finder = Callable[[str], object]


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a configuration says about the quantization of its weights, None when they are stored in full."""
    for part in (config, config.get("text_config") or {}):
        for name in BLOCKS:
            if isinstance(found := part.get(name), dict) and found:
                return found
    return None


def settled(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a configuration without a quantization that the weights do not have.

    A merged or dequantized model often keeps what config.json said of the one that it was made from. Every method
    stores its weights as integers or as floats of eight bits and fewer: where all are plain floats, none was used.
    """
    if _first_packed(tensors) is not None:
        return dict(config)
    kept = {name: value for name, value in config.items() if name not in BLOCKS}
    if isinstance(text := kept.get("text_config"), dict):
        kept["text_config"] = {name: value for name, value in text.items() if name not in BLOCKS}
    return kept


def _first_packed(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a weight that is no plain number, None when there is none."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FULL and len(tensor.shape) > 1 and name.rpartition(".")[2] not in _BUFFERS:
            return name
    return None


def method_of(quantization: Mapping[str, Any]) -> str:
    """Return the method as config.json calls it."""
    if method := quantization.get("quant_method"):
        return str(method)
    return "bitsandbytes" if quantization.get("load_in_4bit") or quantization.get("load_in_8bit") else "unknown"


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the method in a few words, as in bitsandbytes NF4, gptq with 4 bits."""
    method = method_of(quantization)
    if method == "bitsandbytes":
        return f"bitsandbytes {_bitsandbytes_type(quantization)}"
    if bits := quantization.get("bits") or quantization.get("w_bit"):
        return f"{method} with {bits} bits"
    kind = quantization.get("format")
    return f"{method}, {kind}" if kind else method


def _bitsandbytes_type(quantization: Mapping[str, Any]) -> str:
    if quantization.get("load_in_4bit"):
        return str(quantization.get("bnb_4bit_quant_type", "fp4")).upper()
    return "Int8"


def is_dequantized(config: Mapping[str, Any]) -> bool:
    """Whether the weights are turned back into full ones when they are loaded."""
    found = quantization_of(config)
    return found is not None and method_of(found) in DEQUANTIZED


def problem_of(
    config: Mapping[str, Any],
    *,
    quantization: str = "None",
    cuda: bool,
    find: Finder = importlib.util.find_spec,
) -> str | None:
    """Return why a model cannot be trained on as it is stored, as the end of a sentence; None when it can.

    Parameters
    ----------
    config
        Its config.json.
    quantization
        What `--quantization` asks for: None, NF4 or Int8.
    cuda
        Whether the training will be on a GPU.
    find
        Tells whether a Python package is there.
    """
    found = quantization_of(config)
    if found is None:
        return None
    method, what = method_of(found), describe(found)
    package = _PACKAGES.get(method)
    if method not in DEQUANTIZED and method != "bitsandbytes":
        return f"is stored quantized ({what}), and weights in that form cannot be trained on: {INSTEAD}"
    if method == "bitsandbytes" and not cuda:
        return (
            f"is stored quantized ({what}), which needs a GPU with CUDA: train on one, or name the full-precision "
            "model that it was made from"
        )
    if package and not find(package):
        return (
            f"is stored quantized ({what}), which needs the Python package {package.replace('_', '-')}: install it, "
            f"or {INSTEAD}"
        )
    if quantization not in ("None", _bitsandbytes_type(found) if method == "bitsandbytes" else "None"):
        return (
            f"is stored quantized ({what}), and cannot be quantized again: leave --quantization={quantization} out, or "
            "name the full-precision model that it was made from"
        )
    return None


def problem_of_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """Return that weights are no plain numbers though config.json says nothing of it, None when all is well.

    Nor are they without their scales: the library would take floats of eight bits for the weights themselves.
    """
    if (found := quantization_of(config)) is not None:
        return _problem_of_scales(found, tensors) if method_of(found) in ("fp8", "mxfp8") else None
    if (name := _first_packed(tensors)) is None:
        return None
    return (
        f"holds {name} as {tensors[name].dtype}, and its config.json has no quantization_config that says what these "
        f"numbers mean: get its files again, or {INSTEAD}"
    )


def _problem_of_scales(found: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """Return that a weight of eight bits has no scale, or not one for each of its blocks."""
    scaled = {name.rpartition(".")[0] for name in tensors if "scale" in name.rpartition(".")[2]}
    block = found.get("weight_block_size")
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        if not tensor.dtype.startswith("F8") or "scale" in leaf:
            continue
        if path not in scaled:
            return f"holds {name} as {tensor.dtype} and no scale for it: get its files again, or {INSTEAD}"
        scale = tensors.get(f"{name}_scale_inv")
        if block and scale is not None and len(scale.shape) == len(tensor.shape) == 2 and scale.elements > 1:
            blocks = tuple(-(-size // step) for size, step in zip(tensor.shape, block, strict=True))
            if scale.shape != blocks:
                wanted, there = (" x ".join(map(str, shape)) for shape in (blocks, scale.shape))
                return f"holds {there} scales for {name}, whose blocks are {wanted}: get its files again, or {INSTEAD}"
    return None


def read_base(
    directory: Path, *, quantization: str = "None", cuda: bool, find: Finder = importlib.util.find_spec
) -> ModelFiles:
    """Return a base model's files, after making sure that its weights can be trained on as they are stored.

    Parameters
    ----------
    directory
        The base model's.
    quantization, cuda, find
        See `problem_of`.

    Raises
    ------
    FailureError
        When the files cannot be read, are damaged, or hold weights in another form.
    """
    try:
        files = read_model(directory)
        files = replace(files, config=settled(files.config, files.tensors))
    except FilesError as error:
        if isinstance(error.__cause__, PermissionError):
            text = f"{error}: it must be readable for the user that trains"
            raise FailureError(exits.ACCESS_DENIED, "AccessDenied", text) from error
        raise FailureError(exits.DOES_NOT_EXIST, "BaseModelUnavailable", str(error)) from error
    check_config(str(directory), files.config, quantization=quantization, cuda=cuda, find=find)
    check_tensors(str(directory), files.config, files.tensors)
    return files


def check_tensors(base_model: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a model whose stored tensors are no weights by themselves, and not what its config.json says either.

    Raises
    ------
    FailureError
        With the first such weight, and what to use instead.
    """
    if problem := problem_of_tensors(config, tensors):
        raise _refused(f"{base_model} {problem}")


def check_tokenizer(files: ModelFiles, find: Finder = importlib.util.find_spec) -> None:
    """Refuse a base model without a tokenizer, or with one that cannot be read here.

    Raises
    ------
    FailureError
        With what to put beside the weights, or to install.
    """
    where, problem = files.directory, None
    if not files.has_tokenizer:
        problem = "has no tokenizer: put tokenizer.json and tokenizer_config.json beside the weights"
    elif files.needs_sentencepiece and not (find("sentencepiece") and find("google")):
        problem = (
            "has no tokenizer.json, only tokenizer.model, which needs the Python packages sentencepiece and protobuf: "
            'install them, or write tokenizer.json where they are, with python -c "from transformers import '
            f"AutoTokenizer; AutoTokenizer.from_pretrained('{where}').save_pretrained('{where}')\""
        )
    if problem:
        raise FailureError(exits.DOES_NOT_EXIST, "BaseModelUnavailable", f"{where} {problem}")


def check_config(
    base_model: str,
    config: Mapping[str, Any],
    *,
    quantization: str = "None",
    cuda: bool,
    find: Finder = importlib.util.find_spec,
) -> None:
    """Refuse a model whose weights cannot be trained on as its config.json says that they are stored.

    Raises
    ------
    FailureError
        With the method's name, and what to use instead.
    """
    if problem := problem_of(config, quantization=quantization, cuda=cuda, find=find):
        raise _refused(f"{base_model} {problem}")


def dequantizing(config: Mapping[str, Any]) -> Any:
    """Return transformers' configuration that turns stored weights into full ones, None for others."""
    found = quantization_of(config)
    if found is None or method_of(found) not in DEQUANTIZED:
        return None
    from transformers.quantizers.auto import AutoQuantizationConfig

    return AutoQuantizationConfig.from_dict({**found, "dequantize": True})


def _refused(text: str) -> FailureError:
    return FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)
