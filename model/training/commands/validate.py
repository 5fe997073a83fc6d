"""Looks at everything that a run needs before it starts: dataset, base model, parent adapter. Nothing is loaded."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model import exits, flags
from model.exits import FailureError
from model.files import RunDirectory
from model.training import local, serving
from model.training.commands import verify
from model.training.config import TrainSettings
from model.training.local import TrainCommand
from model.training.loop import takeover
from model.training.loop.fingerprint import BEFORE_ROWS, of_settings
from model.training.output import terminal
from model.training.processes import process
from model.training.weights import adapters
from model.training.weights.files import FilesError, ModelFiles, read_json

_NEEDED_TO_COUNT = ("transformers", "tokenizers", "torch")


@dataclass
class Findings:
    """What was found out about each part, and what is wrong."""

    settings: dict[str, Any]
    parts: dict[str, Any] = field(default_factory=dict)
    failures: list[FailureError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    token_text: str = ""
    """What is known about the tokens, for a person."""

    def failure(self) -> FailureError:
        """Return all that is wrong as one failure, with the code and reason of the first."""
        first = self.failures[0]
        joined = flags.InvalidSettingsError([str(one.message) for one in self.failures])
        joined.code, joined.reason, joined.row = first.code, first.reason, first.row
        return joined

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        problems = [{"reason": one.reason, "message": one.message} for one in self.failures]
        return {
            "valid": not self.failures,
            "settings": self.settings,
            **self.parts,
            "warnings": self.warnings,
            "problems": problems,
        }

    def text(self) -> str:
        """Return the form for a person; what is wrong is told apart from it."""
        lines = []
        if base := self.parts.get("baseModel"):
            facts = (
                f"{base['hub']} at commit {base['commit']}"
                if "hub" in base
                else f"{base['directory']}: {base['type']}, {base['parameters']:,} parameters"
            )
            reads = f", reads {base['positions']:,} tokens" if base.get("positions") else ""
            lines.append(f"base model  {facts}{reads}")
        if parent := self.parts.get("parentAdapter"):
            lines.append(f"parent      {parent['directory']}: rank {parent.get('rank')}")
        if resumed := self.parts.get("resumeFrom"):
            lines.append(f"goes on     from step {resumed['step']} of run {resumed['run']}: {resumed['checkpoint']}")
        if (dataset := self.parts.get("dataset")) and dataset.get("shape"):
            lines.append(f"dataset     {dataset.get('detected')}; {terminal.dataset_line(dataset)}")
        lines += [f"warning     {text}" for text in self.warnings]
        lines += [self.token_text] if self.token_text else []
        return "\n".join([*lines, *([] if self.failures else ["valid"])])


def check(command: TrainCommand, *, tokens: bool) -> Findings:
    """Look at the parts of a run, the quick ones first; what is wrong with one hides nothing about the others."""
    settings, manifest = command.resolved(), None
    found = Findings(command.shown())
    base = _check_base(settings, found)
    if settings.parent_adapter is not None:
        _check_parent(settings, base, found)
    _check_other_run(settings, found)
    if command.dataset is not None:
        with tempfile.TemporaryDirectory(prefix="validate-") as scratch:
            manifest = _check_dataset(command, Path(scratch), found)
            if manifest and base and tokens and _can_count():
                _count_tokens(command.settings(Path(scratch), "validate").resolved(), manifest, found)
    else:
        manifest = _check_exported(RunDirectory(command.run_directory), found, expected=not command.run_uid)
    _check_together(settings, manifest, found)
    return found


def _check_together(settings: TrainSettings, manifest: dict[str, Any] | None, found: Findings) -> None:
    """Check what the trainer refuses for the sake of two parts that do not go together."""
    from model.training.weights import basemodel

    if settings.early_stopping_patience is not None and manifest and not manifest["evaluationRows"]:
        text = (
            "--early-stopping-patience compares losses on held-out rows, and there are none: hold out some with "
            "--evaluation-percent or --evaluation-max-rows"
        )
        found.failures.append(FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text))
    if settings.gpus == 0:
        try:
            basemodel.check_quantization(settings.quantization, cuda=False)
        except FailureError as failure:
            found.failures.append(failure)


def _check_base(settings: TrainSettings, found: Findings) -> ModelFiles | None:
    from model.training.weights import hub, origin, stored

    try:
        directory = origin.check(settings.base_model)
        if directory is None:
            commit = hub.find_commit(settings.base_model, settings.base_model_revision)
            settings = settings.model_copy(update={"base_model_revision": commit})
        base = hub.check_base(settings)
    except FailureError as failure:
        found.failures.append(_of_flag("--base-model", failure))
        return None
    if base is None:
        found.parts["baseModel"] = {"hub": settings.base_model, "commit": settings.base_model_revision}
        found.warnings.append(f"the weights of {settings.base_model} were not looked at: they are on the hub")
        return None
    found.parts["baseModel"] = {
        "directory": str(directory),
        "type": base.config["model_type"],
        "parameters": base.parameters,
        "positions": base.positions,
    }
    if quantization := stored.quantization_of(base.config):
        found.parts["baseModel"]["stored"] = stored.describe(quantization)
    _check_targets(settings, base, found)
    return base


def _check_targets(settings: TrainSettings, base: ModelFiles, found: Findings) -> None:
    wanted = settings.lora_target_modules or []
    absent = [name for name in wanted if not base.layers([name]) and not base.has_embeddings(name)]
    if absent:
        names = sorted({name.rpartition(".")[2] for name in base.layers(["all-linear"])})
        text = f"--lora-target-modules: the base model has no layer {', '.join(absent)}; it has {', '.join(names)}"
        found.failures.append(FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text))


def _check_parent(settings: TrainSettings, base: ModelFiles | None, found: Findings) -> None:
    assert settings.parent_adapter is not None
    try:
        directory = verify.find_adapter(settings.parent_adapter)
    except FailureError as failure:
        found.failures.append(_of_flag("--parent-adapter", failure))
        return
    settings, refused = settings.model_copy(update={"parent_adapter": directory}), None
    try:
        adapters.with_parent(settings)
    except FailureError as failure:
        refused = failure
    parent = verify.Findings({"directory": str(directory)})
    verify.check_files(directory, base, parent)
    found.parts["parentAdapter"] = parent.facts
    found.failures += [refused] if refused else []
    if refused is None or refused.reason != "AdapterInvalid":  # else it would say the same of the files
        found.failures += [
            FailureError(exits.INVALID_CONFIGURATION, "AdapterInvalid", f"--parent-adapter={directory}: {text}")
            for text in parent.problems
        ]


def _check_other_run(settings: TrainSettings, found: Findings) -> None:
    """Look at the run to go on from: whether there is a checkpoint, and whether the settings are those it has."""
    other = takeover.other_run(settings)
    if other is None:
        return
    here = {name: value for name, value in of_settings(settings).items() if name in BEFORE_ROWS}
    if settings.parent_adapter is not None:  # which brings its shape
        here = {name: value for name, value in here.items() if value is not None}
    try:
        step, path = takeover.look(other, here, max(settings.gpus, settings.processes))[0]
    except FailureError as failure:
        found.failures.append(failure)
        return
    found.parts["resumeFrom"] = {"run": other.name, "checkpoint": str(path), "step": step}


def _check_dataset(command: TrainCommand, scratch: Path, found: Findings) -> dict[str, Any] | None:
    """Export the rows into a directory that is thrown away: what the export refuses, a run would fail on."""
    told = io.StringIO()
    manifest = None
    try:
        with contextlib.redirect_stderr(told):
            manifest = local.export_dataset(command, scratch)
    except FailureError as failure:
        found.failures.append(failure)
    with contextlib.suppress(FilesError):  # without a readable source there is no report
        report = read_json(RunDirectory(scratch).report)
        found.warnings += report.pop("warnings", [])
        found.parts["dataset"] = {"from": command.dataset, **report}
    return manifest


def _of_flag(flag: str, failure: FailureError) -> FailureError:
    return FailureError(failure.code, failure.reason, f"{flag}: {failure.message}", row=failure.row)


def _check_exported(directory: RunDirectory, found: Findings, *, expected: bool) -> dict[str, Any] | None:
    """Return the manifest of a dataset in the run's directory; in a pod the export brings it later."""
    try:
        manifest = read_json(directory.manifest)
    except FilesError:
        if expected:
            text = f"{directory.dataset} holds no exported dataset: give --dataset=rows.jsonl"
            found.failures.append(FailureError(exits.DOES_NOT_EXIST, "DatasetUnavailable", text))
        else:
            found.warnings.append(f"no dataset was looked at: {directory.dataset} holds none yet")
        return None
    found.parts["dataset"] = manifest
    size = sum(path.stat().st_size for path in (directory.train_rows, directory.evaluation_rows) if path.exists())
    if size != manifest.get("bytes"):
        text = f"the files in {directory.dataset} were changed after the export"
        found.failures.append(FailureError(exits.DATASET_INVALID, "DatasetInvalid", text))
    return manifest


def _can_count() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in _NEEDED_TO_COUNT)


def _count_tokens(settings: TrainSettings, manifest: dict[str, Any], found: Findings) -> None:
    """Tokenise the rows as a run would, and report what they are like."""
    process.quiet()
    from model.training import build
    from model.training.weights import basemodel

    if settings.gpus and not settings.pretended_gpus and not process.uses_cuda(settings.gpus):
        found.warnings.append(
            f"this machine has no usable GPU: here a run with --gpus={settings.gpus} would be refused"
        )
    from model.training.rows.report import token_report

    with contextlib.suppress(FailureError):  # what is wrong with the parent is told already
        settings = adapters.with_parent(settings)
    try:
        tokenizer = basemodel.load_tokenizer(settings.base_model, settings.base_model_revision, settings.chat_template)
        data = build.read_data(settings, RunDirectory(settings.run_directory), manifest, tokenizer)
    except FailureError as failure:
        found.failures.append(failure)
        return
    assert data.tokens is not None
    found.warnings += serving.look(settings, tokenizer, texts=manifest["shape"] == "text").warnings
    report = token_report(
        settings, tokenizer, data.rows, data.held_out, figures=data.tokens.figures, moment=data.tokens.moment
    )
    found.parts["tokens"] = report.document()
    positions = (found.parts["baseModel"] or {}).get("positions")
    longest = max(max(rows.lengths) for rows in data.all_sequences)
    if positions is not None and longest > positions:
        text = f"a row has {longest} tokens, the base model reads {positions}: lower --max-length to that"
        found.failures.append(FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text))
    found.token_text = report.render(color=sys.stdout.isatty())
