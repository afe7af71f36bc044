"""Which errors are out-of-memory errors."""

import errno

import numpy as np
import pytest
import torch

from pipeline.common.device import is_out_of_memory


def raised(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has a class of its own
        function()
    return caught.value


def wrapped(error):
    outer = ValueError("its network refuses an input of 9x9 px")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "make",
    [
        lambda: raised(lambda: torch.empty(10**14)),
        lambda: raised(lambda: np.zeros(10**15)),
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        lambda: RuntimeError("std::bad_alloc"),
        lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
        lambda: wrapped(raised(lambda: torch.empty(10**14))),
    ],
    ids=["torch on a CPU", "NumPy", "torch on a GPU", "cuBLAS", "C++", "the system", "raised from one of them"],
)
def test_out_of_memory_errors_are_recognized(make):
    assert is_out_of_memory(make())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError("data/out of memory/0.png: no such file"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ],
    ids=["shapes", "a path", "a full disk", "Ctrl-C"],
)
def test_other_errors_are_not_out_of_memory(error):
    assert not is_out_of_memory(error)
