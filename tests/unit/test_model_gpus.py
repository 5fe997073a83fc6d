"""What an error says of a GPU."""

from __future__ import annotations

import pytest

from model import exits, gpus


class OutOfMemoryError(RuntimeError):
    """Called as torch's."""


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA driver error: out of memory",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp",
        "NCCL error in: ProcessGroupNCCL.cpp:1970, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_memory_that_does_not_suffice(text: str) -> None:
    assert gpus.out_of_memory(RuntimeError(text))
    failure = exits.gpu_failure(RuntimeError(text))
    assert failure is not None
    assert (failure.code, failure.reason) == (exits.GPU_OUT_OF_MEMORY, "GPUOutOfMemory")
    assert "--max-length" in failure.message


def test_memory_that_does_not_suffice_by_the_errors_kind_or_its_cause() -> None:
    assert gpus.out_of_memory(OutOfMemoryError("4 rows"))
    error = RuntimeError("the layer failed")
    error.__cause__ = OutOfMemoryError("4 rows")
    assert gpus.out_of_memory(error)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx",
        "out of resource: shared memory, Required: 131072, Hardware limit: 101376",
        "mat1 and mat2 shapes cannot be multiplied (4x8 and 9x9)",
    ],
)
def test_other_errors_are_not_of_memory(text: str) -> None:
    assert not gpus.out_of_memory(RuntimeError(text))
    assert not gpus.out_of_memory(ValueError("CUDA out of memory"))
