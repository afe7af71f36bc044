"""Before a run, check that a teacher repeats its predictions, alone and in a batch.

A graph that mixes the images of a batch, or a module in training mode, gives depth that depends on the other images.

Shape legend: h w pixels of the teacher's own output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Ask = Callable[[Sequence[int]], Sequence[NDArray[np.float32]]]

BATCH = 3
"""Images of the batch; three suffice to show mixing."""
ULPS = 4
"""Allowed rounding, in steps of the precision: other batch sizes may use other kernels."""
STEP = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Step by precision of the card; integers count as float16."""
STEP_ON_GPU = 2.0**-10
"""GPUs use TF32 for float32 convolutions, with the mantissa of float16."""


def check_repeats(
    ask: Ask,
    samples: Sequence[int],
    *,
    teacher: str,
    precision: str,
    max_rel_error: float,
    metric: bool,
    batch_size: int,
) -> None:
    """Raise PipelineError if predictions differ by more than the teacher's rounding and `max_rel_error`.

    `ask` predicts depth (h, w) of samples as one batch; `samples` are the first and some others. The first is predicted
    alone, then as the last of a batch (alone again if `batch_size` is 1); only if these differ, both are repeated. A
    difference is the mean over pixels, relative to metric depth, otherwise to the sample's range.
    """
    step = max(STEP.get(precision, STEP["float16"]), STEP_ON_GPU if torch.cuda.is_available() else 0)
    limit = max(ULPS * step, max_rel_error)
    hint = (
        "; state its `precision` in its card if that is below float32, or give `accept_noise` to store one prediction"
    )
    first, others = samples[0], list(samples[1:BATCH])
    in_batch = bool(others) and batch_size > 1
    batch = [*others[: batch_size - 1], first] if in_batch else [first]
    alone, together = ask([first])[0], ask(batch)[-1]
    apart = difference(alone, together, metric=metric)
    if apart <= limit:
        return
    noise = apart
    if in_batch:  # repeat both calls, to tell an effect of the batch from noise
        repeated = ask(batch)[-1]
        noise = difference(together, repeated, metric=metric)
        noise = max(noise, difference(alone, ask([first])[0], metric=metric))
    if noise > limit:
        raise PipelineError(
            f"teacher {teacher!r} does not repeat its prediction for one image: {noise:.2%} difference (mean over "
            f"pixels), expected at most {limit:.2%}: seed it, and put it into eval mode{hint}"
        )
    raise PipelineError(
        f"teacher {teacher!r} predicts different depth for an image alone and in a batch of {len(batch)}: "
        f"{apart:.2%} difference (mean over pixels; medians {_median(alone)} and {_median(together)}), expected at "
        f"most {limit:.2%}: use `batch_size=1`, or correct what mixes the images, such as normalization in "
        f"training mode{hint}"
    )


def difference(first: NDArray[np.float32], second: NDArray[np.float32], *, metric: bool) -> float:
    """Return the mean relative difference of two depths (h, w); at most 1 per pixel, 1 if only one has a value."""
    if first.shape != second.shape:
        return 1.0
    a, b = first.astype(np.float64), second.astype(np.float64)
    known = np.isfinite(a) & np.isfinite(b)
    apart = (np.isfinite(a) != np.isfinite(b)).astype(np.float64)
    if known.any():
        scale = np.abs(a[known]) if metric else np.ptp(a[known])
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.abs(a[known] - b[known]) / scale
        apart[known] = np.where(a[known] == b[known], 0.0, np.minimum(relative, 1.0))
    return float(apart.mean()) if apart.size else 0.0


def _median(depth: NDArray[np.float32]) -> str:
    return f"{np.nanmedian(depth):.4g}" if np.isfinite(depth).any() else "none"
