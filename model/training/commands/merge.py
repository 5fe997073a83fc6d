"""Merges an adapter into its base: a plain model directory that needs no peft, checked against the two."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.files import publish_directory
from model.training.commands import verify
from model.training.weights import basemodel, stored
from model.training.weights.files import read_json

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""Allowed root mean square difference of the logits, as a share of their spread, by the type they are saved in."""

_PROBE_TOKENS = 32


@dataclass(frozen=True)
class Merged:
    """What came out of a merge."""

    directory: Path
    dtype: str
    parameters: int
    difference: float
    """Root mean square difference of the logits to base and adapter, as a share of the logits' spread."""

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "directory": str(self.directory),
            "dtype": self.dtype,
            "parameters": self.parameters,
            "logitsDifference": float(f"{self.difference:.3g}"),
        }

    def text(self) -> str:
        """Return the form for a person."""
        return (
            f"{self.directory}: {self.parameters:,} parameters in {self.dtype}\n"
            f"its logits are {100 * self.difference:.2g} % of their spread away from base and adapter"
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
    tokenizer = basemodel.load_tokenizer(name, revision)
    inputs, expected = _logits_before(model)
    merged = model.merge_and_unload(safe_merge=True)
    dtype = base_type if precision == "Auto" else precision.lower()
    parameters = sum(parameter.numel() for parameter in merged.parameters())
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{output.name}.", suffix=".tmp", dir=output.parent))
    temporary.chmod(0o755)
    try:
        _save(merged, tokenizer, temporary, dtype)
        del merged, model
        difference = _compare(temporary, inputs, expected)
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
    return Merged(output, dtype, parameters, difference)


def _stored_type(base_model: str, revision: str | None) -> str:
    """Return the type that the base's weights are stored in, bfloat16 for those that are dequantized.

    Raises
    ------
    FailureError
        When they are quantized and stay so.
    """
    config = basemodel.read_config(base_model, revision)
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


def _save(model: Any, tokenizer: Any, directory: Path, dtype: str) -> None:
    import torch

    model = model.to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def _logits_before(model: Any) -> tuple[Any, Any]:
    import torch

    known = model.get_base_model().get_input_embeddings().num_embeddings
    inputs = torch.randint(0, known, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return inputs, model(input_ids=inputs).logits.float()


def _compare(directory: Path, inputs: Any, expected: Any) -> float:
    import torch

    model = basemodel.load_model(str(directory), None, bfloat16=False).eval()
    with torch.no_grad():
        logits = model(input_ids=inputs).logits.float()
    return float((logits - expected).pow(2).mean().sqrt() / expected.std())


def _refused(text: str) -> FailureError:
    return FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)
