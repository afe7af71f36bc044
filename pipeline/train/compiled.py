"""Compile a network with torch.compile, with a cache on disk that later runs reuse."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from ..common.user_cache import user_cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def compile_network(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a compiled call of a network; it uses the same weights.

    Compilation happens in the first step. Its result is cached in $TORCHINDUCTOR_CACHE_DIR, or else in
    `~/.cache/tiekd-pipeline/compiled`.
    """
    os.environ.setdefault(CACHE_VARIABLE, str(user_cache_folder() / "compiled"))
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False)
    return compiled
