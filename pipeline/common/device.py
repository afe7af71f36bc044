"""Where networks run, and in which precision."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OptionError, PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import resource
except ImportError:  # absent on Windows, which the command line refuses
    resource = None  # type: ignore[assignment]

OUT_OF_MEMORY = (
    "out of memory",  # CUDA, where the error is not of torch's own class
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same on other systems
    "std::bad_alloc",
    "Failed to allocate memory",  # ONNX Runtime
    "ALLOC_FAILED",  # cuBLAS, cuDNN
)
"""Parts of messages of out-of-memory errors without a class."""


def choose_device(name: str = "auto", process: int | None = None) -> torch.device:
    """Return the device of that name; `auto` is a CUDA GPU if there is one, else the CPU.

    `process` is the local rank of one of several processes, which uses the GPU of that index.
    Raises PipelineError for a missing device, and for one GPU that several processes would share.
    """
    if process is not None and name.startswith("cuda:"):
        raise PipelineError(f"`device={name}`: each process needs its own GPU; use `device=cuda`")
    if process is not None and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return choose_device(f"cuda:{process}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError("device", name, "auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise OptionError("device", name, "auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise PipelineError(f"`device={name}`: this machine has {count} CUDA devices; use `device=auto` or cpu")
    return device


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype for mixed precision, or None for float32.

    `auto` is bfloat16 on GPUs with hardware support, and float32 on CPUs, where it is faster. float16 has more digits
    and less range: it needs gradient scaling, or small gradients become 0.
    Raises PipelineError for another name.
    """
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else None
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if precision not in dtypes:
        raise OptionError("precision", precision, f"auto, {', '.join(dtypes)}")
    return dtypes[precision]


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Use only deterministic algorithms of torch in the context, if `enabled`.

    The same run on the same GPU and versions then gives the same bits. Operations without such an algorithm raise
    RuntimeError.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    settings: Any = torch.utils.deterministic  # ships no types
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True)
    settings.fill_uninitialized_memory = False  # finds bugs, at a cost; changes no result
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before[0])
        settings.fill_uninitialized_memory = before[1]


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    unit_bytes = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or its cause, is an out-of-memory error of the GPU or of this process.

    torch has an error class for GPUs alone; on a CPU, and in the libraries it calls, only the message shows it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(cause, OSError):
            if cause.errno == errno.ENOMEM:
                return True
        elif not isinstance(cause, ValueError) and any(text in str(cause) for text in OUT_OF_MEMORY):
            return True
        cause = cause.__cause__
    return False
