"""The adapter that is trained: a new one, or a parent that is trained further; and what stands in for the reference.

A parent brings its own shape. For DPO a frozen copy of it, the adapter `ref`, says what the policy was before; a new
adapter needs no copy, for the plain base model says it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import combined_digest, digest_directory
from model.flags import flag
from model.training.config import TrainSettings
from model.training.weights.files import ADAPTER_CONFIG as CONFIG
from model.training.weights.files import ADAPTER_WEIGHTS as WEIGHTS
from model.training.weights.files import EXPERT_LAYERS, has_experts

CHAT_TEMPLATE = "chat_template.jinja"
REFERENCE = "ref"
"""Name of the parent's frozen copy; TRL makes it."""


def with_parent(settings: TrainSettings) -> TrainSettings:
    """Check the parent adapter's files, and fill in what it decides: rank, alpha, targets, variant, digest.

    Nothing of it is loaded. Without a parent, the settings come back as they are.

    Raises
    ------
    FailureError
        When it is not there or damaged, was made for another base model, or has another shape than the settings say.
    """
    if settings.parent_adapter is None:
        return settings
    path = settings.parent_adapter
    config = _read_config(path)
    digest = combined_digest(digest_directory(path))
    if settings.parent_adapter_sha256 not in (None, digest):
        raise _invalid(
            f"the parent adapter {path} has the SHA-256 {digest}, --parent-adapter-sha256 says "
            f"{settings.parent_adapter_sha256}: its files were changed or cut off; copy them again"
        )
    _check_base(settings, config)
    shape = _shape(config)
    for name, theirs in shape.items():
        given = getattr(settings, name)
        comparable = sorted(given) if isinstance(given, list) else given
        if given is not None and comparable != theirs:
            raise _conflict(name, given, theirs, path)
    return settings.model_copy(
        update={
            **shape,
            "parent_adapter_sha256": digest,
            "parent_adapter_name": settings.parent_adapter_name or str(path),
            "chat_template": settings.chat_template or own_template(path),
        }
    )


def own_template(adapter: Path) -> Path | None:
    """Return the chat template that an adapter was trained with when that is not its base's own."""
    path = adapter / CHAT_TEMPLATE
    return path if path.is_file() else None


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        raise FailureError(
            exits.DOES_NOT_EXIST, "AdapterInvalid", f"--parent-adapter={path} holds no adapter: it has no {CONFIG}"
        )
    if not (path / WEIGHTS).is_file():
        raise FailureError(
            exits.DOES_NOT_EXIST,
            "AdapterInvalid",
            f"--parent-adapter={path} has no {WEIGHTS}; weights in other formats can run code when they are read, and "
            "are not: save the adapter as safetensors",
        )
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        kind, rank, alpha = config["peft_type"], int(config["r"]), config["lora_alpha"]
    except (ValueError, KeyError, TypeError) as error:
        raise _invalid(f"{path / CONFIG} is not the configuration of a LoRA adapter: {error!r}") from error
    if kind != "LORA" or rank < 1 or alpha is None:
        raise _invalid(
            f"--parent-adapter={path} is a {kind} adapter: only LoRA and its variants can be trained further"
        )
    if config.get("modules_to_save") or config.get("trainable_token_indices") or config.get("bias", "none") != "none":
        raise _invalid(
            f"--parent-adapter={path} trains whole layers, biases or tokens beside LoRA's matrices, which this trainer "
            "does not: merge it into the base model and train a new adapter on that"
        )
    if config.get("target_parameters"):
        raise _of_experts(path)
    return config


def _check_base(settings: TrainSettings, config: dict[str, Any]) -> None:
    """Refuse a parent that was made for another base model, where both names are names and not paths."""
    theirs, ours = config.get("base_model_name_or_path"), settings.recorded_base_model
    if theirs and theirs != ours and not _is_path(theirs) and not _is_path(ours):
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            f"the parent adapter {settings.parent_adapter} was made for the base model {theirs}, the run trains on "
            f"{ours}: use the parent's base model, or --base-model-name={theirs} if it is the same under another name",
        )


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).exists()


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """Return the parent's shape as the settings' fields."""
    targets = config.get("target_modules") or []
    return {
        "lora_rank": int(config["r"]),
        "lora_alpha": config["lora_alpha"],
        "lora_target_modules": [targets] if isinstance(targets, str) else sorted(targets),
        "lora_variant": "DoRA" if config.get("use_dora") else "RSLoRA" if config.get("use_rslora") else "LoRA",
    }


def attach_parent(model: Any, settings: TrainSettings) -> Any:
    """Return the base model with the parent adapter on it, trainable.

    Parameters
    ----------
    model
        The base model.
    settings
        Settings that `with_parent` has filled in.

    Raises
    ------
    FailureError
        When the parent does not fit the base model.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = settings.parent_adapter
    assert path is not None
    assert settings.lora_dropout_percent is not None  # the settings are resolved
    config = LoraConfig.from_pretrained(str(path))
    config.lora_dropout = settings.lora_dropout_percent / 100
    config.inference_mode = False
    try:
        saved = load_file(path / WEIGHTS)
        attached = PeftModel.from_pretrained(model, str(path), config=config, is_trainable=True)
    except (RuntimeError, ValueError, SafetensorError) as error:
        if config.target_parameters:  # PEFT has found out that older names mean experts
            raise _of_experts(path) from error
        raise _invalid(f"the parent adapter {path} does not fit {settings.base_model}: {error}") from error
    if config.target_parameters:
        raise _of_experts(path)
    loaded = get_peft_model_state_dict(attached, save_embedding_layers=False)
    # PEFT leaves what it does not find at random, and only warns.
    wrong = [n for n in loaded if n not in saved or not torch.equal(loaded[n].cpu(), saved[n].to(loaded[n].dtype))]
    if wrong or len(saved) != len(loaded):
        names = ", ".join(wrong or sorted(set(saved) - set(loaded)))
        raise _invalid(f"the parent adapter {path} does not fit {settings.base_model}: see {names[:200]}")
    return attached


def new_adapter(settings: TrainSettings, model: Any) -> Any:
    """Return the `LoraConfig` of a new adapter of a base model.

    `all-linear` stands for the linear layers but the output layer and, in a mixture of experts, all that has the names
    of experts' layers. Experts are many, see few tokens each, and mostly are one parameter for all: PEFT adapts that
    only without dropout and DoRA. The shared ones and dense layers in between are left out with them, for PEFT goes by
    names and takes them for experts in most models.

    Raises
    ------
    FailureError
        When a layer that is named cannot be adapted.
    """
    from peft import LoraConfig

    modules = settings.lora_target_modules or []
    assert settings.lora_dropout_percent is not None  # the settings are resolved
    if modules == ["all-linear"]:
        modules = _linear_layers(model)
    else:
        _check_named(modules, model, settings.base_model)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout_percent / 100,
        target_modules=modules,
        use_rslora=settings.lora_variant == "RSLoRA",
        use_dora=settings.lora_variant == "DoRA",
    )


def _of_language_model(model: Any) -> dict[str, Any]:
    """Return a model's modules by name, those of the language model only where it has other models beside that.

    Towers for pictures and sound, and what leads from them into the language model, see nothing of a text: an adapter
    there would stay as it began, and servers load it at best when told to.
    """
    modules = dict(model.named_modules())
    if model.config.get_text_config() is model.config:
        return modules
    decoder = model.get_decoder()
    prefix = next((name for name, module in modules.items() if module is decoder), "")
    return {name: module for name, module in modules.items() if name.startswith(f"{prefix}.")} if prefix else modules


def _linear_layers(model: Any) -> list[str]:
    """Return the names of the layers that `all-linear` stands for."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    modules = _of_language_model(model)
    left_out = EXPERT_LAYERS if any(map(has_experts, modules)) else frozenset()
    names = [
        name
        for name, module in modules.items()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not head
        and not has_experts(name)
        and name.rpartition(".")[2] not in left_out
    ]
    experts = {leaf for leaf in {name.rpartition(".")[2] for name in names} if _means_experts(leaf, model)}
    return [name for name in names if name.rpartition(".")[2] not in experts]


def _check_named(names: list[str], model: Any, base_model: str) -> None:
    import torch
    from transformers.pytorch_utils import Conv1D

    known = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    modules = dict(model.named_modules())
    for name in names:
        found = [module for path, module in modules.items() if f".{path}".endswith(f".{name}")]
        problem = None
        if _means_experts(name, model):
            problem = "belongs to the experts of a mixture, or has their layers' name, and those are not adapted"
        elif not all(isinstance(module, known) for module in found):
            problem = "is no linear layer"
        if problem:
            layers = sorted({path.rpartition(".")[2] for path in _linear_layers(model)})
            raise FailureError(
                exits.INVALID_CONFIGURATION,
                "InvalidSpec",
                f"--lora-target-modules (lora.targetModules): {name} of {base_model} {problem}; those that can be are "
                f"{', '.join(layers)}",
            )


def _means_experts(name: str, model: Any) -> bool:
    """Whether PEFT would adapt a mixture's experts or router in place of the layers of this name.

    In older files each expert has layers of its own. PEFT goes by their names, and takes the shared experts' and the
    dense layers' for them where these are called alike.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it is one half of a parameter: gate_proj without up_proj
        return True
    return bool(config.target_parameters)


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Undo what TRL's constructors, called within, do to a quantized model's adapter: they round it to bfloat16.

    Eight bits of mantissa are too few for AdamW's small steps, and a parent would no longer be what its copy is.
    """
    import torch
    from peft import PeftModel

    if not (getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)):
        yield
        return
    adapter = model.named_parameters() if isinstance(model, PeftModel) else ()
    before = {name: weight.detach().clone() for name, weight in adapter if weight.requires_grad}
    yield
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dtype == torch.bfloat16:
            weight.data = before.get(name, weight.data).float()


class Reference:
    """Lets a model be the reference for a while: with the parent's frozen copy, or else without an adapter.

    No dropout, no gradients, and no random numbers, which belong to the training. PEFT's and torch's own switches walk
    through all modules several times and touch each weight, a tenth of a second for a small model with every step; here
    the modules are looked up once, and only what the forward pass reads is switched.

    Parameters
    ----------
    model
        The `PeftModel`, with all its adapters.
    """

    def __init__(self, model: Any) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._modules = list(model.modules())
        self._layers = [module for module in self._modules if isinstance(module, BaseTunerLayer)]
        self._copied = REFERENCE in model.peft_config

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Be the reference within."""
        import torch

        switch, value = ("_active_adapter", [REFERENCE]) if self._copied else ("_disable_adapters", True)
        training = [module.training for module in self._modules]
        before = [getattr(layer, switch) for layer in self._layers]
        for module in self._modules:
            object.__setattr__(module, "training", False)
        for layer in self._layers:
            object.__setattr__(layer, switch, value)
        try:
            with torch.no_grad():
                yield
        finally:
            for module, flag in zip(self._modules, training, strict=True):
                object.__setattr__(module, "training", flag)
            for layer, old in zip(self._layers, before, strict=True):
                object.__setattr__(layer, switch, old)


def _conflict(name: str, given: Any, theirs: Any, path: Path) -> FailureError:
    told, has = (", ".join(value) if isinstance(value, list) else value for value in (given, theirs))
    return FailureError(
        exits.INVALID_CONFIGURATION,
        "InvalidSpec",
        f"{flag(name)} is {told}, the parent adapter {path} has {has}: leave it out, it comes from the parent",
    )


def _of_experts(path: Path) -> FailureError:
    return _invalid(
        f"--parent-adapter={path} adapts the experts or the router of a mixture, which this trainer does not: merge it "
        "into the base model and train a new adapter on that"
    )


def _invalid(text: str) -> FailureError:
    return FailureError(exits.INVALID_CONFIGURATION, "AdapterInvalid", text)
