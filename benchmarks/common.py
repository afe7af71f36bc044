"""Shared by the benchmarks: rendered data, a teacher with random weights, facts about the machine, and tables."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pipeline.depth.dpm import expected_depth
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import normalize
from pipeline.sources.registry import open_source
from pipeline.teachers.base import TeacherCard, TeacherOutput

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.sources.base import Source

RESULTS = Path(__file__).parent / "results"
KITTI = Path(__file__).parents[2] / "shared" / "data" / "kitti"
BINS = 64
RANGE_M = (1e-3, 80.0)


def render(path: Path, count: int, size_px: tuple[int, int]) -> Source:
    """Render `count` frames and return their source; the split `all` has all of them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the renderer is not installed
    from scenes.dataset import make_scenes

    make_scenes(path, count=count, size_px=size_px)
    return open_source(f"scenes:{path}")


class RandomTeacher:
    """A network with random weights; it takes as long as a trained one.

    Its logits are scaled so that its maps are as peaked as those of a trained network, with a mass of about 0.9 in ten
    bins. Flat maps would be larger than any stored in practice.
    """

    needs_images = True

    def __init__(self, name: str, *, maps: bool) -> None:
        torch.manual_seed(0)
        self.card = TeacherCard(kind="python", name=f"random-{name}", depth_space="metric_m")
        self.network = build_student(name, BINS).eval()
        self.edges_m = torch.linspace(*RANGE_M, BINS + 1, dtype=torch.float64)
        self.bin_edges_m = self.edges_m.numpy() if maps else None

    @torch.no_grad()
    def predict(self, images: torch.Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Return depth (B, h, w) in metres, and maps (B, K, h, w) with `maps=True`."""
        assert images is not None
        logits = self.network(normalize(images))
        # Depth follows the brightness of the image, from near at the bottom to far at the top.
        gray = F.avg_pool2d(F.interpolate(images.mean(1, keepdim=True), logits.shape[2:], mode="area"), 9, 1, 4)
        far = torch.linspace(0.7, 0.1, logits.shape[2]).view(-1, 1)
        number = torch.arange(BINS).view(1, -1, 1, 1)
        maps = torch.softmax(-(number - BINS * (far + 0.2 * gray)).square() / 8 + 0.1 * torch.tanh(logits), dim=1)
        depth_m = expected_depth(maps, self.edges_m)[:, 0].float()
        return TeacherOutput(depth_m, None if self.bin_edges_m is None else maps)


def median_ratio(times_s: Iterable[float], base_s: Iterable[float]) -> float:
    """Return the median ratio of two series that were measured in turn."""
    return statistics.median(own / base for own, base in zip(times_s, base_s, strict=True))


def machine(threads: int) -> dict[str, object]:
    """Return facts about the machine that the figures depend on."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 2),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def cpu_model() -> str:
    """Return the name of the processor, or its architecture where /proc/cpuinfo does not have it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def reset_peak_memory() -> float:
    """Reset the peak memory of this process and return its memory in MB. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mb("VmRSS")


def memory_mb(key: str) -> float:
    """Return the current (`VmRSS`) or peak (`VmHWM`) memory of this process in MB. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with a newline at its end."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def write(path: Path, table: str, results: object) -> None:
    """Write a table as `path` with suffix .md, and all figures as JSON to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(table)
    path.write_text(json.dumps(results, indent=2) + "\n")
