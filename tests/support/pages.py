"""What the pages' tests, walk and benchmark look at: runs of every state, with curves, adapters and datasets."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import httpx

from tests.support.adapters import adapter_files, announce, registered, send
from tests.support.registry import pairs, run_document


def form_token(page: httpx.Response) -> str:
    """What a form of a page must bring back."""
    found = re.search(r'name="form-token" value="([0-9a-f]{64})"', page.text)
    assert found is not None, "the page has no form"
    return found.group(1)


def spec(**training: Any) -> dict[str, Any]:
    """A TrainingRun's spec as the operator sends it."""
    return {
        "method": "SFT",
        "baseModel": {"hub": {"repository": "meta-llama/Llama-3.1-8B", "revision": "0e9e39f"}},
        "dataset": {"registry": {"name": "tickets"}},
        "training": {"batchSize": 16, "learningRate": "2e-4", "schedule": "Cosine", **training},
        "lora": {"rank": 32},
    }


def loss_at(step: int, *, offset: float = 0.0) -> float:
    """A curve that falls, with a spike at step 500."""
    return 1.4 + offset + math.exp(-step / 200) + (3.0 if step == 500 else 0.0)


def points(first: int, last: int, *, offset: float = 0.0, every: int = 1) -> list[dict[str, Any]]:
    """Every step's numbers, and a held-out loss each hundredth step."""
    found = []
    for step in range(first, last + 1, every):
        values = {
            "loss": loss_at(step, offset=offset),
            "learningRate": 2e-4 * (1 - step / 5000),
            "tokensPerSecond": 5000 + step % 7,
            "gradientNorm": 1 / (1 + step / 100),
            "tokens": 1000.0 * step,
        }
        if step % 100 == 0:
            values["evaluationLoss"] = loss_at(step, offset=offset + 0.1) - (3.0 if step == 500 else 0.0)
        found.append({"step": step, "values": values})
    return found


def post_points(
    http: httpx.Client, uid: str, first: int, last: int, *, attempt: int = 1, start: int = 0, offset: float = 0.0
) -> None:
    """Tell of steps as a trainer does, a thousand a post."""
    for begin in range(first, last + 1, 1000):
        end = min(last, begin + 999)
        said = [("loss", loss_at(end, offset=offset)), ("step", end), ("totalSteps", 3900)]
        if end >= 100:
            newest = end // 100 * 100
            said.append(("evaluationLoss", loss_at(newest, offset=offset + 0.1)))
        body = {
            "trainerStatus": {
                "progressPercentage": min(100, end * 100 // 3900),
                "estimatedRemainingSeconds": 7800,
                "metrics": [{"name": name, "value": str(value)} for name, value in said],
            },
            "attempt": attempt,
            "startStep": start,
            "points": points(begin, end, offset=offset),
        }
        answer = http.post(f"runs/{uid}/status", json=body)
        assert answer.status_code == 200, answer.text


def outcome(http: httpx.Client, uid: str, phase: str, **said: Any) -> None:
    """Say what became of a run."""
    answer = http.put(f"runs/{uid}/status", json={"phase": phase, "ended": False, "version": 1, **said})
    assert answer.status_code == 200, answer.text


def push(http: httpx.Client, name: str, rows: bytes) -> None:
    """Store rows as a version of a dataset."""
    answer = http.post(f"datasets/{name}/versions", content=rows)
    assert answer.status_code in {200, 201}, answer.text


def make_scene(http: httpx.Client) -> dict[str, str]:
    """Runs that train, have ended well and badly, and wait, with what belongs to them; gives their uids by name."""
    push(http, "tickets", pairs(40))
    push(http, "tickets", pairs(45))
    uids = {f"support-{number}": f"00000000-0000-4000-8000-{number:012d}" for number in range(11, 15)}
    for name, uid in uids.items():
        document = run_document(
            name=name,
            datasetName="tickets",
            datasetVersion=1 if name == "support-13" else 2,
            spec=spec(learningRate="1e-4" if name == "support-13" else "2e-4"),
        )
        assert http.put(f"runs/{uid}", json=document).status_code == 201
    outcome(http, uids["support-14"], "Training", attempts=2, startTime="2026-11-01T09:00:00Z")
    post_points(http, uids["support-14"], 1, 600)
    post_points(http, uids["support-14"], 501, 1240, attempt=2, start=500)
    finish(http, uids["support-13"])
    outcome(
        http,
        uids["support-12"],
        "Failed",
        ended=True,
        reason="DatasetInvalid",
        message="train.jsonl row 7: completion is empty",
        hint="Correct the row that the message names, or set spec.dataset.invalidRows: Drop",
        row=7,
    )
    outcome(http, uids["support-11"], "Pending", reason="Unschedulable", message="0/12 nodes have nvidia.com/gpu")
    return uids


def finish(http: httpx.Client, uid: str, *, offset: float = 0.05) -> None:
    """Let a run end well: curves, result, files and a registered adapter."""
    post_points(http, uid, 1, 1000, offset=offset)
    files = adapter_files(salt=int(uid[-4:]))
    assert announce(http, uid, files).status_code == 200
    for content in files.values():
        assert send(http, uid, content).status_code in {200, 201}
    result = {
        "result": {"runUid": uid},
        "timings": {
            "startTime": "2026-11-01T09:00:41Z",
            "modelLoadedTime": "2026-11-01T09:01:44Z",
            "firstStepTime": "2026-11-01T09:01:47Z",
        },
        "samples": [
            {"row": 3, "prompt": "How do I reset?", "reference": "Open Settings", "base": "I do", "adapter": "Open it"}
        ],
    }
    assert http.put(f"runs/{uid}/result", content=json.dumps(result)).status_code == 204
    document = registered(uid, files)
    answer = http.put(f"runs/{uid}/adapter", json=document)
    assert answer.status_code == 201, answer.text
    outcome(
        http,
        uid,
        "Succeeded",
        ended=True,
        startTime="2026-11-01T09:00:00Z",
        completionTime="2026-11-01T10:00:00Z",
        gpuSeconds=34_920,
        evaluationLoss="1.9011",
        baseEvaluationLoss="2.77",
        version=2,
    )
