"""What the end-to-end tests apply and wait for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune.controller.core.names import FINISHED_ANNOTATION
from tests.cluster.base import Cluster
from tests.support.installation import Installation
from tests.support.kubectl import Kubectl, is_true

Document = dict[str, Any]

FINISH_SECONDS = 240.0
TINY = "tiny"
SMOLLM2 = "smollm2-135m-instruct"
SHORT: Document = {"batchSize": 4, "maxLength": 128, "maxSteps": 8, "checkpointSteps": 2}
LONG: Document = {**SHORT, "maxSteps": 300, "checkpointSteps": 20}


def manifest(name: str = "run", *, model: str = TINY, training: Document = SHORT, **spec: Any) -> Document:
    """A run that is small enough for two CPU cores; keyword arguments replace parts of the spec.

    It answers no prompts at its end, which would take longer than the training; docs/quickstart.md's run does.
    """
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": {
            "method": "SFT",
            "baseModel": {"volume": {"claimName": "base-models", "path": model}},
            "dataset": {"registry": {"name": "questions"}, "evaluation": {"percent": 10}},
            "training": {"samples": 0, **training},
            "output": {"claim": {"size": "1Gi", "retain": False}},
            "resources": {"gpus": 1, "cpu": "200m", "memory": "4Gi", "sharedMemory": "256Mi"},
            "retries": 1,
            **spec,
        },
    }


def rows(count: int) -> list[Document]:
    """Prompt/completion rows, all different."""
    return [{"prompt": f"What is {n} plus {n}?", "completion": f"{n} plus {n} is {2 * n}."} for n in range(count)]


def lines(entries: Iterable[Document | str]) -> str:
    """JSON lines; a string is taken as it is, to be malformed."""
    return "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries)


def push(installation: Installation, team: Kubectl, folder: Path, count: int = 64, name: str = "questions") -> None:
    """Put a dataset of that many rows into the registry."""
    file = folder / "rows.jsonl"
    file.write_text(lines(rows(count)))
    with installation.registry(team) as registry:
        registry("datasets", "push", name, str(file))


def config_map(team: Kubectl, text: str, name: str = "rows") -> Document:
    """A ConfigMap with the rows, and the dataset that refers to it."""
    team.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"train.jsonl": text}})
    return {"configMap": {"name": name, "key": "train.jsonl"}}


def finish(team: Kubectl, name: str = "run", seconds: float = FINISH_SECONDS) -> Document:
    """Wait for the end of a run the way a user does, and return the run."""
    team("wait", "--for=condition=Finished", f"trainingrun/{name}", f"--timeout={seconds:.0f}s", timeout=seconds + 30)
    return dict(team.json("get", "trainingrun", name))


def succeeded(team: Kubectl, name: str = "run", seconds: float = FINISH_SECONDS) -> Document:
    """The run, which must have succeeded; otherwise the reason is the test's message."""
    run = finish(team, name, seconds)
    assert is_true(run, "Succeeded"), json.dumps(run["status"].get("failure"), indent=2)
    return run


def marked(team: Kubectl, name: str = "run") -> Document:
    """The finished run once its mark is on it, the last thing that is written of a run."""

    def look() -> Document | None:
        run: Document = team.json("get", "trainingrun", name)
        return run if FINISHED_ANNOTATION in run["metadata"].get("annotations", {}) else None

    return dict(team.wait_for(f"the mark of {name}", look))


def in_phase(team: Kubectl, *phases: str, name: str = "run", seconds: float = 90) -> Document:
    """Wait until the run is in one of these phases."""

    def look() -> Document | None:
        run = team.find("trainingruns", name)
        return run if run and (run.get("status") or {}).get("phase") in phases else None

    return dict(team.wait_for(f"{name} in phase {' or '.join(phases)}", look, seconds=seconds))


def pods(team: Kubectl, name: str = "run") -> list[Document]:
    """The training pods of a run."""
    return team.items("pods", f"finetune.dev/run={name},finetune.dev/role=train")


def trainer_log(team: Kubectl, name: str = "run") -> list[Document]:
    """The JSON lines of the trainers that have started."""
    texts = [team.log(pod["metadata"]["name"], "trainer") for pod in pods(team, name) if has_started(pod)]
    return [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]


def has_started(pod: Document) -> bool:
    """The trainer of a pod is running or has ended."""
    [trainer] = pod["status"].get("containerStatuses") or [{"state": {}}]
    return "running" in trainer["state"] or "terminated" in trainer["state"]


def first_steps(team: Kubectl, steps: int = 2, name: str = "run") -> None:
    """Wait until the trainer has made a few steps."""

    def look() -> bool:
        return any(line.get("step", 0) >= steps for line in trainer_log(team, name))

    team.wait_for(f"{steps} steps of {name}", look, seconds=FINISH_SECONDS)


def kill_process(cluster: Cluster, kubectl: Kubectl, words: str) -> None:
    """SIGKILL the one process in the node's pods whose command line contains these words, once it is there."""

    def find() -> list[str]:
        found = cluster.node_shell(["pgrep", "--full", "--", words]).stdout.split()
        return [pid for pid in found if "kubepods" in cluster.node_shell(["cat", f"/proc/{pid}/cgroup"]).stdout]

    found = kubectl.wait_for(f"a process with {words!r} in its command line", find)
    assert len(found) == 1, f"processes with {words!r} in their command line, in pods: {found}"
    assert cluster.node_shell(["kill", "-KILL", found[0]]).returncode == 0
