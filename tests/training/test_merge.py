"""Adapters merged into their bases: the logits stay, tied weights come apart, nothing is overwritten."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model import exits
from model.exits import FailureError
from model.training.commands.chat import Pair
from model.training.commands.merge import merge
from tests.support.hub import hub
from tests.support.safetensors_files import write_safetensors

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tied_base(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model with its output layer tied to the embeddings, stored in bfloat16."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(base_model, tie_word_embeddings=True)
    directory = tmp_path_factory.mktemp("tied")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(directory)
    return directory


def adapter(base: Path, target: Path, *modules: str, **options: Any) -> Path:
    """Write an adapter with random weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules=list(modules), init_lora_weights=False, task_type="CAUSAL_LM", **options)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).save_pretrained(target)
    return target


def logits(base: Path, lora: Path | None = None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if lora is not None:
        model = PeftModel.from_pretrained(model, lora)
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_the_merged_model_is_base_and_adapter(options: dict[str, Any], base_model: Path, tmp_path: Path) -> None:
    lora = adapter(base_model, tmp_path / "adapter", "q_proj", "down_proj", **options)
    merged = merge(lora, str(base_model), tmp_path / "merged", "Auto")
    assert merged.dtype == "float32"
    assert torch.allclose(logits(tmp_path / "merged"), logits(base_model, lora), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits(tmp_path / "merged"), logits(base_model), rtol=1e-1, atol=1e-1)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "merged"}


def test_an_adapter_of_the_head_leaves_the_embeddings_alone(tied_base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    lora = adapter(tied_base, tmp_path / "adapter", "lm_head", "q_proj")
    merged = merge(lora, str(tied_base), tmp_path / "merged", "Auto")
    assert merged.dtype == "bfloat16"
    expected = logits(tied_base, lora)
    difference = (logits(tmp_path / "merged") - expected).pow(2).mean().sqrt()
    assert difference < 0.02 * expected.std()
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (tied_base, tmp_path / "merged"))
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    assert not torch.equal(after.get_input_embeddings().weight, after.get_output_embeddings().weight)


def test_tied_weights_stay_tied_when_nothing_touches_them(tied_base: Path, tmp_path: Path) -> None:
    merge(adapter(tied_base, tmp_path / "adapter", "q_proj"), str(tied_base), tmp_path / "merged", "Float32")
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "float32"


def test_nothing_is_overwritten(base_model: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    lora = adapter(base_model, tmp_path / "adapter", "q_proj")
    with pytest.raises(FailureError, match="merged exists already"):
        merge(lora, str(base_model), tmp_path / "merged", "Auto")


def test_a_quantized_base_is_refused(base_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    write_safetensors(base / "model.safetensors", {"model.layers.0.mlp.up_proj.qweight": (8, 8)}, "I32")
    lora = adapter(base_model, tmp_path / "adapter", "q_proj")
    with pytest.raises(FailureError, match=r"quantized \(gptq\).*full-precision model"):
        merge(lora, str(base), tmp_path / "merged", "Auto")


def test_a_quantized_base_on_the_hub_is_refused_before_its_weights_are_read(base_model: Path, tmp_path: Path) -> None:
    config = json.loads((base_model / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
    adapter(base_model, tmp_path / "adapter", "q_proj")
    with hub() as server:
        server.repository("owner/tiny", {"config.json": json.dumps(config).encode()})
        environment = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "model.training.cli",
                "merge",
                "adapter",
                "--output=merged",
                "--base-model=owner/tiny",
            ],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == exits.INVALID_CONFIGURATION
    assert "the weights of owner/tiny are quantized (awq)" in done.stderr


def test_a_merge_that_changes_the_answers_is_not_kept(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = adapter(base_model, tmp_path / "adapter", "q_proj")
    monkeypatch.setattr("model.training.commands.merge.TOLERANCE", {"float32": -1.0})
    with pytest.raises(FailureError, match="nothing was written"):
        merge(lora, str(base_model), tmp_path / "merged", "Auto")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_a_directory_that_happens_to_have_a_temporary_name_stays(base_model: Path, tmp_path: Path) -> None:
    lora = adapter(base_model, tmp_path / "adapter", "q_proj")
    (tmp_path / "merged.tmp").mkdir()
    (tmp_path / "merged.tmp/notes").write_text("mine")
    merge(lora, str(base_model), tmp_path / "merged", "Auto")
    assert (tmp_path / "merged.tmp/notes").read_text() == "mine"
    assert (tmp_path / "merged").stat().st_mode & 0o777 == 0o755


def _cut_off(lora: Path) -> None:
    path = lora / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _of_another_kind(lora: Path) -> None:
    (lora / "adapter_config.json").write_text("{}")


def _for_a_wider_base(lora: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = lora / "adapter_model.safetensors"
    save_file({name: torch.cat([tensor, tensor]) for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(_cut_off, "get it again"), (_of_another_kind, "not LORA"), (_for_a_wider_base, "has 64 outputs")],
)
def test_an_adapter_that_does_not_fit_is_told_before_it_is_loaded(
    damage: Callable[[Path], None], said: str, base_model: Path, tmp_path: Path
) -> None:
    lora = adapter(base_model, tmp_path / "adapter", "q_proj")
    damage(lora)
    with pytest.raises(FailureError, match=said) as caught:
        merge(lora, str(base_model), tmp_path / "merged", "Auto")
    assert caught.value.reason == "AdapterInvalid"
    with pytest.raises(FailureError, match=said):
        Pair(str(base_model), lora, max_new_tokens=2, system=None)
