"""An adapter to go on from: what is checked before it is used, and what it decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402 - torch first, or there is nothing to import
from safetensors.torch import load_file, save_file  # noqa: E402 - as above
from transformers import AutoModelForCausalLM  # noqa: E402 - as above

from model import exits  # noqa: E402 - as above
from model.exits import FailureError  # noqa: E402 - as above
from model.files import combined_digest, digest_directory  # noqa: E402 - as above
from model.training.weights import adapters, basemodel  # noqa: E402 - as above
from tests.training.trainers import make_settings, make_trainer, random_pairs, random_rows, weights  # noqa: E402 - as above

WEIGHTS = "adapter_model.safetensors"
TARGETS = ["down_proj", "q_proj", "v_proj"]


@pytest.fixture
def parent(base_model: Path, tmp_path: Path) -> Path:
    torch.manual_seed(5)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, lora_dropout=0.5, target_modules=TARGETS, init_lora_weights=False
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), config)
    model.peft_config["default"].base_model_name_or_path = "example/tiny-llama"
    model.save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


def edit(parent: Path, **changes: Any) -> None:
    path = parent / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_parent_decides_the_shape(base_model: Path, tmp_path: Path, parent: Path) -> None:
    settings = make_settings(base_model, tmp_path, parent_adapter=parent, lora_alpha=6)
    assert (settings.lora_rank, settings.lora_alpha, settings.lora_variant) == (4, 6, "LoRA")
    assert settings.lora_target_modules == TARGETS
    assert settings.parent_adapter_sha256 == combined_digest(digest_directory(parent))
    assert settings.parent_adapter_name == str(parent)
    assert make_settings(
        base_model, tmp_path, parent_adapter=parent, lora_target_modules=["v_proj", "q_proj", "down_proj"]
    )


@pytest.mark.parametrize(("changes", "variant"), [({"use_dora": True}, "DoRA"), ({"use_rslora": True}, "RSLoRA")])
def test_the_parent_decides_the_variant(
    base_model: Path, tmp_path: Path, parent: Path, changes: dict[str, Any], variant: str
) -> None:
    edit(parent, **changes)
    assert make_settings(base_model, tmp_path, parent_adapter=parent).lora_variant == variant


def test_the_dropout_is_the_runs_own(base_model: Path, tokenizer: Any, tmp_path: Path, parent: Path) -> None:
    settings = make_settings(base_model, tmp_path, parent_adapter=parent, lora_dropout_percent=20)
    trainer = make_trainer(settings, tokenizer, random_rows(8))
    rates = {m.p for n, m in trainer.model.named_modules() if "lora_dropout" in n and isinstance(m, torch.nn.Dropout)}
    assert rates == {0.2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 8}, ("--lora-rank is 8", "has 4", "leave it out")),
        ({"lora_alpha": 7}, ("--lora-alpha is 7", "has 6")),
        ({"lora_target_modules": ["q_proj"]}, ("--lora-target-modules is q_proj", "has down_proj, q_proj, v_proj")),
        ({"lora_variant": "DoRA"}, ("--lora-variant is DoRA", "has LoRA")),
        ({"base_model_name": "example/other"}, ("example/tiny-llama", "example/other", "--base-model-name")),
    ],
)
def test_settings_that_contradict_the_parent(
    base_model: Path, tmp_path: Path, parent: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(FailureError) as caught:
        make_settings(base_model, tmp_path, parent_adapter=parent, **changes)
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")
    for word in words:
        assert word in caught.value.message


def test_files_that_are_not_those_of_the_version(base_model: Path, tmp_path: Path, parent: Path) -> None:
    digest = combined_digest(digest_directory(parent))
    assert make_settings(base_model, tmp_path, parent_adapter=parent, parent_adapter_sha256=digest)
    edit(parent, lora_alpha=60)
    with pytest.raises(FailureError, match=digest) as caught:
        make_settings(base_model, tmp_path, parent_adapter=parent, parent_adapter_sha256=digest)
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "AdapterInvalid")


def only_pickle(parent: Path) -> None:
    (parent / WEIGHTS).rename(parent / "adapter_model.bin")


def no_configuration(parent: Path) -> None:
    (parent / "adapter_config.json").unlink()


def no_json(parent: Path) -> None:
    (parent / "adapter_config.json").write_text("{")


def other_kind(parent: Path) -> None:
    edit(parent, peft_type="LOHA")


def whole_layers(parent: Path) -> None:
    edit(parent, modules_to_save=["lm_head"])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (no_configuration, (exits.DOES_NOT_EXIST, "holds no adapter")),
        (only_pickle, (exits.DOES_NOT_EXIST, "can run code")),
        (no_json, (exits.INVALID_CONFIGURATION, "is not the configuration of a LoRA adapter")),
        (other_kind, (exits.INVALID_CONFIGURATION, "is a LOHA adapter")),
        (whole_layers, (exits.INVALID_CONFIGURATION, "merge it into the base model")),
    ],
)
def test_a_parent_that_cannot_be_used(
    base_model: Path, tmp_path: Path, parent: Path, damage: Callable[[Path], None], expected: tuple[int, str]
) -> None:
    damage(parent)
    code, words = expected
    with pytest.raises(FailureError, match=words) as caught:
        make_settings(base_model, tmp_path, parent_adapter=parent)
    assert (caught.value.code, caught.value.reason) == (code, "AdapterInvalid")


def other_shape(tensors: dict[str, Any]) -> None:
    tensors |= {name: torch.zeros(4, 5) for name in tensors if "lora_A" in name}


def missing_weight(tensors: dict[str, Any]) -> None:
    del tensors[next(iter(tensors))]


def another_layer(tensors: dict[str, Any]) -> None:
    tensors |= {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)}


@pytest.mark.parametrize("damage", [other_shape, missing_weight, another_layer])
def test_weights_that_do_not_fit_the_base_model(
    base_model: Path, tmp_path: Path, parent: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    tensors = load_file(parent / WEIGHTS)
    damage(tensors)
    save_file(tensors, parent / WEIGHTS, {"format": "pt"})
    settings = make_settings(base_model, tmp_path, parent_adapter=parent)
    model = basemodel.load_model(str(base_model), None, bfloat16=False)
    with pytest.raises(FailureError, match="does not fit") as caught:
        adapters.attach_parent(model, settings)
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "AdapterInvalid")


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_only_the_parent_itself_is_trained(
    base_model: Path, tokenizer: Any, tmp_path: Path, parent: Path, method: str
) -> None:
    settings = make_settings(base_model, tmp_path, method=method, parent_adapter=parent)
    examples = random_pairs(8) if method == "DPO" else random_rows(8)
    trained = weights(make_trainer(settings, tokenizer, examples).model)
    saved = load_file(parent / WEIGHTS)
    assert {name.replace(".default", "") for name in trained} == set(saved)
    assert all(torch.equal(weight, saved[name.replace(".default", "")]) for name, weight in trained.items())
