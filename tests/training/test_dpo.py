"""Preference training beyond its arithmetic: the reference, the parts of a step, what is reported, kept and saved."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peft import PeftModel  # noqa: E402 - torch first, or there is nothing to import
from safetensors.torch import load_file  # noqa: E402 - as above
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402 - as above

from model import exits  # noqa: E402 - as above
from model.exits import FailureError  # noqa: E402 - as above
from model.files import combined_digest, digest_directory  # noqa: E402 - as above
from model.training.loop import generators, reference  # noqa: E402 - as above
from model.training.loop.attention import use_segments  # noqa: E402 - as above
from model.training.loop.dpo import PreferenceTrainer  # noqa: E402 - as above
from model.training.loop.layout import Batch, Collator, Layout  # noqa: E402 - as above
from model.training.loop.scoring import sequence_logps  # noqa: E402 - as above
from model.training.weights.adapters import Reference  # noqa: E402 - as above
from tests.training.harness import BASE_MODEL_NAME, Run  # noqa: E402 - as above
from tests.training.trainers import (  # noqa: E402 - as above
    difference,
    events,
    make_settings,
    make_trainer,
    random_pairs,
    shake,
    weights,
)

PAIRS = random_pairs(21)


def make(base_model: Path, tokenizer: Any, path: Path, kind: Any = None, **changes: Any) -> Any:
    settings = make_settings(base_model, path, method="DPO", **{"max_steps": 3, **changes})
    return make_trainer(settings, tokenizer, PAIRS, kind=kind)


def first_batch(trainer: Any) -> Batch:
    return trainer.data_collator([trainer.examples[pair] for pair in next(iter(trainer.batches))])


def test_the_reference_has_no_dropout_and_draws_no_random_numbers(
    base_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = make(base_model, tokenizer, tmp_path, lora_dropout_percent=30)
    shake(trainer)
    batch = first_batch(trainer)
    trainable = set(weights(trainer.model))
    trainer.model.train()
    noisy = [sequence_logps(trainer.model, batch)[0] for _ in range(2)]
    assert not torch.equal(*noisy)
    before = generators.states()
    with Reference(trainer.model)():
        logps = sequence_logps(trainer.model, batch)[0]
    assert torch.equal(before[2], generators.states()[2])
    assert not logps.requires_grad
    assert trainer.model.training
    assert set(weights(trainer.model)) == trainable
    plain = AutoModelForCausalLM.from_pretrained(base_model).eval()
    with pytest.raises(ValueError, match="attends by segments"):
        sequence_logps(plain, batch)
    assert use_segments(plain, longest_row=100) is None
    assert torch.allclose(logps, sequence_logps(plain, batch)[0], atol=1e-4)


def test_the_parents_copy_is_frozen_and_stays_as_it_was(
    base_model: Path, tokenizer: Any, tmp_path: Path, parent: Path
) -> None:
    trainer = make(base_model, tokenizer, tmp_path / "run", parent_adapter=parent, lora_dropout_percent=5)
    trainable = set(weights(trainer.model))
    assert not any(".ref." in name for name in trainable)
    trainer.train()
    assert set(weights(trainer.model)) == trainable
    saved = load_file(parent / "adapter_model.safetensors")
    copies = {name.replace(".ref", ""): w for name, w in trainer.model.named_parameters() if ".ref." in name}
    assert difference(copies, saved) == 0
    trained = {name.replace(".default", ""): w for name, w in weights(trainer.model).items()}
    assert difference(trained, saved) > 1e-3
    # With dropout in the policy alone the first loss is near ln 2, and not at it.
    first = events(trainer, "train")[0]["loss"]
    assert first == pytest.approx(math.log(2), abs=0.1)
    assert first != pytest.approx(math.log(2), abs=1e-5)


class FullMemory(PreferenceTrainer):
    """A GPU whose memory runs out in some of the backward passes, after random numbers were drawn."""

    failing: frozenset[int] | None = frozenset({1, 3})
    passes = 0

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        """Run out of memory in the passes to fail, in all of them when that is None."""
        self.passes += 1
        loss = super().compute_loss(*arguments, **options)
        torch.rand(7)
        if self.failing is None or self.passes in self.failing:
            raise torch.OutOfMemoryError("injected")
        return loss


class NoMemory(FullMemory):
    """Does not even hold a single pair."""

    failing = None


@pytest.mark.parametrize("packing", ["Disabled", "Enabled"])
def test_pairs_too_many_for_the_memory_are_redone_in_parts(
    base_model: Path, tokenizer: Any, tmp_path: Path, packing: str
) -> None:
    changes: dict[str, Any] = {"packing": packing, "dpo_sft_weight": 0.5, "warmup_percent": 0}
    whole = make(base_model, tokenizer, tmp_path / "whole", **changes)
    parted = make(base_model, tokenizer, tmp_path / "parted", FullMemory, **changes)
    for trainer in (whole, parted):
        shake(trainer)
        trainer.train()
    assert difference(weights(whole.model), weights(parted.model)) < 1e-4
    assert [event["partsPerBatch"] for event in events(parted, "outOfMemory")] == [2, 4]
    for name in ("loss", "rewardAccuracy", "rewardMargin"):
        found = [[event[name] for event in events(trainer, "train")] for trainer in (whole, parted)]
        assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)


def test_random_numbers_are_put_back_before_a_part_is_redone(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = make(base_model, tokenizer, tmp_path, FullMemory, max_steps=1, micro_batch_size=8)
    trainer.failing = frozenset({1})
    trainer.train()
    drawn = torch.get_rng_state()
    again = make(base_model, tokenizer, tmp_path / "again", FullMemory, max_steps=1, micro_batch_size=4)
    again.failing = frozenset()
    again.train()
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_pair_too_large_for_the_memory_fails_the_run(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(FailureError, match="lower maxLength") as caught:
        make(base_model, tokenizer, tmp_path, NoMemory).train()
    assert caught.value.code == exits.GPU_OUT_OF_MEMORY


@pytest.mark.parametrize("changes", [{}, {"dpo_loss": "IPO"}, {"dpo_sft_weight": 0.5}, {"packing": "Enabled"}])
def test_the_evaluation_is_the_mean_over_all_pairs(
    base_model: Path, tokenizer: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Whatever the micro-batch: 21 pairs in one batch, in threes, and with one left over."""
    found = []
    for size in (8, 3, 5):
        trainer = make(base_model, tokenizer, tmp_path / str(size), micro_batch_size=size, **changes)
        shake(trainer)
        found.append(trainer.final_evaluation())
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)
    batch = trainer.data_collator([trainer.examples[index] for index in range(21)])
    with torch.no_grad():
        policy, tokens = sequence_logps(trainer.model.eval(), batch)
        with Reference(trainer.model)():
            base = sequence_logps(trainer.model, batch)[0]
    ratios = (policy - base).view(-1, 2)
    margins = ratios[:, 0] - ratios[:, 1]
    assert found[0]["rewardAccuracy"] == pytest.approx(float((margins > 0).double().mean()))
    assert 0 < found[0]["rewardAccuracy"] < 1
    assert found[0]["rewardMargin"] == pytest.approx(0.1 * float(margins.mean()), rel=1e-4)
    first = {"IPO": 25.0}.get(changes.get("dpo_loss", ""), math.log(2))
    chosen = -float(base[::2].sum() / tokens[::2].sum()) * changes.get("dpo_sft_weight", 0)
    assert found[0]["baseEvaluationLoss"] == pytest.approx(first + chosen, rel=1e-5)


def test_a_nan_among_the_held_out_pairs_is_not_dropped(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    class Broken(PreferenceTrainer):
        def measure(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
            sums = super().measure(batch)
            return sums | {"loss": math.nan} if 20 in batch["pair"] else sums

    assert math.isnan(make(base_model, tokenizer, tmp_path, Broken).final_evaluation()["evaluationLoss"])


def test_what_the_reference_said_is_kept_with_the_checkpoint(
    base_model: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    plain = Reference.__call__
    monkeypatch.setattr(Reference, "__call__", lambda self: calls.append(self) or plain(self))
    trainer = make(base_model, tokenizer, tmp_path, max_steps=9, checkpoint_steps=5)
    trainer.train()
    assert len(calls) == 3  # the three steps of the first epoch
    again = make(base_model, tokenizer, tmp_path, max_steps=9)
    calls.clear()
    checkpoint = again.parts.checkpoints.path(5)
    assert load_file(checkpoint / reference.REFERENCE_FILE)["logps"].shape == (21, 2)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert not calls
    assert difference(weights(again.model), weights(trainer.model)) == 0


def test_one_epoch_keeps_nothing(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = make(base_model, tokenizer, tmp_path, max_steps=3)
    trainer.train()
    assert not (trainer.parts.checkpoints.path(3) / reference.REFERENCE_FILE).exists()


def test_dropout_that_was_asked_for_is_there_and_none_otherwise(
    base_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    for percent in (None, 20):
        trainer = make(base_model, tokenizer, tmp_path, lora_dropout_percent=percent)
        rates = {m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)}
        assert rates == (set() if percent is None else {0.2})


@pytest.fixture
def preferences() -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {n} times {n}?", "chosen": f"It is {n * n}.", "rejected": f"Who knows {n}?"}
        for n in range(30)
    ]


@pytest.fixture
def parent(base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    """The adapter of a run that was trained before."""
    (tmp_path / "sft").mkdir()
    run = Run(tmp_path / "sft", base_model, max_steps=6, lora_rank=4).export(rows)
    assert run.train() == 0
    return run.directory / "adapter"


def test_a_run_on_top_of_a_parent(
    base_model: Path, tmp_path: Path, parent: Path, preferences: list[dict[str, Any]]
) -> None:
    """Killed in between; the result alone on the plain base is the whole policy."""
    digest = combined_digest(digest_directory(parent))
    results = []
    for name, number in (("whole", None), ("stopped", signal.SIGTERM), ("killed", signal.SIGKILL)):
        (tmp_path / name).mkdir()
        run = Run(
            tmp_path / name, base_model, method="DPO", epochs=3, lora_rank=None, lora_dropout_percent=20,
            parent_adapter=parent, parent_adapter_name="support/3", parent_adapter_sha256=digest, checkpoint_steps=2,
        ).export(preferences)  # fmt: skip
        if number is not None:
            assert run.stop_at(8, number) in (exits.INTERRUPTED, -number)
        assert run.train() == 0
        results.append(run)
    adapters = [load_file(run.directory / "adapter" / "adapter_model.safetensors") for run in results]
    assert difference(adapters[0], adapters[1]) == 0
    assert difference(adapters[0], adapters[2]) == 0

    said = results[0].said()
    assert said["parentAdapter"] == {"name": "support/3", "sha256": digest}
    assert said["baseModel"]["name"] == BASE_MODEL_NAME
    assert float(said["result"]["baseEvaluationLoss"]) == pytest.approx(math.log(2), abs=1e-5)
    assert float(said["result"]["evaluationLoss"]) < 0.5
    assert float(said["result"]["rewardAccuracy"]) > 0.9
    assert float(said["result"]["rewardMargin"]) > 0
    document = json.loads((results[0].directory / "training_config.json").read_text())
    assert (document["config"]["loraRank"], document["config"]["loraAlpha"]) == (4, 32)

    adapter = results[0].directory / "adapter"
    assert sorted(path.name for path in adapter.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in adapter.iterdir()} == {0o644}
    card = (adapter / "README.md").read_text()
    for words in (
        "support/3",
        "reference alone",
        f"pairs | {said['result']['rewardAccuracy']}",
    ):
        assert words in card
    prefers(base_model, adapter, preferences[7])


def prefers(base_model: Path, adapter: Path, row: dict[str, Any]) -> None:
    """The saved adapter alone on the plain base tells a pair apart, and the plain base does less so."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_model), adapter).eval()

    def margin() -> float:
        found = []
        for side in ("chosen", "rejected"):
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
            ids = tokenizer.apply_chat_template(turns)["input_ids"]
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            batch = Collator(0, Layout.PADDED)([{"input_ids": ids, "labels": labels}])
            with torch.no_grad():
                found.append(float(sequence_logps(model, batch)[0]))
        return found[0] - found[1]

    trained = margin()
    with model.disable_adapter():
        assert trained > margin() + 5


@pytest.mark.parametrize("method", ["DPO", "SFT"])
def test_rows_of_the_other_method_are_refused(
    base_model: Path, tmp_path: Path, rows: list[dict[str, Any]], preferences: list[dict[str, Any]], method: str
) -> None:
    run = Run(tmp_path, base_model, method="SFT" if method == "DPO" else "DPO")
    run.export(rows if method == "DPO" else preferences)
    run.flags["method"] = method
    assert run.train() == exits.DATASET_INVALID
    assert f"--method={method} cannot train on rows of the shape" in run.said()["failure"]["message"]
