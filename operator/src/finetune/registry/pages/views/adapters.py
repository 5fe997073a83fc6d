"""Adapters: the list, the versions of one, and how one is served."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune.api.files import AdapterAlias
from finetune.api.registry import AdapterVersion
from finetune.registry.pages.text import age, change, clean, decimal, moment, number, percent, size

from .run import Fact
from .runs import base_path

MARKS = ("Deprecated", "Archived", "Quarantined")
WITHHELD = ("Deleted", "Quarantined")
VLLM_RANK = 16
"""Highest rank that vLLM serves unless it is told otherwise."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What its --max-lora-rank takes."""


@dataclass(frozen=True, kw_only=True)
class VersionRow:
    """One line of a table of versions."""

    name: str
    version: int
    href: str
    state: str
    kind: str
    """`good`, `bad` or `idle`, as for runs."""
    why: str
    run: str
    run_href: str
    loss: str
    share: str
    is_worse: bool
    rank: str
    size: str
    base: str
    age: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """Something to paste."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class VersionView:
    """The chosen version."""

    row: VersionRow
    facts: tuple[Fact, ...]
    files: tuple[Fact, ...]
    snippets: tuple[Snippet, ...]
    archive: str
    """Where the files can be had in one; empty where the store has none, or does not give them out."""
    why_not: str
    """Why there is no archive."""
    notes: str
    mark: str


def version_row(namespace: str, version: AdapterVersion, now: datetime, *, rank: str = "") -> VersionRow:
    """The line of one version."""
    base = base_path(namespace)
    loss = decimal(version.evaluation_loss)
    share = change(loss, decimal(version.base_evaluation_loss))
    model = version.base_model.name.rstrip("/").rpartition("/")[2]
    revision = f"@{version.base_model.revision[:7]}" if version.base_model.revision else ""
    kinds = {"Ready": "good", "Quarantined": "bad", "Deleted": "idle"}
    return VersionRow(
        name=version.name,
        version=version.version,
        href=f"{base}/adapters/{version.name}?version={version.version}",
        state=version.state,
        kind=kinds.get(version.state, "idle"),
        why=version.state_reason or "",
        run=version.run_name,
        run_href=f"{base}/runs/{version.run_uid}",
        loss=number(loss),
        share=percent(share),
        is_worse=bool(share and share > 0),
        rank=rank,
        size=size(version.bytes),
        base=f"{model}{revision}",
        age=age(version.created_time, now),
        aliases=tuple(version.aliases),
        tags=version.tags,
    )


def rank_of(spec: Mapping[str, Any]) -> int:
    """The rank that a run was made with."""
    lora = spec.get("lora")
    rank = lora.get("rank") if isinstance(lora, Mapping) else None
    return rank if isinstance(rank, int) and not isinstance(rank, bool) else 16


def version_view(namespace: str, version: AdapterVersion, now: datetime, *, rank: int) -> VersionView:
    """The panel of the chosen version."""
    base = base_path(namespace)
    withheld = version.state in WITHHELD
    given = version.stored and not withheld
    return VersionView(
        row=version_row(namespace, version, now, rank=str(rank)),
        facts=tuple(_facts(namespace, version)),
        files=tuple(Fact(name=file.path, value=f"{size(file.bytes)}, SHA-256 {file.sha256}") for file in version.files),
        snippets=() if withheld else snippets(namespace, version, rank=rank),
        archive=f"{base}/adapters/{version.name}/{version.version}/archive.tar" if given else "",
        why_not=""
        if given
        else f"It is {version.state.lower()}: its files are given to nobody."
        if withheld
        else f"The store does not have its files; they are at {version.uri}.",
        notes=version.notes,
        mark=version.state if version.state in MARKS else "",
    )


def _facts(namespace: str, version: AdapterVersion) -> list[Fact]:
    base = base_path(namespace)
    facts = [
        Fact(name="base model", value=version.base_model.name),
        Fact(name="run", value=version.run_name, href=f"{base}/runs/{version.run_uid}"),
        Fact(name="made", value=moment(version.created_time)),
        Fact(name="SHA-256", value=version.sha256),
        Fact(name="place on the claim", value=version.uri),
        Fact(name="steps", value=f"{version.steps:,}" + (f", best {version.best_step:,}" if version.best_step else "")),
    ]
    if version.base_model.revision:
        facts.insert(1, Fact(name="revision", value=version.base_model.revision))
    if version.dataset_name:
        href = f"{base}/datasets/{version.dataset_name}?version={version.dataset.version}"
        facts.append(Fact(name="dataset", value=f"{version.dataset_name}/{version.dataset.version}", href=href))
    facts.append(Fact(name="rows learned", value=f"{version.dataset.rows:,}"))
    facts += [
        Fact(name=f"source {source.name}", value=f"{source.rows:,} of {source.found:,} rows")
        for source in version.dataset.sources or ()
    ]
    if version.parent:
        href = f"{base}/adapters/{version.parent.name}?version={version.parent.version}"
        facts.append(Fact(name="went on from", value=f"{version.parent.name}@{version.parent.version}", href=href))
    if version.reward_accuracy:
        facts.append(Fact(name="reward accuracy", value=version.reward_accuracy))
    return facts


def snippets(namespace: str, version: AdapterVersion, *, rank: int) -> tuple[Snippet, ...]:
    """Commands and manifests that serve the version; every name in them is quoted for where it stands."""
    name, number_ = version.name, version.version
    folder = f"{name}-v{number_}"
    model = clean(version.base_model.name)
    revision = clean(version.base_model.revision or "")
    pull = f"finetune adapters pull {name}@{number_} -n {namespace}"
    serve = ["vllm serve", shlex.quote(model)]
    if revision:
        serve.append(f"--revision {shlex.quote(revision)}")
    serve.append("--enable-lora")
    if rank > VLLM_RANK:
        serve.append(f"--max-lora-rank {next((each for each in RANKS if each >= rank), RANKS[-1])}")
    serve.append(f"--lora-modules {name}=./{folder}")
    load = f"{model!r}" + (f", revision={revision!r}" if revision else "")
    peft = (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({load})\n"
        f"model = PeftModel.from_pretrained(base, {'./' + folder!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({load})\n"
    )
    return (
        Snippet(title="Files", text=pull),
        Snippet(title="vLLM", text=f"{pull}\n{' '.join(serve)}"),
        Snippet(title="PEFT", text=peft),
        Snippet(title="KServe", text=_kserve(version, model, rank)),
    )


def _kserve(version: AdapterVersion, model: str, rank: int) -> str:
    import yaml

    claim, _, path = version.uri.removeprefix("pvc://").partition("/")
    arguments = ["--enable-lora", f"--lora-modules={version.name}=/mnt/adapters/{path}"]
    if rank > VLLM_RANK:
        arguments.append(f"--max-lora-rank={next((each for each in RANKS if each >= rank), RANKS[-1])}")
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": version.name.replace(".", "-")},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "huggingface"},
                    "storageUri": f"hf://{model}",
                    "args": arguments,
                    "volumeMounts": [{"name": "adapters", "mountPath": "/mnt/adapters", "readOnly": True}],
                },
                "volumes": [{"name": "adapters", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}],
            }
        },
    }
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=False, width=110)
    return text


def alias_rows(aliases: Sequence[AdapterAlias], now: datetime) -> list[dict[str, Any]]:
    """Aliases with when they were moved."""
    return [
        {
            "alias": each.alias,
            "version": each.version,
            "protected": each.protected,
            "moved": age(each.moved_time, now),
        }
        for each in aliases
    ]
