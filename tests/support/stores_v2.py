"""Tiny stores of format version 2: one aligned to ground truth, one with rebinned maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tiny_stores import make_maps, make_spec

from pipeline.depth.alignment import NO_TRUTH, Fit, Verdict
from pipeline.store.read.alignment import row_of_fit
from pipeline.store.write.writer import StoreWriter, encode_sample

if TYPE_CHECKING:
    from pathlib import Path

ALIGNMENT = {
    "fit": "l1_tukey",
    "truth": "folder/depth",
    "min_points": 100,
    "max_residual": 0.25,
    "depth_range_m": [0.1, 300.0],
}
FITS = (
    Fit(0.01, 0.05, 500, 0.03125, Verdict.ACCEPTED),
    Fit(math.nan, math.nan, 12, math.nan, Verdict.TOO_FEW_POINTS),
    Fit(math.nan, math.nan, 500, math.nan, Verdict.SCALE_NOT_POSITIVE),
    Fit(math.nan, math.nan, 500, 0.5, Verdict.RESIDUAL_TOO_LARGE),
    NO_TRUTH,
    Fit(math.nan, math.nan, 500, 0.125, Verdict.MOSTLY_NOT_POSITIVE),
    Fit(0.01, -0.1, 400, 0.0625, Verdict.ACCEPTED),
)
"""Fits of the seven samples; the last one loses the pixels with values of at most 10."""
KINDS = {
    "aligned": ("gaussian", {"depth_space": "affine_disparity", "alignment": ALIGNMENT}),
    "carried": ("sparse", {"carried_from": "pixel"}),
}


def make_store_v2(path: Path, name: str, **bad_row: object) -> Path:
    """Write the store `aligned` or `carried`; `bad_row` replaces columns of sample 0."""
    kind, changes = KINDS[name]
    card = {"kind": "python", "name": "tiny", "depth_space": changes.get("depth_space", "metric_m")}
    spec, ids = make_spec(kind, teacher=card, **changes)
    with StoreWriter(path, spec, ids) as writer:
        for shard in writer.todo:
            samples = []
            for number in spec.shard_samples(shard):
                carried = number / 1024 if name == "carried" else None
                sample = encode_sample(spec, *make_maps(number, kind), carried)
                sample.row.update(image_sha256=f"{number:064x}", image_size_px=[12, 20])
                if name == "aligned":
                    sample.row.update(row_of_fit(FITS[number]))
                if number == 0:
                    sample.row.update(bad_row)
                samples.append(sample)
            writer.write_shard(shard, samples)
        writer.finish()
    return path
