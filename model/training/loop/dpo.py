"""Direct preference optimisation with LoRA: TRL's trainer with its losses computed from the answers' tokens alone.

The losses are TRL's, which follow Rafailov et al. 2023 (Sigmoid, https://arxiv.org/abs/2305.18290), Zhao et al. 2023
(Hinge, https://arxiv.org/abs/2305.10425), Azar et al. 2023 (IPO, https://arxiv.org/abs/2310.12036) and Chowdhury et
al. 2024 (RobustSigmoid, https://arxiv.org/abs/2403.00409). The policy that is trained is compared with a reference:
the parent adapter as it was, or the plain base model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer

from model.training.config import TrainSettings
from model.training.loop.arguments import common_arguments
from model.training.loop.examples import PairExamples
from model.training.loop.layout import Batch, PairCollator, Step
from model.training.loop.parts import TrainerParts
from model.training.loop.reference import ComparingLoop, ReferenceLogps
from model.training.processes import parallel
from model.training.rows.tokens import PreferenceRows
from model.training.weights.adapters import in_float32, new_adapter


@dataclass(frozen=True)
class Pairs:
    """Log-probabilities of a batch's answers, each (pairs, 2): the chosen ones and the rejected ones."""

    policy: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor
    """Learned tokens of each answer."""


def pair_losses(pairs: Pairs, settings: TrainSettings) -> torch.Tensor:
    """Return the loss of each pair, (pairs,), without the share of `dpo_sft_weight`."""
    beta = settings.dpo_beta
    ratios = pairs.policy - pairs.reference
    if settings.dpo_loss == "IPO":
        # Per token, as its authors computed it: a sum's square would grow with the answers' lengths.
        ratios = ratios / pairs.tokens.clamp(min=1)
    difference = ratios[:, 0] - ratios[:, 1]
    if settings.dpo_loss == "IPO":
        return (difference - 1 / (2 * beta)) ** 2
    if settings.dpo_loss == "Hinge":
        return torch.relu(1 - beta * difference)
    if settings.dpo_loss == "RobustSigmoid":
        smoothing = settings.dpo_label_smoothing
        right, flipped = -logsigmoid(beta * difference), -logsigmoid(-beta * difference)
        return ((1 - smoothing) * right - smoothing * flipped) / (1 - 2 * smoothing)
    return -logsigmoid(beta * difference)


class PreferenceTrainer(ComparingLoop, DPOTrainer):
    """TRL's trainer with losses that do not depend on how a step is split, and a reference that draws no noise.

    Parameters
    ----------
    model, tokenizer
        The base model, to which a new adapter is added, or the base model with its parent adapter, of which a frozen
        copy is made; its tokenizer.
    pairs, held_out
        Pairs to train on, and those to evaluate on.
    parts
        Everything else.
    """

    rows_per_example = 2

    def __init__(
        self, model: Any, tokenizer: Any, pairs: PreferenceRows, held_out: PreferenceRows, parts: TrainerParts
    ) -> None:
        settings = parts.settings
        with in_float32(model):
            super().__init__(
                model=model,
                args=DPOConfig(
                    **common_arguments(parts), max_length=None, disable_dropout=settings.lora_dropout_percent == 0
                ),
                train_dataset=pairs.chosen.as_dataset(),  # TRL asks for one and never looks at it
                processing_class=tokenizer,
                data_collator=PairCollator(parts.collator),
                peft_config=new_adapter(settings, model) if settings.parent_adapter is None else None,
            )
        self._chosen_tokens = 0
        joined = parts.collator.joins
        self.start(parts, PairExamples(pairs, joined=joined), PairExamples(held_out, joined=joined))

    def _prepare_dataset(self, dataset: Any, *_arguments: Any) -> Any:
        return dataset  # it is tokenised

    def count_items(self, step: Step) -> int:
        """Return the number of this process's pairs of the step, and find out that of all chosen answers' tokens."""
        chosen = sum(sum(batch["shape"].learned[::2]) for batch in step.micro_batches)
        (self._chosen_tokens,) = parallel.totals(chosen)
        return len(step.rows)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the pairs' losses over the step's pairs, and the chosen answers' over the step's chosen tokens."""
        settings = self.parts.settings
        pairs = self._compare(model, inputs, self._reference)
        count = len(pairs.policy) if num_items_in_batch is None else num_items_in_batch
        loss = pair_losses(pairs, settings).sum() / count
        if settings.dpo_sft_weight:
            chosen = pairs.tokens[:, 0].sum() if num_items_in_batch is None else self._chosen_tokens
            loss = loss - settings.dpo_sft_weight * pairs.policy[:, 0].sum() / chosen
        self._measured.append(_rewards(pairs, settings))
        return (loss, None) if return_outputs else loss

    def _compare(self, model: Any, batch: Batch, known: ReferenceLogps) -> Pairs:
        return Pairs(*self.compared(model, batch, batch["pair"], known))

    def measure(self, batch: Batch) -> Mapping[str, Any]:
        """Return the sums of the pairs' losses and rewards and of the chosen answers' losses, and the reference's."""
        settings = self.parts.settings
        pairs = self._compare(self.model, batch, self._held_out_reference)
        unchanged = Pairs(pairs.reference, pairs.reference, pairs.tokens)
        return _rewards(pairs, settings) | {
            "chosenTokens": pairs.tokens[:, 0].sum(),
            "loss": pair_losses(pairs, settings).sum(),
            "chosenLoss": -pairs.policy[:, 0].sum(),
            "referenceLoss": pair_losses(unchanged, settings).sum(),
            "referenceChosenLoss": -pairs.reference[:, 0].sum(),
        }

    def mean_loss(self, sums: Mapping[str, float]) -> float:
        """Return the mean loss of a pair, with the share of the chosen answers' tokens."""
        return self._mean(sums, "loss", "chosenLoss")

    def _mean(self, sums: Mapping[str, float], loss: str, chosen: str) -> float:
        weight = self.parts.settings.dpo_sft_weight
        return sums[loss] / sums["pairs"] + weight * sums[chosen] / sums["chosenTokens"]

    def step_metrics(self) -> dict[str, float]:
        """Return the share of the step's pairs that are told apart the right way, and by how much on average."""
        return _mean_rewards(self._sums)

    def final_evaluation(self) -> dict[str, float]:
        """Return the policy's loss over the held-out pairs, the reference's, and the rewards."""
        sums = self.held_out_sums()
        return {
            "evaluationLoss": self.mean_loss(sums),
            "baseEvaluationLoss": self.base_loss(sums),
            **_mean_rewards(sums),
        }

    def base_loss(self, sums: Mapping[str, float], **_stop: bool) -> float:
        """Return the reference's loss."""
        return self._mean(sums, "referenceLoss", "referenceChosenLoss")


def _rewards(pairs: Pairs, settings: TrainSettings) -> dict[str, Any]:
    """Return sums over pairs; a reward is beta times how much likelier an answer has become."""
    with torch.no_grad():
        rewards = settings.dpo_beta * (pairs.policy - pairs.reference)
        margins = rewards[:, 0] - rewards[:, 1]
        return {"pairs": len(margins), "correct": (margins > 0).sum(), "margin": margins.sum()}


def _mean_rewards(sums: Mapping[str, float]) -> dict[str, float]:
    return {"rewardAccuracy": sums["correct"] / sums["pairs"], "rewardMargin": sums["margin"] / sums["pairs"]}
