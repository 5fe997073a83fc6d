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
from collections.abc import Iterator
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
SCRATCH = "/tmp"  # noqa: S108 - an emptyDir of the pod's own


class Report:
    """What took how long; printed as it happens and written to out/demo.json."""

    def __init__(self) -> None:
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
        (OUT / "demo.json").write_text(json.dumps(self.figures, indent=2) + "\n")


def main() -> int:
    """Run the demo; returns the exit code."""
    report = Report()
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
    with report.part("a dataset: the documentation of Python's standard library"):
        prompts = push_dataset(installation, team)
    name = next_name(team)
    with report.part(f"the TrainingRun {name}"):
        run = follow(team, name, report)
    print(team("get", "trainingruns"))
    for condition in run["status"]["conditions"]:
        print(f"    {condition['type']:14} {condition['status']:8} {condition['reason']}: {condition['message']}")
    if not is_true(run, "Succeeded"):
        print(json.dumps(run["status"].get("failure"), indent=2))
        return 1
    problems = check(installation, team, run, prompts, report)
    report.write()
    print(json.dumps(report.figures, indent=2))
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def push_dataset(installation: Installation, team: Kubectl) -> list[str]:
    """Make the rows, push the training part into the registry, and return a few held-out prompts."""
    train, held_out = OUT / "dataset" / "train.jsonl", OUT / "dataset" / "held-out.jsonl"
    train.parent.mkdir(parents=True, exist_ok=True)
    make_dataset.main([f"--train={train}", f"--held-out={held_out}"])
    with installation.registry(team) as registry:
        print("    " + registry("dataset", "push", DATASET, str(train)).strip())
    rows = [json.loads(line) for line in held_out.read_text().splitlines()[:HELD_OUT_PROMPTS]]
    return [row["prompt"] for row in rows]


def next_name(team: Kubectl) -> str:
    """A name for a new run: specs are immutable, so every run has its own."""
    taken = {run["metadata"]["name"] for run in team.items("trainingruns")}
    return next(name for name in (f"demo-{number}" for number in range(1, len(taken) + 2)) if name not in taken)


def follow(team: Kubectl, name: str, report: Report) -> dict[str, Any]:
    """Apply the run and watch it to its end; returns the run."""
    started, clock = datetime.now(UTC), time.monotonic()
    team.apply(manifest(name))
    seen: set[str] = set()
    said, pod = "", {}
    while True:
        run = team.find("trainingrun", name) or {}
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
    prompts: list[str],
    report: Report,
) -> list[str]:
    """Compare what the run, the registry and the claim say; returns what is wrong."""
    result, output = run["status"]["result"], run["status"]["output"]
    with installation.registry(team) as registry:
        version = str(result["adapter"]["version"])
        print(registry("adapter", "show", ADAPTER, version))
        registered = registry.json("adapter", "show", ADAPTER, version)
    with report.part("the adapter's files on the claim, and its answers beside the base model's"):
        digest, answers = look_at_adapter(installation, team, run["metadata"]["name"], output, prompts)
    for answer in answers:
        print(f"\n    {answer['prompt']}\n      base:    {answer['base']}\n      adapter: {answer['adapter']}")
    print()
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
    if len(answers) != len(prompts):
        problems.append(f"{len(answers)} answers to {len(prompts)} prompts")
    return problems


def look_at_adapter(
    installation: Installation, team: Kubectl, name: str, output: dict[str, str], prompts: list[str]
) -> tuple[str, list[dict[str, str]]]:
    """Hash the adapter's files and ask it the prompts, in a pod that mounts the claim; returns digest and answers."""
    job = look_job(installation.images.trainer, f"{name}-look", output, prompts)
    team.apply(job)
    team("wait", "--for=condition=Complete", f"job/{name}-look", "--timeout=300s", timeout=310)
    digest = team("logs", f"job/{name}-look", "--container=hash").split()[0]
    lines = team("logs", f"job/{name}-look", "--container=chat").splitlines()
    return digest, [json.loads(line) for line in lines if line.startswith("{")]


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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterError, CommandError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
