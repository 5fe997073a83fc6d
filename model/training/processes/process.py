"""The process around the training: its standard output, its environment, its share of the machine."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from model import exits
from model.exits import FailureError

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets")
"""What a training imports; validate, plan --no-probe and plot do without."""
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",
    "TOKENIZERS_PARALLELISM": "true",
    "OMP_WAIT_POLICY": "passive",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
"""Read by the libraries when they are imported: no progress bars, nobody is told, and threads that wait sleep. Micro-
batches all differ in size: a GPU's memory is to be taken in pieces that grow, or it would end in gaps. The registry is
told by us: a pod has the variables of transformers' callback for other images, and it would tell less, between ours.

Threads that spin while they wait are a few percent faster alone, and ten times slower beside another busy process.
"""

OVERRIDES = "ACCELERATE_"
"""What accelerate reads before it looks at its arguments, and `accelerate launch` leaves behind: it would train in
another precision or on another device than the settings say, without a word."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""From malloc.h."""


def quiet() -> None:
    """Keep the libraries from telling a person what only their own users can act on; to be called before any import.

    And from doing other than the settings say.

    Their warnings are shown when `python -W` or PYTHONWARNINGS asks for them. Why CUDA cannot be used is always shown.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in [each for each in os.environ if each.startswith(OVERRIDES)]:
        del os.environ[name]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", message=r"(?si).*\b(CUDA|NVIDIA)\b")


def prepare() -> TextIO:
    """Get the process ready for heavy imports, and return the only stream that still leads to standard output.

    Whatever the libraries print goes to standard error, so that standard output stays JSON lines. Garbage is not looked
    for until `settle`: of what an import makes nothing is garbage, and looking takes a tenth of the start.
    """
    gc.disable()
    quiet()
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, str(usable_cpus()))
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return output


def give_memory_back() -> None:
    """Let freed memory go back to the kernel, as it does without the image's settings.

    Those hold whole tensors for the next step, which pays on a CPU. A GPU's steps happen elsewhere, and what weights
    were read into would be held for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other libraries do so anyway
    if mallopt is not None:
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(option, 128 << 10)


def check_packages(find: Callable[[str], object] = importlib.util.find_spec) -> None:
    """Refuse to train without the libraries that it takes, before anything is written.

    Raises
    ------
    FailureError
        With those that are missing, and the command that installs them.
    """
    if missing := [name for name in PACKAGES if not find(name)]:
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            f"training needs the Python packages {', '.join(missing)}, which are not installed here: run "
            "pip install 'finetune-operator[training]' (in a checkout: pip install -e '.[training]'), or use the "
            "trainer's image",
        )


def settle() -> None:
    """Look for garbage again: to be called once all is imported."""
    gc.enable()


def usable_cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many CPUs the process may use at once.

    A container with a limit of 2 CPUs sees all 64 of its node: with one thread each it would be throttled.
    """
    cpus = len(os.sched_getaffinity(0))
    for quota, period in ((root / "cpu.max", None), (root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us")):
        try:
            fields = quota.read_text().split() + (period.read_text().split() if period else [])
        except OSError:
            continue
        if fields[0] not in ("max", "-1"):
            cpus = min(cpus, math.ceil(int(fields[0]) / int(fields[1])))
    return max(1, cpus)


def uses_cuda(gpus: int) -> bool:
    """Whether a run that asked for so many GPUs trains on them."""
    import torch

    usable: bool = torch.cuda.is_available()
    return gpus > 0 and usable


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 itself; one that does not is fifty times slower with it than with float32."""
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(value.split())
    return False


def start_time() -> datetime:
    """Return when this process started, to a hundredth of a second."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        print("cannot tell when this process started; its start-up is not counted", file=sys.stderr)
        age = 0.0
    return datetime.fromtimestamp(time.time() - age, UTC)


def timestamp(moment: datetime | None = None) -> str:
    """Return a moment, or now, in RFC 3339 with milliseconds, in UTC."""
    return (moment or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
