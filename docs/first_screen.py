"""Draw docs/first_screen.png from the demo's outputs: run `make demo`, then `python docs/first_screen.py`.

One test frame: the image, both depths, the student's uncertainty, and both distributions at one pixel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import pipeline as tiekd

NEAR_M, FAR_M = 3.0, 80.0


def main() -> None:
    """Draw one frame."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the demo wrote")
    parser.add_argument("--frame", type=int, default=54, help="which frame of the test split")
    parser.add_argument("--pixel", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="else the most uncertain one")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("first_screen.png"))
    arguments = parser.parse_args()
    source = tiekd.open_source("scenes", str(arguments.data / "scenes"))
    sample = source.samples("test")[arguments.frame]
    image, _ = source.read_image(sample)
    store = tiekd.open_store(arguments.data / "stores" / "teacher.zarr")
    student = tiekd.load_student(arguments.data / "runs" / "tiekd")
    teacher_dpm, student_dpm = enlarged(store.dpm(sample.id), image.shape), enlarged(student.dpm(image), image.shape)
    edges_m = store.bin_edges_m
    centers_m = (edges_m[1:] + edges_m[:-1]) / 2
    teacher_m, student_m = (np.tensordot(centers_m, dpm, 1) for dpm in (teacher_dpm, student_dpm))
    spread_m = np.sqrt(np.maximum(np.tensordot(centers_m**2, student_dpm, 1) - student_m**2, 0))
    relative = spread_m / student_m
    row, column = arguments.pixel or np.unravel_index(np.argmax(relative), relative.shape)

    figure = plt.figure(figsize=(16, 4.6), dpi=100, facecolor="white")
    grid = figure.add_gridspec(
        2, 3, width_ratios=[1, 1, 0.78], wspace=0.06, hspace=0.3, left=0.01, right=0.98, top=0.92, bottom=0.02
    )
    depth = {"cmap": "turbo_r", "norm": mpl.colors.LogNorm(NEAR_M, FAR_M)}
    panels = [
        (0, 0, "image", image, {}),
        (0, 1, "teacher: depth, computed once", teacher_m, depth),
        (1, 1, "student: depth", student_m, depth),
        (
            1,
            0,
            "student: uncertainty (standard deviation / depth)",
            relative,
            {"cmap": "magma", "vmin": 0, "vmax": 0.8},
        ),
    ]
    for line, place, title, pixels, style in panels:
        axes = figure.add_subplot(grid[line, place])
        axes.imshow(pixels, interpolation="bilinear", **style)
        axes.plot(column, row, color="black", marker="+", markersize=14, markeredgewidth=4)
        axes.plot(column, row, color="white", marker="+", markersize=12, markeredgewidth=1.8)
        axes.set_title(title, fontsize=13, pad=4)
        axes.axis("off")
    draw_maps(figure, grid[:, 2], centers_m, teacher_dpm[:, row, column], student_dpm[:, row, column])
    figure.savefig(arguments.out)
    print(f"{arguments.out}: frame {sample.id}, pixel {row} {column}")


def draw_maps(
    figure: plt.Figure, place: mpl.gridspec.SubplotSpec, centers_m: np.ndarray, teacher: np.ndarray, student: np.ndarray
) -> None:
    """Draw two distributions (K,) over depth."""
    axes = figure.add_subplot(place)
    for name, probability, color in (("teacher", teacher, "#555555"), ("student", student, "#d1495b")):
        axes.fill_between(centers_m, probability, alpha=0.25, color=color, step="mid")
        axes.plot(centers_m, probability, color=color, linewidth=1.8, label=name, drawstyle="steps-mid")
    axes.set_xscale("log")
    axes.set_xlim(NEAR_M, FAR_M)
    axes.set_ylim(bottom=0)
    axes.set_xticks([3, 5, 10, 20, 40, 80], ["3", "5", "10", "20", "40", "80"])
    axes.minorticks_off()
    axes.set_yticks([])
    axes.set_xlabel("depth in metres", fontsize=12)
    axes.set_title("depth probability map at +", fontsize=13, pad=4)
    axes.legend(frameon=False, fontsize=12)
    axes.spines[["top", "right", "left"]].set_visible(False)
    box = axes.get_position()
    axes.set_position((box.x0 + 0.02, box.y0 + 0.13, box.width - 0.02, box.height - 0.13))


def enlarged(dpm: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Map (K, h, w) at the size of an image (H, W, 3), by nearest pixel: a mean of two maps is neither."""
    rows = np.arange(shape[0]) * dpm.shape[1] // shape[0]
    columns = np.arange(shape[1]) * dpm.shape[2] // shape[1]
    return dpm[:, rows[:, None], columns]


if __name__ == "__main__":
    main()
