"""Whether a teacher says of an image the same again, and in whatever batch: asked once, before a run.

A graph that mixes the images of a batch, or a module left in training mode, gives depth that depends on what else lies
in the batch: a store of it holds numbers that no one image has.

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
"""Images of the batch: as few as show what a batch does."""
ULPS = 4
"""A network's rounding, in steps of its precision: a batch of another size may take another kernel."""
STEP = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Of the precision that a card states; whole numbers come of float16 at the least."""
STEP_ON_GPU = 2.0**-10
"""Convolutions of float32 are done in TF32 there, which has the digits of float16."""


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
    """Refuse a teacher that differs from itself by more than its rounding and `max_rel_error`.

    `ask` gives the depth (h, w) of each of some samples, as one batch; `samples` are the first and some others. The
    first is asked alone, then last in a batch, or alone again where no batches are made; only where these differ, both
    are asked again. A difference is the mean over pixels, relative to depth where that is metric, else to the
    sample's range.
    Raises PipelineError with the figure.
    """
    step = max(STEP.get(precision, STEP["float16"]), STEP_ON_GPU if torch.cuda.is_available() else 0)
    limit = max(ULPS * step, max_rel_error)
    hint = (
        "; state its `precision` in its card if it computes in less than float32, or give `accept_noise` to store what "
        "it says once"
    )
    first, others = samples[0], list(samples[1:BATCH])
    in_batch = bool(others) and batch_size > 1
    batch = [*others[: batch_size - 1], first] if in_batch else [first]
    alone, together = ask([first])[0], ask(batch)[-1]
    apart = difference(alone, together, metric=metric)
    if apart <= limit:
        return
    noise = apart
    if in_batch:  # is it the batch, or does every call differ? The same two calls again tell
        repeated = ask(batch)[-1]
        noise = difference(together, repeated, metric=metric)
        noise = max(noise, difference(alone, ask([first])[0], metric=metric))
    if noise > limit:
        raise PipelineError(
            f"teacher {teacher!r} differs from itself by {noise:.2%} (mean over the pixels of one image, asked twice), "
            f"expected at most {limit:.2%}: seed it, and put it into eval mode{hint}"
        )
    raise PipelineError(
        f"teacher {teacher!r} gives another depth for an image alone than in a batch of {len(batch)}: "
        f"{apart:.2%} (mean over its pixels; medians {_median(alone)} and {_median(together)}), expected at "
        f"most {limit:.2%}: use `batch_size` 1, or mend what mixes the images, such as a normalisation in "
        f"training mode{hint}"
    )


def difference(first: NDArray[np.float32], second: NDArray[np.float32], *, metric: bool) -> float:
    """Mean over pixels of how far two depths (h, w) are apart, each at most 1; 1 where one alone has no value."""
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
