"""Preference training on top of the demo's adapter: whole answers are preferred to answers that break off.

    python -m examples.demo_dpo      or: make demo-dpo

Trains the demo's adapter first if none is registered. Prints what it does and how long each part took, and writes
out/demo-dpo.json. Exits 0 only if the adapter is registered, its files on the claim hash to what the registry says, its
lineage names the parent, and its rewards prefer the chosen answer in at least 85 % of the held-out pairs.
"""

from __future__ import annotations

import sys
from typing import Any

from examples import demo
from tests.support.installation import Installation
from tests.support.kubectl import Kubectl, is_true

DATASET = "python-stdlib-preferences"
ADAPTER = "python-helper-dpo"
MINIMUM_ACCURACY = 0.85
HELD_OUT_PAIRS = 32
TRAINING = {"maxSteps": 24, "batchSize": 4, "learningRate": "1e-4", "maxLength": 128, "checkpointSteps": 12}

Document = dict[str, Any]


def main() -> int:
    """Run the demo; returns the exit code."""
    report = demo.Report("demo-dpo.json")
    installation, team = demo.prepare(report)
    parent = newest(installation, team, demo.ADAPTER)
    if parent is None:
        problems = demo.train(installation, team, demo.Report("demo.json"))
        parent = newest(installation, team, demo.ADAPTER)
        if problems or parent is None:
            return demo.tell(report, problems or [f"no adapter {demo.ADAPTER} is registered"])
    print(f"==> the parent: {parent['name']} version {parent['version']}, {parent['uri']}")
    problems = prefer(installation, team, parent, report)
    report.write()
    return demo.tell(report, problems)


def prefer(installation: Installation, team: Kubectl, parent: Document, report: demo.Report) -> list[str]:
    """Train the parent further on pairs of answers and check what came of it; returns what is wrong."""
    with report.part("a dataset: whole answers, and answers that break off"):
        demo.push_dataset(installation, team, DATASET, "preferences.jsonl")
    name = demo.next_name(team, "demo-dpo")
    with report.part(f"the TrainingRun {name}", "runSeconds"):
        run = demo.follow(team, manifest(name), report)
    demo.show(team, run)
    if not is_true(run, "Succeeded"):
        return [f"{name} did not succeed"]
    return check(installation, team, run, parent, report)


def newest(installation: Installation, team: Kubectl, name: str) -> Document | None:
    """The newest version of an adapter; None when none is registered."""
    with installation.registry(team) as registry:
        listed: list[Document] = registry.json("adapters", "list")
        if name not in {adapter["name"] for adapter in listed}:
            return None
        found: Document = registry.json("adapters", "show", name)
    return found


def manifest(name: str) -> Document:
    """The demo's run of preference training."""
    run = demo.manifest(name)
    run["spec"] |= {
        "experiment": DATASET,
        "method": "DPO",
        "parentAdapter": {"name": demo.ADAPTER},
        "dataset": {"registry": {"name": DATASET}, "evaluation": {"maxRows": HELD_OUT_PAIRS}},
        "training": TRAINING,
        "adapter": {"name": ADAPTER},
    }
    del run["spec"]["lora"]  # the parent's
    return run


def check(
    installation: Installation,
    team: Kubectl,
    run: Document,
    parent: Document,
    report: demo.Report,
) -> list[str]:
    """Compare what the run, the registry and the claim say; returns what is wrong."""
    result = run["status"]["result"]
    with installation.registry(team) as registry:
        version = str(result["adapter"]["version"])
        print(registry("adapters", "show", f"{ADAPTER}@{version}"))
        registered = registry.json("adapters", "show", f"{ADAPTER}@{version}")
    with report.part("the adapter's files on the claim, and its answers beside the base model's"):
        digest, answers = demo.look_at_adapter(installation, team, run)
    accuracy = float(result["rewardAccuracy"])
    report.figures |= {
        "finalLoss": float(result["finalLoss"]),
        "evaluationLoss": float(result["evaluationLoss"]),
        "baseEvaluationLoss": float(result["baseEvaluationLoss"]),
        "rewardAccuracy": accuracy,
        "rewardMargin": float(result["rewardMargin"]),
        "parentAdapter": f"{parent['name']}/{parent['version']}",
        "adapterSha256": registered["sha256"],
    }
    lineage = {key: parent[key] for key in ("name", "version", "sha256")}
    problems = []
    if not digest == registered["sha256"] == result["adapter"]["sha256"]:
        problems.append(f"the files hash to {digest}, the registry says {registered['sha256']}")
    if not registered.get("parent") == lineage == run["status"].get("parentAdapter"):
        problems.append(f"the lineage says {registered.get('parent')}, the parent is {lineage}")
    if accuracy < MINIMUM_ACCURACY:
        problems.append(f"reward accuracy {accuracy} is below {MINIMUM_ACCURACY}")
    if len(answers) != demo.HELD_OUT_PROMPTS:
        problems.append(f"{len(answers)} answers to {demo.HELD_OUT_PROMPTS} prompts")
    return problems


if __name__ == "__main__":
    sys.exit(demo.guarded(main))
