"""Maps that are not sparse: made of depth, or read as float16.

Shape legend: K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DENSE_TOLERANCE = 0.01
"""How far a stored float16 map may be from a sum of 1; 4096 bins of rounding make 0.001."""

AT_ONCE_BYTES, PART_BYTES = 2**29, 2**27
"""Of a map that is made of depth at once, and of its parts where it is larger: on the way it takes twice that again.
257 bins of a full KITTI frame are 479 MB. The last bit of a part may be another than that of the whole."""


def gaussian(values: NDArray[np.float32], bin_edges: NDArray[np.float64], sigma: float) -> NDArray[np.float32]:
    """Map (K, h, w) about values (h, w) in the unit of the edges (K + 1,) and of `sigma`; NaN where a value is."""
    import torch  # heavy, and only this kind of map needs it

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
    """A stored map (K, h, w) that sums to 1 over K, in its place; a pixel without a value is NaN in every bin.

    Raises PipelineError for probabilities that are negative or do not sum to 1, or a pixel that is NaN in some bins
    alone.
    """
    total = dense.sum(axis=0)
    # NaN is a pixel without a value. One probability that is NaN makes its sum so; a negative one need not.
    if np.any(dense < 0) or not np.all(np.isnan(total) | (np.abs(total - 1) < DENSE_TOLERANCE)):
        raise PipelineError("its maps are negative or do not sum to 1")
    if np.any(np.isnan(total) != np.isnan(dense[0])):
        raise PipelineError("maps are NaN in some bins alone")
    dense /= total
    return dense
