"""Looks an adapter over before it is used: whole, right for its base, made of numbers, and loadable by vLLM."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import RunDirectory, combined_digest, digest_directory
from model.training import stopping
from model.training.serving import of_template, serving_warnings
from model.training.weights import adapters, basemodel, hub, origin
from model.training.weights.files import (
    FilesError,
    ModelFiles,
    Tensor,
    has_experts,
    read_header,
    read_json,
    read_model,
)

_WRAPPERS = frozenset({"base_model", "model", "language_model", "text_model", "vision_model", "transformer"})
"""Parts of layers' names that come and go between files, versions of transformers, and models within models."""
_LEFT_OUT = {"rank_pattern": None, "use_dora": False, "bias": "none", "modules_to_save": None, "target_modules": None}
"""What a configuration says by leaving it out, as far as vLLM is concerned."""


@dataclass
class Findings:
    """What was found: `problems` make the adapter useless, `warnings` do not."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self.facts, "problems": self.problems, "warnings": self.warnings}

    def text(self) -> str:
        """Return the form for a person."""
        lines = [f"  {name:14}{_plain(value)}" for name, value in self.facts.items()]
        lines += [f"  warning       {text}" for text in self.warnings]
        lines += [f"  PROBLEM       {text}" for text in self.problems]
        return "\n".join([*lines, "not usable" if self.problems else "all is well"])


def find_adapter(path: Path) -> Path:
    """Return the adapter's directory: `path` itself, or `adapter` in a run's directory.

    Raises
    ------
    FailureError
        When there is none.
    """
    for directory in (path, path / "adapter"):
        if (directory / "adapter_config.json").is_file():
            return directory
    if (path / "metrics.jsonl").exists() or (path / "dataset").exists():
        text = f"{path} is a run that has not finished: it has no adapter yet"
    else:
        text = f"{path} holds no adapter: it has no adapter_config.json: name a run's directory or an adapter's"
    raise FailureError(exits.DOES_NOT_EXIST, "AdapterInvalid", text)


def load_adapter(model: Any, base_model: str, adapter: Path) -> Any:
    """Put an adapter on a loaded base model, after looking at its files.

    Parameters
    ----------
    model
        The base model.
    base_model
        The base model's directory or hub name.
    adapter
        Directory of the adapter.

    Raises
    ------
    FailureError
        When the adapter is damaged, of another kind, or made for another base model.
    """
    findings = Findings()
    check_files(adapter, None, findings)
    if not findings.problems:
        _check_modules(model, adapter, findings)
    problems = findings.problems
    if not problems:
        from peft import PeftModel

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                tuned = PeftModel.from_pretrained(model, str(adapter))
            except (RuntimeError, ValueError) as error:
                problems = [str(error).partition("\n")[0]]
        # PEFT leaves weights that it does not find at random, and says no more than that.
        missing = [str(one.message) for one in told if "missing adapter keys" in str(one.message)]
        if not problems and not missing:
            return tuned
        problems += [text[:300] for text in missing]
    text = f"{adapter} cannot be put on {base_model}: {'; '.join(problems)}"
    raise FailureError(exits.CRASH, "AdapterInvalid", text)


def verify(path: Path, base_model: str | None) -> Findings:
    """Check an adapter or a run's directory.

    Parameters
    ----------
    path
        The directory.
    base_model
        Directory of the base model; when None, the one that the adapter or the run's record names, if it is there.

    Raises
    ------
    FailureError
        When there is no adapter to check.
    """
    adapter = find_adapter(path)
    findings = Findings({"adapter": str(adapter)})
    base = base_model_files(path, adapter, base_model, findings)
    check_files(adapter, base, findings)
    if not findings.problems:
        _check_numbers(adapter / "adapter_model.safetensors", findings)
    if base is not None and base.has_tokenizer:
        _check_stopping(base, adapter, findings, texts=_trained_on_texts(_run_of(path, adapter)))
    _check_record(path, adapter, findings)
    return findings


def base_model_files(path: Path, adapter: Path, base_model: str | None, findings: Findings) -> ModelFiles | None:
    """Return the files of the adapter's base, None (and a warning) when they are not here."""
    directory = base_model or recorded_base_model(path, adapter)[0]
    if directory is None or not Path(directory).is_dir():
        if base_model is not None:
            findings.problems.append(f"{base_model} is no directory: --base-model takes the base model's")
        else:
            findings.warnings.append("not compared with its base model: name that with --base-model=DIRECTORY")
        return None
    try:
        files = read_model(Path(directory))
    except FilesError as error:
        findings.problems.append(str(error))
        return None
    findings.facts["baseModel"] = directory
    return files


def recorded_base_model(path: Path, adapter: Path) -> tuple[str | None, str | None]:
    """Return the base model and its revision that the run's record names, or else the adapter's configuration."""
    for directory in (path, adapter.parent):
        try:
            config = read_json(RunDirectory(directory).training_config)["config"]
            return str(config["baseModel"]), config.get("baseModelRevision")
        except (FilesError, KeyError, TypeError):
            continue
    try:
        config = read_json(adapter / "adapter_config.json")
    except FilesError:
        return None, None
    return config.get("base_model_name_or_path") or None, config.get("revision")


def choose_base_model(given: str | None, path: Path, adapter: Path) -> tuple[str, str | None]:
    """Return the base model to put an adapter on, and its revision: the given one, or else the recorded one.

    Raises
    ------
    FailureError
        When none is given or recorded, or it is not there.
    """
    name, revision = (given, None) if given else recorded_base_model(path, adapter)
    if name is None:
        text = f"{adapter} names no base model: give --base-model"
        raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)
    return name, revision if origin.check(name) is not None else hub.find_commit(name, revision)


def check_files(adapter: Path, base: ModelFiles | None, findings: Findings) -> None:
    """Check configuration and headers, without reading a weight."""
    try:
        config = read_json(adapter / "adapter_config.json")
        tensors = read_header(adapter / "adapter_model.safetensors")
    except FilesError as error:
        findings.problems.append(str(error))
        return
    if config.get("peft_type") != "LORA":
        findings.problems.append(f"it is of type {config.get('peft_type')}, not LORA")
        return
    findings.facts |= {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "targetModules": _short_names(config.get("target_modules")),
        "parameters": sum(tensor.elements for tensor in tensors.values()),
    }
    _check_pairs(tensors, findings)
    findings.warnings += serving_warnings(SimpleNamespace(**_LEFT_OUT | config | {"r": int(config.get("r") or 0)}))
    if base is not None:
        _warn_of_unknown(_check_shapes(tensors, _layers_in_files(base), findings), findings)


def _plain(value: Any) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _short_names(targets: Any) -> Any:
    """Return the last parts of the layers' names, each once; a pattern as it is."""
    return sorted({name.rpartition(".")[2] for name in targets}) if isinstance(targets, list) else targets


def _check_pairs(tensors: dict[str, Tensor], findings: Findings) -> None:
    if not tensors:
        findings.problems.append("it holds no weights")
    for name in tensors:
        other = name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("lora_B", "lora_A")
        if other not in tensors:
            findings.problems.append(f"{name} is there without {other}")


def _check_modules(model: Any, adapter: Path, findings: Findings) -> None:
    """Compare an adapter with a loaded model, where each layer has the name that PEFT will look for."""
    layers = {}
    for name, module in model.named_modules():
        shape = getattr(getattr(module, "weight", None), "shape", ())
        if hasattr(module, "in_features"):  # the weight of a quantized layer has another shape
            layers[name] = Tensor("", (module.out_features, module.in_features))
        elif len(shape) == 2:
            layers[name] = Tensor("", tuple(shape[::-1] if hasattr(module, "nf") else shape))
    unknown = _check_shapes(read_header(adapter / "adapter_model.safetensors"), _by_core(layers), findings)
    # PEFT knows the names that experts, routers and their layers had when each was a layer of its own.
    if not any(has_experts(name) for name, _ in model.named_modules()):
        findings.problems += [f"the base model has no layer {name}" for name in unknown[:10]]


def _check_shapes(tensors: dict[str, Tensor], known: dict[str, Tensor], findings: Findings) -> list[str]:
    """Compare the adapter's matrices with the base's layers; return the layers that are not among these.

    A layer that has its like in another place, as in layers.0 and layers.9, is known to be missing.
    """
    places = {_anywhere(name) for name in known}
    unknown: dict[str, None] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B|embedding_A|embedding_B)(?:\.weight)?", name)
        if match is None or match[2].startswith("embedding"):
            continue
        weight = known.get(_core(match[1]))
        if weight is not None:
            outputs, inputs = weight.shape[:2]
            wanted, found = (inputs, tensor.shape[1]) if match[2] == "A" else (outputs, tensor.shape[0])
            if wanted != found:
                side = "inputs" if match[2] == "A" else "outputs"
                findings.problems.append(f"{name}: has {found} {side}, the base model's layer has {wanted}")
        elif _anywhere(_core(match[1])) in places:
            findings.problems.append(f"{name}: the base model has no layer {match[1]}")
        else:
            unknown[match[1]] = None
    if len(findings.problems) > 10:
        findings.problems[10:] = [f"and {len(findings.problems) - 10} more: it belongs to another base model"]
    return list(unknown)


def _warn_of_unknown(unknown: list[str], findings: Findings) -> None:
    if unknown:
        findings.warnings.append(
            f"{len(unknown)} of its layers, as {unknown[0]}, are not in the base model's files under this name: they "
            "were not compared; chat and merge compare them with the loaded model"
        )


def _layers_in_files(base: ModelFiles) -> dict[str, Tensor]:
    """Return the base's layers as outputs and inputs by the cores of their names."""
    transposed = base.config.get("model_type") == "gpt2"  # its Conv1D keeps inputs first
    # A head that is tied to the embeddings is not stored a second time.
    embeddings = [t for name, t in base.tensors.items() if name.endswith(("embed_tokens.weight", "wte.weight"))]
    tied = {"lm_head": embeddings[0]} if embeddings else {}
    return tied | _by_core(
        {
            name.removesuffix(".weight"): Tensor(tensor.dtype, tensor.shape[::-1] if transposed else tensor.shape)
            for name, tensor in base.tensors.items()
            if name.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype[0] != "U"  # packed: another shape
        }
    )


def _by_core(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return layers by the cores of their names, without those that then cannot be told apart."""
    cores = Counter(map(_core, layers))
    return {_core(name): tensor for name, tensor in layers.items() if cores[_core(name)] == 1}


def _core(name: str) -> str:
    """Return a layer's name without the wrappers."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _anywhere(core: str) -> str:
    return re.sub(r"\d+", "*", core)


def _check_numbers(path: Path, findings: Findings) -> None:
    """Read every weight: all must be finite, and some of lora_B not zero."""
    import torch
    from safetensors import SafetensorError, safe_open

    changes = False
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                tensor = file.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    findings.problems.append(f"{name} holds numbers that are not finite (NaN or infinite)")
                changes = changes or ("lora_B" in name and bool(tensor.any()))
    except SafetensorError as error:
        findings.problems.append(f"{path} cannot be opened: {error}")
        return
    if not changes and not findings.problems:
        findings.warnings.append("it changes nothing: all of lora_B is zero, as before the first step")


def _run_of(path: Path, adapter: Path) -> RunDirectory:
    """Return where the adapter's run is, if it is there."""
    return RunDirectory(path if adapter != path else path.parent)


def _trained_on_texts(run: RunDirectory) -> bool:
    """Whether a run's rows are learned as they stand; False where that is not known."""
    try:
        return bool(read_json(run.manifest)["shape"] == "text")
    except (FilesError, KeyError, TypeError):
        return False


def _check_stopping(base: ModelFiles, adapter: Path, findings: Findings, *, texts: bool) -> None:
    """Warn when answers end with a token at which a server of the base does not stop."""
    name, template = str(base.directory), adapters.own_template(adapter)
    try:
        tokenizer = basemodel.load_tokenizer(name, None, template)
        found = stopping.find(tokenizer, name, None, texts=texts)
    except FailureError as failure:
        findings.warnings.append(f"not looked at where answers end: {failure.message}")
        return
    findings.warnings += [*filter(None, [found.warning()]), *of_template(template)]


def _check_record(path: Path, adapter: Path, findings: Findings) -> None:
    files = digest_directory(adapter)
    findings.facts["sha256"] = combined_digest(files)
    run = _run_of(path, adapter)
    if not run.training_config.is_file():
        if adapter != path:
            findings.problems.append(f"{run.training_config} does not exist: the run has not finished")
        return
    try:
        recorded = read_json(run.training_config)["result"]["adapter"]
        listed = {entry["path"]: entry["sha256"] for entry in recorded["files"]}
    except (FilesError, KeyError, TypeError) as error:
        findings.problems.append(f"{run.training_config} is not what a trainer writes: {error}")
        return
    present = {file.path: file.sha256 for file in files}
    for name in sorted(listed.keys() | present.keys()):
        if name not in present:
            findings.problems.append(f"{adapter / name} is missing, {run.training_config.name} lists it")
        elif name not in listed:
            findings.problems.append(f"{adapter / name} was added after the training")
        elif listed[name] != present[name]:
            findings.problems.append(f"{adapter / name} was changed after the training")
    if not findings.problems and recorded["sha256"] != findings.facts["sha256"]:
        findings.problems.append(f"{run.training_config} records another digest than its list of files gives")
