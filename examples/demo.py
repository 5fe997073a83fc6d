"""From nothing to a registered adapter: a cluster, the images, the chart, a dataset and a TrainingRun.

    python -m examples.demo          or: make demo

Prints what it does and how long each part took, and writes out/demo.json. Exits 0 only if the adapter is registered,
its files on the claim hash to what the registry says, and its evaluation loss is at least 20 % below the base model's.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from examples.dataset import make_dataset
from tests.cluster.base import ClusterError
from tests.cluster.choose import cluster
from tests.support.installation import ROOT, Installation, build_images
from tests.support.kubectl import CommandError, Kubectl, is_true

NAMESPACE = "demo"
DATASET = "python-stdlib"
ADAPTER = "python-helper"
MINIMUM_IMPROVEMENT = 0.20
TRAINING = {"maxSteps": 36, "batchSize": 8, "learningRate": "5e-4", "maxLength": 256, "checkpointSteps": 20}
LORA = {"dropoutPercent": 0}  # so few steps cannot overfit, and random numbers take a sixth of a step on a CPU
RESOURCES = {"gpus": 1, "cpu": "1", "memory": "6Gi", "sharedMemory": "1Gi"}
HELD_OUT_PROMPTS = 3
FOLLOW_SECONDS = 1800
"""Longer than a run takes on any machine: then something is wrong, and the last line says what."""

OUT = ROOT / "out"
ROWS = OUT / "dataset"
SCRATCH = "/tmp"  # noqa: S108 - an emptyDir of the pod's own


class Report:
    """What took how long; printed as it happens and written to a file below out/."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.figures: dict[str, float | str] = {}

    @contextlib.contextmanager
    def part(self, title: str, key: str = "") -> Iterator[None]:
        """Time one part of the demo."""
        print(f"==> {title} ...", flush=True)
        started = time.monotonic()
        yield
        seconds = round(time.monotonic() - started, 1)
        print(f"    {seconds} s", flush=True)
        if key:
            self.figures[key] = seconds

    def write(self) -> None:
        """Write what was measured."""
        OUT.mkdir(exist_ok=True)
        (OUT / self._name).write_text(json.dumps(self.figures, indent=2) + "\n")


def main() -> int:
    """Run the demo; returns the exit code."""
    report = Report("demo.json")
    installation, team = prepare(report)
    problems = train(installation, team, report)
    report.write()
    return tell(report, problems)


def prepare(report: Report) -> tuple[Installation, Kubectl]:
    """A cluster with the chart on it, and a team's namespace with the base model on a claim."""
    target = cluster()
    with report.part(f"a Kubernetes cluster ({target.kind})", "clusterSeconds"):
        target.up()
    with report.part("the images", "imageSeconds"):
        images = build_images(target)
    kubectl = Kubectl(kubeconfig=target.kubeconfig, bin_dir=target.bin_dir)
    installation = Installation(kubectl=kubectl, images=images)
    with report.part("the chart, with Helm", "installSeconds"):
        installation.install()
    team = installation.create_namespace(NAMESPACE)
    with report.part("the base model (SmolLM2-135M-Instruct) on a claim"):
        installation.provide_base_model(team)
    return installation, team


def train(installation: Installation, team: Kubectl, report: Report) -> list[str]:
    """Train an adapter on the demo's rows and check it; returns what is wrong."""
    with report.part("a dataset: the documentation of Python's standard library"):
        push_dataset(installation, team, DATASET, "train.jsonl")
    name = next_name(team, "demo")
    with report.part(f"the TrainingRun {name}"):
        run = follow(team, manifest(name), report)
    show(team, run)
    if not is_true(run, "Succeeded"):
        return [f"{name} did not succeed"]
    return check(installation, team, run, report)


def show(team: Kubectl, run: dict[str, Any]) -> None:
    """Print what became of a run."""
    print(team("get", "trainingruns"))
    for condition in run["status"]["conditions"]:
        print(f"    {condition['type']:14} {condition['status']:8} {condition['reason']}: {condition['message']}")
    if "failure" in run["status"]:
        print(json.dumps(run["status"]["failure"], indent=2))


def tell(report: Report, problems: list[str]) -> int:
    """Print the figures and the problems; returns the exit code."""
    print(json.dumps(report.figures, indent=2))
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def push_dataset(installation: Installation, team: Kubectl, name: str, file: str) -> None:
    """Make the demo's rows, which are the same each time, and push one of the files into the registry."""
    ROWS.mkdir(parents=True, exist_ok=True)
    files = {each: ROWS / f"{each}.jsonl" for each in ("train", "held-out", "preferences")}
    make_dataset.main([f"--{each}={path}" for each, path in files.items()])
    with installation.registry(team) as registry:
        print("    " + registry("datasets", "push", name, str(ROWS / file)).strip())


def held_out_prompts() -> list[str]:
    """A few questions that no run has seen."""
    lines = (ROWS / "held-out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:HELD_OUT_PROMPTS]]


def next_name(team: Kubectl, stem: str) -> str:
    """A name for a new run: specs are immutable, so every run has its own."""
    taken = {run["metadata"]["name"] for run in team.items("trainingruns")}
    return next(name for name in (f"{stem}-{number}" for number in range(1, len(taken) + 2)) if name not in taken)


def follow(team: Kubectl, document: dict[str, Any], report: Report) -> dict[str, Any]:
    """Apply a run and watch it to its end; returns the run."""
    name = document["metadata"]["name"]
    started, clock = datetime.now(UTC), time.monotonic()
    team.apply(document)
    seen: set[str] = set()
    said = ""
    pod: dict[str, Any] = {}
    while True:
        run = team.find("trainingruns", name) or {}
        pods = team.items("pods", f"finetune.dev/run={name},finetune.dev/role=train")
        pod = pods[-1] if pods else pod
        marks = {"acceptedSeconds": is_true(run, "Accepted"), "podStartedSeconds": has_started(pod)}
        for key in (key for key, reached in marks.items() if reached and key not in seen):
            seen.add(key)
            report.figures[key] = round(time.monotonic() - clock, 1)
        line = progress_line(run)
        if line != said:
            print(f"    {time.monotonic() - clock:6.1f} s  {line}", flush=True)
            said = line
        if is_true(run, "Finished"):
            report.figures["finishedSeconds"] = round(time.monotonic() - clock, 1)
            first = first_step_time(pod)
            if first is not None:
                report.figures["firstStepSeconds"] = round((first - started).total_seconds(), 1)
            return run
        if time.monotonic() - clock > FOLLOW_SECONDS:
            raise TimeoutError(f"{name} has not finished within {FOLLOW_SECONDS} s: {line}")
        time.sleep(0.1)


def manifest(name: str) -> dict[str, Any]:
    """The demo's run."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "experiment": DATASET,
            "method": "SFT",
            "baseModel": {"volume": {"claimName": "base-models", "path": "smollm2-135m-instruct"}},
            "dataset": {"registry": {"name": DATASET}, "evaluation": {"percent": 10}},
            "training": TRAINING,
            "lora": LORA,
            "adapter": {"name": ADAPTER},
            "output": {"claim": {"size": "2Gi"}},
            "resources": RESOURCES,
        },
    }


def has_started(pod: dict[str, Any]) -> bool:
    """The pod's first container runs or has run."""
    states = (pod.get("status") or {}).get("initContainerStatuses") or []
    return any("running" in status["state"] or "terminated" in status["state"] for status in states)


def first_step_time(pod: dict[str, Any]) -> datetime | None:
    """When the first optimizer step was done, from the trainer's termination message."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        ended = status["state"].get("terminated") or {}
        if ended.get("exitCode") == 0:  # the words of a trainer that failed may be anything
            text = json.loads(ended["message"]).get("timings", {}).get("firstStepTime")
            return datetime.fromisoformat(text) if text else None
    return None


def progress_line(run: dict[str, Any]) -> str:
    """One line for what the run is doing, or waits for."""
    status = run.get("status") or {}
    progress = status.get("progress") or {}
    step = (
        f"step {progress['step']}/{progress.get('totalSteps')}, loss {progress.get('loss')}"
        if "step" in progress
        else ""
    )
    waits = next((c["message"] for c in status.get("conditions") or [] if c["type"] == "Reconciling"), "")
    return " ".join(part for part in (status.get("phase") or "applied", step, waits) if part)


def check(
    installation: Installation,
    team: Kubectl,
    run: dict[str, Any],
    report: Report,
) -> list[str]:
    """Compare what the run, the registry and the claim say; returns what is wrong."""
    result = run["status"]["result"]
    with installation.registry(team) as registry:
        version = str(result["adapter"]["version"])
        print(registry("adapters", "show", f"{ADAPTER}@{version}"))
        registered = registry.json("adapters", "show", f"{ADAPTER}@{version}")
    with report.part("the adapter's files on the claim, and its answers beside the base model's"):
        digest, answers = look_at_adapter(installation, team, run)
    evaluation, base = float(result["evaluationLoss"]), float(result["baseEvaluationLoss"])
    report.figures |= {
        "finalLoss": float(result["finalLoss"]),
        "evaluationLoss": evaluation,
        "baseEvaluationLoss": base,
        "adapterSha256": registered["sha256"],
    }
    problems = []
    if not digest == registered["sha256"] == result["adapter"]["sha256"]:
        problems.append(f"the files hash to {digest}, the registry says {registered['sha256']}")
    if evaluation > (1 - MINIMUM_IMPROVEMENT) * base:
        problems.append(f"evaluation loss {evaluation} is not {MINIMUM_IMPROVEMENT:.0%} below the base model's {base}")
    if len(answers) != HELD_OUT_PROMPTS:
        problems.append(f"{len(answers)} answers to {HELD_OUT_PROMPTS} prompts")
    return problems


def look_at_adapter(installation: Installation, team: Kubectl, run: dict[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """Hash the adapter's files and ask it the prompts, in a pod that mounts the claim; returns digest and answers."""
    name = run["metadata"]["name"]
    job = look_job(installation.images.trainer, f"{name}-look", run["status"]["output"], held_out_prompts())
    team.apply(job)
    team("wait", "--for=condition=Complete", f"job/{name}-look", "--timeout=300s", timeout=310)
    digest = team("logs", f"job/{name}-look", "--container=hash").split()[0]
    lines = team("logs", f"job/{name}-look", "--container=chat").splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    for answer in answers:
        print(f"\n    {answer['prompt']}\n      base:    {answer['base']}\n      adapter: {answer['adapter']}")
    print()
    return digest, answers


def look_job(image: str, name: str, output: dict[str, str], prompts: list[str]) -> dict[str, Any]:
    """A Job with two containers: `hash` prints the digest of the adapter's files, `chat` the answers."""
    adapter = f"/output/{output['path']}/adapter"
    container = {
        "image": image,
        "env": [{"name": "HOME", "value": SCRATCH}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "output", "mountPath": "/output", "readOnly": True},
            {"name": "base", "mountPath": "/models/base", "readOnly": True},
            {"name": "tmp", "mountPath": SCRATCH},
        ],
    }
    hashing = f"cd {adapter} && find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    chat = ["chat", "--base-model=/models/base/smollm2-135m-instruct", f"--adapter={adapter}"]
    volumes = [
        {"name": "output", "persistentVolumeClaim": {"claimName": output["claimName"], "readOnly": True}},
        {"name": "base", "persistentVolumeClaim": {"claimName": "base-models", "readOnly": True}},
        {"name": "tmp", "emptyDir": {}},
    ]
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [{**container, "name": "hash", "command": ["sh", "-c", hashing]}],
        "containers": [
            {
                **container,
                "name": "chat",
                "command": ["python", "-m", "model.training.cli"],
                "args": [*chat, *(f"--prompt={prompt}" for prompt in prompts)],
            }
        ],
        "volumes": volumes,
    }
    spec = {"backoffLimit": 1, "ttlSecondsAfterFinished": 600, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def guarded(demo: Callable[[], int]) -> int:
    """Run a demo; what a person can mend becomes one line."""
    try:
        return demo()
    except (ClusterError, CommandError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(guarded(main))
