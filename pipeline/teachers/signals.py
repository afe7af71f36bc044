"""Checks of what a teacher gives besides depth: confidence, sky and intrinsics.

Shape legend: B batch, a b pixels of a signal, H W pixels of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import PipelineError

if TYPE_CHECKING:
    from torch import Tensor

SIGNALS = ("confidence", "sky")
"""Fields of TeacherOutput that are probabilities over the view."""
REMEDIES = {
    "confidence": "apply a sigmoid to logits, exp(-u) to an uncertainty u of at least 0",
    "sky": "apply a sigmoid to logits",
}
MAX_VIEW_PER_FOCAL = 20
"""Largest side of a view in focal lengths, a field of view of 169 degrees; normalized intrinsics exceed it."""


def check_probabilities(where: str, name: str, values: Tensor) -> None:
    """Raise PipelineError for values of a signal that are NaN or outside 0..1."""
    missing, outside = values.isnan(), (values < 0) | (values > 1)
    wrong = int((missing | outside).sum())
    if wrong:
        numbers = values[~missing]
        extremes = f"from {float(numbers.min()):g} to {float(numbers.max()):g}, " if len(numbers) else ""
        raise PipelineError(
            f"{where} returned {name} with {wrong} of {values.numel()} values outside 0..1 ({extremes}"
            f"{int(missing.sum())} NaN), expected probabilities: {REMEDIES[name]}"
        )


def checked_intrinsics(where: str, values: Tensor, view_px: tuple[int, int]) -> Tensor:
    """Return intrinsics (B, 4) float32 fx fy cx cy in pixels of a view (H, W), of these or of matrices (B, 3, 3).

    Raises PipelineError for a matrix that is not of a pinhole camera without skew, infinity, and an implausible focal
    length.
    """
    if values.ndim == 3:
        expected = torch.zeros_like(values)
        for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)):
            expected[:, row, column] = values[:, row, column]
        expected[:, 2, 2] = 1
        if not torch.allclose(values, expected, rtol=0, atol=1e-3, equal_nan=True):
            raise PipelineError(
                f"{where} returned intrinsics {_text(values[0].flatten())}, expected matrices [[fx, 0, cx], [0, fy, "
                "cy], [0, 0, 1]]: divide by the last entry, and leave out skew"
            )
        values = torch.stack([values[:, 0, 0], values[:, 1, 1], values[:, 0, 2], values[:, 1, 2]], dim=1)
    values = values.float()
    height, width = view_px
    least_px = [side / MAX_VIEW_PER_FOCAL for side in (width, height)]
    wrong = values.isinf().any(dim=1) | (values[:, :2] < torch.tensor(least_px, device=values.device)).any(dim=1)
    if bool(wrong.any()):
        raise PipelineError(
            f"{where} returned intrinsics {_text(values[wrong][0])} (fx, fy, cx, cy) for a view of {height}x{width} "
            f"px, expected focal lengths of at least {least_px[0]:g} and {least_px[1]:g} px, or NaN where unknown: "
            "multiply normalized intrinsics by the width (fx, cx) and height (fy, cy) of the view"
        )
    return values


def _text(values: Tensor) -> str:
    return f"({', '.join(f'{value:g}' for value in values.tolist())})"
