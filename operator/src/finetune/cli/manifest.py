"""From flags, a file or an earlier run to the manifest of a TrainingRun. Pure: nothing here asks a cluster.

build(method="SFT", model="HuggingFaceTB/SmolLM2-135M-Instruct", dataset="tickets@2", adapter="support")
changed(spec, ["training.maxSteps=200", "learningRate=1e-4", "training.epochs="])
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from finetune.api import API_VERSION, KIND
from finetune.api.fields import ApiModel
from finetune.api.trainingrun import TrainingRunSpec

from .session import UsageError

Document = dict[str, Any]

MODEL_FORMS = "REPOSITORY[@REVISION] of the hub, or claim://CLAIM/PATH"
DATASET_FORMS = (
    "NAME[@VERSION] of the registry, hub://REPOSITORY[@REVISION], claim://CLAIM/PATH, configmap://NAME/KEY, "
    "or s3://BUCKET/PATH"
)


def model_source(text: str) -> Document:
    """`spec.baseModel` of what was typed."""
    scheme, _, rest = text.rpartition("://")
    if scheme in {"", "hub"}:
        repository, _, revision = rest.partition("@")
        return {"hub": {"repository": repository, **({"revision": revision} if revision else {})}}
    if scheme == "claim":
        claim, _, path = rest.partition("/")
        return {"volume": {"claimName": claim, **({"path": path} if path else {})}}
    raise UsageError(f"--model={text}: not known; it is {MODEL_FORMS}")


def dataset_source(text: str) -> Document:
    """`spec.dataset` of what was typed."""
    scheme, _, rest = text.rpartition("://")
    head, _, tail = rest.partition("/")
    match scheme:
        case "" | "registry":
            if rest.endswith((".jsonl", ".json", ".csv", ".parquet")) or "/" in rest:
                raise UsageError(
                    f"--dataset={text} looks like a file: `finetune datasets push NAME {rest}` stores it first"
                )
            return {"registry": named(rest, "--dataset")}
        case "hub":
            repository, _, revision = rest.partition("@")
            return {"hub": {"repository": repository, **({"revision": revision} if revision else {})}}
        case "claim" if tail:
            return {"volume": {"claimName": head, "path": tail}}
        case "configmap" if tail:
            return {"configMap": {"name": head, "key": tail}}
        case "s3" if tail:
            return {"objectStore": {"uri": text}}
    raise UsageError(f"--dataset={text}: not known; it is {DATASET_FORMS}")


def named(text: str, flag: str) -> Document:
    """A name with a version, as the API has them. The newest version is what is meant without a number."""
    name, _, version = text.partition("@")
    if version in {"", "latest"}:
        return {"name": name}
    if not (version.isascii() and version.isdigit() and int(version) > 0):
        raise UsageError(f"{flag}={text}: a run names a version by its number, such as {name}@3")
    return {"name": name, "version": int(version)}


def build(
    *,
    method: str,
    model: str,
    dataset: str,
    adapter: str | None = None,
    parent: str | None = None,
    experiment: str | None = None,
    gpus: int | None = None,
    memory: str | None = None,
    queue: str | None = None,
) -> Document:
    """The spec of a run from the flags that people use most."""
    spec: Document = {"method": method, "baseModel": model_source(model), "dataset": dataset_source(dataset)}
    if experiment:
        spec["experiment"] = experiment
    if parent:
        spec["parentAdapter"] = named(parent, "--parent")
    if adapter:
        spec["adapter"] = {"name": adapter}
    resources: Document = {"gpus": gpus, "memory": memory}
    if wanted := {key: value for key, value in resources.items() if value is not None}:
        spec["resources"] = wanted
    if queue:
        spec["scheduling"] = {"queueName": queue}
    return spec


def manifest(spec: Document, *, name: str | None, namespace: str | None = None, stem: str = "run") -> Document:
    """A TrainingRun; without a name the API server makes one up that begins with `stem`."""
    metadata: Document = {"name": name} if name else {"generateName": f"{stem[:50]}-"}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def copied(spec: Mapping[str, Any], *, name: str) -> Document:
    """The spec of another run like this one: the adapter and the experiment stay, although the name is another."""
    kept = {key: deepcopy(value) for key, value in spec.items() if key not in {"suspend", "resumeFrom"}}
    kept.setdefault("experiment", name)
    kept.setdefault("adapter", {"name": kept["experiment"]})
    return kept


def from_file(documents: Sequence[object], *, source: str) -> Document:
    """The one TrainingRun among the documents of a file."""
    found = [each for each in documents if isinstance(each, dict) and each.get("kind") == KIND]
    others = [each for each in documents if each is not None and each not in found]
    if len(found) != 1 or others:
        raise UsageError(
            f"{source} holds {len(found)} TrainingRuns and {len(others)} other documents, and one TrainingRun alone is "
            f"what is wanted: kubectl apply --filename={source} takes them all"
        )
    if not isinstance(found[0].get("spec"), dict) or not isinstance(found[0].get("metadata"), dict):
        raise UsageError(f"{source}: the TrainingRun has no spec or no metadata")
    return deepcopy(found[0])


def changed(spec: Mapping[str, Any], settings: Iterable[str]) -> Document:
    """The spec with settings, each `path=value`; an empty value takes the setting away.

    The path is the field's, such as `training.maxSteps`, or its last word where no other field ends so. The value is
    YAML; what is text in the API stays the text that it is.
    """
    import yaml

    result: Document = deepcopy(dict(spec))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: it is PATH=VALUE, such as training.maxSteps=200")
        path, annotation = resolve(key.strip().removeprefix("spec."))
        if text == "":
            _remove(result, path)
            continue
        try:
            value = text if is_text(annotation) else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting}: the value is no YAML: {error}") from error
        _put(result, path, value)
    return result


def check(spec: Mapping[str, Any]) -> None:
    """Refuse a spec whose fields cannot be what they are; the API server has the last word. Raises UsageError."""
    unknown = _unknown(TrainingRunSpec, spec, "")
    if unknown:
        raise UsageError("; ".join(unknown))
    try:
        TrainingRunSpec.model_validate(spec)
    except ValidationError as error:
        problems = (
            f"spec.{'.'.join(str(part) for part in each['loc'])}: {each['msg']}"
            for each in error.errors(include_url=False)
        )
        raise UsageError("; ".join(problems)) from error


def resolve(key: str) -> tuple[list[str], Any]:
    """The path of a field and its type, from the path or from its last word. Raises UsageError with what is close."""
    paths = dict(_paths(TrainingRunSpec, ()))
    parts = tuple(key.split("."))
    for length in range(len(parts), 0, -1):
        annotation = paths.get(parts[:length])
        if annotation is not None and (length == len(parts) or _is_free(annotation)):
            # what is below a field of free keys, such as a node selector, is one key: labels have dots
            rest = [".".join(parts[length:])] if length < len(parts) else []
            return [*parts[:length], *rest], str if rest else annotation
    same = [path for path in paths if path[-1] == key]
    if len(same) == 1:
        return list(same[0]), paths[same[0]]
    if same:
        raise UsageError(f"--set {key}: which one of {', '.join(sorted(map('.'.join, same)))}?")
    known = [".".join(path) for path in paths]
    close = difflib.get_close_matches(key, [*known, *(path[-1] for path in paths)], n=3)
    meant = (
        f"do you mean {', '.join(close)}?"
        if close
        else "docs/reference.md and `kubectl explain trainingrun.spec` name all"
    )
    raise UsageError(f"--set {key}: there is no such field; {meant}")


def _paths(model: type[ApiModel], prefix: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, field in model.model_fields.items():
        path = (*prefix, field.alias or name)
        yield path, field.annotation
        inner = _model_in(field.annotation)
        if inner is not None and len(path) < 8:
            yield from _paths(inner, path)


def _model_in(annotation: Any) -> type[ApiModel] | None:
    """The model that a field holds, itself or optional; lists of models are set as a whole."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    if _is_union(annotation) or typing.get_origin(annotation) is typing.Annotated:
        return next((found for each in typing.get_args(annotation) if (found := _model_in(each)) is not None), None)
    return None


def is_text(annotation: Any) -> bool:
    """Whether a field takes text only."""
    if typing.get_origin(annotation) is typing.Annotated:
        return is_text(typing.get_args(annotation)[0])
    if _is_union(annotation):
        return all(is_text(each) for each in typing.get_args(annotation) if each is not type(None))
    if typing.get_origin(annotation) is typing.Literal:
        return all(isinstance(each, str) for each in typing.get_args(annotation))
    return annotation is str


def _is_free(annotation: Any) -> bool:
    """Whether a field is a mapping with keys of the user's own."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _is_free(typing.get_args(annotation)[0])
    return typing.get_origin(annotation) is dict


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _put(target: Document, path: list[str], value: object) -> None:
    for key in path[:-1]:
        inner = target.get(key)
        target[key] = target = inner if isinstance(inner, dict) else {}
    target[path[-1]] = value


def _remove(target: Document, path: list[str]) -> None:
    for key in path[:-1]:
        inner = target.get(key)
        if not isinstance(inner, dict):
            return
        target = inner
    target.pop(path[-1], None)


def _unknown(model: type[ApiModel], given: Mapping[str, Any], prefix: str) -> list[str]:
    """What is wrong with the names of fields, and what they are like."""
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    problems = []
    for key, value in given.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            problems.append(f"spec.{prefix}{key}: there is no such field" + (f"; {close[0]}?" if close else ""))
            continue
        inner = _model_in(known[key].annotation)
        if inner is not None and isinstance(value, Mapping):
            problems += _unknown(inner, value, f"{prefix}{key}.")
    return problems
