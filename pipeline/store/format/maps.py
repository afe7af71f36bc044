"""Depth probability maps that are not sparse: Gaussian maps of depth, and dense float16 maps.

Shape legend: K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DENSE_TOLERANCE = 0.01
"""Largest deviation of a stored float16 map from a sum of 1; rounding of 4096 bins gives 0.001."""

AT_ONCE_BYTES, PART_BYTES = 2**29, 2**27
"""Largest map computed at once, and size of the parts of a larger one; computing takes twice as much again. 257 bins of
a full KITTI frame are 479 MB. The last bit may differ between computing at once and in parts."""


def gaussian(values: NDArray[np.float32], bin_edges: NDArray[np.float64], sigma: float) -> NDArray[np.float32]:
    """Return the Gaussian map (K, h, w) of values (h, w); NaN stays NaN.

    `bin_edges` (K + 1,) and `sigma` have the unit of the values.
    """
    import torch  # slow import, needed only for this kind of map

    from ...depth.dpm import gaussian_dpm

    edges, (height, width) = torch.from_numpy(bin_edges), values.shape
    bins = len(bin_edges) - 1
    if 4 * bins * height * width <= AT_ONCE_BYTES:
        dense: NDArray[np.float32] = gaussian_dpm(torch.from_numpy(values)[None, None], edges, sigma)[0].numpy()
    else:
        dense = np.empty((bins, height, width), np.float32)
        step = max(1, PART_BYTES // (4 * bins * width))
        for row in range(0, height, step):
            part = torch.from_numpy(values[row : row + step])[None, None]
            dense[:, row : row + step] = gaussian_dpm(part, edges, sigma)[0].numpy()
    dense[:, np.isnan(values)] = np.nan
    return dense


def normalized(dense: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalize a stored map (K, h, w) in place to a sum of 1 over K; invalid pixels are NaN in every bin.

    Raises PipelineError for probabilities that are negative or do not sum to 1, or a pixel that is NaN in some
    bins only.
    """
    total = dense.sum(axis=0)
    # An invalid pixel is NaN. One NaN makes the sum NaN; a negative probability may not show in the sum.
    if np.any(dense < 0) or not np.all(np.isnan(total) | (np.abs(total - 1) < DENSE_TOLERANCE)):
        raise PipelineError("a dense map has negative probabilities or does not sum to 1")
    if np.any(np.isnan(total) != np.isnan(dense[0])):
        raise PipelineError("a dense map is NaN in some bins of a pixel but not in all")
    dense /= total
    return dense
