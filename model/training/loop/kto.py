"""Kahneman-Tversky optimisation with LoRA: answers that are good or bad, each by itself.

The loss is TRL's, which follows Ethayarajh et al. 2024 (https://arxiv.org/abs/2402.01306, eq. 7). An answer's reward is
beta times how much likelier it has become than under the reference. A good answer loses weight * (1 - sigmoid(reward -
beta * kl)), a bad one weight * (1 - sigmoid(beta * kl - reward)); a policy that is its reference loses half the weight.

kl says how far the policy has moved altogether: the mean over mismatched answers, each prompt with the answer of
another row, of how much likelier they have become, or 0 when that is negative. No gradient goes through it. TRL takes
it over the rows of a forward pass; here it is taken over those of the optimizer step, before its first forward pass, so
that neither the micro-batch nor the number of processes changes the loss. A row's mismatched answer is that of the row
before it in the step, whose order follows from seed and epoch: a resumed run makes the same. A row that is the last
step of an epoch by itself takes the answer of the row before it in the dataset: without any, kl would be 0 however far
the policy has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from trl import KTOConfig, KTOTrainer

from model.training.config import TrainSettings
from model.training.loop.arguments import common_arguments
from model.training.loop.examples import Examples
from model.training.loop.layout import Batch, LabelCollator, Row, Step
from model.training.loop.parts import StepGivenUpError, TrainerParts
from model.training.loop.reference import ComparingLoop, ReferenceLogps
from model.training.processes import hang, interruption, parallel
from model.training.rows.encoding import IGNORED
from model.training.rows.preferences import Answer, Answered
from model.training.rows.tokens import TokenRows
from model.training.weights.adapters import in_float32, new_adapter

Mismatch = tuple[int, int]
"""Two rows by number: whose prompt, and whose answer."""


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of a batch's answers, and which of them are good, each (rows,)."""

    policy: torch.Tensor
    reference: torch.Tensor
    desirable: torch.Tensor


def answer_losses(answers: Answers, kl: float, settings: TrainSettings) -> torch.Tensor:
    """Return the weighted loss of each answer, (rows,)."""
    moved = settings.kto_beta * (answers.policy - answers.reference - kl)
    good = settings.kto_desirable_weight * torch.sigmoid(-moved)
    bad = settings.kto_undesirable_weight * torch.sigmoid(moved)
    return torch.where(answers.desirable, good, bad)


class LabelTrainer(ComparingLoop, KTOTrainer):
    """TRL's trainer with losses that do not depend on how a step is split, and a reference that draws no noise.

    Parameters
    ----------
    model, tokenizer
        The base model, to which a new adapter is added, or the base model with its parent adapter, of which a frozen
        copy is made; its tokenizer.
    rows, held_out
        Labelled rows to train on, and those to evaluate on.
    parts
        Everything else.
    """

    def __init__(self, model: Any, tokenizer: Any, rows: TokenRows, held_out: TokenRows, parts: TrainerParts) -> None:
        settings = parts.settings
        with in_float32(model):
            super().__init__(
                model=model,
                args=KTOConfig(
                    **common_arguments(parts), max_length=None, disable_dropout=settings.lora_dropout_percent == 0
                ),
                train_dataset=rows.as_dataset(),
                processing_class=tokenizer,
                data_collator=LabelCollator(parts.collator),
                peft_config=new_adapter(settings, model) if settings.parent_adapter is None else None,
            )
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._rows, self._held_out_rows = rows, held_out
        self._kl: float | None = None
        self._held_out_kl = 0.0
        self.start(parts, Examples(rows), Examples(held_out))
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._mismatched_length = min(settings.max_length, positions or settings.max_length)
        self._held_out_mismatches = mismatches(self._held_out.order, len(held_out))
        self._mismatched_reference = ReferenceLogps(len(held_out), self.args.device)

    def _prepare_dataset(self, dataset: Any, *_arguments: Any) -> Any:
        return dataset  # it is tokenised

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the step's rows, laid out, and their number."""
        self._kl = None
        return super().get_batch_samples(*args, **kwargs)

    def count_items(self, step: Step) -> int:
        """Return the number of this process's rows of the step."""
        return len(step.rows)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Go forward and backward; before the step's first forward pass all processes find out its kl."""
        if self._kl is None:
            self._kl = self._kl_of_step()
        return super().training_step(model, inputs, num_items_in_batch)

    def _kl_of_step(self) -> float:
        found = mismatches(self.batches.rows_of_step(self.state.global_step + 1), len(self._rows))
        sums = self._divergence(self._rows, found, ReferenceLogps(0, self.args.device), stop=interruption.overdue)
        if interruption.overdue():
            if parallel.world().size == 1:
                raise StepGivenUpError
            self._given_up = True  # the others are to hear of it
        return mean_divergence(parallel.total_sums(sums))

    def _divergence(
        self,
        rows: TokenRows,
        found: Sequence[Mismatch],
        known: ReferenceLogps,
        *,
        stop: Callable[[], bool],
    ) -> dict[str, float]:
        """Return the sum of how much likelier this process's share of mismatched answers has become, and their number.

        Parameters
        ----------
        rows
            Whose prompts and answers these are.
        found
            Which prompts with which answers.
        known
            What the reference has said about them, by the prompt's row.
        stop
            Is asked before each forward pass whether to leave out the rest.
        """
        place = parallel.world()
        groups = self._mismatched(rows, found[place.rank :: place.size])
        return self.sums_over(groups, self._lay_out, self._measure_kl(known), stop)

    def _mismatched(self, rows: TokenRows, found: Sequence[Mismatch]) -> list[list[Row]]:
        """Return the mismatched rows by forward pass."""
        # Rows that fit the base's positions may be too long for them once they are mismatched.
        limit, special = self._mismatched_length, self._special_ids
        made: list[Row] = []
        for prompt, answer in found:
            ids, labels = mismatched(rows, prompt, answer, limit, special)
            made.append({"input_ids": ids, "labels": labels, "row": prompt})
        lengths = [len(row["input_ids"]) for row in made]
        return [[made[index] for index in group] for group in self.batches.micro_batch.cut(range(len(made)), lengths)]

    def _lay_out(self, rows: Sequence[Row]) -> Batch:
        return self.parts.collator(rows) | {"row": [row["row"] for row in rows]}

    def _measure_kl(self, known: ReferenceLogps) -> Callable[[Batch], Mapping[str, Any]]:
        def measure(batch: Batch) -> Mapping[str, Any]:
            policy, reference, _ = self.compared(self.model, batch, batch["row"], known)
            return {"divergence": (policy - reference).sum(), "mismatches": len(policy)}

        return measure

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the answers' losses over the step's rows."""
        settings = self.parts.settings
        answers = self._answers(model, inputs, self._reference)
        count = len(answers.policy) if num_items_in_batch is None else num_items_in_batch
        loss = answer_losses(answers, self._kl or 0.0, settings).sum() / count
        self._measured.append(_rewards(answers, settings))
        return (loss, None) if return_outputs else loss

    def _answers(self, model: Any, batch: Batch, known: ReferenceLogps) -> Answers:
        policy, reference, _ = self.compared(model, batch, batch["row"], known)
        return Answers(policy.flatten(), reference.flatten(), batch["desirable"])

    def held_out_sums(self, *, stop_when_interrupted: bool = False) -> dict[str, float]:
        """Measure all held-out rows, their kl first; nothing when SIGTERM came and `stop_when_interrupted`."""
        with hang.during("in an evaluation"):
            sums = self._divergence(
                self._held_out_rows,
                self._held_out_mismatches,
                self._mismatched_reference,
                stop=lambda: stop_when_interrupted and interruption.requested(),
            )
        if stop_when_interrupted and parallel.interrupted():
            return {}
        self._held_out_kl = mean_divergence(parallel.total_sums(sums))
        return super().held_out_sums(stop_when_interrupted=stop_when_interrupted)

    def measure(self, batch: Batch) -> Mapping[str, Any]:
        """Return the sums of the answers' losses and rewards, and the loss of a policy that is the reference."""
        settings = self.parts.settings
        answers = self._answers(self.model, batch, self._held_out_reference)
        unchanged = Answers(answers.reference, answers.reference, answers.desirable)
        return _rewards(answers, settings) | {
            "loss": answer_losses(answers, self._held_out_kl, settings).sum(),
            "referenceLoss": answer_losses(unchanged, 0.0, settings).sum(),
        }

    def mean_loss(self, sums: Mapping[str, float]) -> float:
        """Return the mean loss of an answer."""
        return sums["loss"] / (sums["desirable"] + sums["undesirable"])

    def step_metrics(self) -> dict[str, float]:
        """Return the mean rewards of the step's good and bad answers, what is between them, and kl."""
        return _mean_rewards(self._sums) | {"kl": self._kl or 0.0}

    def final_evaluation(self) -> dict[str, float]:
        """Return the policy's loss over the held-out rows, the reference's, the rewards and kl."""
        sums = self.held_out_sums()
        return {
            "evaluationLoss": self.mean_loss(sums),
            "baseEvaluationLoss": self.base_loss(sums),
            **_mean_rewards(sums),
            "kl": self._held_out_kl,
        }

    def base_loss(self, sums: Mapping[str, float], **_stop: bool) -> float:
        """Return the reference's loss."""
        return sums["referenceLoss"] / (sums["desirable"] + sums["undesirable"])


def mismatches(rows: Sequence[int], of: int) -> list[Mismatch]:
    """Return each row with the one before it, and the first with the last.

    A row alone is returned with the one before it among all `of` rows; the only row of all has no other's answer.
    """
    if len(rows) == 1:
        return [(rows[0], (rows[0] - 1) % of)] if of > 1 else []
    return [(row, rows[index - 1]) for index, row in enumerate(rows)]


def mismatched(
    rows: TokenRows, prompt: int, answer: int, max_length: int, special_ids: frozenset[int]
) -> tuple[list[int], list[int]]:
    """Return ids and labels of one row's prompt with another's answer, cut as a row is that is too long."""
    (asked, _), (_, given) = _parts_of(rows, prompt), _parts_of(rows, answer)
    return Answered(asked, (given,)).cut(max_length, special_ids).sequences()[0]


def _parts_of(rows: TokenRows, number: int) -> tuple[list[int], Answer]:
    ids, labels = (list(values) for values in rows.row(number))
    border = next(index for index, label in enumerate(labels) if label != IGNORED)
    return ids[:border], Answer(ids[border:], labels[border:])


def mean_divergence(sums: Mapping[str, float]) -> float:
    """Return kl: the mean of how much likelier the mismatched answers have become, at least 0, and 0 without any."""
    return max(0.0, sums["divergence"] / sums["mismatches"]) if sums else 0.0


def _rewards(answers: Answers, settings: TrainSettings) -> dict[str, Any]:
    """Return sums over good and over bad answers; a reward is beta times how much likelier an answer has become."""
    with torch.no_grad():
        rewards, good = settings.kto_beta * (answers.policy - answers.reference), answers.desirable
        return {
            "desirable": good.sum(),
            "undesirable": (~good).sum(),
            "desirableReward": rewards.where(good, 0.0).sum(),
            "undesirableReward": rewards.where(~good, 0.0).sum(),
        }


def _mean_rewards(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the mean rewards as far as there are answers of the kind, and the margin where there are both."""
    kinds = ("desirable", "undesirable")
    means = {f"{kind}Reward": sums[f"{kind}Reward"] / sums[kind] for kind in kinds if sums[kind]}
    if len(means) == len(kinds):
        means["rewardMargin"] = means["desirableReward"] - means["undesirableReward"]
    return means
