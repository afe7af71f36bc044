"""Compile a network with torch.compile, with a cache on disk that later runs reuse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def compile_network(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a compiled call of a network; it uses the same weights.

    Compilation happens in the first step. Its result is cached in $TORCHINDUCTOR_CACHE_DIR, or else in
    `~/.cache/tiekd-pipeline/compiled`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tiekd-pipeline" / "compiled"
    os.environ.setdefault(CACHE_VARIABLE, str(cache))
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False)
    return compiled
