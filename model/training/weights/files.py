"""What a model's files say about it without being loaded: safetensors headers, config.json, adapter_config.json."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_HEADER_BYTES = 100 << 20
_NO_LAYERS = ("embed", "wte", "wpe", "lm_head", "norm", "shared.weight", "output.weight")
"""Parts of the names of two-dimensional weights that are no linear layers to adapt."""
_TOWERS = ("vision", "visual", "audio", "image", "projector", "tower")
"""What the names of models beside a language model hold."""
EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "tok_embeddings"})
"""What families call their embeddings."""
_ROUTERS = ("gate", "router")
EXPERT_LAYERS = frozenset({*_ROUTERS, "gate_proj", "up_proj", "gate_up_proj", "down_proj", "w1", "w2", "w3"})
"""Names of a mixture's routers and experts' layers; shared experts and dense layers between have the same ones."""


class FilesError(Exception):
    """Files that are not there, or not what they should be; the text names the file and what to do."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as a header describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelFiles:
    """A base model's directory, as far as it can be read without loading it."""

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def text_config(self) -> dict[str, Any]:
        """The configuration of the language model, that of the whole when there is no other."""
        return {**self.config, **self.config.get("text_config", {})}

    @property
    def positions(self) -> int | None:
        """The longest row that the model reads, in tokens; None when it does not say."""
        return self.text_config.get("max_position_embeddings")

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model knows."""
        return int(self.text_config.get("vocab_size", 0))

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer beside the weights."""
        names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
        return any((self.directory / name).is_file() for name in names)

    @property
    def needs_sentencepiece(self) -> bool:
        """Whether the tokenizer is there as a model of sentencepiece only."""
        names = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
        has_model = (self.directory / "tokenizer.model").is_file()
        return has_model and not any((self.directory / name).is_file() for name in names)

    @property
    def linear(self) -> dict[str, Tensor]:
        """The linear layers but the head, as they are when loaded: a mixture's experts are one parameter for all."""
        layers = {
            name.removesuffix(".weight"): tensor
            for name, tensor in self.tensors.items()
            if name.endswith(".weight")
            and len(tensor.shape) == 2
            and not any(part in name for part in _NO_LAYERS)
            and self._is_of_language_model(name)
        }
        if not self._is_mixture:
            return layers
        return {name: t for name, t in layers.items() if not has_experts(name) and not _ends_in(name, _ROUTERS)}

    def has_embeddings(self, name: str) -> bool:
        """Whether embeddings are called so; they can be adapted where they are named."""
        names = (tensor.removesuffix(".weight") for tensor in self.tensors if _is_embedding(tensor))
        return any(embedding == name or embedding.endswith(f".{name}") for embedding in names)

    def _is_of_language_model(self, name: str) -> bool:
        """Whether a tensor belongs to the language model, and not to what makes its inputs of pictures or sound."""
        if not isinstance(self.config.get("text_config"), dict):
            return True
        if any("language_model" in tensor.split(".") for tensor in self.tensors):
            return "language_model" in name.split(".")
        return not any(word in part for part in name.split(".")[:2] for word in _TOWERS)

    @property
    def _is_mixture(self) -> bool:
        return any(map(has_experts, self.tensors))

    def layers(self, wanted: Iterable[str]) -> dict[str, Tensor]:
        """Return the linear layers of the given names; `all-linear`: those that it stands for (`adapters`)."""
        names = set(wanted)
        if "all-linear" in names:
            left_out = EXPERT_LAYERS if self._is_mixture else ()
            return {name: t for name, t in self.linear.items() if not _ends_in(name, left_out)}
        return {name: t for name, t in self.linear.items() if any(name == n or name.endswith("." + n) for n in names)}


def _is_embedding(name: str) -> bool:
    """Whether a tensor's name is that of embeddings, and not of the norm behind them or of the output layer."""
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    return name.endswith(".weight") and leaf in EMBEDDINGS


def has_experts(name: str) -> bool:
    """Whether a tensor or module is one of a mixture's experts, or holds them."""
    return "experts" in name.split(".")


def _ends_in(name: str, names: Collection[str]) -> bool:
    return name.rpartition(".")[2] in names


def read_model(directory: Path) -> ModelFiles:
    """Read a base model's configuration and the headers of its weights.

    Raises
    ------
    FilesError
        When something is missing or damaged.
    """
    config = read_json(directory / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise FilesError(f"{directory / 'config.json'} names no model_type: it is no model of transformers")
    paths, named = _weight_files(directory)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        header = read_header(path)
        if twice := sorted(header.keys() & tensors.keys()):
            raise FilesError(f"{path} holds {twice[0]}, as another file of {directory} does: get them again")
        tensors |= header
    if absent := sorted(named - tensors.keys()):
        raise FilesError(f"{directory} lacks {', '.join(absent[:3])}, which {_INDEX} names: get it again")
    return ModelFiles(directory, config, tensors)


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, after checking that the file is as long as they need.

    Raises
    ------
    FilesError
        When the file is missing, damaged or cut off.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
            if length > min(size, MAX_HEADER_BYTES):
                raise FilesError(f"{path} is no safetensors file, or is cut off: get it again")
            document = json.loads(file.read(length))
    except OSError as error:
        raise FilesError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FilesError(f"{path} is no safetensors file ({error}): get it again") from error
    entries = {name: entry for name, entry in document.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if size != 8 + length + end:
        raise FilesError(f"{path} has {size:,} bytes, its header says {8 + length + end:,}: get it again")
    return {name: Tensor(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises
    ------
    FilesError
        When it is missing or no object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FilesError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FilesError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise FilesError(f"{path} must hold a JSON object")
    return document


def lora_parameters(files: ModelFiles, targets: Iterable[str], rank: int, *, dora: bool = False) -> int:
    """Return how many parameters an adapter of this rank has on these layers."""
    layers = files.layers(targets).values()
    return sum(rank * sum(tensor.shape) + (tensor.shape[0] if dora else 0) for tensor in layers)


_INDEX = "model.safetensors.index.json"


def _weight_files(directory: Path) -> tuple[list[Path], set[str]]:
    """Return the files that the library would load, one before an index, and the weights that the index names."""
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"], set()
    if (index := directory / _INDEX).is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise FilesError(f"{index} names no weights: get it again")
        names = sorted(set(places.values()))
        if absent := [name for name in names if not (directory / name).is_file()]:
            raise FilesError(f"{directory} lacks {', '.join(absent[:3])}, which {_INDEX} names: get it again")
        return [directory / name for name in names], set(places)
    if found := sorted(path.name for path in directory.glob("*.safetensors") if path.name != ADAPTER_WEIGHTS):
        name = f"name {found[0]} so" if len(found) == 1 else "get the index, too"
        raise FilesError(
            f"{directory} has {', '.join(found[:3])}, but neither model.safetensors nor {_INDEX}, by which weights are "
            f"found: {name}"
        )
    if (directory / ADAPTER_CONFIG).is_file():
        base = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path") or "its own"
        raise FilesError(
            f"{directory} holds an adapter and no model's weights: name the adapter's base model ({base}), and this "
            "directory with --parent-adapter to go on from it"
        )
    other = sorted(path.name for path in (*directory.glob("*.bin"), *directory.glob("*.gguf")))
    hint = f"; it has {other[0]}, save the model as safetensors first" if other else ""
    raise FilesError(f"{directory} has no weights: no *.safetensors{hint}")
