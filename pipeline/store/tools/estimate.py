"""Estimate a store's size: measured bits per pixel, times pixels, times images.

Bits per pixel come from an existing store (`measured_costs`) or from reference figures (`reference_costs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import PipelineError
from ..format.codec import LogCodec
from ..format.sizes import chunk_bytes

if TYPE_CHECKING:
    from ..read.store import Store

REFERENCE = "44 real predictions over KITTI frames, encoded 2026-11-22"
DOCUMENT = "docs/benchmarks.md"
REFERENCE_ERRORS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
UPSAMPLED_BITS = (2.90, 2.25, 1.55, 1.36, 1.21, 1.05, 0.86)
"""Bits per pixel at each error, of predictions saved at 352x1216 px: chunks only, but at 0.05 % the benchmark's whole
store, 82.9 KB per frame (its chunks: 1.54)."""
NATIVE_BITS = (4.79, 3.87, 2.41, 1.93, 1.60, 1.36, 1.16)
"""Chunks only, of the same network's own output, 192x640 px: at 0.05 %, 37.0 KB per frame."""
PNG_BITS = 7.87
"""The 352x1216 px predictions as the released TIE-KD code saves them: 421 KB per frame."""
SPARSE_BITS_PER_BIN = 130.4 / 64
"""The demo's teacher with 64 bins at 0.01 nats, which is uncertain (42 bins kept); a confident teacher takes less."""
FLOAT16_BITS = 16


def count_bins(text: str) -> int:
    """Return the number of bins of `kitti`, `nyu` or SPACING:COUNT:LO:HI. Raises PipelineError for anything else."""
    from ...depth.bins import parse_bins  # imports torch

    return parse_bins(text).count


class Cost(NamedTuple):
    """Cost of one way to store predictions."""

    name: str
    bits_per_pixel: float
    where_from: str

    def bytes(self, images: int, size_px: tuple[int, int]) -> float:
        """Return the bytes of images of (height, width) pixels."""
        return images * size_px[0] * size_px[1] * self.bits_per_pixel / 8


def reference_costs(max_rel_error: float, dpm_kind: str, bin_count: int) -> list[Cost]:
    """Return costs of a store from reference figures, and of alternatives, for metric depth from 0.1 to 300 m.

    Interpolates between the measured errors. Raises PipelineError for an error outside them.
    """
    LogCodec.for_error(max_rel_error, 0.1, 300.0)
    if not REFERENCE_ERRORS[0] <= max_rel_error <= REFERENCE_ERRORS[-1]:
        raise PipelineError(
            f"no reference figures for `max_rel_error={max_rel_error}`: they reach from {REFERENCE_ERRORS[0]:g} to "
            f"{REFERENCE_ERRORS[-1]:g}; write a small store with that error, and pass it as `from`"
        )
    costs = []
    for name, measured, of in (
        ("store, maps saved larger than the network's output", UPSAMPLED_BITS, "352x1216 px"),
        ("store, the network's own output", NATIVE_BITS, "192x640 px"),
    ):
        bits = float(np.interp(np.log(max_rel_error), np.log(REFERENCE_ERRORS), measured))
        source = f"{REFERENCE}, {of}" + (
            f" ({DOCUMENT})" if (max_rel_error, measured) == (5e-4, UPSAMPLED_BITS) else ""
        )
        if dpm_kind == "sparse":
            bits += SPARSE_BITS_PER_BIN * bin_count
            source += f"; sparse maps: the demo's teacher, {SPARSE_BITS_PER_BIN:.2f} bit per bin"
        elif dpm_kind == "dense":
            bits += FLOAT16_BITS * bin_count
            source += "; dense maps as float16, not compressed: at most this"
        costs.append(Cost(name, bits, source))
    return [*costs, *_peers(bin_count)]


def measured_costs(store: Store) -> list[Cost]:
    """Return costs of a store like this one, from the sizes of its chunks, and of alternatives."""
    height, width = store.layout.size_px
    whole = sum(chunk_bytes(store.layout.sharded(), store.manifest).values())
    bits = 8 * whole / (len(store) * height * width)
    return [
        Cost("store", bits, f"{store.name}: {len(store)} samples of {height}x{width} px"),
        *_peers(store.spec.bin_count),
    ]


def _peers(bin_count: int) -> list[Cost]:
    return [
        Cost("16-bit PNG, depth only", PNG_BITS, f"{REFERENCE}, 352x1216 px ({DOCUMENT})"),
        Cost(
            f"dense float16 maps of {bin_count} bins",
            FLOAT16_BITS * bin_count,
            "2 bytes per bin and pixel, not compressed",
        ),
    ]
