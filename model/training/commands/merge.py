"""Merges an adapter into its base: a plain model directory that needs no peft, checked against the two."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import publish_directory, write_json
from model.training import stopping
from model.training.commands import verify
from model.training.weights import adapters, basemodel, hub, origin, stored
from model.training.weights.files import read_json

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""Allowed root mean square difference of the logits, as a share of their spread, by the type they are saved in."""

ENOUGH = 0.9
"""The share of the adapter's effect below which a merge says that much of it is lost."""
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "chat_template.json",
)

_PROBE_TOKENS = 32


@dataclass(frozen=True)
class Merged:
    """What came out of a merge."""

    directory: Path
    dtype: str
    parameters: int
    difference: float
    """Root mean square difference of the logits to base and adapter, as a share of the logits' spread."""
    kept: float
    """What the type leaves of the adapter's effect on the logits: 1 for all, less where it is rounded away."""

    @property
    def hint(self) -> str | None:
        """What to do when much of a small adapter was rounded away."""
        if self.kept >= ENOUGH or self.dtype == "float32":
            return None
        return (
            f"{self.dtype} keeps {100 * self.kept:.0f} % of the adapter's effect, the rest is rounded away: "
            "--precision=Float32 keeps it all"
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "directory": str(self.directory),
            "dtype": self.dtype,
            "parameters": self.parameters,
            "logitsDifference": float(f"{self.difference:.3g}"),
            "effectKept": float(f"{self.kept:.3g}"),
            "warnings": [self.hint] if self.hint else [],
        }

    def text(self) -> str:
        """Return the form for a person."""
        return (
            f"{self.directory}: {self.parameters:,} parameters in {self.dtype}\n"
            f"its logits are {100 * self.difference:.2g} % of their spread away from base and adapter, and keep "
            f"{100 * self.kept:.3g} % of the adapter's effect" + (f"\nwarning  {self.hint}" if self.hint else "")
        )


def merge(adapter: Path, base_model: str | None, output: Path, precision: str) -> Merged:
    """Write the merged model to `output`, whole or not at all.

    Parameters
    ----------
    adapter
        Directory of the adapter, or of its run.
    base_model
        Directory or hub name of the base; None for the one that the adapter's run names.
    output
        The directory to make; it must not exist.
    precision
        Auto (the type that the base is stored in), BFloat16 or Float32.

    Raises
    ------
    FailureError
        When something cannot be loaded, `output` exists, or the merged model answers differently.
    """
    directory = verify.find_adapter(adapter)
    if output.exists():
        raise _refused(f"{output} exists already: name a directory that does not, nothing is overwritten")
    name, revision = verify.choose_base_model(base_model, adapter, directory)
    basemodel.leave_out_bitsandbytes()
    base_type = _stored_type(name, revision)
    model = _load(name, revision, directory)
    tokenizer = basemodel.load_tokenizer(name, revision, adapters.own_template(directory))
    ends = stopping.find(tokenizer, name, revision)
    inputs, alone, expected = _logits_before(model)
    merged = model.merge_and_unload(safe_merge=True)
    dtype = base_type if precision == "Auto" else precision.lower()
    parameters = sum(parameter.numel() for parameter in merged.parameters())
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{output.name}.", suffix=".tmp", dir=output.parent))
    temporary.chmod(0o755)
    try:
        _save(merged, tokenizer, temporary, dtype, ends)
        _copy_processor(name, revision, temporary)
        del merged, model
        difference, kept = _compare(temporary, inputs, alone, expected)
        if not difference <= TOLERANCE[dtype]:
            raise FailureError(
                exits.CRASH,
                "AdapterInvalid",
                f"the merged model's logits are off by {difference:.3g} of their spread, more than {dtype} explains: "
                "nothing was written",
            )
        publish_directory(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Merged(output, dtype, parameters, difference, kept)


def _stored_type(base_model: str, revision: str | None) -> str:
    """Return the type that the base's weights are stored in, bfloat16 for those that are dequantized.

    Raises
    ------
    FailureError
        When they are quantized and stay so.
    """
    config = hub.stored_config(base_model, revision)
    quantization = stored.quantization_of(config)
    if quantization and not stored.is_dequantized(config):
        raise _refused(
            f"the weights of {base_model} are quantized ({stored.describe(quantization)}), and rounding them again "
            "would lose what was learned: give --base-model the full-precision model that they were made from"
        )
    text = {**config, **(config.get("text_config") or {})}
    named = text.get("dtype") or text.get("torch_dtype") or ("bfloat16" if quantization else "float32")
    return str(named).removeprefix("torch.")


def _load(base_model: str, revision: str | None, adapter: Path) -> Any:
    """Return base and adapter in float32."""
    import torch

    base = basemodel.load_model(base_model, revision, bfloat16=False)
    config = read_json(adapter / "adapter_config.json")
    if _touches_tied_weights(base, config):
        # The adapter of one of the two must not change the other.
        head = base.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        base.config.get_text_config().tie_word_embeddings = False
        base.config.tie_word_embeddings = False
    return verify.load_adapter(base, base_model, adapter).eval()


def _touches_tied_weights(base: Any, config: dict[str, Any]) -> bool:
    if not base.config.get_text_config().tie_word_embeddings:
        return False
    pair = (base.get_input_embeddings(), base.get_output_embeddings())
    names = {name.rpartition(".")[2] for name, module in base.named_modules() if any(module is one for one in pair)}
    targets = config.get("target_modules") or []
    touched = {targets} if isinstance(targets, str) else set(targets)
    touched |= set(config.get("modules_to_save") or [])
    return bool(names & {name.rpartition(".")[2] for name in touched})


def _save(model: Any, tokenizer: Any, directory: Path, dtype: str, ends: stopping.Stopping) -> None:
    import torch

    model = model.to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if ends.learned is not None and ends.learned not in ends.generation:
        # In the file, for the library refuses to save a changed configuration of which it dislikes anything else.
        write_json(directory / stopping.FILE, ends.generation_config(directory))
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def _copy_processor(base_model: str, revision: str | None, directory: Path) -> None:
    """Copy what turns pictures and sound into inputs, which a server of such a model looks for."""
    source = origin.check(base_model)
    for name in PROCESSOR_FILES:
        if source is None:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

            try:
                path = Path(hf_hub_download(base_model, name, revision=revision))
            except (EntryNotFoundError, LocalEntryNotFoundError):
                continue
        else:
            path = source / name
        if path.is_file() and not (directory / name).exists():
            shutil.copyfile(path, directory / name)


def _logits_before(model: Any) -> tuple[Any, Any, Any]:
    """Return tokens to try, and the logits of the base alone and with the adapter."""
    import torch

    known = model.get_base_model().get_input_embeddings().weight.shape[0]
    inputs = torch.randint(0, known, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with model.disable_adapter():
            alone = model(input_ids=inputs).logits.float()
        return inputs, alone, model(input_ids=inputs).logits.float()


def _compare(directory: Path, inputs: Any, alone: Any, expected: Any) -> tuple[float, float]:
    """Return how far the merged model's logits are off, and what they keep of the adapter's effect.

    The effect is what the adapter adds to the base's logits; kept is the length of the merged model's along it.
    """
    import torch

    model = basemodel.load_model(str(directory), None, bfloat16=False).eval()
    with torch.no_grad():
        logits = model(input_ids=inputs).logits.float()
    effect = expected - alone
    size = float(effect.pow(2).sum())
    kept = float(((logits - alone) * effect).sum()) / size if size else 1.0
    return float((logits - expected).pow(2).mean().sqrt() / expected.std()), min(max(kept, 0.0), 1.0)


def _refused(text: str) -> FailureError:
    return FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)
