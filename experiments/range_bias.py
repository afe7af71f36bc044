"""Measure the bias of the mean of a teacher's map over real depth, with the paper's bins.

Run `python experiments/range_bias.py`. Writes experiments/results/range_bias.md. No network is trained: the figures are
the same on every run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.depth.bins import parse_bins
from pipeline.depth.dpm import expected_depth, gaussian_dpm, released_dpm

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared/data"
DEPTHS = (
    ("real office", SHARED / "indoor/depth", 0.001, "nyu"),
    ("KITTI, real network", SHARED / "kitti/teacher_png16", 80 / 65535, "kitti"),
)
KINDS = {"released": "released", "gaussian": "Gaussian, 0.5 m", "centred": "centred, 0.5 m"}
PIXELS = 20_000


def map_mean_m(kind: str, depth_m: torch.Tensor, edges_m: torch.Tensor) -> torch.Tensor:
    """Return the mean of the map that a kind of map has for depths (B, 1, H, W)."""
    if kind == "released":
        return expected_depth(released_dpm(depth_m, edges_m), edges_m)
    return expected_depth(gaussian_dpm(depth_m, edges_m, 0.5, centered=kind == "centred"), edges_m)


def main() -> None:
    """Write the table: the bias of each map type over depth from a sensor or a network."""
    lines = ["| depth | bins | map | mean bias | mean of bias / depth | pixels off by over 5 % |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: |")
    for title, files, metres, preset in DEPTHS:
        edges_m = parse_bins(preset).edges()
        images = [np.asarray(Image.open(path)).ravel() * metres for path in sorted(files.glob("*.png"))[::5]]
        real_m = np.concatenate(images)
        real_m = real_m[(real_m > float(edges_m[0])) & (real_m < float(edges_m[-1]))]
        depth_m = torch.from_numpy(np.random.default_rng(0).choice(real_m, PIXELS)).view(1, 1, 1, -1)
        for kind, label in KINDS.items():
            bias_m = map_mean_m(kind, depth_m, edges_m) - depth_m
            relative = (bias_m.abs() / depth_m).flatten()
            figures = f"{bias_m.mean():+.3f} m | {relative.mean():.2%} | {(relative > 0.05).double().mean():.1%}"
            lines.append(f"| {title} | `{preset}` | {label} | {figures} |")
    text = "\n".join(lines) + "\n"
    (ROOT / "experiments/results/range_bias.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
