"""Measure the bias of the mean of a teacher's map, and whether students follow it.

Run `python experiments/range_bias.py` after `dvc repro experiments/dvc.yaml`. The first table is the bias E[T] - d over
real depth, with the paper's bins. The second is by depth, for rooms and real indoor frames: the bias of the maps, and
the mean signed error of students trained on them (prediction minus teacher's depth, over the test frames and all
seeds). Writes experiments/results/range_bias.md and docs/range_bias.png.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.depth.bins import parse_bins
from pipeline.depth.dpm import expected_depth, gaussian_dpm, released_dpm
from pipeline.evaluation.study_file import read_study
from pipeline.networks.predict import predict_depth_m
from pipeline.networks.saved_run import load_run
from pipeline.sources.frames import frames_in_batches, images_of
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
STUDIES = {"rooms": "rendered rooms", "indoor": "real office"}
EDGES_M = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0])
KINDS = {
    "released": ("released", "#c0392b"),
    "gaussian-0.5": ("Gaussian, 0.5 m", "#d68910"),
    "centred-0.5": ("centred, 0.5 m", "#1e8449"),
}
BINS = parse_bins("nyu").edges()


def map_mean_m(kind: str, depth_m: torch.Tensor, edges_m: torch.Tensor = BINS) -> torch.Tensor:
    """Return the mean of the map that a study run makes from depths (B, 1, H, W)."""
    if kind == "released":
        maps = released_dpm(depth_m, edges_m)
    else:
        maps = gaussian_dpm(depth_m, edges_m, 0.5, centered=kind.startswith("centred"))
    return expected_depth(maps, edges_m)


def bias_over_real_depth() -> list[str]:
    """Return table lines: the bias of each map type over depth from a sensor or a network."""
    shared = ROOT.parent / "shared/data"
    lines = ["| depth | bins | map | mean bias | mean of bias / depth | pixels off by over 5 % |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: |")
    for title, files, metres, preset in (
        ("real office", shared / "indoor/depth", 0.001, "nyu"),
        ("KITTI, real network", shared / "kitti/teacher_png16", 80 / 65535, "kitti"),
    ):
        edges_m = parse_bins(preset).edges()
        images = [np.asarray(Image.open(path)).ravel() * metres for path in sorted(files.glob("*.png"))[::5]]
        real_m = np.concatenate(images)
        real_m = real_m[(real_m > float(edges_m[0])) & (real_m < float(edges_m[-1]))]
        depth_m = torch.from_numpy(np.random.default_rng(0).choice(real_m, 20_000)).view(1, 1, 1, -1)
        for kind, (label, _) in KINDS.items():
            bias_m = map_mean_m(kind, depth_m, edges_m) - depth_m
            relative = (bias_m.abs() / depth_m).flatten()
            figures = f"{bias_m.mean():+.3f} m | {relative.mean():.2%} | {(relative > 0.05).double().mean():.1%}"
            lines.append(f"| {title} | `{preset}` | {label} | {figures} |")
    return lines


class Brackets:
    """Mean signed error in each depth bracket."""

    def __init__(self) -> None:
        self.sums, self.counts = np.zeros(len(EDGES_M) - 1), np.zeros(len(EDGES_M) - 1)

    def add(self, depth_m: np.ndarray, error_m: np.ndarray) -> None:
        """Add errors at depths; both have the same shape."""
        bracket = np.digitize(depth_m, EDGES_M) - 1  # NaN and larger depths get the index after the last
        inside = (bracket >= 0) & (bracket < len(self.sums))
        self.sums += np.bincount(bracket[inside], error_m[inside], len(self.sums))
        self.counts += np.bincount(bracket[inside], minlength=len(self.sums))

    def means(self) -> np.ndarray:
        """Return the means; NaN for a bracket with less than half a percent of the pixels."""
        return np.where(self.counts > self.counts.sum() / 200, self.sums / np.maximum(self.counts, 1), np.nan)


def signed_errors_m(study: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return by bracket the mean error of the students against their teacher, and of their maps."""
    settings = read_study(ROOT / "experiments/params.yaml", study)
    source = open_source(settings.evaluate["source"])
    store = open_store(ROOT / settings.evaluate["store"])
    runs = [load_run(ROOT / f"data/experiments/runs/{study}/{kind}-{seed}") for seed in settings.seeds]
    edges_m = torch.from_numpy(runs[0].bin_edges_m)
    students, maps = Brackets(), Brackets()
    samples = source.samples(settings.evaluate["split"])
    for frames in frames_in_batches(source, samples, View.parse(runs[0].config["view"]), 8):
        images = images_of(frames, torch.device("cpu"))
        teacher_m = torch.stack([torch.from_numpy(store.depth_m(frame.sample.id)) for frame in frames])[:, None]
        maps.add(teacher_m.numpy(), (map_mean_m(kind, teacher_m) - teacher_m).numpy())
        target_m = F.interpolate(teacher_m, images.shape[2:], mode="bilinear")[:, 0]
        for run in runs:
            predicted_m = predict_depth_m(run.network, images, edges_m, flip_average=False)
            students.add(target_m.numpy(), (predicted_m - target_m).numpy())
    return students.means(), maps.means()


def main() -> None:
    """Write the tables and draw the figure."""
    figure, panels = plt.subplots(1, 1 + len(STUDIES), figsize=(13, 4), sharey=True, layout="constrained")
    depth_m = torch.linspace(0.3, 9.7, 471, dtype=torch.float64).view(1, 1, 1, -1)
    for kind, (label, color) in KINDS.items():
        panels[0].plot(depth_m.flatten(), (map_mean_m(kind, depth_m) - depth_m).flatten(), color=color, label=label)
    panels[0].set_title("mean of the map minus depth, 49 bins to 10 m")
    panels[0].legend(frameon=False)
    brackets = [f"{low:g}-{high:g} m" for low, high in pairwise(EDGES_M)]
    lines = [*bias_over_real_depth(), "", f"| | {' | '.join(brackets)} |", f"| --- |{' ---: |' * len(brackets)}"]
    for panel, (study, title) in zip(panels[1:], STUDIES.items(), strict=True):
        for kind, (label, color) in KINDS.items():
            students, maps = signed_errors_m(study, kind)
            panel.plot((EDGES_M[:-1] + EDGES_M[1:]) / 2, students, "o-", color=color, label=label)
            for name, values in ((f"{title}, {label}: maps", maps), ("students", students)):
                cells = ["" if np.isnan(value) else f"{value:+.2f}" for value in values]
                lines.append(f"| {name} | {' | '.join(cells)} |")
        panel.set_title(f"{title}: student minus teacher")
    for panel in panels:
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xlabel("teacher's depth (m)")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("signed error (m)")
    figure.savefig(ROOT / "docs/range_bias.png", dpi=110)
    text = "\n".join(lines) + "\n"
    (ROOT / "experiments/results").mkdir(exist_ok=True)
    (ROOT / "experiments/results/range_bias.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
