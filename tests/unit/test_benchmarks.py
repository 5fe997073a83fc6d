"""What the benchmarks compute, and how they let trainers take turns, with small processes in the trainers' place."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures, memory, race, rows, startup, training
from benchmarks.gpu import base, programs, wheels
from benchmarks.gpu.machine import MemoryPeak
from benchmarks.gpu.programs import Followed
from benchmarks.gpu.shape import LLAMA_8B, QWEN3_06B, QWEN3_8B, SLICE, operations_per_token, peak_tflops, utilisation
from benchmarks.race import Block, Contestant, ContestantError

STEPPER = """
import json, sys
print("{{'loss': '1.0'}}", flush=True)
step = 0
while True:
    step += 1
    total = sum(range({work}))
    print(json.dumps({{"event": "train", "step": step, "tokens": 10, "loss": 2.0}}), flush=True)
"""


def stepper(name: str, path: Path, work: int) -> Contestant:
    """A process that makes a step whenever it has summed up some numbers."""
    return Contestant(name, [sys.executable, "-c", STEPPER.format(work=work)], dict(os.environ), path / f"{name}.log")


def test_figures_give_median_and_spread() -> None:
    assert figures.figure([3, 1, 2]) == {"median": 2, "low": 1, "high": 3}


def test_ratios_compare_the_rounds_one_by_one() -> None:
    ours, others = [Block(100, 1, 2), Block(100, 2, 4)], [Block(100, 2, 2), Block(100, 8, 8)]
    assert figures.ratios(ours, others, figures.per_cpu_second) == [2, 4]
    assert figures.ratios(ours, others, figures.per_second) == [1, 2]


def test_a_method_has_all_the_keys() -> None:
    blocks = {
        name: [Block(100, seconds, seconds)] for seconds, name in enumerate(("ours", "floor", "stock", "tuned"), 1)
    }
    found = figures.speeds(blocks, blocks)
    assert found["oursOverStock"]["median"] == 3
    assert found["oursOverTuned"]["median"] == 4
    assert found["oursOverFloor"]["median"] == 2
    assert found["oursTokensPerCpuSecond"]["median"] == 100
    assert found["wallOursOverStock"]["median"] == 3
    assert found["wallOursOverFloor"]["median"] == 2


def test_figures_stand_beside_their_targets() -> None:
    runs = memory.Run(100, 900, 910, 1000), memory.Run(200, 1000, 1000, 1200)
    document = {
        "sft": {"oursOverStock": {"median": 2.19}},
        "helpSeconds": {"median": 0.3},
        "exportMiB": 250.0,
        "memory": {"deep": memory.errors(*runs)},
    }
    lines = [line.split() for line in figures.beside_targets(document)]
    assert lines == [
        ["sft.oursOverStock", "2.19", ">=", "2.2", "MISSED"],
        ["helpSeconds", "0.3", "<=", "0.4", "met"],
        ["exportMiB", "250.0", "<=", "300.0", "met"],
        ["memory.deep.planErrorPercent", "0.0", "+-", "15.0", "met"],
        ["memory.deep.calculatedErrorPercent", "20.0", "+-", "15.0", "MISSED"],
        ["memory.deep.planErrorPercentOfToken", "-10.0", "+-", "15.0", "met"],
        ["memory.deep.calculatedErrorPercentOfToken", "100.0", "+-", "15.0", "MISSED"],
    ]


def test_turns_add_up_to_the_steps_of_a_round() -> None:
    assert race.turns(10, 4) == [4, 4, 2]
    assert race.turns(4, 4) == [4]


def test_everybody_is_first_once(tmp_path: Path) -> None:
    contestants = [stepper(name, tmp_path, 1) for name in "abc"]
    orders = ["".join(one.name for one in race.rotated(contestants, turn)) for turn in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_a_race_times_each_and_ends_all(tmp_path: Path) -> None:
    contestants = [stepper("light", tmp_path, 20_000), stepper("heavy", tmp_path, 400_000)]
    cpus = {max(os.sched_getaffinity(0))}
    blocks = race.race(contestants, cpus=cpus, rounds=2, steps=5, warm_up=1, at_once=2)
    assert [block.tokens for block in blocks["light"]] == [50, 50]
    assert all(
        heavy.cpu_seconds > light.cpu_seconds for light, heavy in zip(blocks["light"], blocks["heavy"], strict=True)
    )
    for contestant in contestants:
        assert contestant.peak_mib > 1
        assert set(contestant.losses) == {2.0}
        with pytest.raises(ProcessLookupError):
            os.kill(contestant.process_id, 0)


def test_a_trainer_that_ends_too_early_is_told_with_its_words(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    contestant = Contestant("ours", argv, dict(os.environ), tmp_path / "log")
    contestant.start(os.sched_getaffinity(0))
    with pytest.raises(ContestantError, match=r"(?s)ours made no step.*no such model"):
        contestant.wait_for("train")
    contestant.end()


def test_checkpoints_count_at_the_default_interval() -> None:
    assert startup.share_of_time(2, 1) == pytest.approx(100 * 2 / 202)


def test_the_allocator_settings_are_those_of_the_image() -> None:
    assert training.allocator_settings()["GLIBC_TUNABLES"].startswith("glibc.malloc.")


def test_a_trainers_environment_has_no_settings_that_were_not_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = training.environment(1)
    assert "GLIBC_TUNABLES" not in found
    assert found["OMP_NUM_THREADS"] == "1"


def test_preferences_reject_another_rows_answer() -> None:
    lines = "".join(f'{{"prompt": "{i}", "completion": "{"x" * i}"}}\n' for i in range(1, 6))
    pairs = rows.preferences(lines)
    assert sorted(pair["prompt"] for pair in pairs) == ["1", "2", "3", "4", "5"]
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert rows.preferences(lines) == pairs


def test_tokens_of_rows_and_of_pairs() -> None:
    assert rows.count_tokens([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}]) == 3
    assert rows.count_tokens([{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}]) == 7


def test_operations_of_the_known_model() -> None:
    assert LLAMA_8B.block_weights == 6_979_321_856  # 8.03 billion with embeddings, head and norms
    assert LLAMA_8B.head_weights == 525_336_576
    assert LLAMA_8B.adapter_weights(16) == 41_943_040
    supervised = operations_per_token(LLAMA_8B, method="SFT", rank=16, row_tokens=4096, learned_share=1)
    expected = 4 * (6_979_321_856 + 525_336_576) + 6 * 41_943_040 + 6 * 32 * 4096 * 4096
    assert supervised == expected
    preference = operations_per_token(LLAMA_8B, method="DPO", rank=16, row_tokens=4096, learned_share=1)
    assert preference - supervised == 2 * (6_979_321_856 + 525_336_576) + 2 * 32 * 4096 * 4096


def test_utilisation_needs_a_known_peak() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert peak_tflops("NVIDIA GH200 480GB") == 989
    assert peak_tflops("some card") is None
    assert utilisation(10_000, 32e9, 989) == pytest.approx(32.36, abs=0.01)
    assert utilisation(10_000, 32e9, None) is None


def test_shapes_are_those_of_the_models() -> None:
    assert QWEN3_8B.block_weights + 2 * QWEN3_8B.head_weights == 8_190_427_136  # 8.2 billion with the norms
    assert QWEN3_06B.block_weights + QWEN3_06B.head_weights == 595_984_384  # 0.6 billion, its output layer is tied
    assert SLICE.block_weights * 8 == LLAMA_8B.block_weights
    assert SLICE.head_weights == LLAMA_8B.head_weights


def test_ragged_rows_are_as_long_on_average(tmp_path: Path) -> None:
    base.make_rows(tmp_path / "rows.jsonl", method="SFT", rows=2000, prompt=40, answer=80, ragged=True)
    base.make_rows(tmp_path / "pairs.jsonl", method="DPO", rows=5, prompt=40, answer=80)
    made, pairs = (
        [base.count_tokens(json.loads(line)) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("rows.jsonl", "pairs.jsonl")
    )
    assert min(made) >= 30
    assert max(made) <= 210
    assert sum(made) / len(made) == pytest.approx(120, rel=0.05)
    assert pairs == [240] * 5


def test_the_speed_of_steps_after_the_warm_up() -> None:
    """One tick a step, two from the fourth on."""
    times = [10, 11, 12, 14, 16]
    events: list[dict[str, Any]] = [{"event": "start", "seconds": 9.0, "layout": "Padded", "tokenReport": {}}]
    events += [
        {"event": "train", "step": step, "tokens": 100 * step, "loss": 2.0, "seconds": float(seconds)}
        for step, seconds in enumerate(times, 1)
    ]
    found = programs.figures(Followed(events), warm_up=3)
    assert found["stepSeconds"] == [2, 2]
    assert found["tokensPerSecond"] == (400 + 500) / 4
    assert found["firstStepSeconds"] == 10
    assert found["losses"] == [2.0] * 5
    assert found["start"] == {"layout": "Padded"}


@pytest.mark.parametrize("steps", [0, 2])
def test_a_trainer_without_enough_steps_has_its_log_in_the_figures(tmp_path: Path, steps: int) -> None:
    argv = [sys.executable, "-c", STEPPER.format(work=1).replace("while True", f"while step < {steps}")]
    argv[-1] += "\nsys.exit('no such model')\n"
    found = programs.follow(argv, dict(os.environ), tmp_path / "log")
    assert len(found.of("train")) == steps
    assert found.code == 1
    assert "no such model" in programs.figures(found, warm_up=3)["error"]


def test_a_trainer_is_ended_after_its_last_timed_step(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", STEPPER.format(work=1)]
    found = programs.follow(argv, dict(os.environ), tmp_path / "log", heard=programs.stop_after(4))
    assert "error" not in programs.figures(found, warm_up=1)
    assert found.of("train")[3]["step"] == 4


def test_the_memorys_peak_is_over_what_was_in_use_before() -> None:
    seen = iter([100, 400, 250])
    last = threading.Event()

    def read() -> int | None:
        found = next(seen, None)
        if found is None:
            last.set()
        return found

    with MemoryPeak(read) as memory:
        assert last.wait(30)
    assert memory.mib == 300


def test_the_wheels_are_those_of_the_lock() -> None:
    lock = (rows.REPOSITORY / "locks/training.txt").read_text()
    found = wheels.pinned(lock, [*wheels.LIBRARIES, *wheels.QUANTIZATION])
    assert len(found) == len(wheels.LIBRARIES) + 1
    assert all(f"\n{name} " in lock for name in found)
