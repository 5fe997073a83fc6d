"""Labelled answers beyond their arithmetic: tokens, the mismatched answers, what is told, kept and saved."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402 - torch first, or there is nothing to import

from model import exits  # noqa: E402 - as above
from model.exits import FailureError  # noqa: E402 - as above
from model.training.loop import generators, kto, reference  # noqa: E402 - as above
from model.training.loop.scoring import sequence_logps  # noqa: E402 - as above
from model.training.rows.report import token_report  # noqa: E402 - as above
from model.training.rows.tokens import IGNORED, RowEncoder, TokenRows  # noqa: E402 - as above
from tests.training.chat_templates import make_tokenizer  # noqa: E402 - as above
from tests.training.harness import Run  # noqa: E402 - as above
from tests.training.trainers import (  # noqa: E402 - as above
    difference,
    events,
    make_settings,
    make_trainer,
    random_labelled,
    shake,
    weights,
)

LABELLED = random_labelled(21)
ROW = {"prompt": "What is it?", "completion": "It is four.", "label": True}


def make(base_model: Path, tokenizer: Any, path: Path, kind: Any = None, rows: Any = LABELLED, **changes: Any) -> Any:
    settings = make_settings(base_model, path, method="KTO", **{"max_steps": 3, **changes})
    return make_trainer(settings, tokenizer, rows, kind=kind)


def encode(tokenizer: Any, *rows: dict[str, Any], max_length: int = 512, too_long: str = "Truncate") -> TokenRows:
    encoder = RowEncoder(tokenizer, max_length=max_length, too_long=too_long)
    lines = [json.dumps({**row, "row": 7 + index}).encode() for index, row in enumerate(rows)]
    return encoder.encode(iter(lines), "the dataset's", method="KTO")


def test_an_answer_is_learned_and_its_label_kept() -> None:
    tokenizer = make_tokenizer("chatml")
    rows = encode(tokenizer, ROW, {**ROW, "completion": "It is five.", "label": False})
    assert list(rows.desirable) == [1, 0]
    for index, answer in enumerate(("It is four.", "It is five.")):
        ids, labels = rows.row(index)
        shown = tokenizer.decode(ids)
        assert shown.endswith(f"assistant\n{answer}<|im_end|>")
        assert tokenizer.decode([label for label in labels if label != IGNORED]) == f"{answer}<|im_end|>"


def test_only_the_answer_of_a_conversation_is_learned() -> None:
    tokenizer = make_tokenizer("chatml")
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = encode(tokenizer, {"prompt": prompt, "completion": [{"role": "assistant", "content": "d"}], "label": True})
    assert tokenizer.decode([label for label in rows.labels if label != IGNORED]) == "d<|im_end|>"


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays() -> None:
    tokenizer = make_tokenizer("llama3")
    rows = encode(tokenizer, {**ROW, "prompt": "b " * 100 + "Hi."}, max_length=40)
    shown = tokenizer.decode(rows.row(0)[0])
    assert rows.lengths == [40]
    assert rows.row(0)[0][0] == tokenizer.bos_token_id
    assert "Hi." in shown
    assert shown.endswith("It is four.<|eot_id|>")
    assert rows.truncated == 1


def test_rows_of_another_method_are_refused() -> None:
    with pytest.raises(FailureError, match=r"row 7: method KTO needs prompt, completion and label; .* for SFT"):
        encode(make_tokenizer("chatml"), {"prompt": "a", "completion": "b"})


def test_a_mismatch_is_the_prompt_of_one_row_with_the_answer_of_another() -> None:
    (ids, _), (others, labels) = LABELLED.row(3), LABELLED.row(5)
    asked = [token for token, label in zip(*LABELLED.row(3), strict=True) if label == IGNORED]
    given = [label for label in labels if label != IGNORED]
    assert ids[: len(asked)].tolist() == asked
    assert others[-len(given) :].tolist() == given
    assert kto.mismatched(LABELLED, 3, 5, 100, frozenset()) == (asked + given, [IGNORED] * len(asked) + given)
    cut, cut_labels = kto.mismatched(LABELLED, 3, 5, len(given) + 2, frozenset({asked[0]}))
    assert (cut, cut_labels) == ([asked[0], asked[-1], *given], [IGNORED] * 2 + given)


def test_each_row_of_a_step_is_mismatched_with_the_one_before_it() -> None:
    assert kto.mismatches([4, 9, 2], 10) == [(4, 2), (9, 4), (2, 9)]
    assert kto.mismatches([4], 10) == [(4, 3)]
    assert kto.mismatches([0], 10) == [(0, 9)]
    assert kto.mismatches([0], 1) == kto.mismatches([], 0) == []
    assert kto.mean_divergence({}) == 0
    assert kto.mean_divergence({"divergence": -3.0, "mismatches": 2.0}) == 0
    assert kto.mean_divergence({"divergence": 3.0, "mismatches": 2.0}) == 1.5


def test_the_kl_has_no_dropout_and_draws_no_random_numbers(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = make(base_model, tokenizer, tmp_path, lora_dropout_percent=30)
    shake(trainer)
    trainer.model.train()
    before = generators.states()
    first, second = trainer._kl_of_step(), trainer._kl_of_step()
    assert first == second
    assert torch.equal(before[2], generators.states()[2])
    assert trainer.model.training


def test_a_step_of_one_row_knows_how_far_the_policy_has_moved(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = make(base_model, tokenizer, tmp_path, batch_size=10)
    assert len(trainer.batches.rows_of_step(3)) == 1
    trainer.state.global_step = 2
    shake(trainer)
    found = []
    for factor in (0.1, -1.0):  # there, and as far the other way: one of the two is above 0
        with torch.no_grad():
            for name, weight in trainer.model.named_parameters():
                if "lora_B.default" in name:
                    weight.mul_(factor)
        found.append(trainer._kl_of_step())
    assert max(found) > 0


def test_no_mismatched_row_is_longer_than_the_base_reads(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    """The base has 512 positions: each row fits them, but a long prompt with a long answer does not."""
    rows = TokenRows()
    for asked, given in ((300, 10), (10, 300)):
        rows.append([5] * (asked + given), [IGNORED] * asked + [5] * given, given > asked)
    trainer = make(base_model, tokenizer, tmp_path, rows=rows, max_length=1024, packing="Disabled")
    widths = [len(row["input_ids"]) for group in trainer._mismatched(rows, [(0, 1)]) for row in group]
    assert widths == [512]
    assert trainer._kl_of_step() == 0  # nothing has moved yet


class FullMemory(kto.LabelTrainer):
    """A GPU whose memory runs out in some of the backward passes."""

    failing = frozenset({1, 3})
    passes = 0

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        """Run out of memory in the passes to fail."""
        self.passes += 1
        loss = super().compute_loss(*arguments, **options)
        if self.passes in self.failing:
            raise torch.OutOfMemoryError("injected")
        return loss


@pytest.mark.parametrize("packing", ["Disabled", "Enabled"])
def test_rows_too_many_for_the_memory_are_redone_in_parts(
    base_model: Path, tokenizer: Any, tmp_path: Path, packing: str
) -> None:
    whole = make(base_model, tokenizer, tmp_path / "whole", packing=packing)
    parted = make(base_model, tokenizer, tmp_path / "parted", FullMemory, packing=packing)
    for trainer in (whole, parted):
        shake(trainer)
        trainer.train()
    assert difference(weights(whole.model), weights(parted.model)) < 1e-4
    assert [event["partsPerBatch"] for event in events(parted, "outOfMemory")] == [2, 4]
    for name in ("loss", "kl", "rewardMargin"):
        found = [[event.get(name) for event in events(trainer, "train")] for trainer in (whole, parted)]
        assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"kto_undesirable_weight": 1.5}, {"packing": "Enabled"}])
def test_the_evaluation_is_the_mean_over_all_rows(
    base_model: Path, tokenizer: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Whatever the micro-batch: 21 rows in one batch, in threes, and with one left over."""
    found = []
    for size in (8, 3, 5):
        trainer = make(base_model, tokenizer, tmp_path / str(size), micro_batch_size=size, **changes)
        shake(trainer)
        found.append(trainer.final_evaluation())
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-6)
    batch = trainer.data_collator([trainer.examples[index] for index in range(21)])
    with torch.no_grad():
        policy = sequence_logps(trainer.model.eval(), batch)[0]
        with trainer._as_reference():
            base = sequence_logps(trainer.model, batch)[0]
    good = batch["desirable"]
    rewards = 0.1 * (policy - base)
    assert found[0]["desirableReward"] == pytest.approx(float(rewards[good].mean()), rel=1e-4)
    assert found[0]["undesirableReward"] == pytest.approx(float(rewards[~good].mean()), rel=1e-4)
    assert found[0]["rewardMargin"] == pytest.approx(
        found[0]["desirableReward"] - found[0]["undesirableReward"], rel=1e-6
    )
    weight = changes.get("kto_undesirable_weight", 1.0)
    moved = rewards - 0.1 * found[0]["kl"]
    losses = torch.where(good, torch.sigmoid(-moved), weight * torch.sigmoid(moved))
    assert found[0]["evaluationLoss"] == pytest.approx(float(losses.mean()), rel=1e-4)
    share = float(good.double().mean())
    assert found[0]["baseEvaluationLoss"] == pytest.approx(0.5 * (share + weight * (1 - share)), rel=1e-5)


def test_answers_of_one_kind_have_no_margin(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    rows = TokenRows()
    for index in range(9):
        rows.append(*LABELLED.row(index), True)
    trainer = make(base_model, tokenizer, tmp_path, rows=rows)
    trainer.train()
    assert all("undesirableReward" not in event for event in events(trainer, "train"))
    assert set(trainer.final_evaluation()) == {"evaluationLoss", "baseEvaluationLoss", "desirableReward", "kl"}


def test_what_the_reference_said_is_kept_with_the_checkpoint(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = make(base_model, tokenizer, tmp_path, max_steps=9, checkpoint_steps=5)
    trainer.train()
    again = make(base_model, tokenizer, tmp_path, max_steps=9)
    checkpoint = again.parts.checkpoints.path(5)
    assert load_file(checkpoint / reference.REFERENCE_FILE)["logps"].shape == (21, 1)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert difference(weights(again.model), weights(trainer.model)) == 0


ADVICE = (
    r"3 good answers and 17 bad ones weigh 3 to 17: set kto.desirableWeight \(--kto-desirable-weight\) to 5.7 to 7.6, "
    r"or kto.undesirableWeight \(--kto-undesirable-weight\) to 0.13 to 0.18"
)


@pytest.mark.parametrize(
    ("good", "weight", "words"),
    [
        (10, 1.0, None),
        (7, 1.0, None),
        (3, 1.0, ADVICE),
        (3, 6.0, None),
        (18, 1.0, "18 good answers and 2 bad ones weigh 18 to 2"),
        (20, 1.0, r"all 20 answers to train on are labelled good \(true\)"),
        (0, 1.0, r"all 20 answers to train on are labelled bad \(false\)"),
    ],
)
def test_labels_out_of_balance_are_told(good: int, weight: float, words: str | None) -> None:
    rows = TokenRows()
    for index in range(20):
        rows.append([index, 5, 6], [IGNORED, 5, 6], index < good)
    settings = make_settings(Path("base"), Path("run"), method="KTO", kto_desirable_weight=weight)
    report = token_report(settings, make_tokenizer("plain"), rows, TokenRows())
    found = [warning for warning in report.warnings if "answers" in warning]
    assert len(found) == (words is not None)
    assert words is None or re.search(words, found[0])
    assert report.figures.document()["training"]["desirable"] == good


def make_labelled(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {n} times {n}?", "completion": f"It is {n * n}." if n % 2 else f"Who knows {n}?",
         "label": bool(n % 2)}
        for n in range(count)
    ]  # fmt: skip


def test_a_run_is_the_same_to_the_bit_however_often_it_is_stopped(base_model: Path, tmp_path: Path) -> None:
    """Killed in between, with dropout, over epochs; the result names its rewards and what they are compared with."""
    results = []
    for name, number in (("whole", None), ("stopped", signal.SIGTERM), ("killed", signal.SIGKILL)):
        (tmp_path / name).mkdir()
        run = Run(
            tmp_path / name, base_model, method="KTO", epochs=3, lora_dropout_percent=20, checkpoint_steps=2,
        ).export(make_labelled(30))  # fmt: skip
        if number is not None:
            assert run.stop_at(8, number) in (exits.INTERRUPTED, -number)
        assert run.train() == 0
        results.append(run)
    adapters = [load_file(run.directory / "adapter" / "adapter_model.safetensors") for run in results]
    assert difference(adapters[0], adapters[1]) == 0
    assert difference(adapters[0], adapters[2]) == 0
    told = [[(line["step"], line["loss"], line["kl"]) for line in run.events("train")] for run in results]
    assert told[0] == told[1] == told[2]

    result = results[0].said()["result"]
    assert float(result["baseEvaluationLoss"]) == pytest.approx(0.5, abs=1e-5)
    assert float(result["evaluationLoss"]) < 0.4
    assert float(result["rewardMargin"]) > 0
    assert float(result["desirableReward"]) > float(result["undesirableReward"])
    assert "rewardAccuracy" not in result
    card = (results[0].directory / "adapter" / "README.md").read_text()
    for words in ("Trained with KTO", "per answer", "reference alone | 0.5", "mean reward of good answers"):
        assert words in card
    config = json.loads((results[0].directory / "training_config.json").read_text())["config"]
    assert (config["ktoBeta"], config["ktoDesirableWeight"]) == (0.1, 1.0)
    assert "dpoBeta" not in config
    assert math.isfinite(float(result["kl"]))
