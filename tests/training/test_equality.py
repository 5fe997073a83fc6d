"""The trainers against a loop of plain PyTorch: row by row, from all logits, in float64, over several steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402 - torch first, or there is nothing to import
from torch.nn.functional import log_softmax, logsigmoid  # noqa: E402 - as above
from transformers import AutoModelForCausalLM, TrainerCallback  # noqa: E402 - as above

from model.training.loop.attention import use_segments  # noqa: E402 - as above
from model.training.loop.layout import Layout  # noqa: E402 - as above
from model.training.loop.reference import ReferenceLogps  # noqa: E402 - as above
from model.training.rows.tokens import IGNORED, TokenRows  # noqa: E402 - as above
from model.training.weights.adapters import Reference  # noqa: E402 - as above
from tests.training.kernels import stand_in  # noqa: E402 - as above
from tests.training.trainers import (  # noqa: E402 - as above
    difference,
    events,
    make_settings,
    make_trainer,
    random_labelled,
    random_pairs,
    random_rows,
    shake,
    weights,
)

CLOSE = 1e-9
pytestmark = pytest.mark.usefixtures("exact_norms")
MICRO_BATCHES = (1, 2, 3, 5, 8)
ROWS = random_rows(21)
PAIRS = random_pairs(21)
LABELLED = random_labelled(21)
"""Three steps of eight, eight and five an epoch."""


class Gradients(TrainerCallback):
    """Keeps the clipped gradients of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_arguments: Any, model: Any, **_rest: Any) -> None:
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class PlainLoop:
    """AdamW, clipping and the cosine schedule, over a loss that is told for the examples of a step."""

    def __init__(self, model: Any, trainer: Any) -> None:
        self.model = model
        with torch.no_grad():
            for name, weight in trainer.model.named_parameters():
                if weight.requires_grad:
                    model.get_parameter(name).copy_(weight)
        settings = trainer.parts.settings
        self.total = trainer.parts.total_steps
        self.warm = math.ceil(self.total * settings.warmup_percent / 100)
        self.rate = settings.learning_rate
        self.losses: list[float] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def factor(self, step: int) -> float:
        if step < self.warm:
            return (step + 1) / (self.warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - self.warm) / (self.total - self.warm)))

    def run(self, steps: Iterator[list[int]], loss_of: Callable[[list[int]], torch.Tensor]) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
        for step, examples in enumerate(steps):
            optimizer.param_groups[0]["lr"] = self.rate * self.factor(step)
            loss = loss_of(examples)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            self.losses.append(loss.item())
            self.gradients.append({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})
            optimizer.step()
            optimizer.zero_grad()
        assert len(self.losses) == self.total


def logps(model: Any, rows: Any, index: int) -> torch.Tensor:
    """The log-probability of each learned token of a row."""
    ids, labels = (
        torch.tensor(part[rows.offsets[index] : rows.offsets[index + 1]]) for part in (rows.ids, rows.labels)
    )
    found = log_softmax(model(input_ids=ids[None]).logits[0, :-1], dim=-1)
    learned = labels[1:] != IGNORED
    return found.gather(1, ids[1:, None])[:, 0][learned]


def load_base(base_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float64)


def new_adapter(base_model: Path, **changes: Any) -> Any:
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear", **changes)
    return get_peft_model(load_base(base_model), config)


def steps_of(trainer: Any) -> Iterator[list[int]]:
    """The examples of each step, as the sampler gives them whatever the micro-batch."""
    batches = trainer.batches
    for epoch in range(-(-trainer.parts.total_steps // batches.steps_per_epoch)):
        batches.epoch = epoch
        yield from batches
    batches.epoch = 0


def assert_equal(trainer: Any, model: Any, loss_of: Callable[[list[int]], torch.Tensor]) -> PlainLoop:
    """Train with both from the same weights, and compare each step's loss and gradients and the weights at the end."""
    loop = PlainLoop(model, trainer)
    loop.run(steps_of(trainer), loss_of)
    gradients, losses = Gradients(), step_losses(trainer)
    trainer.add_callback(gradients)
    trainer.train()
    assert list(losses.values()) == pytest.approx(loop.losses, abs=CLOSE, rel=0)
    # The library sums a step's micro-batches in float32.
    assert [event["loss"] for event in events(trainer, "train")] == pytest.approx(loop.losses, rel=1e-6)
    for ours, theirs in zip(gradients.steps, loop.gradients, strict=True):
        assert difference(ours, theirs) < CLOSE
    assert difference(weights(trainer.model), weights(model)) < CLOSE
    return loop


def step_losses(trainer: Any) -> dict[int, float]:
    """The losses of the steps that the trainer will make."""
    losses: dict[int, float] = {}
    plain = trainer.training_step

    def noted(*arguments: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = plain(*arguments, **options)
        step = trainer.state.global_step
        losses[step] = losses.get(step, 0.0) + loss.item()
        return loss

    trainer.training_step = noted
    return losses


def token_mean(model: Any) -> Callable[[list[int]], torch.Tensor]:
    def loss(examples: list[int]) -> torch.Tensor:
        return -torch.cat([logps(model, ROWS, example) for example in examples]).mean()

    return loss


@pytest.mark.parametrize("packing", ["Disabled", "Enabled"])
@pytest.mark.parametrize("micro_batch_size", MICRO_BATCHES)
def test_sft(base_model: Path, tokenizer: Any, tmp_path: Path, packing: str, micro_batch_size: int) -> None:
    settings = make_settings(
        base_model, tmp_path, epochs=2, warmup_percent=20, micro_batch_size=micro_batch_size, packing=packing
    )
    trainer = make_trainer(settings, tokenizer, ROWS, double=True)
    shake(trainer)
    assert trainer.parts.collator.layout is (Layout.SEGMENTED if packing == "Enabled" else Layout.PADDED)
    model = new_adapter(base_model)
    assert_equal(trainer, model, token_mean(model))


@pytest.mark.parametrize("variant", ["RSLoRA", "DoRA"])
def test_sft_with_other_adapters(base_model: Path, tokenizer: Any, tmp_path: Path, variant: str) -> None:
    settings = make_settings(base_model, tmp_path, epochs=1, micro_batch_size=3, lora_variant=variant)
    trainer = make_trainer(settings, tokenizer, ROWS, double=True)
    shake(trainer)
    model = new_adapter(base_model, use_rslora=variant == "RSLoRA", use_dora=variant == "DoRA")
    assert_equal(trainer, model, token_mean(model))


def test_sft_goes_on_from_a_parent(base_model: Path, tokenizer: Any, tmp_path: Path, parent: Path) -> None:
    settings = make_settings(base_model, tmp_path, epochs=1, micro_batch_size=3, parent_adapter=parent)
    trainer = make_trainer(settings, tokenizer, ROWS, double=True)
    model = PeftModel.from_pretrained(load_base(base_model), parent, is_trainable=True)
    assert difference(weights(trainer.model), weights(model)) == 0
    assert_equal(trainer, model, token_mean(model))


def pair_mean(policy: Any, reference: Any, settings: Any) -> Callable[[list[int]], torch.Tensor]:
    """The losses as their papers write them, one pair at a time."""
    beta, smoothing = settings.dpo_beta, settings.dpo_label_smoothing

    def pair_loss(chosen: torch.Tensor, example: int) -> torch.Tensor:
        ratios = []
        for rows, ours in ((PAIRS.chosen, chosen), (PAIRS.rejected, logps(policy, PAIRS.rejected, example))):
            with torch.no_grad():
                theirs = logps(reference, rows, example)
            difference = ours - theirs
            ratios.append(difference.mean() if settings.dpo_loss == "IPO" else difference.sum())
        margin = ratios[0] - ratios[1]
        if settings.dpo_loss == "IPO":
            return (margin - 1 / (2 * beta)) ** 2
        if settings.dpo_loss == "Hinge":
            return torch.clamp(1 - beta * margin, min=0)
        if settings.dpo_loss == "RobustSigmoid":
            kept, flipped = -logsigmoid(beta * margin), -logsigmoid(-beta * margin)
            return ((1 - smoothing) * kept - smoothing * flipped) / (1 - 2 * smoothing)
        return torch.log1p(torch.exp(-beta * margin))

    def loss(examples: list[int]) -> torch.Tensor:
        chosen = [logps(policy, PAIRS.chosen, example) for example in examples]
        pairs = torch.stack([pair_loss(found, example) for found, example in zip(chosen, examples, strict=True)])
        return pairs.mean() - settings.dpo_sft_weight * torch.cat(chosen).mean()

    return loss


FIRST_LOSSES = {"Sigmoid": math.log(2), "IPO": 25.0, "Hinge": 1.0, "RobustSigmoid": math.log(2)}
"""What a policy that is the reference loses, with beta 0.1."""


@pytest.mark.parametrize(
    ("loss", "micro_batch_size"),
    [*(("Sigmoid", size) for size in MICRO_BATCHES), ("IPO", 3), ("Hinge", 3), ("RobustSigmoid", 3)],
)
def test_dpo(base_model: Path, tokenizer: Any, tmp_path: Path, loss: str, micro_batch_size: int) -> None:
    """Two epochs: in the second one the reference's numbers are remembered."""
    settings = make_settings(
        base_model, tmp_path, method="DPO", dpo_loss=loss, epochs=2, micro_batch_size=micro_batch_size,
        dpo_label_smoothing=0.2 if loss == "RobustSigmoid" else 0,
    )  # fmt: skip
    trainer = make_trainer(settings, tokenizer, PAIRS, double=True)
    model = new_adapter(base_model)
    loop = assert_equal(trainer, model, pair_mean(model, load_base(base_model), settings))
    assert loop.losses[0] == pytest.approx(FIRST_LOSSES[loss], abs=CLOSE)
    assert loop.losses[-1] < loop.losses[0]


@pytest.mark.parametrize("changes", [{"dpo_sft_weight": 0.5}, {"dpo_beta": 0.7}, {"gradient_checkpointing": "Enabled"}])
@pytest.mark.parametrize("micro_batch_size", [3, 8])
def test_dpo_otherwise(
    base_model: Path, tokenizer: Any, tmp_path: Path, changes: dict[str, Any], micro_batch_size: int
) -> None:
    settings = make_settings(base_model, tmp_path, method="DPO", epochs=1, micro_batch_size=micro_batch_size, **changes)
    trainer = make_trainer(settings, tokenizer, PAIRS, double=True)
    shake(trainer)
    model = new_adapter(base_model)
    assert_equal(trainer, model, pair_mean(model, load_base(base_model), settings))


@pytest.mark.parametrize("changes", [{"dpo_loss": loss} for loss in FIRST_LOSSES] + [{"dpo_sft_weight": 0.5}])
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_dpo_of_padded_rows(
    base_model: Path, tokenizer: Any, tmp_path: Path, changes: dict[str, Any], micro_batch_size: int
) -> None:
    """With the model's own norms: no prompt is shared. The chosen answer takes part in both terms with one pass."""
    settings = make_settings(
        base_model, tmp_path, method="DPO", epochs=1, micro_batch_size=micro_batch_size, packing="Disabled", **changes
    )
    trainer = make_trainer(settings, tokenizer, PAIRS, double=True)
    shake(trainer)
    model = new_adapter(base_model)
    assert_equal(trainer, model, pair_mean(model, load_base(base_model), settings))


def test_dpo_with_attention_to_all_rows_at_once(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    """As on a GPU, with a stand-in for its kernel."""
    settings = make_settings(base_model, tmp_path, method="DPO", epochs=1, micro_batch_size=3)
    trainer = make_trainer(settings, tokenizer, PAIRS, double=True)
    calls: list[Any] = []

    def kernel(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments)
        return stand_in(*arguments, **options)

    trainer.model.set_attn_implementation("sdpa")
    assert use_segments(trainer.model, longest_row=100, kernel=kernel) is None
    calls.clear()
    shake(trainer)
    model = new_adapter(base_model)
    assert_equal(trainer, model, pair_mean(model, load_base(base_model), settings))
    assert len(calls) == 2 * 2 * 8  # policy and reference, two layers, 3 + 3 + 2 micro-batches


@pytest.mark.parametrize("remembered", [True, False])
def test_dpo_compares_with_the_parent(
    base_model: Path, tokenizer: Any, parent: Path, monkeypatch: pytest.MonkeyPatch, remembered: bool
) -> None:
    settings = make_settings(
        base_model, parent.parent, method="DPO", epochs=2, micro_batch_size=3, parent_adapter=parent, dpo_sft_weight=0.1
    )
    trainer = make_trainer(settings, tokenizer, PAIRS, double=True)
    passes = count_reference_passes(monkeypatch)
    if not remembered:
        trainer._reference = ReferenceLogps(0, torch.device("cpu"))
    policy = PeftModel.from_pretrained(load_base(base_model), parent, is_trainable=True)
    reference = PeftModel.from_pretrained(load_base(base_model), parent)
    loop = assert_equal(trainer, policy, pair_mean(policy, reference, settings))
    chosen = -torch.cat([logps(reference, PAIRS.chosen, example) for example in next(steps_of(trainer))]).mean()
    assert loop.losses[0] - 0.1 * float(chosen) == pytest.approx(math.log(2), abs=CLOSE)
    assert passes() == (8 if remembered else 16)  # an epoch has 3 + 3 + 2 micro-batches


def answer_mean(policy: Any, reference: Any, settings: Any) -> Callable[[list[int]], torch.Tensor]:
    """The losses as the paper writes them, one answer at a time, with the KL of the whole step."""

    def ratio(ids: list[int], labels: list[int], *, learn: bool) -> torch.Tensor:
        row = TokenRows()
        row.append(ids, labels)
        with torch.set_grad_enabled(learn):
            ours = logps(policy, row, 0).sum()
        with torch.no_grad():
            theirs = logps(reference, row, 0).sum()
        return ours - theirs

    def parts(example: int) -> tuple[list[int], list[int]]:
        ids, labels = (list(part) for part in LABELLED.row(example))
        border = sum(label == IGNORED for label in labels)
        return ids[:border], ids[border:]

    def loss(examples: list[int]) -> torch.Tensor:
        moved = []
        for index, example in enumerate(examples):
            prompt, answer = parts(example)[0], parts(examples[index - 1])[1]
            moved.append(ratio(prompt + answer, [IGNORED] * len(prompt) + answer, learn=False))
        kl = torch.stack(moved).mean().clamp(min=0)
        losses = []
        for example in examples:
            found = ratio(*map(list, LABELLED.row(example)), learn=True)
            if LABELLED.desirable[example]:
                losses.append(settings.kto_desirable_weight * (1 - torch.sigmoid(settings.kto_beta * (found - kl))))
            else:
                losses.append(settings.kto_undesirable_weight * (1 - torch.sigmoid(settings.kto_beta * (kl - found))))
        return torch.stack(losses).mean()

    return loss


@pytest.mark.parametrize("packing", ["Disabled", "Enabled"])
@pytest.mark.parametrize("micro_batch_size", MICRO_BATCHES)
def test_kto(base_model: Path, tokenizer: Any, tmp_path: Path, micro_batch_size: int, packing: str) -> None:
    """Two epochs: in the second one the reference's numbers are remembered; the KL is that of the step throughout."""
    settings = make_settings(
        base_model, tmp_path, method="KTO", epochs=2, micro_batch_size=micro_batch_size, packing=packing
    )
    trainer = make_trainer(settings, tokenizer, LABELLED, double=True)
    model = new_adapter(base_model)
    loop = assert_equal(trainer, model, answer_mean(model, load_base(base_model), settings))
    assert loop.losses[0] == pytest.approx(0.5, abs=CLOSE)
    assert loop.losses[-1] < loop.losses[0]
    assert max(event["kl"] for event in events(trainer, "train")) > 0


@pytest.mark.parametrize(
    "changes",
    [{"kto_desirable_weight": 1.5}, {"kto_undesirable_weight": 2}, {"kto_beta": 0.7},
     {"gradient_checkpointing": "Enabled"}],
)  # fmt: skip
@pytest.mark.parametrize("micro_batch_size", [3, 8])
def test_kto_otherwise(
    base_model: Path, tokenizer: Any, tmp_path: Path, changes: dict[str, Any], micro_batch_size: int
) -> None:
    settings = make_settings(base_model, tmp_path, method="KTO", epochs=1, micro_batch_size=micro_batch_size, **changes)
    trainer = make_trainer(settings, tokenizer, LABELLED, double=True)
    shake(trainer)
    model = new_adapter(base_model)
    assert_equal(trainer, model, answer_mean(model, load_base(base_model), settings))


def test_kto_compares_with_the_parent(base_model: Path, tokenizer: Any, parent: Path) -> None:
    settings = make_settings(
        base_model, parent.parent, method="KTO", epochs=2, micro_batch_size=3, parent_adapter=parent
    )
    trainer = make_trainer(settings, tokenizer, LABELLED, double=True)
    policy = PeftModel.from_pretrained(load_base(base_model), parent, is_trainable=True)
    reference = PeftModel.from_pretrained(load_base(base_model), parent)
    loop = assert_equal(trainer, policy, answer_mean(policy, reference, settings))
    assert loop.losses[0] == pytest.approx(0.5, abs=CLOSE)


def count_reference_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    calls: list[Any] = []
    plain = Reference.__call__
    monkeypatch.setattr(Reference, "__call__", lambda self: calls.append(self) or plain(self))
    return lambda: len(calls)


@pytest.fixture
def parent(base_model: Path, tmp_path: Path) -> Path:
    """An adapter that adds something, of another shape than a new one would have."""
    torch.manual_seed(5)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
    )  # fmt: skip
    model = get_peft_model(load_base(base_model), config)
    model.save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"
