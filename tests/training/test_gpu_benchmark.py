"""The benchmark for one GPU, each part on the CPU with tiny models: it must work the first time that there is a GPU."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu import ours, programs
from benchmarks.gpu.bench import SMOKE
from model.training.loop import head
from model.training.weights import adapter_trial


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows are made once for all parts."""
    return tmp_path_factory.mktemp("bench-gpu")


def smoke(part: str, work: Path) -> dict[str, Any]:
    output = work / f"{part}.json"
    argv = [sys.executable, "-m", "benchmarks.gpu", part, "--smoke", f"--output={output}", f"--work={work}"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    document: dict[str, Any] = json.loads(output.read_text())
    assert document["gpu"] is None
    assert document["smoke"] is True
    return document


def test_each_path_works_once(work: Path) -> None:
    found = smoke("paths", work)
    assert found["sft"]["exitCode"] == found["dpo"]["exitCode"] == found["plain"]["exitCode"] == 0
    assert found["sft"]["events"]["train"] == SMOKE.many
    assert found["sft"]["events"]["evaluation"] > 0
    assert len(found["sft"]["steps"]["stepSeconds"]) == SMOKE.many - SMOKE.warm_up
    assert found["outOfMemory"]["events"]["outOfMemory"] == 1
    assert found["outOfMemory"]["lossDifference"] < 1e-4
    assert found["resumption"]["exitCodes"] == [75, 0]
    (resumed,) = found["resumption"]["resumedAt"]
    assert SMOKE.few // 2 <= resumed <= SMOKE.few  # steps go on until the signal comes
    assert found["resumption"]["lossDifference"] == 0
    assert found["profile"]["microseconds"] > 0
    assert any("mm" in line["name"] for line in found["profile"]["top"])


@pytest.mark.long
def test_variants_train_alike_and_say_what_they_took(work: Path) -> None:
    """Each speed has its losses: with a fast path off they are the same."""
    found = smoke("ablation", work)
    variants = {name: found[name] for name in (*SMOKE.variants, "stock", "stockBest")}
    assert not {name: variant["error"] for name, variant in variants.items() if "error" in variant}
    for name, variant in variants.items():
        assert variant["tokensPerSecond"] > 0
        assert variant["microsecondsPerTokenAndLayer"] > 0
        if name in SMOKE.variants:
            assert variant["losses"] == pytest.approx(variants["ours"]["losses"], abs=0.02), name
    assert found["ours"]["start"]["adapterLayers"] == {"fused": 14, "joined": 10, "peft": 0}
    assert found["adaptersAsPeftHasThem"]["start"]["adapterLayers"] == {"fused": 0, "joined": 0, "peft": 14}
    assert found["ours"]["start"]["lossLayout"] == "Chunked"
    assert found["dpo"]["oursOverStock"] > 0
    assert found["dpo"]["ours"]["losses"][0] == pytest.approx(found["dpo"]["stock"]["losses"][0], abs=1e-3)


@pytest.mark.parametrize(
    ("without", "expected"),
    [("adapters", [0, 0, "Chunked"]), ("inputs", [14, 0, "Chunked"]), ("chunks", [14, 10, "Whole"])],
)
def test_each_fast_path_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, without: str, expected: list[Any]) -> None:
    for module, name in ((adapter_trial, "fuse"), (head, "in_chunks")):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that it is put back
    ours.switch_off([without])
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes)), lora)
    adapter_trial.fuse(model)
    found = adapter_trial.description(model)
    assert [found["fused"], found["joined"], head.description(model)] == expected


STEPS = """
import json
for step in range({}):
    print(json.dumps({{"event": "train", "step": step + 1, "tokens": 5, "loss": 1}}), flush=True)
"""


@pytest.mark.parametrize(
    ("program", "deadline", "words"),
    [
        (STEPS.format(5), 60, None),
        (STEPS.format(2), 60, "exit code 0, 2 steps: "),  # nothing after the warm-up: there is no speed
        (STEPS.format(5) + "import time; time.sleep(60)", 2, "killed after 2 s, "),
        (STEPS.format(5) + "raise SystemExit('no memory')", 60, "exit code 1, 5 steps: no memory"),
    ],
)
def test_a_program_that_does_not_end_well_has_no_speed(
    program: str, deadline: float, words: str | None, tmp_path: Path
) -> None:
    found = programs.follow([sys.executable, "-c", program], os.environ, tmp_path / "log", deadline=deadline)
    told = programs.figures(found, warm_up=2)
    assert ("tokensPerSecond" in told) == (words is None)
    assert told.get("error", "").startswith(words or "")


@pytest.mark.long
@pytest.mark.parametrize("part", ["shapes", "llama"])
def test_ours_and_stock_are_measured_side_by_side(part: str, work: Path) -> None:
    found = smoke(part, work)
    tasks = SMOKE.whole if part == "shapes" else SMOKE.llama
    for task, name in itertools.product(tasks, ("ours", "stock")):
        assert "error" not in found[task.name][name]
        assert len(found[task.name][name]["losses"]) >= SMOKE.warm_up + SMOKE.steps
    assert all(found[task.name]["oursOverStock"] > 0 for task in tasks)
