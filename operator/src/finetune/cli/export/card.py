"""The model card of an adapter that leaves the registry: what the registry knows of where it comes from.

The trainer's own card quotes held-out rows; this one quotes none, so that a folder may be shown to others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from finetune.api.losses import loss_change

if TYPE_CHECKING:
    from finetune.api.registry import AdapterVersion, Run

CARD = "README.md"
CONFIG = "adapter_config.json"
MEASURES = (
    ("final_loss", "loss in training, last steps"),
    ("evaluation_loss", "loss on held-out rows"),
    ("base_evaluation_loss", "loss on held-out rows, {base} alone"),
    ("reward_accuracy", "pairs told apart the right way, held-out"),
    ("reward_margin", "mean difference of the rewards, held-out"),
)
LORA = (
    ("r", "rank"),
    ("lora_alpha", "alpha"),
    ("target_modules", "layers"),
)
LICENCE = (
    "Not stated. Whoever publishes this adapter chooses its licence, within those of the base model and the rows: "
    "write it here, and as `license` into the block at the top of this file."
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_card(
    version: AdapterVersion, *, run: Run | None, config: Mapping[str, Any], notes: Iterable[str] = ()
) -> str:
    """Return the card.

    Parameters
    ----------
    version
        What the registry knows of the adapter.
    run
        Its run, for the source of model and rows; None where the person may not read it.
    config
        The adapter's own adapter_config.json.
    notes
        Lines about serving it, see `notes_of`.
    """
    base = version.base_model.name
    parts = [
        *_front_matter(version, run),
        f"# {_text(version.name)}, version {version.version}",
        "",
        f"A LoRA adapter for `{_code(base)}`, trained with {version.method}.",
        "",
        *_usage(is_on_hub(version, run)),
        *_table(("measured", "value"), _measures(version)),
        *_table(("where it comes from", ""), _lineage(version, run, config)),
        *_listed(notes),
        "## Licence",
        "",
        LICENCE,
    ]
    return "\n".join(parts) + "\n"


def notes_of(card: str) -> list[str]:
    """What the trainer's card says about serving the adapter; nothing of the answers that it quotes."""
    return [line for line in card.partition("\n## ")[0].splitlines() if line.startswith("Note: ")]


def is_on_hub(version: AdapterVersion, run: Run | None) -> bool:
    """Whether the base model's name is one that Hugging Face's libraries can fetch."""
    if run is not None:
        source = run.spec.get("baseModel")
        return isinstance(source, dict) and isinstance(source.get("hub"), dict)
    return version.base_model.revision is not None and _HUB_NAME.fullmatch(version.base_model.name) is not None


def _front_matter(version: AdapterVersion, run: Run | None) -> Iterator[str]:
    """Lines of the metadata that the hub reads: YAML, in which a JSON text is one, too."""
    yield "---"
    if is_on_hub(version, run):
        yield f"base_model: {json.dumps(version.base_model.name, ensure_ascii=False)}"
        yield "base_model_relation: adapter"
    datasets = sorted(set(_hub_datasets(run)))
    if datasets:
        yield f"datasets: {json.dumps(datasets, ensure_ascii=False)}"
    yield "library_name: peft"
    yield "pipeline_tag: text-generation"
    yield f"tags: {json.dumps(['lora', version.method.lower()])}"
    yield "---"
    yield ""


def _hub_datasets(run: Run | None) -> Iterator[str]:
    """Repositories of rows on the hub that the run's spec names: its dataset, or sources of a mix."""
    dataset = run.spec.get("dataset") if run is not None else None
    if not isinstance(dataset, dict):
        return
    mix = dataset.get("mix")
    for source in (dataset, *(mix if isinstance(mix, list) else ())):
        hub = source.get("hub") if isinstance(source, dict) else None
        if isinstance(hub, dict) and isinstance(hub.get("repository"), str):
            yield hub["repository"]


def _usage(on_hub: bool) -> Iterator[str]:
    yield "```python"
    yield "from peft import AutoPeftModelForCausalLM"
    yield ""
    yield 'model = AutoPeftModelForCausalLM.from_pretrained("PATH")  # this folder, or the repository it was pushed to'
    yield "```"
    yield ""
    if not on_hub:
        yield "The base model is not on the hub under this name: load it from its folder, then the adapter with"
        yield '`PeftModel.from_pretrained(base, "PATH")`.'
        yield ""


def _measures(version: AdapterVersion) -> Iterator[tuple[str, str]]:
    base = "base model" if version.method == "SFT" else "reference"
    for name, title in MEASURES:
        value = getattr(version, name)
        if value is not None:
            yield title.format(base=base), value
    if change := loss_change(version.evaluation_loss, version.base_evaluation_loss):
        yield f"against the {base}", change


def _lineage(version: AdapterVersion, run: Run | None, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model, data = version.base_model, version.dataset
    yield "base model", f"`{_code(model.name)}`" + (f" at `{_code(model.revision)}`" if model.revision else "")
    if version.parent is not None:
        parent = version.parent
        yield "goes on from", f"adapter {parent.name}, version {parent.version}, SHA-256 `{parent.sha256}`"
    yield "dataset", _dataset(version, run)
    yield "rows", f"{data.rows}, and {data.evaluation_rows} held out, SHA-256 `{data.sha256}`"
    for source in data.sources or ():
        number = f", version {source.version}" if source.version is not None else ""
        yield "of these", f"{source.rows} of {source.name}{number}"
    best = "" if version.best_step is None else f", the best is {version.best_step}"
    yield "steps", f"{version.steps}{best}"
    if version.tokens:
        yield "tokens", str(version.tokens)
    for name, title in LORA:
        value = config.get(name)
        if value is not None:
            yield title, ", ".join(sorted(map(str, value))) if isinstance(value, list) else str(value)
    yield "run", f"{version.run_name}, experiment {version.experiment}, uid `{version.run_uid}`"
    yield "made", f"{version.created_time:%Y-%m-%d}"
    yield "adapter's SHA-256", f"`{version.sha256}`, of the files as they were trained"


def _dataset(version: AdapterVersion, run: Run | None) -> str:
    if version.dataset_name is not None:
        return f"{version.dataset_name}, version {version.dataset.version}, of the registry"
    found = sorted(set(_hub_datasets(run)))
    return ", ".join(f"`{_code(name)}` of the hub" for name in found) or "not of the registry"


def _table(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"| {heads[0]} | {heads[1]} |"
    yield "|---|---|"
    yield from (f"| {_text(name)} | {_text(value)} |" for name, value in rows)
    yield ""


def _listed(notes: Iterable[str]) -> Iterator[str]:
    for note in notes:
        yield note
        yield ""


def _text(text: str) -> str:
    """A text within a line or a cell: names are people's, and are no markup."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return text.replace("`", "'")
