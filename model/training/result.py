"""The end of a run: the adapter on the disk, opened again and compared, and the record of how it came about."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import SCHEMA_VERSION, FileDigest, RunDirectory, combined_digest, digest_directory, publish_directory
from model.result import decimal
from model.training.config import TrainSettings
from model.training.samples.questions import card_lines

CARD = "README.md"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
EXAMPLES = {"SFT": "token", "DPO": "pair", "KTO": "answer"}
"""What a method's losses are means over."""
PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "safetensors", "finetune-operator")


def read_training_config(directory: RunDirectory) -> dict[str, Any]:
    """Return a finished run's `training_config.json`, after checking the adapter's files against it.

    Raises
    ------
    FailureError
        When the run has not finished, or its files are not those that it wrote.
    """
    path = directory.training_config
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recorded = document["result"]["adapter"]
    except FileNotFoundError as error:
        raise FailureError(
            exits.DOES_NOT_EXIST, "AdapterInvalid", f"{path} does not exist: the run has not finished"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FailureError(exits.CRASH, "AdapterInvalid", f"{path} is not what a trainer writes: {error}") from error
    if document.get("schemaVersion") != SCHEMA_VERSION:
        raise FailureError(
            exits.CRASH,
            "InternalError",
            f"{path} has the schemaVersion {document.get('schemaVersion')!r}, and this version of the trainer reads "
            f"{SCHEMA_VERSION}: use the image that has trained the run",
        )
    files = digest_directory(directory.adapter)
    if combined_digest(files) != recorded["sha256"]:
        raise FailureError(
            exits.CRASH, "AdapterInvalid", f"the files in {directory.adapter} are not those that {path} records"
        )
    return document


def save_adapter(
    model: Any,
    settings: TrainSettings,
    directory: RunDirectory,
    card: str,
    beside: Mapping[str, str] | None = None,
) -> list[FileDigest]:
    """Write the adapter, open it again on the base model, compare, and give the directory its name.

    Parameters
    ----------
    model
        The trained `PeftModel`.
    settings
        The run's settings.
    directory
        The run's directory.
    card
        Text of the model card.
    beside
        Other text files by name: what a server needs to know.

    Returns
    -------
    list[FileDigest]
        The adapter's files.

    Raises
    ------
    FailureError
        When what was written is not what was trained.
    """
    temporary = directory.adapter.with_name("adapter.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    _describe(model.peft_config["default"], settings)
    # A reference that the training needs beside the adapter is no part of the result.
    model.save_pretrained(temporary, selected_adapters=["default"], save_embedding_layers=False)
    for name, text in {CARD: card, **(beside or {})}.items():
        (temporary / name).write_text(text, encoding="utf-8")
    temporary.chmod(0o755)  # whatever the umask, which safetensors does not heed either
    for path in temporary.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which a server under another user could not read
    verify_adapter(model, temporary)
    publish_directory(temporary, directory.adapter)
    return digest_directory(directory.adapter)


def _describe(config: Any, settings: TrainSettings) -> None:
    """Let an adapter's configuration say which base model it belongs to, the same way every time."""
    config.base_model_name_or_path = settings.recorded_base_model
    config.revision = settings.base_model_revision
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # a set's order would change the digest


def copied_adapter(model: Any, settings: TrainSettings, beside: Mapping[str, str]) -> Callable[[Path], None]:
    """Copy the adapter as it is now into the host's memory, and return what writes the copy into a new directory.

    Parameters
    ----------
    model
        The `PeftModel` in training, which may go on at once.
    settings
        The run's settings.
    beside
        Other text files by name, as of `save_adapter`.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.deepcopy(model.peft_config["default"])
    _describe(config, settings)
    config.inference_mode = True
    weights = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    copied = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}

    def write(directory: Path) -> None:
        directory.mkdir()
        save_file(copied, directory / "adapter_model.safetensors", metadata={"format": "pt"})  # as PEFT does
        config.save_pretrained(str(directory))
        for name, text in beside.items():
            (directory / name).write_text(text, encoding="utf-8")

    return write


def verify_adapter(model: Any, directory: Path) -> None:
    """Open a saved adapter beside the trained one, on the same base, and compare every weight.

    Raises
    ------
    FailureError
        When a weight is missing or differs.
    """
    import torch
    from peft import get_peft_model_state_dict

    trained = get_peft_model_state_dict(model, save_embedding_layers=False)
    model.load_adapter(str(directory), adapter_name="saved")
    saved = get_peft_model_state_dict(model, adapter_name="saved", save_embedding_layers=False)
    different = [name for name in trained if name not in saved or not torch.equal(trained[name], saved[name])]
    model.delete_adapter("saved")
    if different or len(saved) != len(trained):
        raise FailureError(
            exits.CRASH, "AdapterInvalid", f"the saved adapter differs from the trained one in {different[:3]}"
        )


def build_document(
    settings: TrainSettings,
    *,
    result: Mapping[str, Any],
    files: list[FileDigest],
    dataset: Mapping[str, Any],
    timings: Mapping[str, str],
    history: list[tuple[int, float]],
) -> dict[str, Any]:
    """Return the content of `training_config.json`."""
    adapter = {
        "sha256": combined_digest(files),
        "bytes": sum(file.bytes for file in files),
        "files": [file.document() for file in files],
    }
    return {
        "schemaVersion": SCHEMA_VERSION,
        "result": {**result, "adapter": adapter},
        "dataset": dict(dataset),
        "timings": dict(timings),
        "lossHistory": [{"step": step, "loss": decimal(loss)} for step, loss in history],
        "config": settings.document(),
        "versions": versions(),
        "baseModel": {"name": settings.recorded_base_model, "revision": settings.base_model_revision},
        **_parent(settings),
        "image": settings.image,
    }


def _parent(settings: TrainSettings) -> dict[str, Any]:
    if settings.parent_adapter is None:
        return {}
    return {"parentAdapter": {"name": settings.parent_adapter_name, "sha256": settings.parent_adapter_sha256}}


def versions() -> dict[str, str]:
    """Return the versions of everything that has a part in the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def model_card(
    settings: TrainSettings,
    result: Mapping[str, Any],
    dataset: Mapping[str, Any],
    warnings: list[str],
    samples: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return a model card that says where the adapter comes from, how good it is, and what hinders serving it.

    `samples` are answers to held-out prompts, see `samples.questions.Question.answered`.
    """
    held_out = "held-out pairs" if settings.method == "DPO" else "held-out rows"
    base = "base model" if settings.method == "SFT" else "reference"
    losses = [
        f"| {title} | {result[key]} |"
        for key, title in (
            ("finalLoss", "loss in training, last steps"),
            ("evaluationLoss", f"loss, {held_out}"),
            ("baseEvaluationLoss", f"loss, {held_out}, {base} alone"),
            ("rewardAccuracy", f"pairs told apart the right way, {held_out}"),
            ("desirableReward", f"mean reward of good answers, {held_out}"),
            ("undesirableReward", f"mean reward of bad answers, {held_out}"),
            ("rewardMargin", f"mean difference of the rewards, {held_out}"),
        )
        if key in result
    ]
    parent = (
        settings.parent_adapter_name and f" It goes on from the adapter {settings.parent_adapter_name}, and holds it."
    )
    summary = (
        f"Trained with {settings.method} for {result.get('bestStep', result['steps'])} steps of "
        f"{min(settings.batch_size, int(dataset['rows']))} examples, rank {settings.lora_rank}, alpha "
        f"{settings.lora_alpha}, learning rate {settings.learning_rate}, on "
        f"{dataset['rows']} rows (SHA-256 `{dataset['sha256']}`).{parent or ''}"
    )
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(settings.recorded_base_model)}",
            "library_name: peft",
            "pipeline_tag: text-generation",
            f"tags: [lora, {settings.method.lower()}]",
            "---",
            "",
            f"# LoRA adapter for {settings.recorded_base_model}",
            "",
            summary,
            "",
            f"| measured | per {EXAMPLES[settings.method]} |",
            "|---|---|",
            *losses,
            "",
            *(f"Note: {warning}." for warning in warnings),
            *card_lines(samples, f"The {base}"),
        ]
    )
