"""Makes the heaviest steps of a run in a process of its own, and writes down what they cost.

    python -m model.training.commands.probe --run-directory=SCRATCH --method=SFT ...    the flags of `train`

The dataset in the directory is tokenised whole, as in a run. Then the longest rows, as many as go through the model at
once, are trained on for two steps by the trainer itself: memory and speed are measured, not guessed.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from model import exits, flags
from model.files import RunDirectory, sha256_of_files, write_json
from model.result import as_failure
from model.training import build
from model.training.config import TrainSettings
from model.training.loop.examples import positions
from model.training.loop.memory import resident_bytes
from model.training.processes import parallel, process
from model.training.rows.tokens import RowEncoder

RESULT = "probe.json"
STEPS = 2


def main(arguments: Sequence[str]) -> int:
    """Probe, and write `probe.json` into the run directory; what went wrong is in there, too."""
    settings = flags.parse(TrainSettings, arguments).resolved()
    parallel.enter(min(settings.gpus, 1))  # of several GPUs one is enough, and TRL refuses to see more
    path = settings.run_directory / RESULT
    try:
        write_json(path, probe(settings))
    except BaseException as error:  # noqa: BLE001 - the process ends here, and the plan tells why
        failure = as_failure(error)
        write_json(path, {"failure": {"code": failure.code, "reason": failure.reason, "message": failure.message}})
        return failure.code
    return exits.OK


def probe(settings: TrainSettings) -> dict[str, Any]:
    """Return what the two steps cost, and what the whole dataset amounts to."""
    output = process.prepare()

    import torch

    from model.training.commands.plan import rows_at_once, share_of_memory
    from model.training.run import train
    from model.training.weights import adapters, basemodel
    from model.training.weights.files import read_model

    if settings.gpus == 0:
        basemodel.leave_out_bitsandbytes()
    build.trainer_class(settings)
    settings = adapters.with_parent(settings)
    libraries = resident_bytes()
    directory = RunDirectory(settings.run_directory)
    tokenizer = basemodel.load_tokenizer(settings.base_model, settings.base_model_revision, settings.chat_template)
    data = build.read_data(settings, directory, build.read_manifest(directory), tokenizer)
    lengths, joined = data.rows.lengths, settings.packing != "Disabled"
    sizes = positions(data.rows, joined=joined)
    micro_batch_size = rows_at_once(
        settings,
        read_model(Path(settings.base_model)),
        max(sizes),
        cuda=process.uses_cuda(settings.gpus),
        room=share_of_memory(settings),
    )
    small = settings.model_copy(
        update={
            "run_directory": settings.run_directory / "longest",
            "batch_size": micro_batch_size,
            "micro_batch_size": micro_batch_size,
            "epochs": None,
            "max_steps": STEPS,
            "checkpoint_steps": STEPS,  # none between the steps, whose time is taken
            "early_stopping_patience": None,  # no row is held out
            "resume_from": None,
            "resume_from_run": None,
            "registry_url": None,  # whatever the run is called, nobody asked for its progress
        }
    )
    encoder = RowEncoder(
        tokenizer, max_length=settings.max_length, too_long=settings.too_long, drops_refused=True
    )  # what is refused has been told
    encode = encoder.encode_preferences if settings.method == "DPO" else partial(encoder.encode, method=settings.method)
    chosen = longest_lines(
        directory.train_rows,
        sizes,
        micro_batch_size,
        lambda line: positions(encode(iter([line]), "the dataset's"), joined=joined),
    )
    write_lines(directory, RunDirectory(small.run_directory), chosen)
    train(small, output)
    steps = _steps(RunDirectory(small.run_directory).metrics)
    age = (datetime.now(UTC) - process.start_time()).total_seconds()
    return {
        "startSeconds": age - sum(step["seconds"] for step in steps),
        "librariesBytes": libraries,
        "peakBytes": peak_bytes(),
        "gpu": _gpu(),
        "rows": len(lengths),
        "tokens": sum(lengths),
        "longestRow": data.longest_sequence,
        "longestExample": max(sizes),
        "heldOutRows": len(data.held_out),
        "threads": torch.get_num_threads(),
        "heldOutTokens": sum(data.held_out.lengths),
        "microBatchSize": micro_batch_size,
        "steps": steps,
    }


def longest_lines(path: Path, sizes: Sequence[int], count: int, sizes_of: Callable[[bytes], Sequence[int]]) -> set[int]:
    """Return the numbers, from 0, of the lines that became the longest examples.

    Parameters
    ----------
    path
        The exported lines.
    sizes
        Of the examples that they became, in any order; some lines may have been left out.
    count
        How many lines to return, as far as there are so many examples.
    sizes_of
        Returns the sizes of the examples that a line becomes.
    """
    enough = sorted(sizes, reverse=True)[:count][-1]
    chosen: set[int] = set()
    with path.open("rb") as file:
        ends = [0, *accumulate(map(len, file))]
        for number in sorted(range(len(ends) - 1), key=lambda number: ends[number] - ends[number + 1]):
            if len(chosen) == count:
                break
            file.seek(ends[number])  # not all lines at once: the memory is being measured
            if any(size >= enough for size in sizes_of(file.readline())):
                chosen.add(number)
    return chosen


def write_lines(source: RunDirectory, target: RunDirectory, chosen: set[int]) -> None:
    """Copy the lines of these numbers into another run's directory as its dataset."""
    target.dataset.mkdir(parents=True)
    with source.train_rows.open("rb") as file, target.train_rows.open("wb") as copy:
        copy.writelines(line for number, line in enumerate(file) if number in chosen)
    target.evaluation_rows.touch()
    manifest = json.loads(source.manifest.read_text(encoding="utf-8"))
    files = [target.train_rows, target.evaluation_rows]
    size = target.train_rows.stat().st_size
    changed = {"rows": len(chosen), "evaluationRows": 0, "bytes": size, "sha256": sha256_of_files(files)}
    write_json(target.manifest, manifest | changed)


def peak_bytes() -> int:
    """Return the most memory that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available() or not torch.cuda.max_memory_reserved():
        return None
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    return {
        "name": torch.cuda.get_device_name(),
        "totalBytes": total,
        "contextBytes": max(0, context),
        "peakBytes": torch.cuda.max_memory_reserved(),
    }


def _steps(metrics: Path) -> list[dict[str, float]]:
    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [
        {"tokens": event["tokens"], "seconds": event["tokens"] / event["tokensPerSecond"]}
        for event in events
        if event["event"] == "train"
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
