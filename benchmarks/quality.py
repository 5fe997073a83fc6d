"""What a run learns, over several seeds: `make bench-quality` writes out/bench-quality.json.

Real runs of the trainer's own command on the demo's rows (SmolLM2-135M-Instruct, 36 steps of 8): supervised on the
documentation of Python's standard library, then preferences and labelled answers about functions in neither file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import REPOSITORY
from benchmarks.training import about_this_machine, tell

METHODS = ("SFT", "DPO", "KTO")
LEARNING_RATES = {"SFT": "5e-4", "DPO": "1e-4", "KTO": "2e-4"}
FILES = {"SFT": "train", "DPO": "preferences", "KTO": "labelled"}
STEPS, BATCH_ROWS, MAX_LENGTH, EVALUATION_PERCENT = 36, 8, 256, 10
SEEDS = (1, 2, 3)


def make_rows(folder: Path) -> dict[str, Path]:
    """Make the rows of each method and return their files; the same bytes each time for one version of Python.

    Raises
    ------
    CalledProcessError
        When the script fails; its words are on standard error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {method: folder / f"{name}.jsonl" for method, name in FILES.items()}
    flags = [f"--{FILES[method]}={path}" for method, path in files.items()]
    script = REPOSITORY / "examples" / "dataset" / "make_dataset.py"
    subprocess.run([sys.executable, str(script), *flags], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own
    return files


def command(method: str, seed: int, *, rows: Path, base_model: Path, run_directory: Path) -> list[str]:
    """Return the command line of one run."""
    return [
        *(sys.executable, "-m", "model.training.cli", "train"),
        f"--method={method}",
        f"--base-model={base_model}",
        f"--dataset={rows}",
        f"--run-directory={run_directory}",
        f"--seed={seed}",
        f"--evaluation-percent={EVALUATION_PERCENT}",
        f"--max-steps={STEPS}",
        f"--batch-size={BATCH_ROWS}",
        f"--max-length={MAX_LENGTH}",
        f"--learning-rate={LEARNING_RATES[method]}",
        "--lora-dropout-percent=0",
        "--samples=0",
    ]


def train(argv: Sequence[str], run_directory: Path) -> dict[str, Any]:
    """Run the trainer, unless the directory holds a finished run, and return `result` of its configuration.

    Raises
    ------
    CalledProcessError
        When the trainer fails; its words are on standard error.
    """
    document = run_directory / "training_config.json"
    if not document.exists():
        subprocess.run(argv, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)  # noqa: S603 - our own program
    result: dict[str, Any] = json.loads(document.read_text(encoding="utf-8"))["result"]
    return result


def entry(method: str, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what one method learned: losses and rewards by seed, and the median with the lowest and the highest."""
    losses = {seed: float(result["evaluationLoss"]) for seed, result in results.items()}
    bases = {seed: float(result["baseEvaluationLoss"]) for seed, result in results.items()}
    below = {seed: round(100 * (1 - losses[seed] / bases[seed]), 1) for seed in results}
    figures: dict[str, Any] = {
        "baseEvaluationLoss": bases,
        "evaluationLoss": losses,
        "percentBelowBase": below,
        "percentBelowBaseOfAll": _spread(list(below.values())),
    }
    if method == "DPO":
        accuracies = {seed: float(result["rewardAccuracy"]) for seed, result in results.items()}
        figures |= {"rewardAccuracy": accuracies, "rewardAccuracyOfAll": _spread(list(accuracies.values()))}
    return figures


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train each method with each seed, and write and print what was learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", type=Path, required=True, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("--output", type=Path, required=True, help="file for the JSON document")
    parser.add_argument("--work", type=Path, required=True, help="folder for rows and runs; finished ones are kept")
    parser.add_argument("--methods", default=",".join(METHODS), help="which (default %(default)s)")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="which (default %(default)s)")
    options = parser.parse_args(arguments)
    methods = options.methods.split(",")
    if unknown := sorted(set(methods) - set(METHODS)):
        parser.error(f"--methods: {', '.join(unknown)} is none of {', '.join(METHODS)}")
    files = make_rows(options.work / "rows")
    started = time.monotonic()
    document = about_this_machine() | {"steps": STEPS, "batchSize": BATCH_ROWS}
    for method in methods:
        results = {}
        for seed in map(int, options.seeds.split(",")):
            directory = options.work / f"{method.lower()}-{seed}"
            paths = {"rows": files[method], "base_model": options.base_model, "run_directory": directory}
            results[seed] = train(command(method, seed, **paths), directory)
            tell(f"{method} seed {seed}: {json.dumps(results[seed])[:300]}")
        document |= {method.lower(): entry(method, results)}
    document["tookSeconds"] = round(time.monotonic() - started)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({name.lower(): document[name.lower()] for name in methods}, indent=1) + "\n")


if __name__ == "__main__":
    main()
