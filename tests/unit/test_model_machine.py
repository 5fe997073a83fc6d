"""What a failure says of the disk that is full and of the GPU that is broken: somebody is to act on it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from model import disks, exits, gpus, result


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows where another one writes."""
    monkeypatch.setattr(disks, "_output", [])


def test_a_full_disk_is_named_with_what_is_free_there(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "checkpoint-7.tmp" / "optimizer.pt"  # whose folder is gone again
    failure = result.as_failure(OSError(errno.ENOSPC, "No space left on device", str(path)))
    mount = disks.mount_point(tmp_path)
    assert failure.message.startswith(f"no space left on the volume at {mount} (for {path}), with ")
    assert disks.amount(shutil.disk_usage(tmp_path).total) in failure.message
    assert failure.message.endswith("make room there, or use a larger claim (without Kubernetes, a larger disk)")


def test_where_the_error_names_no_file_it_is_the_runs_directory(tmp_path: Path) -> None:
    assert "on the output volume: make room" in disks.full(None)
    disks.writes_to(tmp_path)
    failure = result.as_failure(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert f"no space left on the volume at {disks.mount_point(tmp_path)}, with " in failure.message


def test_a_copys_target_is_full_and_not_its_source(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/proc/version", None, str(tmp_path / "copy"))
    assert f"(for {tmp_path / 'copy'})" in result.as_failure(error).message


def test_a_quota_is_no_full_disk(tmp_path: Path) -> None:
    message = result.as_failure(OSError(errno.EDQUOT, "Disk quota exceeded", str(tmp_path / "x"))).message
    assert message.startswith("the disk quota is used up on the volume at ")
    assert "free" not in message


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="no shared memory is mounted here")
def test_shared_memory_is_no_claim() -> None:
    message = result.as_failure(OSError(errno.ENOSPC, "No space left on device", "/dev/shm/torch_1")).message
    assert "on the volume at /dev/shm (for /dev/shm/torch_1)" in message
    assert message.endswith("raise resources.sharedMemory (without Kubernetes, the container's --shm-size)")


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_234_567, "1.2 MB"), (10_000_000_000, "10.0 GB"), (3 * 10**18, "3000.0 PB")],
)
def test_amounts(size: int, expected: str) -> None:
    assert disks.amount(size) == expected


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be ...", exits.GPU_UNAVAILABLE),
        ("No CUDA-capable device is detected", exits.GPU_UNAVAILABLE),
        ("CUDA error: system not yet initialized", exits.GPU_UNAVAILABLE),
        ("CUDA error: an illegal memory access was encountered", exits.CRASH),  # of the program's making
        ("CUDA error: device-side assert triggered", exits.CRASH),
        ("shape mismatch", exits.CRASH),
    ],
)
def test_a_broken_gpu_is_told_from_a_broken_program(text: str, code: int) -> None:
    failure = result.as_failure(RuntimeError(text))
    assert failure.code == code
    if code == exits.GPU_UNAVAILABLE:
        assert failure.reason == "GPUUnavailable"
        assert failure.message.startswith(f"a GPU of this machine failed: {text.splitlines()[0]}; check this machine's")


def test_what_a_machine_shows_of_its_driver(tmp_path: Path) -> None:
    assert gpus.driver(tmp_path, tmp_path) == f"no NVIDIA driver is loaded, and {tmp_path} has no nvidia0"
    version = tmp_path / "driver" / "nvidia" / "version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n")
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    assert gpus.driver(tmp_path, tmp_path) == (
        f"the NVIDIA driver 535.104.05 is loaded, and {tmp_path} has nvidia0, nvidia1"
    )
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n")
    assert "NVIDIA driver 570.86.15" in gpus.driver(tmp_path, tmp_path)
    version.write_text("?")
    assert "of an unknown version" in gpus.driver(tmp_path, tmp_path)


def test_without_a_usable_gpu_the_message_says_why_and_what_to_do() -> None:
    failure = exits.no_usable_gpu(2, "torch says: Found no NVIDIA driver on your system")
    assert (failure.code, failure.reason) == (exits.GPU_UNAVAILABLE, "GPUUnavailable")
    for words in ("2 GPUs were requested and none is usable", "Found no NVIDIA driver", "nvidia-smi", "names the node"):
        assert words in failure.message
    assert "resources.gpus: 0" in failure.message
