"""Where networks run, and in which precision."""

from __future__ import annotations

import torch


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; `auto` is a CUDA GPU where there is one, else the CPU.

    Raises ValueError for a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise ValueError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= there:
            raise ValueError(f"--device {name}: this machine has {there} CUDA devices; use --device auto or cpu")
    return device


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Type for mixed precision, or None for float32 throughout.

    `auto` is bfloat16 on GPUs that compute in it; on CPUs it is float32, which is faster there.
    Raises ValueError for another name.
    """
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else None
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    raise ValueError(f"--precision {precision}: expected auto, float32 or bfloat16")
