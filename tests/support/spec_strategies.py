"""TrainingRun specs of every kind, made from the CRD's own schema: mostly ones that it accepts, at its edges too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from finetune.api.crd import build_crd
from finetune.api.fields import INT_OR_STRING, RULES, UNTYPED
from finetune.api.rules import DATASET_SOURCES, PARENT_GIVES

Node = dict[str, Any]
Spec = dict[str, Any]

SPEC: Node = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
ALWAYS = ("method", "baseModel", "dataset")
ONE_OF = {
    "spec.baseModel": ("hub", "volume"),
    "spec.dataset": (*DATASET_SOURCES, "mix"),
    "spec.dataset.mix": DATASET_SOURCES,
    "spec.dataset.evaluation": ("percent", "maxRows"),
}
"""Objects of which exactly one of these fields is set."""
HOSTILE = (
    *("a" * 63, "a" * 64, "a" * 253, "a." * 31 + "a", "a" * 253 + "/" + "b" * 63, "a" * 254 + "/b", "a." * 126 + "a/b"),
    *(".", "..", "-a", "a-", "a..b", "a..b/c", "A.b/c", "kubernetes.io/gpu", "requests.a.b/c", "a/b/c", "/a", "a/"),
    *("", " ", "a b", "a\nb", "a\0b", "\u00e9", "\U0001f600", "$(HOME)", "$$(A)", "$", "=", "a=b", "--seed=1", "null"),
    *("0", "0.0", "00.1", "9999", "999999m", "0.001", "1k", "999999999Ti", "1e-99", "true", "{}", "[1]", '"', "'"),
)
"""Text that has broken something somewhere: in a flag, a label, a path, a quantity or a shell."""
CHOICE = re.compile("[A-Z][A-Za-z0-9]+")
PATTERN = re.compile(r"matches\('\^(.*?)\$'\)")


def specs() -> st.SearchStrategy[Spec]:
    """Specs of TrainingRuns; every other one has something hostile in one place."""
    usual = _of(SPEC, "spec").map(plausible)
    hostile = st.builds(with_text, usual, st.integers(0, 100), st.sampled_from(HOSTILE))
    return usual | hostile


def with_text(spec: Spec, where: int, text: str) -> Spec:
    """The spec with another text in one of the places where it has one."""
    places = list(_places(spec))
    owner, key = places[where % len(places)]
    owner[key] = text
    return spec


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Owner and key of every text that is no choice of a few words."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, str) and not CHOICE.fullmatch(value):
            yield node, key
        elif isinstance(value, dict | list):
            yield from _places(value)


def _of(node: Node, path: str) -> st.SearchStrategy[Any]:
    if UNTYPED in node:
        numbers = st.floats(node["minimum"], node["maximum"], allow_nan=False) | st.integers(0, 10)
        return numbers | st.from_regex(re.compile(node["pattern"], re.ASCII), fullmatch=True)
    if INT_OR_STRING in node:
        return _text(node)
    if "enum" in node:
        return st.sampled_from(node["enum"])
    if "additionalProperties" in node:
        keys = _text(node)
        return st.dictionaries(keys, _text(node, which=1), max_size=3)
    match node["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            low, high = node["minimum"], node["maximum"]
            return st.sampled_from([low, high]) | st.integers(low, min(high, low + 100))
        case "array":
            return st.lists(_of(node["items"], path), min_size=node.get("minItems", 0), max_size=3)
        case "object":
            return _object(node, path)
        case _:
            return _text(node)


def _object(node: Node, path: str) -> st.SearchStrategy[Spec]:
    fields = {name: _of(each, f"{path}.{name}") for name, each in node["properties"].items()}
    needed = ALWAYS if path == "spec" else node.get("required", ())
    exclusive = ONE_OF.get(path, ())
    always = {name: fields[name] for name in needed}
    optional = {name: each for name, each in fields.items() if name not in (*needed, *exclusive)}
    plain = st.fixed_dictionaries(always, optional=optional)
    if not exclusive:
        return plain
    chosen = st.one_of(*(st.fixed_dictionaries({name: fields[name]}) for name in exclusive))
    return st.builds(lambda one, rest: {**one, **rest}, chosen, plain)


def _text(node: Node, which: int = 0) -> st.SearchStrategy[str]:
    """Text that keeps the field's rule, or any text where it has none."""
    longest = node.get("maxLength", 63)
    patterns = [each for rule in node.get(RULES, ()) for each in PATTERN.findall(rule["rule"])]
    usual: st.SearchStrategy[str] = st.text(min_size=node.get("minLength", 0), max_size=20)
    if patterns:
        pattern = patterns[min(which, len(patterns) - 1)].replace("\\\\", "\\")
        usual = st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True).filter(lambda text: len(text) <= longest)
    return usual


def plausible(spec: Spec) -> Spec:
    """The spec without what contradicts itself: only what is accepted says something about Jobs."""
    training, resources = spec.get("training", {}), spec.get("resources", {})
    if "epochs" in training:
        training.pop("maxSteps", None)
    batch = training.get("batchSize", 16)
    if "microBatchSize" in training:
        training["microBatchSize"] = min(training["microBatchSize"], batch)
    if "gpus" in resources:
        resources["gpus"] = min(resources["gpus"], batch)
        if not resources["gpus"]:
            spec.pop("quantization", None)
    if 0 in spec["dataset"].get("evaluation", {}).values():
        training.pop("earlyStoppingPatience", None)
    if len({"sharedMemory", "memory"} & resources.keys()) == 1:  # beside the other's default, which may be more or less
        resources.pop("sharedMemory", None)
        resources.pop("memory", None)
    if "parentAdapter" in spec:
        for field in PARENT_GIVES:
            spec.get("lora", {}).pop(field, None)
    if "claimName" in spec.get("output", {}):
        spec["output"].pop("claim", None)
    _method(spec)
    _mix(spec["dataset"].get("mix", []))
    for toleration in spec.get("scheduling", {}).get("tolerations", ()):
        _toleration(toleration)
    return spec


def _method(spec: Spec) -> None:
    dpo = spec.get("dpo", {})
    for source in (spec["dataset"], *spec["dataset"].get("mix", ())):
        _columns(source.get("columns", {}), spec["method"])
    if spec["method"] == "DPO":
        if (dpo.get("loss") == "RobustSigmoid") != ("labelSmoothing" in dpo):
            dpo.pop("labelSmoothing", None)
            dpo.pop("loss", None)
    else:
        spec.pop("dpo", None)
    if spec["method"] == "KTO":
        training = spec.get("training", {})
        training["batchSize"] = max(2, training.get("batchSize", 2))
    else:
        spec.pop("kto", None)


def _columns(columns: Spec, method: str) -> None:
    one = {"messages"} if len(columns) % 2 else {"prompt", "completion"}
    unused = {
        "SFT": {"chosen", "rejected", "label", *(one | {"text"} if len(columns) != 1 else ())},
        "DPO": {"messages", "completion", "label", "text"},
        "KTO": {"chosen", "rejected", "text", *one},
    }
    for field in unused[method]:
        columns.pop(field, None)


def _mix(mix: list[Spec]) -> None:
    """Names differ, one source is of the registry, and all have a weight or none."""
    weighted = len(mix) > 1 and all(len(source) % 2 for source in mix)
    for index, source in enumerate(mix):
        source.pop("maxRows" if weighted else "weight", None)
        if weighted:
            source.setdefault("weight", index + 1)
        if "name" in source:
            source["name"] = f"{source['name'][:20].rstrip('.-')}{index}"
        if "registry" in source and any("registry" in other for other in mix[:index]):
            source["configMap"] = {"name": "rows", "key": source.pop("registry")["name"]}


def _toleration(toleration: Spec) -> None:
    if not toleration.get("key"):
        toleration["operator"] = "Exists"
    if toleration.get("operator") == "Exists":
        toleration.pop("value", None)
    if "tolerationSeconds" in toleration:
        toleration["effect"] = "NoExecute"
