"""CEL rules that look at more than one field: by model, in the order in which they are reported.

Rules of a single field stand beside the field. Every message says what to change. A rule of a model that is a
default asks `has` of every field: the API server checks the default `{}` before it fills in the defaults inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from .fields import ApiModel, rule
from .sources import BaseModelSource, Columns, Dataset, Evaluation, MixedDataset
from .trainingrun import (
    Dpo,
    Lora,
    Output,
    Resources,
    Toleration,
    Training,
    TrainingRun,
    TrainingRunSpec,
)

MUTABLE_FIELDS = frozenset({"suspend"})
"""Fields of the spec that may change."""

IMMUTABLE_MESSAGE = "spec is immutable except suspend: create a TrainingRun with a new name"

BASE_MODEL_SOURCES = ("hub", "volume")
DATASET_SOURCES = ("registry", "sql", "hub", "objectStore", "volume", "configMap")
BATCH_SIZE = Training.model_fields["batch_size"].default
SHARED_MEMORY = Resources.model_fields["shared_memory"].default
PARENT_GIVES = ("rank", "alpha", "targetModules", "variant")
"""Fields of lora that a run takes from its parent adapter."""

ADD_METHOD = "add spec.method: SFT, DPO or KTO"
ADD_BASE_MODEL = (
    "add spec.baseModel with exactly one source: hub: {repository: ...} or volume: {claimName: ..., path: ...}"
)
ADD_DATASET = (
    "add spec.dataset with exactly one source: registry: {name: ...}, sql: {urlSecretRef: ..., query: ...}, "
    "hub: {repository: ...}, objectStore: {uri: ...}, volume: {claimName: ..., path: ...} or "
    "configMap: {name: ..., key: ...}; several of them stand in mix: [...]"
)
ADD_MIXED = "give each entry of dataset.mix exactly one source: registry, sql, hub, objectStore, volume or configMap"
ONE_SHAPE = (
    "set the columns of one shape: messages and tools; prompt, completion and tools; chosen, rejected, tools and one "
    "of prompt and messages; or text alone; label goes with messages or completion"
)
FROM_THE_PARENT = (
    "lora.rank, alpha, targetModules and variant come from the parent adapter: leave them out, or leave out "
    "parentAdapter"
)


def _exactly_one(owner: str, fields: Iterable[str]) -> str:
    flags = ", ".join(f"has({owner}.{field})" for field in fields)
    return f"[{flags}].filter(x, x).size() == 1"


def _immutable(fields: Iterable[str]) -> str:
    """No field changes, appears or disappears; the form that keeps within the API server's cost budget."""
    return " && ".join(
        f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})"
        for name in fields
    )


def _any_of(owner: str, fields: Iterable[str]) -> str:
    return "(" + " || ".join(f"has({owner}.{field})" for field in fields) + ")"


def _different(owner: str, fields: Iterable[str]) -> str:
    """No two of the fields that are set have the same value."""
    return " && ".join(
        f"!(has({owner}.{one}) && has({owner}.{other}) && {owner}.{one} == {owner}.{other})"
        for one, other in combinations(fields, 2)
    )


def _aliases(model: type[ApiModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _columns_of(methods: Iterable[str], fields: Iterable[str]) -> str:
    """With any other method, none of the columns is mapped."""
    columns = "self.dataset.columns"
    mapped = f"has(self.dataset) && has({columns}) && {_any_of(columns, fields)}"
    mixed = f"self.dataset.mix.exists(m, has(m.columns) && {_any_of('m.columns', fields)})"
    return (
        f"!has(self.method) || self.method in {list(methods)} || "
        f"!({mapped}) && !(has(self.dataset) && has(self.dataset.mix) && {mixed})"
    )


HAS_HELD_OUT_ROWS = (
    "!has(self.dataset) || !has(self.dataset.evaluation) || "
    "(has(self.dataset.evaluation.percent) && self.dataset.evaluation.percent > 0) || "
    "(has(self.dataset.evaluation.maxRows) && self.dataset.evaluation.maxRows > 0)"
)

MODEL_RULES: dict[type[ApiModel], tuple[dict[str, str], ...]] = {
    TrainingRun: (
        rule(
            "self.metadata.name.size() <= 63",
            "metadata.name must be no longer than 63 characters: it becomes a label",
        ),
        rule(
            "has(self.spec)",
            "add spec with method, baseModel and dataset",
            reason="FieldValueRequired",
        ),
        rule(
            "!has(self.spec) || !has(self.spec.resumeFrom) || self.spec.resumeFrom.run != self.metadata.name",
            "spec.resumeFrom.run must be another run: this run goes on from its own checkpoints by itself",
        ),
    ),
    TrainingRunSpec: (
        rule(
            _immutable(alias for alias in _aliases(TrainingRunSpec) if alias not in MUTABLE_FIELDS),
            IMMUTABLE_MESSAGE,
            reason="FieldValueForbidden",
        ),
        rule("has(self.method)", ADD_METHOD, reason="FieldValueRequired"),
        rule("has(self.baseModel)", ADD_BASE_MODEL, reason="FieldValueRequired"),
        rule("has(self.dataset)", ADD_DATASET, reason="FieldValueRequired"),
        rule(
            f"!has(self.training) || !has(self.training.earlyStoppingPatience) || ({HAS_HELD_OUT_ROWS})",
            "training.earlyStoppingPatience needs held-out rows: set dataset.evaluation.percent or "
            "dataset.evaluation.maxRows above 0",
        ),
        rule(
            "!has(self.dpo) || !has(self.method) || self.method == 'DPO'",
            "dpo is for the method DPO only: set method: DPO, or leave dpo out",
        ),
        rule(
            "!has(self.kto) || !has(self.method) || self.method == 'KTO'",
            "kto is for the method KTO only: set method: KTO, or leave kto out",
        ),
        rule(
            "!has(self.method) || self.method != 'KTO' || !has(self.training) || !has(self.training.batchSize) "
            "|| self.training.batchSize >= 2",
            "training.batchSize must be 2 or more for the method KTO: it compares with another row's answer",
        ),
        rule(
            f"!has(self.parentAdapter) || !has(self.lora) || !{_any_of('self.lora', PARENT_GIVES)}",
            FROM_THE_PARENT,
        ),
        rule(
            "!has(self.quantization) || self.quantization == 'None' || !has(self.resources) "
            "|| !has(self.resources.gpus) || self.resources.gpus >= 1",
            "quantization needs a GPU: set resources.gpus to 1 or more, or quantization: None",
        ),
        rule(
            "!has(self.resources) || !has(self.resources.gpus) || self.resources.gpus <= "
            f"(has(self.training) && has(self.training.batchSize) ? self.training.batchSize : {BATCH_SIZE})",
            "training.batchSize must be at least resources.gpus: each GPU needs an example of every step",
        ),
        rule(
            _columns_of(("DPO",), ("chosen", "rejected")),
            "dataset.columns.chosen and rejected are for the method DPO: leave them out, or set method: DPO",
        ),
        rule(
            _columns_of(("SFT", "KTO"), ("completion",)),
            "dataset.columns.completion is for the methods SFT and KTO: map prompt, chosen and rejected, or set "
            "method: SFT",
        ),
        rule(
            _columns_of(("SFT",), ("text",)),
            "dataset.columns.text is for the method SFT: leave it out, or set method: SFT",
        ),
        rule(
            _columns_of(("KTO",), ("label",)),
            "dataset.columns.label is for the method KTO: leave it out, or set method: KTO",
        ),
    ),
    BaseModelSource: (rule(_exactly_one("self", BASE_MODEL_SOURCES), ADD_BASE_MODEL),),
    Dataset: (
        rule(_exactly_one("self", (*DATASET_SOURCES, "mix")), ADD_DATASET),
        rule(
            "!has(self.mix) || self.mix.filter(m, has(m.registry)).size() <= 1",
            "only one source of dataset.mix may be of the registry, which records one dataset for each run: put the "
            "rows of the others on a claim, or into one dataset",
        ),
        rule(
            "!has(self.mix) "
            "|| self.mix.all(m, !has(m.name) || self.mix.exists_one(n, has(n.name) && n.name == m.name))",
            "each source of dataset.mix needs a name of its own",
        ),
        rule(
            "!has(self.mix) || self.mix.filter(m, has(m.weight)).size() != 1",
            "one weight alone says nothing: give other sources of dataset.mix a weight, too, or use maxRows",
        ),
        rule(
            "!has(self.mix) || !self.mix.exists(m, has(m.weight)) || self.mix.all(m, has(m.weight) || has(m.maxRows))",
            "where one source of dataset.mix has a weight, each needs one, or maxRows",
        ),
    ),
    MixedDataset: (
        rule(_exactly_one("self", DATASET_SOURCES), ADD_MIXED),
        rule("!(has(self.weight) && has(self.maxRows))", "set either weight or maxRows, not both"),
    ),
    Columns: (
        rule(
            f"!(has(self.messages) && {_any_of('self', ('prompt', 'completion'))}) "
            f"&& !({_any_of('self', ('completion', 'label'))} && {_any_of('self', ('chosen', 'rejected'))}) "
            f"&& !(has(self.text) && {_any_of('self', [name for name in _aliases(Columns) if name != 'text'])})",
            ONE_SHAPE,
        ),
        rule(_different("self", _aliases(Columns)), "each field needs a column of its own"),
    ),
    Evaluation: (
        rule(
            _exactly_one("self", ("percent", "maxRows")),
            "set exactly one of percent and maxRows (percent: 0 holds out nothing), or leave evaluation out, for 5 "
            "percent and at most 500 rows",
        ),
    ),
    Training: (
        rule("!(has(self.epochs) && has(self.maxSteps))", "set either epochs or maxSteps, not both"),
        rule(
            "!has(self.microBatchSize) || self.microBatchSize <= self.batchSize",
            "microBatchSize must be at most batchSize: it is the part of a batch that is computed at once",
        ),
    ),
    Dpo: (
        rule(
            # It is untyped, so that CEL knows of no such field, but for this.
            "has(dyn(self).labelSmoothing) == (has(self.loss) && self.loss == 'RobustSigmoid')",
            "labelSmoothing and loss: RobustSigmoid belong together: set both, or neither",
        ),
    ),
    Lora: (
        rule(
            "!has(self.targetModules) || self.targetModules.size() == 1 "
            "|| !self.targetModules.exists(m, m == 'all-linear')",
            "targetModules must be either [all-linear] or names of modules",
        ),
        rule(
            "!has(self.targetModules) || !self.targetModules.exists(m, m == 'lm_head')",
            "targetModules must not contain lm_head: the output layer cannot be adapted",
        ),
    ),
    Output: (
        rule(
            "!(has(self.claimName) && has(self.claim))",
            "set either claimName, for a claim that exists, or claim, for a new one",
        ),
    ),
    Resources: (
        rule(
            "!has(self.sharedMemory) || !has(self.memory) "
            "|| quantity(string(self.sharedMemory)).compareTo(quantity(string(self.memory))) < 0",
            "sharedMemory must be less than memory, for what is used of it counts as memory: raise memory, or lower "
            f"sharedMemory (default: {SHARED_MEMORY})",
        ),
    ),
    Toleration: (
        rule("self.operator != 'Exists' || !has(self.value)", "value must be left out when operator is Exists"),
        rule(
            "(has(self.key) && self.key != '') || self.operator == 'Exists'",
            "operator must be Exists when there is no key",
        ),
        rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "effect must be NoExecute when tolerationSeconds is set",
        ),
    ),
}
